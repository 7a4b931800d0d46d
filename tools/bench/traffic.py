# SPDX-License-Identifier: GPL-2.0
"""Memory traffic: what a plugin of QEMU counts, see traffic.c."""

import platform
import re
from functools import cache

from tools.lib.build import OUT, TESTS, TOOLS, Broken, run
from tools.lib.tap import case

QEMU = "qemu-system-x86_64"
# Data caches of a core, in bytes and ways, by CPU. Lines have 64 bytes.
CACHES = {"AMD Zen 4": {"l1": (32 << 10, 8), "l2": (1 << 20, 8)}}
CPU = "AMD Zen 4"
# What is counted, in the order of the plugin.
COUNTS = ("loads", "stores", "lines", "l1", "l2")
# The pages that marks are stored to: NEIGHBOUR of pagekit-bench, and MARKS of tests/bare/traffic.c.
BENCH, BARE = 1 << 44, 0x200000
PLUGIN = OUT / "traffic.so"
# What tests/bare/traffic.c must come to with the caches of Zen 4: worked out by hand.
KNOWN = {
    "1000 lines": (1000, 0, 1000, 1000, 1000),
    "stores to 1000 lines": (0, 1000, 1000, 1000, 1000),
    "eight loads from each of 1000 lines": (8000, 0, 1000, 1000, 1000),
    "100 loads from two lines each": (100, 0, 200, 200, 200),
    "100 lines changed": (100, 100, 100, 100, 100),
    "half of L1, twice": (512, 0, 256, 256, 256),
    "twice L1, twice": (2048, 0, 1024, 2048, 1024),
    "twice L2, twice": (65536, 0, 32768, 65536, 65536),
    "a set of L1, twice": (16, 0, 8, 8, 8),
    "twice a set of L1, twice": (32, 0, 16, 32, 16),
    "twice 32 sets of L2, twice": (1024, 0, 512, 1024, 1024),
}


def works(built=None) -> bool:
    """Whether this QEMU loads plugins, and runs guests of this kind of machine as fast as ever."""
    if platform.machine() != "x86_64" or "QEMU" in (built or {}):
        return False
    return "-plugin" in run(QEMU, "--help").stdout


def options(out, marks, api=None) -> list:
    """Builds the plugin. Returns options of QEMU that have it write to out."""
    OUT.mkdir(exist_ok=True)
    run("cc", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fvisibility=hidden",
        f"-DAPI={api or api_version()}", TOOLS / "bench/traffic.c", "-o", PLUGIN, check=True)
    caches = ",".join(f"{name}={size}/{ways}" for name, (size, ways) in CACHES[CPU].items())
    return ["-plugin", f"file={PLUGIN},out={out},marks={marks:#x},{caches}"]


def read(out) -> list:
    """What was counted between each two marks."""
    lines = [[int(word) for word in line.split()] for line in out.read_text().splitlines()]
    return [dict(zip(COUNTS, counts, strict=True)) for _, *counts in lines]


def run_bare(out, api=None) -> str:
    """Runs what is known. Returns what QEMU says."""
    program, qemu = OUT / "traffic-bare", options(out, BARE, api)
    out.unlink(missing_ok=True)
    run("cc", "-m32", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-stack-protector", "-fno-pie",
        "-no-pie", "-nostdlib", "-static", "-fcf-protection=none", "-Wl,-Ttext=0x100000,--build-id=none",
        TESTS / "bare/traffic.c", "-o", program, check=True)
    return run("timeout", 60, QEMU, "-accel", "tcg", "-m", "64M", "-nodefaults", "-display", "none", "-no-reboot",
               "-device", "isa-debug-exit,iobase=0xf4", "-kernel", program, *qemu).stderr


@cache
def api_version() -> int:
    """The version of plugins that this QEMU takes: the first, or the least that it takes instead."""
    least = re.search(r"minimum version of (\d+)", run_bare(OUT / "traffic-bare.out", api=1))
    return int(least[1]) if least else 1


def check() -> str:
    """Counts what is known. Returns what is wrong, if anything."""
    out = OUT / "traffic-bare.out"
    said = run_bare(out)
    if not out.exists():
        return said or "nothing was counted"
    found = [tuple(counts.values()) for counts in read(out)]
    if len(found) != len(KNOWN):
        return f"{len(found)} parts were counted, not {len(KNOWN)}"
    return "; ".join(f"{name}: {counts}, not {known}"
                     for (name, known), counts in zip(KNOWN.items(), found, strict=True) if counts != known)


def cases():
    """Where there are no plugins nothing is counted, and nothing wrong."""
    yield case("traffic.known", check() if works() else "")


def add(rows, out):
    """Adds to each row what a page of it takes: in each phase, and in those that count."""
    records = read(out)
    for row in (row for row in rows if "records" in row):
        phases = {phase: records[record] for phase, record in row["records"].items()}
        counted = [phases[name] for name in row["counts"]]
        phases = {"total": {name: sum(phase[name] for phase in counted) for name in COUNTS}} | phases
        row["traffic"] = {phase: {name: round(value / row["pages"], 3) for name, value in counts.items()}
                          for phase, counts in phases.items()}


def caches() -> str:
    """The model in words."""
    sizes = ", ".join(f"{name.upper()} {size >> 10} KiB of {ways} ways" for name, (size, ways) in CACHES[CPU].items())
    return f"the data caches of {CPU}: {sizes}"


def checked(built) -> bool:
    """Whether memory traffic can be counted here. What is counted wrong is no figure."""
    if not works(built):
        print("this QEMU loads no plugins: no memory traffic is counted", flush=True)
        return False
    if wrong := check():
        raise Broken(f"memory traffic is counted wrong: {wrong}")
    return True
