#!/bin/sh
# Links the relocatable kernel module.
# usage: link.sh LLVM-PREFIX LLVM-SUFFIX OUT LIB.a
# The tools are PREFIXld.lldSUFFIX and so on.
set -eu
prefix=$1 suffix=$2 out=$3 lib=$4
script=$(dirname "$0")/../kmod/qpass.ld
# Two builds at once have a folder each, and OUT is there whole or not at all.
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
# Fat LTO leaves the driver and what it uses of core in the crate's own object;
# the shim is another.
# The rest of the archive is compiler-builtins, whose memcpy and kin the kernel
# exports itself; anything else that would be missing, the artifact check names.
lib=$(cd "$(dirname "$lib")" && pwd)/$(basename "$lib")
mkdir "$work/objects"
(cd "$work/objects" && "${prefix}llvm-ar$suffix" x "$lib")
rm -f "$work"/objects/compiler_builtins-*.o
"${prefix}ld.lld$suffix" -m elf_x86_64_fbsd -r -T "$script" \
	-o "$work/linked" "$work"/objects/*.o
# kldload(8) resolves the globals of every file in one name space: keep ours
# out of it, and the line tables out of kernel memory.
"${prefix}llvm-objcopy$suffix" --strip-debug --keep-global-symbol=qpass_modevent \
	--strip-symbol=__start_set_pcpu --strip-symbol=__stop_set_pcpu \
	--remove-section=.eh_frame --remove-section=.rela.eh_frame \
	--remove-section=.llvm_addrsig --remove-section=.comment \
	"$work/linked" "$work/module"
mv -f "$work/module" "$out"
