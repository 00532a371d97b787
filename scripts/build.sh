#!/bin/sh
# Builds the kernel module. usage: scripts/build.sh [14|15]
#
# The result is target/kmod/freebsd-RELEASE/qpass.ko, and beside it guest-init,
# the static program that tests it as the first process of a guest; or, on FreeBSD, a link to
# what kmod/Makefile makes for the system's own sources.
set -eu
cd "$(dirname "$0")/.."
root=$PWD

die() {
	echo "build: $*" >&2
	exit 1
}

if [ "$(uname -s)" = FreeBSD ]; then
	make -C kmod
	mkdir -p target/kmod/host
	ln -sf "$(make -C kmod -V .OBJDIR)/qpass.ko" target/kmod/host/qpass.ko
	scripts/rust-staticlib.sh guest target/kmod/host/rust target/kmod/host/libguest.a
	ld.lld -m elf_x86_64_fbsd -static --gc-sections -e _start \
		-o target/kmod/host/guest-init target/kmod/host/libguest.a
	echo "build: target/kmod/host/qpass.ko"
	exit 0
fi

release=${1:-14}
headers=$root/.deps/freebsd-$release
[ -d "$headers" ] || die "no headers of FreeBSD $release: run scripts/setup.sh"
osversion=$(cat "$headers/osversion")
out=$root/target/kmod/freebsd-$release
mkdir -p "$out"

# Debian's toolchain: it has the sources of core, which rustup's does not.
env RUSTC=/usr/bin/rustc QPASS_SYSDIR="$headers" CARGO=/usr/bin/cargo \
	scripts/rust-staticlib.sh qpass "$out/rust" "$out/libqpass.a"

scripts/link.sh "" -19 "$out/qpass.ko" "$out/libqpass.a"
env RUSTC=/usr/bin/rustc QPASS_SYSDIR="$headers" CARGO=/usr/bin/cargo \
	scripts/rust-staticlib.sh guest "$out/rust" "$out/libguest.a"
ld.lld-19 -m elf_x86_64_fbsd -static --gc-sections -e _start \
	-o "$out/guest-init" "$out/libguest.a"
echo "build: ${out#"$root"/}/qpass.ko ($(wc -c <"$out/qpass.ko") bytes, FreeBSD $osversion)"
