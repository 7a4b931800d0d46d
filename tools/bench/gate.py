# SPDX-License-Identifier: GPL-2.0
"""The figures of earlier runs, by kernel: tests/lists/bench.json, and whether they hold."""

import json

from tools.bench.measure import measure
from tools.bench.results import headlines
from tools.lib.build import LISTS
from tools.lib.tap import Case

FIGURES = LISTS / "bench.json"
# A case that is that much worse than its figure fails.
SLACK = 0.05


def known() -> dict[str, dict]:
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def update(run):
    """Makes these the figures."""
    figures = {name_of(row): row["total"] for row in headlines(run)}
    FIGURES.write_text(json.dumps(known() | {run["kernel"]: figures}, indent=1) + "\n")


def name_of(row) -> str:
    return f"{row['case']}-{row['backing']}"


def cases(where) -> list[Case]:
    """Measure ours again. A kernel without figures fails nothing."""
    run = measure("--ours", "--mib", "64", ours=True)
    before, found = known().get(run["kernel"], {}), []
    for row in headlines(run):
        name, now = name_of(row), row.get("total")
        if now is None:
            ok, words = False, row["error"]
        elif name not in before:
            ok, words = True, f"no figure for Linux {run['kernel']}"
        else:
            more = now / before[name] - 1
            ok, words = more <= SLACK, f"{now:g}, {more:+.1%} of {before[name]:g}"
        if "spread" in row:
            words += f"; it did not settle, the two quickest runs differ by {row['spread']:.1%}"
        found.append(Case(where, f"bench.{name}", ok, words))
    return found
