# SPDX-License-Identifier: GPL-2.0
"""make fuzz: random operations and garbage for a while."""

import argparse
import json
import re
import shutil
import sys

from tools.lib import guest
from tools.lib.build import KERNELS, OUT, guarded, kernel
from tools.lib.cases import judge
from tools.lib.tap import print_failed


def replay(seed) -> str:
    """The seed of the sequence that fails begins with it."""
    return f"; to replay it: make fuzz SEED={seed}"


def main() -> int:
    parser = argparse.ArgumentParser(description="Do random things to all devices.")
    parser.add_argument("--kernel", choices=KERNELS, default="debug")
    parser.add_argument("--minutes", type=float, default=1)
    parser.add_argument("--seed", type=int, help="of the first sequence (default: drawn)")
    options = parser.parse_args()
    seconds = round(60 * options.minutes)
    seed = "" if options.seed is None else f" --seed {options.seed}"
    where = kernel(options.kernel)
    built, env = guest.prepare(where, "fuzz")
    tested = guest.test(where, built, "fuzz", env, fuzz=f"--seconds {seconds}{seed}", timeout=seconds)
    failed = [case for case in judge(tested.cases, where, "vm fuzz") if not case.ok]
    print_failed(failed)
    seen = tested.result.out_dir / "fuzz.json"
    if not seen.exists():
        # The last that the kernel heard of is where it died.
        log = (tested.result.out_dir / "console.log").read_text(errors="replace")
        last = re.findall(r"pagekit-fuzz: sequence (\d+)", log)
        print("fuzz: failed" + (replay(last[-1]) if last else ""))
        return 1
    shutil.copyfile(seen, OUT / "fuzz.json")
    done = json.loads(seen.read_text())
    verdict = "ok" if not failed else "failed" + ("" if done["failed"] is None else replay(done["failed"]))
    print(f"fuzz: {done['ops']} operations and {done['raw_ioctls']} raw ioctls in {done['seconds']} s, "
          f"seed {done['seed']}: {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
