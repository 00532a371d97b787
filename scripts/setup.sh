#!/bin/sh
# Brings a machine to where qpass builds and tests: compilers, the sources of
# Rust's core library, and FreeBSD's kernel headers. Safe to run again; a
# second run only looks.
set -eu
cd "$(dirname "$0")/.."

die() {
	echo "setup: $*" >&2
	exit 1
}

# Newer compilers are welcome; older ones are not looked for.
llvm=19
debian_packages="rustc-web cargo-web rust-web-src clang-$llvm lld-$llvm llvm-$llvm libclang-$llvm-dev mandoc"

setup_freebsd() {
	sys=${SYSDIR:-/usr/src/sys}
	[ -d "$sys/cam" ] || die "no kernel sources in $sys: install the src set or set SYSDIR"
	for tool in cargo clang ld.lld llvm-nm; do
		command -v "$tool" >/dev/null 2>&1 ||
			die "$tool not found: pkg install rust-nightly llvm"
	done
	echo "setup: FreeBSD with kernel sources in $sys: ready"
}

setup_debian() {
	missing=
	python3 -m pip --version >/dev/null 2>&1 || missing=" python3-pip"
	for package in $debian_packages; do
		dpkg -s "$package" >/dev/null 2>&1 || missing="$missing $package"
	done
	if [ -n "$missing" ]; then
		sudo=
		if [ "$(id -u)" != 0 ]; then
			sudo=sudo
			command -v sudo >/dev/null 2>&1 ||
				die "missing, and neither root nor sudo to install it; as root: apt-get install$missing"
		fi
		echo "setup: installing$missing"
		$sudo apt-get update -q >/dev/null ||
			die "apt-get update failed (is the machine on the network?); to be installed:$missing"
		# shellcheck disable=SC2086
		DEBIAN_FRONTEND=noninteractive $sudo apt-get install -q -y \
			--no-install-recommends $missing >/dev/null ||
			die "apt-get could not install:$missing"
	fi
	command -v cargo >/dev/null 2>&1 || die "cargo not found: install rustup's stable toolchain"
	command -v python3 >/dev/null 2>&1 || die "python3 not found"
	# Another set-up may be at it: then it is ready when that has ended.
	mkdir -p .deps
	exec 9>.deps/lock
	flock -n 9 || {
		echo "setup: waits for another set-up"
		flock 9
	}
	while read -r release version osversion hash; do
		headers "$release" "$version" "$osversion" "$hash"
	done <scripts/headers.txt
	echo "setup: ready"
}

# FreeBSD's installed headers, kernel ones included, come in the ziglang wheel.
headers() {
	release=$1 version=$2 osversion=$3 hash=$4
	dir=.deps/freebsd-$release
	[ "$(cat "$dir/stamp" 2>/dev/null)" = "$version $osversion" ] && return
	echo "setup: FreeBSD $release kernel headers (ziglang $version)"
	tmp=.deps/tmp-$release
	rm -rf "$tmp" "$dir"
	mkdir -p "$tmp"
	echo "ziglang==$version --hash=sha256:$hash" >"$tmp/requirements.txt"
	python3 -m pip download -q --no-deps --only-binary :all: \
		--platform manylinux_2_12_x86_64 --require-hashes \
		-r "$tmp/requirements.txt" -d "$tmp" >"$tmp/log" 2>&1 || {
		cat "$tmp/log" >&2
		die "pip could not fetch ziglang $version with the pinned hash"
	}
	python3 scripts/unpack_headers.py "$tmp"/ziglang-*.whl "$dir" "$osversion" ||
		die "could not unpack the headers of FreeBSD $release"
	rm -rf "$tmp"
	echo "$version $osversion" >"$dir/stamp"
}

case $(uname -s) in
FreeBSD) setup_freebsd ;;
Linux)
	command -v dpkg >/dev/null 2>&1 || die "this is no Debian: install $debian_packages by hand"
	setup_debian
	;;
*) die "$(uname -s) is not supported: use FreeBSD or Debian" ;;
esac
