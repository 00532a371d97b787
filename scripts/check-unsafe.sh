#!/bin/sh
# Above src/kpi, `unsafe` stands only where the kernel calls in: in an extern
# "C" function whose name ends in _entry. (Clippy sees to the SAFETY lines.)
set -eu
cd "$(dirname "$0")/.."
awk '
	FNR == 1 { entry = 0 }
	/^unsafe extern "C" fn [a-z_]*_entry\(/ { entry = 1; next }
	/^}/ { entry = 0 }
	/^[ \t]*\/\// { next }
	/unsafe/ && !/unsafe extern "C" fn\(/ && !entry {
		print FILENAME ":" FNR ": unsafe outside a callback entry: " $0
		bad = 1
	}
	END { exit bad }
' $(find src -name '*.rs' -not -path 'src/kpi/*')
! grep -rn -i qpass src/kpi --include=*.rs --include=Cargo.toml || {
	echo "check-unsafe: src/kpi knows no driver" >&2
	exit 1
}
echo "check-unsafe: only callback entries above src/kpi"
