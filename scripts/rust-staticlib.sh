#!/bin/sh
# Compiles a crate without an operating system under it, for the kernel or for
# a process with no libc.
# usage: rust-staticlib.sh CRATE TARGET-DIR OUT.a
# environment: CARGO, RUSTC, QPASS_SYSDIR, QPASS_RUSTFLAGS (more flags); a
# toolchain with Rust's sources.
set -eu
crate=$1
target_dir=$2
out=$3
cd "$(dirname "$0")/.."
RUSTC_BOOTSTRAP=1
RUSTFLAGS="-Crelocation-model=static -Ccode-model=kernel -Cforce-frame-pointers=yes -Cno-redzone=yes -Zplt=yes -Zremap-cwd-prefix=.${QPASS_RUSTFLAGS:+ $QPASS_RUSTFLAGS}"
CARGO_TARGET_DIR=$target_dir
[ -z "${RUSTC:-}" ] || export RUSTC
export RUSTC_BOOTSTRAP RUSTFLAGS CARGO_TARGET_DIR
"${CARGO:-cargo}" rustc -q --locked -p "$crate" --lib --release \
	--crate-type staticlib --target x86_64-unknown-none -Zbuild-std=core
# Whole or not at all, for who links it meanwhile.
copy=$(mktemp "$out.XXXXXX")
trap 'rm -f "$copy"' EXIT
trap 'exit 1' HUP INT TERM
cp "$target_dir/x86_64-unknown-none/release/lib$crate.a" "$copy"
mv -f "$copy" "$out"
