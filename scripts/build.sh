#!/bin/sh
# Builds the kernel module. usage: scripts/build.sh [--kasan|--kcov] [14|15]
#
# With --kasan every load and store of the driver itself is one that a kernel with
# KASAN checks, and no other kernel loads the module: it is for tests, and stands in
# target/kmod/freebsd-RELEASE-kasan, which scripts/vm -r RELEASE-kasan takes. With
# --kcov, which stands in freebsd-RELEASE-kcov, every branch tells kcov(4) of itself:
# that wants a kernel with KCOV and COVERAGE.
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

# The program that tests the driver as a 32-bit process: COMPILER LINKER OUT HEADERS...
compat32() {
	compiler=$1 linker=$2 program=$3
	shift 3
	"$compiler" -target i386-unknown-freebsd14 -m32 -march=i686 -std=c11 -O1 -Wall -Wextra \
		-Werror -ffreestanding -fno-stack-protector -fno-pic -fno-builtin "$@" \
		-c tests/guest/compat32.c -o "$program.o"
	"$linker" -m elf_i386_fbsd -static -e _start -o "$program" "$program.o"
	rm -f "$program.o"
}

case ${1:-} in
-h | --help) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" && exit 0 ;;
esac
if [ "$(uname -s)" = FreeBSD ]; then
	# make(1) has no way to quote one.
	case $root in
	*[[:space:]]*) die "$root: bsd.kmod.mk does not build in a path with a space" ;;
	esac
	make -C kmod
	mkdir -p target/kmod/host
	ln -sf "$(make -C kmod -V .OBJDIR)/qpass.ko" target/kmod/host/qpass.ko
	scripts/rust-staticlib.sh guest target/kmod/host/rust target/kmod/host/libguest.a
	ld.lld -m elf_x86_64_fbsd -static --gc-sections -e _start \
		-o target/kmod/host/guest-init target/kmod/host/libguest.a
	compat32 cc ld.lld target/kmod/host/guest32
	echo "build: target/kmod/host/qpass.ko"
	exit 0
fi

kind=
case ${1:-} in
--kasan)
	kind=-kasan
	# By calls, as the kernel's own objects; what is on the stack and in globals is
	# not guarded, for that wants the kernel's constructors.
	options="-asan-instrumentation-with-call-threshold=0 -asan-stack=0 -asan-globals=0"
	QPASS_RUSTFLAGS=-Zsanitizer=kernel-address
	;;
--kcov)
	kind=-kcov
	options="-sanitizer-coverage-level=3 -sanitizer-coverage-trace-pc"
	QPASS_RUSTFLAGS=-Cpasses=sancov-module
	;;
esac
if [ -n "$kind" ]; then
	for option in $options; do
		QPASS_RUSTFLAGS="$QPASS_RUSTFLAGS -Cllvm-args=$option"
	done
	export QPASS_RUSTFLAGS
	shift
fi
release=${1:-14}
headers=$root/.deps/freebsd-$release
grep -q "^$release " scripts/headers.txt ||
	die "FreeBSD $release is not known here: $(awk '{ printf "%s%s", or, $1; or = " or " }' scripts/headers.txt)"
[ -d "$headers" ] || die "no headers of FreeBSD $release: run scripts/setup.sh"
osversion=$(cat "$headers/osversion")
out=$root/target/kmod/freebsd-$release$kind
mkdir -p "$out"
# One build of a release at a time: they share cargo's folder and the archives.
exec 9>"$out/lock"
flock -n 9 || {
	echo "build: waits for another build of FreeBSD $release's"
	flock 9
}
[ -d "$out/rust/x86_64-unknown-none" ] ||
	echo "build: compiling the module and Rust's core for FreeBSD $release, a minute or two"

# Debian's toolchain: it has the sources of core, which rustup's does not.
env RUSTC=/usr/bin/rustc QPASS_SYSDIR="$headers" CARGO=/usr/bin/cargo \
	scripts/rust-staticlib.sh qpass "$out/rust" "$out/libqpass.a"

scripts/link.sh "" -19 "$out/qpass.ko" "$out/libqpass.a"
# A process has no kernel to check it.
unset QPASS_RUSTFLAGS
env RUSTC=/usr/bin/rustc QPASS_SYSDIR="$headers" CARGO=/usr/bin/cargo \
	scripts/rust-staticlib.sh guest "$out/rust" "$out/libguest.a"
ld.lld-19 -m elf_x86_64_fbsd -static --gc-sections -e _start \
	-o "$out/guest-init.$$" "$out/libguest.a"
mv -f "$out/guest-init.$$" "$out/guest-init"
compat32 clang-19 ld.lld-19 "$out/guest32" -nostdinc -I"$headers/arch" -I"$headers/generic"
echo "build: ${out#"$root"/}/qpass.ko ($(wc -c <"$out/qpass.ko") bytes, FreeBSD $osversion)"
