# SPDX-License-Identifier: GPL-2.0
"""out/reliability.json: what the last runs have done to break the helpers, and what the
kernel's detectors have reported. What has not run is null.
"""

import json
import re
from pathlib import Path

from tools.build import OUT

# What the tests leave, by the part that leaves it.
PARTS = ("failures", "fuzz", "inputs", "races")
# What a detector says when it begins, and when it reports: the group is a number of reports.
DETECTORS = {
    "kasan": (r"KernelAddressSanitizer initialized", r"BUG: KASAN:()"),
    "lockdep": (r"Lock dependency validator",
                r"(?:WARNING|INFO|BUG): (?:possible|inconsistent|bad unlock|bad contention|held lock|lock held|"
                r"nested lock|suspicious RCU|trying to register|MAX_LOCK)()|turning off the locking correctness()"),
    "kmemleak": (r"kmemleak: .*initialized", r"kmemleak: (\d+) new suspected"),
}


def forget():
    """What is there is of an earlier run."""
    for part in PARTS:
        (OUT / f"{part}.json").unlink(missing_ok=True)


def read(part):
    path = OUT / f"{part}.json"
    return json.loads(path.read_text()) if path.exists() else None


def reports(logs: list[Path]) -> dict[str, int | None]:
    """How many there are in the logs, by detector; None where it did not run."""
    counts = dict.fromkeys(DETECTORS)
    for path in logs:
        log = re.sub(r"^\[ *\d+\.\d+\](?:\[[^]]*\])? ", "", path.read_text(errors="replace"), flags=re.M)
        for name, (begins, says) in DETECTORS.items():
            if re.search(begins, log):
                found = re.findall(rf"^.*?(?:{says})", log, re.M)
                counts[name] = (counts[name] or 0) + sum(int("".join(n) or 1) for n in found)
    return counts


def compose() -> dict:
    failures, fuzz, inputs, races, coverage = (read(part) for part in (*PARTS, "coverage"))
    return {
        "failures_injected": failures and sum(row["points"] for row in failures["rows"]),
        "failures_survived": failures and sum(row["survived"] for row in failures["rows"]),
        "fuzz_ops": fuzz and fuzz["ops"],
        "bad_inputs": inputs and sum(row["ok"] for row in inputs["rows"]),
        "race_seconds": races and sum(row["seconds"] for row in races["rows"]),
        **reports(sorted(OUT.glob("test-*/console.log"))),
        "coverage": coverage and {folder: coverage[folder] for folder in ("src", "samples")},
    }


def write():
    (OUT / "reliability.json").write_text(json.dumps(compose(), indent=1) + "\n")
