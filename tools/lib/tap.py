# SPDX-License-Identifier: GPL-2.0
"""Cases: what is read of them in the Test Anything Protocol, and how they are reported. A case is
named `suite.case`, and where it ran: `host`, or the kernel.
"""

import json
import re
from collections import Counter
from dataclasses import asdict, dataclass

from tools.lib.build import OUT

# KUnit indents its cases by four, and parameters of a case deeper.
TAP = re.compile(r"(?: {4})?(not )?ok\b(?: (\d+))?(?: -)? +(.*?)(?: *# ?(.*))?$")


@dataclass
class Case:
    where: str
    name: str
    ok: bool
    detail: str = ""


def case(name, problem) -> Case:
    """One of the host's."""
    return Case("host", name, not problem, problem or "")


def setup_case(where, failure) -> Case:
    """What broke before cases could run."""
    return Case(where, "setup", False, str(failure) + getattr(failure, "last", ""))


def parse_tap(text, where) -> list[Case]:
    """Cases and how they ended. kselftests print what may vary: then their numbers are names."""
    cases, suite, notes = [], "", {}
    for line in text.splitlines():
        if line.startswith("=="):
            suite = line[2:].strip()
        elif note := re.match(r" *# (\S+): (.*)", line):
            notes.setdefault(note[1], note[2])  # KUnit says before the result why a case failed
        elif (match := TAP.match(line)) and match[3] != suite:
            # As kselftests name them: "test: [PASS,case]", "fixture.case", or in words.
            name = re.sub(r".*(?:\[(?:PASS|FAIL),|\.)(.*?)\]?$", r"\1", match[3]) if suite else match[3]
            if suite.startswith("selftest-") and name == match[3]:
                name = f"test-{match[2]}"
            detail = match[4] or (notes.get(name, "") if match[1] else "")
            skipped = detail.upper().startswith(("SKIP", "TODO"))
            cases.append(Case(where, f"{suite}.{name}" if suite else name, not match[1] and not skipped, detail))
    return cases


# --- Reports ---------------------------------------------------------------------------


def report(cases, level, took=(), note="") -> int:
    """A table of suites, what each part took, what failed, and how many. Returns the exit status."""
    failed = [case for case in cases if not case.ok]
    passed = len(cases) - len(failed)
    OUT.mkdir(exist_ok=True)
    (OUT / f"{level if level in ('check', 'intree') else 'test'}.json").write_text(json.dumps(
        {"level": level, "passed": passed, "failed": len(failed), "took": took, "cases": [asdict(c) for c in cases]},
        indent=1))
    suites = Counter((c.where, c.name.split(".")[0]) for c in cases)
    bad = Counter((c.where, c.name.split(".")[0]) for c in failed)
    print(f"\n{'where':18}{'suite':28}{'passed':>8}{'failed':>8}")
    for key, count in suites.items():
        print(f"{key[0]:18}{key[1]:28}{count - bad[key]:8}{bad[key] or '':>8}")
    if took:
        print(f"\n{'where':18}{'part':28}{'took':>8}")
    for row in took:
        minutes, seconds = divmod(round(row["seconds"]), 60)
        print(f"{row['where']:18}{row['part']:28}{minutes:5}:{seconds:02}" + ("  before" if row.get("before") else ""))
    # The cause first: a crash makes many suites incomplete.
    for case in sorted(failed, key=lambda c: (c.name.endswith(".count"), c.name != "vm.clean")):
        print(f"FAILED {case.where}: {case.name}" + (f": {case.detail}" if case.detail else ""))
    if note:
        print(note)
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


def print_failed(failed):
    for case in failed:
        print(f"FAILED {case.name}" + (f": {case.detail}" if case.detail else ""))


def summary(cases) -> int:
    """The same for a command with a table of its own."""
    failed = [case for case in cases if not case.ok]
    print_failed(failed)
    print(f"{len(cases) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0
