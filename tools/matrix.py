# SPDX-License-Identifier: GPL-2.0
"""make matrix: who shares with whom, and when pages are pinned."""

import argparse
import json
import shutil
import sys

from tools.lib import guest
from tools.lib.build import KERNELS, OUT, guarded, kernel
from tools.lib.cases import judge
from tools.lib.tap import summary

# What an importer does, and in which order.
STEPS = ("create", "attach", "map", "unmap", "close")


def show(cells, failed):
    line = "{:20}  {:13}  {:>4}  {:>10}  {:>6}" + "  {:>6}" * len(STEPS) + "  {}"
    print("\n" + " " * 64 + "pages pinned after")
    print(line.format("exporter", "importer", "data", "at offsets", "itself", *STEPS, ""))
    for cell in cells:
        verdict = "ok" if cell["data_ok"] and cell["offset_ok"] else "mainline fails"
        print(line.format(
            cell["exporter"], cell["importer"],
            *("yes" if cell[key] else "no" for key in ("data_ok", "offset_ok", "self_import")),
            *(cell["pins"][step] for step in STEPS),
            "FAILED" if f"matrix.{cell['exporter']}.{cell['importer']}" in failed else verdict))


def main() -> int:
    parser = argparse.ArgumentParser(description="Share buffers of each exporter with each importer.")
    parser.add_argument("--kernel", choices=KERNELS, default="base")
    options = parser.parse_args()
    where = kernel(options.kernel)
    built, env = guest.prepare(where, "matrix")
    tested = guest.test(where, built, "matrix", env)
    cases = judge(tested.cases, where, "vm matrix")
    seen = tested.result.out_dir / "matrix.json"
    if seen.exists():
        shutil.copyfile(seen, OUT / "matrix.json")
        show(json.loads(seen.read_text()), {case.name for case in cases if not case.ok})
    return summary(cases)


if __name__ == "__main__":
    sys.exit(guarded(main))
