# SPDX-License-Identifier: GPL-2.0
"""make bench: measure the helpers and their peers in a VM."""

import argparse
import json
import re
import sys

from tools.bench import gate, results
from tools.bench.measure import measure
from tools.lib.build import OUT, TOP, Broken, draw, guarded

DOCUMENT = TOP / "Documentation/performance.rst"
MARK = ".. Of make bench{}. \"python3 -m tools.bench --update\" puts it here.\n\n::\n\n"
FOUND = OUT / "bench.json"


def update(run):
    """Makes these the figures, and shows them in the document: in full for one architecture."""
    gate.update(run)
    full = run["arch"] == "x86"
    mark = MARK.format("" if full else f" ARCH={run['arch']}")
    before, mark, rest = DOCUMENT.read_text().partition(mark)
    after = rest[re.search(r"^\S", rest, re.M).start():]
    lines = "\n".join(f"   {line}".rstrip() for line in results.table(run, sizes=full))
    DOCUMENT.write_text(f"{before}{mark}{lines}\n\n{after}")
    if full:
        draw("tools.bench.chart", FOUND, DOCUMENT.with_suffix(".svg"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.bench", description="Measure the helpers and their peers.")
    parser.add_argument("--update", action="store_true", help="make these the figures that make test-full holds to")
    parser.add_argument("case", nargs="*", help="default: all")
    options = parser.parse_args()
    for name in options.case:
        if name not in results.CASES:
            raise Broken(f"there is no case {name}, but {', '.join(results.CASES)}")
    if options.case and options.update:
        raise Broken("only all cases together make figures")
    run = measure(*options.case)
    FOUND.write_text(json.dumps(run, indent=1) + "\n")
    print("\n" + "\n".join(results.table(run)) + "; see out/bench.json")
    sound = not any("error" in row or "spread" in row for row in run["rows"])
    if options.update:
        if not sound:
            raise Broken("what has failed or did not settle makes no figures")
        update(run)
    return int(not sound)


if __name__ == "__main__":
    sys.exit(guarded(main))
