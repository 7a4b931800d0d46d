# SPDX-License-Identifier: GPL-2.0
"""make test, make test-full and make soak: build everything, boot the VM, judge what comes
out of it.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter

from tools import guest
from tools.bench import gate
from tools.build import OUT, TOP, Broken, guarded, modules_dir, set_up
from tools.cases import judge
from tools.check import docs, lists, modules, template, types
from tools.tap import TAP, Case, print_failed, report, setup_case, summary

# What runs where: by level, the parts of guest/test.sh. The selftests need the 6 GiB.
PARTS = {
    ("test", "base"): "kunit user inputs selftest template matrix fuzz",
    ("test", "swiotlb"): "bounce",
    ("test", "debug"): "kunit smoke failures-smoke matrix races leaks",
    ("full", "base"): "kunit user inputs selftest converted template matrix fuzz",
    ("full", "swiotlb"): "bounce",
    ("full", "nocgroup"): "kunit matrix",
    ("full", "cma"): "cma",
    ("full", "debug"): "kunit user failures inputs selftest converted template matrix races fuzz leaks",
    ("soak", "debug"): "races leaks",
    ("peer", "base"): "peer",
    ("peer", "swiotlb"): "bounced-peer",
}
# What test-full has more of: how long each race lasts, and what the fuzzer does.
FULL = {"seconds": 5, "fuzz": "--ops 20000"}
# How many checks the table of bad inputs must reach: rows that reach the same one count once.
INPUT_CHECKS = 120


def test_vm(level, where, **options) -> list[Case]:
    parts = PARTS[level, where]
    built, env = guest.prepare(where, parts)
    tested = guest.test(where, built, parts, env, **(FULL if level == "full" else {}) | options)
    folder, cases = tested.result.out_dir, []
    for name in ("matrix.json", "fuzz.json"):
        if (folder / name).exists():
            shutil.copyfile(folder / name, OUT / name)
    if (inputs := folder / "inputs").exists():
        rows = [json.loads(line) for line in inputs.read_text().splitlines()]
        (OUT / "inputs.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        checks = len({row["check"] for row in rows})
        cases.append(Case(where, "checks.reached", checks >= INPUT_CHECKS, f"{checks} different ones"))
    if "races" in parts:
        (OUT / "races.json").write_text(json.dumps({"rows": race_rows(tested.text)}, indent=1) + "\n")
    if "failures" in parts:
        report_failures(tested.text)
    return judge(tested.cases + cases, where, f"vm {parts}")


def race_rows(text) -> list[dict]:
    """What races say of themselves before their result: how long, and the rounds of each side."""
    rows, seconds, sides = [], 0, Counter()
    for line in text.splitlines():
        if said := re.match(r"# raced ([\d.]+) s: (.*)", line):
            seconds += float(said[1])
            for name, n in re.findall(r"(\S.*?)=(\d+)", said[2]):
                sides[name] += int(n)
        elif (match := TAP.match(line)) and match[3].startswith("races."):
            rows.append({"race": match[3].removeprefix("races."), "ok": not match[1], "seconds": round(seconds, 1),
                         "rounds": sides.total(), "sides": dict(sides)})
            seconds, sides = 0, Counter()
    return rows


# What the guest prints in front of a case's result.
FAILURE_KINDS = ("slab", "page", "usercopy")
FAILURES = re.compile(r"^# (\w+): (\d+) points, (\d+) survived\n", re.M)
CASE_FAILURES = re.compile(r"((?:^# \w+: .* survived\n)+)^(?:not )?ok \d+ - failures\.(\S+)", re.M)


def report_failures(text):
    """What failed on purpose in each entry point, and after how much of that all was well."""
    rows, devices = {}, {}
    for counts, entry in CASE_FAILURES.findall(text):
        for kind, points, survived in FAILURES.findall(counts):
            row = rows.setdefault((entry, kind), {"entry": entry, "kind": kind, "points": 0, "survived": 0})
            row["points"] += int(points)
            row["survived"] += int(survived)
            total = devices.setdefault(entry.split(".")[0], Counter())
            total.update({kind: int(points), "survived": int(survived)})
    (OUT / "failures.json").write_text(json.dumps({"rows": list(rows.values())}, indent=1) + "\n")
    line = "{:24}" + "{:>10}" * (len(FAILURE_KINDS) + 1)
    print("\n" + line.format("made to fail", *FAILURE_KINDS, "survived"))
    for device, total in devices.items():
        print(line.format(device, *(total[kind] for kind in FAILURE_KINDS), total["survived"]))


def test_host(_level, _host) -> list[Case]:
    """Pure code, and what depends on what."""
    print("host: cargo test", flush=True)
    run = subprocess.run(["cargo", "test", "--quiet", "--locked", "--manifest-path", TOP / "src/Cargo.toml",
                          "--target-dir", OUT / "host", "--", "--format=pretty"], text=True, cwd=TOP,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    found = re.findall(r"^test (.*?)(?: - should panic)? \.\.\. (\w+)", run.stdout, re.M)
    cases = [Case("host", "rust." + re.sub(r" \(line \d+\)", "", name).replace(" - ", "::").replace(" ", "_"),
                  outcome == "ok", outcome) for name, outcome in found]
    if run.returncode:
        print(run.stdout)
        cases.append(Case("host", "cargo-test", False, "failed"))
    built, folder = set_up("base"), modules_dir("base")
    cases += [*types.cases(folder, built), *modules.cases(folder, built), *template.cases(), *docs.cases(), *lists.cases()]
    return judge(cases, "host", "host")


def test_bench(_level, where) -> list[Case]:
    return judge(gate.cases(where), where, "bench")


def test(options) -> int:
    level = options.level
    kernels = [options.kernel] if options.kernel else ["base"] if os.environ.get("KDIR") else ["base", "debug"]
    if "base" in kernels:
        kernels[1:1] = ["swiotlb", "nocgroup", "cma"] if level == "full" else ["swiotlb"]
    jobs = [] if options.kernel == "debug" else [("host", test_host)]
    cases = []
    jobs += [(kernel, test_vm) for kernel in kernels]
    if level == "full" and "base" in kernels:
        jobs.append(("bench", test_bench))
    for where, run in jobs:
        try:
            cases += run(level, where)
        except (Broken, OSError, subprocess.SubprocessError) as failure:
            cases.append(setup_case(where, failure))
    return report(cases, level)


def peer(_options) -> int:
    """What mainline's drivers are known to fail."""
    return summary(test_vm("peer", "base") + test_vm("peer", "swiotlb"))


def soak(options) -> int:
    """Each race for long, on the debug kernel."""
    # There all memory is alike. Pages that are referenced can't be moved to be pinned, and two that pin
    # a movable page at once can be refused: what must come of it would depend.
    cases = test_vm("soak", "debug", seconds=options.seconds, append=())
    failed = [case for case in cases if not case.ok]
    print_failed(failed)
    rows = json.loads((OUT / "races.json").read_text())["rows"]
    print(f"soak: {len(rows)} races, {sum(row['seconds'] for row in rows):.0f} s, "
          f"{sum(row['rounds'] for row in rows)} rounds: {f'{len(failed)} failed' if failed else 'all well'}; "
          "see out/races.json")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests.")
    parser.set_defaults(run=test, level="test", kernel=None)
    commands = parser.add_subparsers(dest="command")
    for name, function, text in (("full", test, "all tests on both kernels; without it the quick ones on the debug kernel"),
                                 ("soak", soak, "races between threads, each for long, on the debug kernel"),
                                 ("peer", peer, "what mainline's drivers are known to fail: those cases must fail there")):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=function, level=name)
        if function is soak:
            command.add_argument("seconds", type=float, nargs="?", default=60, help="for each race; default: 60")
    parser.add_argument("--kernel", choices=("base", "debug"))
    options = parser.parse_args()
    return options.run(options)


if __name__ == "__main__":
    sys.exit(guarded(main))
