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

die() {
	echo "build-tools: $*" >&2
	exit 1
}

case $#:${1:-} in
1:-h | 1:--help) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" && exit 0 ;;
0:* | 2:check) ;;
*) echo "usage: scripts/build-tools.sh [check RELEASE]" >&2 && exit 2 ;;
esac
if [ "${1:-}" = check ]; then
	grep -q "^$2 " scripts/headers.txt || [ "$(uname -s)" = FreeBSD ] ||
		die "FreeBSD $2 is not known here: $(awk '{ printf "%s%s", or, $1; or = " or " }' scripts/headers.txt)"
	[ -d ".deps/freebsd-$2" ] || die "no headers of FreeBSD $2: run scripts/setup.sh"
fi
mkdir -p target/freebsd

if [ "$(uname -s)" = FreeBSD ]; then
	for name in qpassctl reactor; do
		cp "$(scripts/built.sh "$name")" target/freebsd/
	done
	echo "build-tools: target/freebsd/qpassctl"
	exit 0
fi

# One at a time: they share zig and cargo's folder.
exec 9>target/freebsd/lock
flock -n 9 || {
	echo "build-tools: waits for another"
	flock 9
}
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
PYTHONPATH=\$(dirname "\$0")/lib exec python3 -m ziglang cc -target x86_64-freebsd.$release.2 "\$@"
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
[ -d "target/freebsd/build/x86_64-unknown-freebsd" ] ||
	echo "build-tools: compiling Rust's std and qpassctl for FreeBSD, some minutes"
if [ "${1:-}" = check ]; then
	cross check "$2"
	exit 0
fi
cross build "$release"
built=target/freebsd/build/x86_64-unknown-freebsd/tools
cp "$built/qpassctl" "$built/examples/reactor" target/freebsd/
echo "build-tools: target/freebsd/qpassctl ($(wc -c <target/freebsd/qpassctl) bytes, FreeBSD $release)"
