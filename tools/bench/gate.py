# SPDX-License-Identifier: GPL-2.0
"""The figures of earlier runs, by kernel: tests/lists/bench.json, and whether they hold."""

import json

from tools.bench.measure import measure
from tools.bench.results import headlines, lines_of
from tools.lib.build import LISTS
from tools.lib.tap import Case

FIGURES = LISTS / "bench.json"
# A case that is that much worse than its figure fails.
SLACK = 0.05


def known() -> dict[str, dict]:
    return json.loads(FIGURES.read_text()) if FIGURES.exists() else {}


def update(run):
    """Makes these the figures."""
    figures = {name: value for row in headlines(run) for name, value in figures_of(row).items()}
    FIGURES.write_text(json.dumps(known() | {run["kernel"]: figures}, indent=1) + "\n")


def name_of(row) -> str:
    return f"{row['case']}-{row['backing']}"


def figures_of(row) -> dict:
    """What is held to: instructions or bytes, and cache lines."""
    figures = {name_of(row): row["total"]}
    if lines := lines_of(row):
        figures[f"{name_of(row)}-lines"] = lines
    return figures


def judge(figures, before) -> tuple[bool, str]:
    """Whether these are no worse than before, and in words."""
    more = {name: now / before[name] - 1 for name, now in figures.items() if before.get(name)}
    return (all(part <= SLACK for part in more.values()),
            ", ".join(f"{figures[name]:g}, {part:+.1%} of {before[name]:g}" for name, part in more.items()))


def cases(where) -> list[Case]:
    """Measure ours again. A kernel without figures fails nothing."""
    run = measure("--ours", "--mib", "64", ours=True)
    before, found = known().get(run["kernel"], {}), []
    for row in headlines(run):
        name = name_of(row)
        if "error" in row:
            ok, words = False, row["error"]
        elif name not in before:
            ok, words = True, f"no figure for Linux {run['kernel']}"
        else:
            ok, words = judge(figures_of(row), before)
        if "spread" in row:
            words += f"; it did not settle, the two quickest runs differ by {row['spread']:.1%}"
        found.append(Case(where, f"bench.{name}", ok, words))
    return found
