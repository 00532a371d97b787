#!/bin/sh
# Builds qpassctl for FreeBSD. usage: scripts/build-tools.sh [check RELEASE]
#
# With "check", compiles it against the headers of another release, and links
# nothing.
#
# On FreeBSD with the system's own cargo; elsewhere with Debian's toolchain, which
# has the sources of std, and with zig's C compiler, which has FreeBSD's libraries
# to link against. The result is target/freebsd/qpassctl.
set -eu
cd "$(dirname "$0")/.."
root=$PWD
mkdir -p target/freebsd

die() {
	echo "build-tools: $*" >&2
	exit 1
}

case $#:${1:-} in
0:* | 2:check) ;;
*) echo "usage: scripts/build-tools.sh [check RELEASE]" >&2 && exit 2 ;;
esac
if [ "${1:-}" = check ]; then
	[ -d ".deps/freebsd-$2" ] || die "no headers of FreeBSD $2: run scripts/setup.sh"
fi

if [ "$(uname -s)" = FreeBSD ]; then
	cargo build -q --locked --profile tools -p qpassctl -p qpass-client --bins --examples
	cp target/tools/qpassctl target/tools/examples/reactor target/freebsd/
	echo "build-tools: target/freebsd/qpassctl"
	exit 0
fi

read -r release version _ hash <scripts/headers.txt
zig=$root/.deps/zig
if [ "$(cat "$zig/stamp" 2>/dev/null)" != "$version" ]; then
	echo "build-tools: zig $version"
	rm -rf "$zig"
	mkdir -p "$zig"
	echo "ziglang==$version --hash=sha256:$hash" >"$zig/requirements.txt"
	python3 -m pip install -q --no-deps --only-binary :all: --no-compile \
		--platform manylinux_2_12_x86_64 --require-hashes \
		-r "$zig/requirements.txt" --target "$zig/lib" >"$zig/log" 2>&1 || {
		cat "$zig/log" >&2
		die "pip could not fetch ziglang $version with the pinned hash"
	}
	echo "$version" >"$zig/stamp"
fi

# std names libraries that nothing here calls, and zig does not have.
cat >"$zig/zigcc" <<EOF
#!/bin/sh
for word; do
	shift
	case \$word in
	-lkvm | -lmemstat | -lprocstat | -ldevstat) ;;
	*) set -- "\$@" "\$word" ;;
	esac
done
PYTHONPATH=$zig/lib exec python3 -m ziglang cc -target x86_64-freebsd.$release.2 "\$@"
EOF
chmod +x "$zig/zigcc"

# usage: cross CARGO-COMMAND RELEASE
cross() {
	env RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 \
		QPASS_SYSDIR="$root/.deps/freebsd-$2" \
		CARGO_TARGET_DIR="$root/target/freebsd/build" \
		CARGO_TARGET_X86_64_UNKNOWN_FREEBSD_LINKER="$zig/zigcc" \
		CARGO_TARGET_X86_64_UNKNOWN_FREEBSD_RUSTFLAGS="-Zremap-cwd-prefix=." \
		ZIG_GLOBAL_CACHE_DIR="$zig/cache" ZIG_LOCAL_CACHE_DIR="$zig/cache" \
		/usr/bin/cargo "$1" -q --locked --profile tools \
		-p qpassctl -p qpass-client --bins --examples \
		-Zbuild-std=std,panic_abort --target x86_64-unknown-freebsd
}
if [ "${1:-}" = check ]; then
	cross check "$2"
	exit 0
fi
cross build "$release"
built=target/freebsd/build/x86_64-unknown-freebsd/tools
cp "$built/qpassctl" "$built/examples/reactor" target/freebsd/
echo "build-tools: target/freebsd/qpassctl ($(wc -c <target/freebsd/qpassctl) bytes, FreeBSD $release)"
