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


def bars(axes, title, heads, value, best, goal, goal_name):
    """Ours, the best peer and the goal of each row."""
    def bar(at, value, colour, words, label_at):
        axes.barh(at, value, THICK, color=colour)
        axes.annotate(words, (label_at, at), (5, 0), textcoords="offset points", va="center", fontsize=8)

    for at, row in enumerate(heads):
        mark, peer = goal(row), best(row)
        bar(at - THICK / 2, value(row), chart.BLUE, number(value(row)), max(value(row), mark or 0))
        if peer:
            bar(at + THICK / 2, value(peer), chart.ORANGE, f"{number(value(peer))}  {peer['impl']}", value(peer))
        if mark:
            axes.plot((mark, mark), (at - THICK, at), color=chart.RED, linewidth=2)
    axes.set_xscale("log")
    shown = [*heads, *filter(None, map(best, heads))]
    axes.set_xlim(logarithmic(axes.xaxis, [value(row) for row in shown]))
    axes.set_ylim(len(heads) - 0.4, -0.6)
    axes.set_yticks(range(len(heads)), [f"{row['case']}, {row['backing']}" for row in heads])
    axes.grid(False, axis="y")
    axes.set_title(title, loc="left")
    for name, colour in (("pagekit", chart.BLUE), ("the best of mainline's", chart.ORANGE), (goal_name, chart.RED)):
        axes.plot([], [], color=colour, linewidth=4, label=name)
    # Below, where no bar is.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.05), ncols=3)


def costs(axes, run, heads):
    bars(axes, "Objects of 64 MiB: instructions per page of 4 KiB (memory: bytes per page)", heads, lambda row: row["total"],
         lambda row: results.best_peer(run["rows"], row), lambda row: results.verdict(run, row)[0], "goal")


def lines(axes, run, heads):
    bars(axes, "Objects of 64 MiB: cache lines touched per page of 4 KiB", [row for row in heads if "traffic" in row],
         results.lines_of, lambda row: results.leanest_peer(run["rows"], row),
         lambda row: results.CASES[row["case"]].lines.get(row["backing"]), "the least there can be")


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
    picture = chart.figure(9, 20)
    above, middle, below = picture.subfigures(3, 1, height_ratios=(2, 2, 1))
    costs(above.subplots(), run, heads)
    lines(middle.subplots(), run, heads)
    below.suptitle("Instructions per page by the object's size in MiB: pages of 4 KiB solid, of 2 MiB dashed; colours as above",
                   x=0.01, ha="left")
    for axes, rows in zip(below.subplots(2, -(-len(cases) // 2)).flat, cases.values(), strict=False):
        sizes(axes, run, rows)
    chart.save(picture, sys.argv[2])


if __name__ == "__main__":
    main()
