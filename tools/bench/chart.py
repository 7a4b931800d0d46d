# SPDX-License-Identifier: GPL-2.0
"""Draws what make bench has found: python -m tools.bench.chart <bench.json> <svg>"""

import json
import sys
from math import ceil, floor, log10
from pathlib import Path

from matplotlib.ticker import NullLocator

from tools.bench import results
from tools.lib import chart

THICK = 0.4  # of a bar, of which a case has two
STYLES = {"4k": "-", "2m": "--"}


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def logarithmic(axis, values):
    """Returns where it begins and ends."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())
    return 10 ** floor(log10(min(values))), 10 ** ceil(log10(max(values)))


def bars(axes, run, heads):
    """Ours, the best peer and the goal of each row."""
    def bar(at, value, colour, words, label_at):
        axes.barh(at, value, THICK, color=colour)
        axes.annotate(words, (label_at, at), (5, 0), textcoords="offset points", va="center", fontsize=8)

    for at, row in enumerate(heads):
        goal, peer = results.verdict(run, row)[0], results.best_peer(run["rows"], row)
        bar(at - THICK / 2, row["total"], chart.BLUE, number(row["total"]), max(row["total"], goal or 0))
        if peer:
            bar(at + THICK / 2, peer["total"], chart.ORANGE, f"{number(peer['total'])}  {peer['impl']}", peer["total"])
        if goal:
            axes.plot((goal, goal), (at - THICK, at), color=chart.RED, linewidth=2)
    axes.set_xscale("log")
    axes.set_xlim(logarithmic(axes.xaxis, [row["total"] for row in heads]))
    axes.set_ylim(len(heads) - 0.4, -0.6)
    axes.set_yticks(range(len(heads)), [f"{row['case']}, {row['backing']}" for row in heads])
    axes.grid(False, axis="y")
    axes.set_title("Objects of 64 MiB: instructions per page of 4 KiB (memory: bytes per page)", loc="left")
    for name, colour in (("pagekit", chart.BLUE), ("the best of mainline's", chart.ORANGE), ("goal", chart.RED)):
        axes.plot([], [], color=colour, linewidth=4, label=name)
    axes.legend(loc="lower right")


def sizes(axes, run, heads):
    """Ours and the best peer of one case, by the size of the object."""
    values = []
    for row in heads:
        best = results.best_peer(run["rows"], row)
        for name, colour in ((row["impl"], chart.BLUE), (best and best["impl"], chart.ORANGE)):
            points = sorted((r["mib"], r["total"]) for r in run["rows"] if "total" in r and
                            (r["case"], r["backing"], r["impl"]) == (row["case"], row["backing"], name))
            values += [total for _, total in points]
            axes.plot(*zip(*points, strict=True), STYLES[row["backing"]], color=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(logarithmic(axes.yaxis, values))
    logarithmic(axes.xaxis, [1])
    axes.set_xlim(0.7, 6000)
    axes.set_xticks((1, 8, 64, 512, 4096), ("1", "", "64", "", "4096"))
    axes.set_title(heads[0]["case"])


def main():
    run = json.loads(Path(sys.argv[1]).read_text())
    heads = [row for row in results.headlines(run) if "total" in row]
    cases = {row["case"]: [r for r in heads if r["case"] == row["case"]] for row in heads if row["case"] != "memory"}
    picture = chart.figure(9, 13)
    above, below = picture.subfigures(2, 1, height_ratios=(2, 1))
    bars(above.subplots(), run, heads)
    below.suptitle("The same by the size of the object in MiB: made of 4 KiB pages (solid), of 2 MiB pages (dashed)",
                   x=0.01, ha="left")
    for axes, rows in zip(below.subplots(2, -(-len(cases) // 2)).flat, cases.values(), strict=False):
        sizes(axes, run, rows)
    chart.save(picture, sys.argv[2])


if __name__ == "__main__":
    main()
