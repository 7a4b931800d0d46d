# SPDX-License-Identifier: GPL-2.0
"""make bench: measure the helpers and their peers in a VM."""

import argparse
import json
import sys

from tools.bench import figures
from tools.build import OUT, Broken, draw, guarded


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the helpers and their peers.")
    parser.add_argument("--update", action="store_true", help="make these the figures that make test-full holds to")
    parser.add_argument("case", nargs="*", help="default: all")
    options = parser.parse_args()
    for name in options.case:
        if name not in figures.CASES:
            raise Broken(f"there is no case {name}, but {', '.join(figures.CASES)}")
    if options.case and options.update:
        raise Broken("only all cases together make figures")
    run = figures.measure(*options.case)
    found = OUT / "bench.json"
    found.write_text(json.dumps(run, indent=1) + "\n")
    if options.update:
        figures.update(run)
        draw("tools.bench.chart", found, figures.DOCUMENT.with_suffix(".svg"))
    print("\n" + "\n".join(figures.table(run)) + "; see out/bench.json")
    return int(any("error" in row for row in run["rows"]))


if __name__ == "__main__":
    sys.exit(guarded(main))
