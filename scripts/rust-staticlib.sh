#!/bin/sh
# Compiles the Rust part for the kernel.
# usage: rust-staticlib.sh TARGET-DIR OUT.a
# environment: CARGO, RUSTC, QPASS_SYSDIR; a toolchain with Rust's sources.
set -eu
target_dir=$1
out=$2
cd "$(dirname "$0")/.."
RUSTC_BOOTSTRAP=1
RUSTFLAGS="-Crelocation-model=static -Ccode-model=kernel -Cforce-frame-pointers=yes -Cno-redzone=yes -Zplt=yes -Zremap-cwd-prefix=."
CARGO_TARGET_DIR=$target_dir
export RUSTC RUSTC_BOOTSTRAP RUSTFLAGS CARGO_TARGET_DIR
"${CARGO:-cargo}" rustc -q --locked -p qpass --lib --release \
	--crate-type staticlib --target x86_64-unknown-none -Zbuild-std=core
cp "$target_dir/x86_64-unknown-none/release/libqpass.a" "$out"
