# SPDX-License-Identifier: GPL-2.0
"""Draws what make size has found: python -m tools.size.chart <size.json> <svg>"""

import json
import sys
from pathlib import Path

from tools.lib import chart
from tools.size.results import DRIVERS, totals

PANELS = {"text": "Text", "loaded": "Loaded size, in whole pages"}


def main():
    found = json.loads(Path(sys.argv[1]).read_text())
    picture = chart.figure(9, 3.6)
    for axes, (unit, title) in zip(picture.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        linked, duplicated, even = totals(found, unit)
        numbers = range(1, DRIVERS + 1)
        for sizes, colour, label in ((duplicated, chart.ORANGE, "with copies"), (linked, chart.BLUE, "linked, with the helpers")):
            axes.plot(numbers, [size / 1024 for size in sizes], color=colour, label=label)
        if even:
            axes.vlines(even, 0, linked[even - 1] / 1024, chart.GREY, ":", label=f"less from {even} drivers on")
        axes.set_xlim(1, DRIVERS)
        axes.set_ylim(0)
        axes.set_xticks((1, *range(4, DRIVERS + 1, 4)))
        axes.set_xlabel("drivers as large as the samples on average")
        axes.set_title(f"{title}, KiB", loc="left")
        axes.legend(loc="upper left")
    chart.save(picture, sys.argv[2])


if __name__ == "__main__":
    main()
