# SPDX-License-Identifier: GPL-2.0
"""make check: all that needs no machine to boot."""

import subprocess
import sys

from tools.bench import traffic
from tools.check import docs, kdir, lint, lists, modules, template, types
from tools.intree import check as intree
from tools.lib.build import Broken, guarded, modules_dir, set_up
from tools.lib.tap import report, setup_case


def main() -> int:
    try:
        # What the set-up prints comes first.
        built, folder = set_up("base", "check"), modules_dir("base")
        print("check: clippy builds everything once more", flush=True)
        cases = [*types.cases(folder, built), *modules.cases(folder, built), *template.cases(), *kdir.cases(built["KDIR"]),
                 *docs.cases(), *lists.cases(), *traffic.cases(), *lint.cases(), *intree.cases(built["KDIR"])]
    except (Broken, OSError, subprocess.SubprocessError) as failure:
        cases = [setup_case("host", failure)]
    return report(cases, "check")


if __name__ == "__main__":
    sys.exit(guarded(main))
