# SPDX-License-Identifier: GPL-2.0
"""Runs the benchmark in a VM whose clock counts instructions."""

import json
import os
from pathlib import Path

from tools.bench import traffic
from tools.bench.results import CASES, OURS, best_peer
from tools.convert import convert
from tools.lib import guest
from tools.lib.build import HEAP, OUT, Broken, kernel, set_up

# The largest objects have 4 GiB.
MEMORY = "6500M"
TIMEOUT = 240
# What the plugin leaves.
TRAFFIC = "traffic"


def measure(*args, ours=False) -> dict:
    config = kernel()
    built = set_up(config, "kernel" if ours else "convert")
    converted = "" if ours else convert.build(config, built, "udmabuf") / "udmabuf_converted.ko"
    env = {"ARGS": " ".join(args), "HEAP": HEAP, "CONVERTED": converted}
    counted = traffic.checked(built)
    qemu = traffic.options(OUT / f"bench-{config}" / TRAFFIC, traffic.BENCH) if counted else []
    result = guest.run(config, built, "bench", env, icount=True, memory=MEMORY, timeout=TIMEOUT, qemu=qemu)
    if result.reason:
        raise Broken(f"{result.reason} (logs in {os.path.relpath(result.out_dir)})")
    return read(result.out_dir, config, built["ARCH"])


def read(out_dir: Path, config, arch) -> dict:
    """What pagekit-bench and the plugin have left, per page, in the form of bench.json."""
    rows = []
    for line in (out_dir / "rows.json").read_text().splitlines():
        row = json.loads(line)
        if "error" not in row:
            if "peak" in row:
                row["phases"] = {"held": row.pop("held"), "peak": row["peak"]}
                row["total"] = row.pop("peak")
            row["phases"] = {name: round(value / row["pages"], 3) for name, value in row["phases"].items()}
            row["total"] = round(row["total"] / row["pages"], 3)
        row["unit"] = CASES[row["case"]].unit + " per page"
        rows.append(row)
    if (out_dir / TRAFFIC).exists():
        traffic.add(rows, out_dir / TRAFFIC)
    for row in rows:
        row.pop("records", None)
    release = (out_dir / "kernel").read_text().strip()
    run = {"kernel": release if config == "base" else f"{release}, {config}", "arch": arch,
           "unit": "guest instructions per page", "rows": rows}
    for row in rows:
        peer = best_peer(rows, row)
        if row["impl"] == OURS and peer and "total" in row:
            row["ratio_to_peer"] = round(row["total"] / peer["total"], 4)
    return run
