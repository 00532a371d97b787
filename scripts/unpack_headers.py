"""Unpack FreeBSD's amd64 kernel headers from a ziglang wheel.

usage: unpack_headers.py WHEEL DIRECTORY OSVERSION

The wheel splits them into what every architecture shares (generic) and what
amd64 has of its own (arch). config(8)'s option headers are made empty (opt).
"""

import sys
import zipfile
from pathlib import Path

PREFIXES = {
    "ziglang/lib/libc/include/generic-freebsd/": "generic",
    "ziglang/lib/libc/include/x86_64-freebsd-none/": "arch",
}
OPTIONS = (
    "opt_cam opt_ddb opt_global opt_hwpmc_hooks opt_kstack_pages opt_platform "
    "opt_sched opt_vm bus_if device_if"
).split()


def main() -> None:
    wheel, directory, osversion = sys.argv[1:]
    root = Path(directory)
    count = 0
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            for prefix, part in PREFIXES.items():
                if name.startswith(prefix) and name.endswith(".h"):
                    target = root / part / name.removeprefix(prefix)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(archive.read(name))
                    count += 1
    if not (root / "generic/cam/cam_ccb.h").exists():
        sys.exit(f"{wheel}: no FreeBSD kernel headers in this wheel")
    (root / "opt").mkdir()
    for option in OPTIONS:
        (root / "opt" / f"{option}.h").write_text("")
    (root / "osversion").write_text(osversion + "\n")
    print(f"setup: {count} headers in {root}")


if __name__ == "__main__":
    main()
