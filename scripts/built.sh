#!/bin/sh
# Builds a program of the tools and says where it is, whatever CARGO_TARGET_DIR,
# CARGO_BUILD_TARGET and cargo's configuration make of that.
# usage: built.sh qpassctl|reactor
set -eu
cd "$(dirname "$0")/.."
case $#:${1:-} in
1:qpassctl) set -- -p qpassctl --bin qpassctl ;;
1:reactor) set -- -p qpass-client --example reactor ;;
*) echo "usage: scripts/built.sh qpassctl|reactor" >&2 && exit 2 ;;
esac
messages=$(cargo build -q --locked --profile tools --message-format json-render-diagnostics "$@")
path=$(printf '%s\n' "$messages" | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
[ -n "$path" ] || {
	echo "built: cargo names no program" >&2
	exit 1
}
printf '%s\n' "$path"
