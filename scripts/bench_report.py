"""Makes a table and a plot of what tests/guest/src/bench.rs printed.

usage: bench_report.py BENCH.TXT DIRECTORY

A line is: driver, call, command, depth, commands, nanoseconds, system calls,
microseconds of the program's CPU time, ticks of all CPUs, errors.
"""

import collections
import pathlib
import statistics
import sys

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402

WHATS = {"tur": "TEST UNIT READY", "4k": "read 4 KiB", "128k": "read 128 KiB", "1m": "read 1008 KiB"}
HZ = 127  # stathz


def load(path):
    turns = collections.defaultdict(list)
    for line in path.read_text().splitlines():
        driver, call, what, depth, *numbers = line.split()
        n, ns, syscalls, cpu, ticks, errors = map(int, numbers)
        if errors:
            sys.exit(f"bench: {line}: commands failed")
        turns[what, int(depth), driver, call].append(
            (ns / n / 1000, syscalls / n, cpu / n, ticks / HZ * 1e6 / n)
        )
    return turns


def quartiles(values):
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratio(turns, key, other):
    """Rate of `key` over rate of `other`, round by round: quartiles."""
    pairs = zip(turns[key], turns[other])
    return quartiles([theirs[0] / ours[0] for ours, theirs in pairs])


def table(turns):
    yield "| command | depth | driver | call | us/command | quartiles | system calls | program CPU us | all CPUs us | rate, of pass(4)'s |"
    yield "| --- | ---: | --- | --- | ---: | --- | ---: | ---: | ---: | --- |"
    for what, name in WHATS.items():
        for depth in sorted({k[1] for k in turns if k[0] == what}):
            for key in [k for k in turns if k[:2] == (what, depth)]:
                _, _, driver, call = key
                low, middle, high = quartiles([t[0] for t in turns[key]])
                syscalls, cpu, ticks = (statistics.median(t[i] for t in turns[key]) for i in (1, 2, 3))
                peer = (what, depth, "pass", "command" if call == "command" else "queue")
                against = ""
                if driver == "qpass" and peer in turns:
                    l, m, h = ratio(turns, key, peer)
                    against = f"{m:.2f} ({l:.2f} to {h:.2f})"
                yield (
                    f"| {name} | {depth} | {driver} | {call} | {middle:.0f} | {low:.0f} to {high:.0f} "
                    f"| {syscalls:.2f} | {cpu:.0f} | {ticks:.0f} | {against} |"
                )


def plot(turns, path):
    calls = [("pass", "queue"), ("qpass", "queue"), ("qpass", "enter"), ("qpass", "enter-copied")]
    figure, axes = plt.subplots(1, len(WHATS), figsize=(15, 4), constrained_layout=True)
    for axis, (what, name) in zip(axes, WHATS.items()):
        for driver, call in calls:
            points = []
            for depth in sorted({k[1] for k in turns}):
                times = [t[0] for t in turns.get((what, depth, driver, call), [])]
                if times:
                    low, middle, high = quartiles(times)
                    points.append((depth, middle, middle - low, high - middle))
            if points:
                depth, middle, below, above = zip(*points)
                axis.errorbar(depth, middle, yerr=(below, above), marker="o", capsize=3, label=f"{driver} {call}")
        axis.set_xscale("log", base=2)
        axis.set_xticks([1, 8, 32, 128], ["1", "8", "32", "128"])
        axis.set_ylim(bottom=0)
        axis.set_title(name)
        axis.set_xlabel("depth")
    axes[0].set_ylabel("µs per command (median, quartiles)")
    axes[-1].legend()
    figure.savefig(path)


def main():
    source, out = map(pathlib.Path, sys.argv[1:])
    turns = load(source)
    rounds = max(map(len, turns.values()))
    lines = [f"Medians of {rounds} rounds.", "", *table(turns)]
    (out / "bench.md").write_text("\n".join(lines) + "\n")
    plot(turns, out / "bench.svg")
    print("\n".join(lines))


main()
