# SPDX-License-Identifier: GPL-2.0
"""make test, make test-full and make soak: build everything, boot the VM, judge what comes
out of it.
"""

import argparse
import functools
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from tools import demo
from tools.bench import gate, traffic
from tools.check import docs, kdir, lists, modules, template, types
from tools.convert import convert
from tools.lib import build, guest
from tools.lib.build import KERNELS, OUT, TOP, Broken, guarded, kernel, load_order, modules_dir, set_up
from tools.lib.cases import choose, judge, part_of, suite_of
from tools.lib.tap import TAP, Case, print_failed, report, setup_case, summary

# What runs where: by level, the parts of guest/test.sh in each boot. What is long is in many, so that it
# can be run again in parts. In the first and the last nothing boots.
BOOTS = {
    "test": {
        "host": ["host"],
        "base": ["kunit user inputs qemu-smoke selftest template matrix fuzz"],
        "swiotlb": ["bounce", "matrix"],
        "numa": ["numa"],
        "debug": ["kunit smoke dma failures-smoke matrix races"],
        "arm64-16k": ["kunit smoke", "demo"],
        "arm64-16k-swiotlb": ["bounce", "matrix"],
    },
    "full": {
        "host": ["host"],
        "base": ["kunit user inputs", "qemu selftest converted template matrix", "fuzz"],
        "swiotlb": ["bounce", "matrix"],
        "nocgroup": ["kunit matrix"],
        "cma": ["cma"],
        "numa": ["numa"],
        "debug": ["kunit", "user", "inputs qemu-smoke dma", "failures", "selftest converted template matrix", "races", "fuzz"],
        "prod": ["kunit user inputs qemu", "selftest converted template matrix races fuzz"],
        "arm64": ["kunit user inputs", "selftest converted template matrix races", "fuzz", "demo"],
        "arm64-debug": ["kunit smoke dma failures-smoke matrix races"],
        "arm64-16k": ["kunit user inputs", "selftest converted template matrix races", "fuzz", "demo"],
        "arm64-16k-swiotlb": ["bounce", "matrix"],
        "arm64-64k": ["kunit"],
        "riscv": ["kunit smoke"],
        "bench": ["bench"],
    },
    "peer": {"base": ["peer"], "swiotlb": ["bounced-peer"]},
}
# What runs only if somebody asks for that very kernel: it takes a machine of 14 GiB.
ON_REQUEST = ("arm64-64k",)
# What test-full has more of: how long each race lasts, and what the fuzzer does.
FULL = {"seconds": 5, "fuzz": "--ops 20000"}
# How many checks the table of bad inputs must reach: rows that reach the same one count once.
INPUT_CHECKS = 120
# What has passed is kept here, for the next run of test-full.
PASSED = OUT / "passed"


@dataclass
class Ran:
    """What a boot has brought."""
    where: str
    parts: str
    cases: list[Case]
    took: dict[str, float]  # by part, in seconds
    stamp: str = ""  # of what was tested
    before: bool = False  # not in this run


def boot(where, parts, **options) -> Ran:
    started = time.monotonic()
    built, env = guest.prepare(where, parts)
    if "converted" in parts:
        env |= convert.environment(guest.config_of(where), built)
    took = {"build": time.monotonic() - started}
    # What this boot has leaked, kmemleak says at its end.
    extra = " leaks" if guest.how(where) == "debug" else ""
    tested = guest.test(where, built, parts + extra, env, name=f"{where}-{parts.split()[0]}", **options)
    folder, cases = tested.result.out_dir, tested.cases
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
    return Ran(where, parts, judge(cases, where, f"vm {parts}{extra}"), took | tested.took)


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


def test_host() -> list[Case]:
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
    cases += [*types.cases(folder, built), *modules.cases(folder, built), *template.cases(),
              *kdir.cases(built["KDIR"]), *docs.cases(), *lists.cases(), *traffic.cases()]
    return judge(cases, "host", "host")


def run(level, where, parts) -> Ran:
    started = time.monotonic()
    try:
        before = stamp(where)
        if parts in ("host", "bench", "demo"):
            cases = test_host() if parts == "host" else judge(
                gate.cases(where) if parts == "bench" else demo.cases(where), where, parts)
            ran = Ran(where, parts, cases, {parts: time.monotonic() - started})
        else:
            ran = boot(where, parts, **FULL if level == "full" else {})
        # If somebody has changed something meanwhile, neither was tested.
        ran.stamp = before if stamp(where) == before else ""
        return ran
    except (Broken, OSError, subprocess.SubprocessError) as failure:
        return Ran(where, parts, [setup_case(where, failure)], {})


# --- What has passed before ----------------------------------------------------------------


@functools.cache
def built_of(config) -> dict:
    return set_up(config)


def stamp(where) -> str:
    """Changes with all that is tested there, and with what tests it."""
    config = "base" if where in ("host", "bench") else guest.config_of(where)
    built = built_of(config)
    documents = () if where == "host" else (":!Documentation", ":!*.md")
    tracked = build.run("git", "ls-files", "-co", "--exclude-standard", "--", ".", *documents, cwd=TOP, check=True)
    programs = [path for path in built["BIN"].glob("pagekit-*") if not path.suffix and path.stem != "pagekit-compat"]
    digest = hashlib.sha256()
    for path in [*(TOP / name for name in tracked.stdout.splitlines()), *sorted(modules_dir(config).glob("*.ko")),
                 *sorted(programs), Path(built["KDIR"], ".config"), Path(built["KDIR"], built["IMAGE"])]:
        if path.is_file():
            digest.update(f"{path}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def kept(where, parts) -> Path:
    return PASSED / f"{where}-{parts.replace(' ', '-')}.json"


def keep(ran):
    if ran.stamp and all(case.ok for case in ran.cases):
        PASSED.mkdir(parents=True, exist_ok=True)
        kept(ran.where, ran.parts).write_text(json.dumps(asdict(ran)) + "\n")


def passed_before(where, parts) -> Ran | None:
    """What has passed is trusted if all is as it was then."""
    path = kept(where, parts)
    if not path.exists():
        return None
    row = json.loads(path.read_text())
    ran = Ran(**row | {"cases": [Case(**case) for case in row["cases"]], "before": True})
    return ran if ran.stamp == stamp(where) else None


# --- Commands --------------------------------------------------------------------------------


def wanted(boots, words) -> list[tuple[str, str]]:
    """The boots that these words name: all somewhere, or one by a part that it has."""
    names = {(where, parts): {"all", where, *(f"{where}:{part}" for part in parts.split())} for where, parts in boots}
    for word in words:
        if not any(word in each for each in names.values()):
            raise Broken(f"there is no part {word}, but {', '.join(sorted(set().union(*names.values())))}")
    return [boot for boot in boots if not words or names[boot] & {*words}]


def asked_for(where) -> bool:
    """Whether kernels of that kind are wanted: all, those of an architecture, or those with some pages."""
    if os.environ.get("KDIR"):
        # Somebody's own kernel is no debug kernel, and of one kind.
        return where == "host" or guest.config_of(where) == kernel()
    wanted = [word for word in kernel().split("-") if word != "base"]
    return {*wanted} <= {*where.split("-")} and (where not in ON_REQUEST or where == kernel())


def asked_boots(level) -> list[tuple[str, str]]:
    return [(where, parts) for where, each in BOOTS[level].items() for parts in each if asked_for(where)]


def test(options) -> int:
    level = options.level
    boots = asked_boots(level)
    if not {*boots} - {("host", "host")}:
        # What is tested of such a kernel is not quick.
        boots += [boot for boot in asked_boots("full") if boot not in boots]
    if not boots:
        raise Broken(f"there is nothing for the kernel {kernel()}, but for {', '.join(BOOTS['test'] | BOOTS['full'])}")
    results = []
    for where, parts in wanted(boots, options.parts):
        # Who names it wants it run.
        ran = None if level == "test" or options.parts else passed_before(where, parts)
        if ran:
            print(f"{where}: has passed before: {parts}", flush=True)
        if not ran:
            kept(where, parts).unlink(missing_ok=True)
            ran = run(level, where, parts)
            if level == "full":
                keep(ran)
        results.append(ran)
    took = [{"where": ran.where, "part": part, "seconds": round(seconds, 1), "before": ran.before}
            for ran in results for part, seconds in ran.took.items()]
    return report([case for ran in results for case in ran.cases], level, took, left(boots, results) if level == "full" else "")


def left(boots, results) -> str:
    passed = {(ran.where, ran.parts) for ran in results if all(case.ok for case in ran.cases)}
    names = [f"{where}:{parts.split()[0]}" for where, parts in boots
             if (where, parts) not in passed and not passed_before(where, parts)]
    return f"left for make test-full: {' '.join(names)}" if names else "nothing is left: all parts have passed"


def test_only(options) -> int:
    """Some cases, in one boot."""
    names, words = choose(" ".join(options.names).split())
    parts = list(dict.fromkeys(map(part_of, names)))
    own = next((part for part in parts if part in guest.BOOTS), None)
    if own and len(parts) > 1:
        raise Broken(f"cases of {own} run in a boot of their own")
    where = kernel(own or options.kernel or ("debug" if {"dma", "failures", "races"} & {*parts} else "base"))
    parts = " ".join(parts)
    built, env = guest.prepare(where, parts)
    order = None
    if parts == "kunit":
        order = load_order(modules_dir(guest.config_of(where)), *{f"{suite_of(name)}_kunit" for name in names})
    tested = guest.test(where, built, parts, env | {"ONLY": " ".join(words)}, order=order, name="only")
    ran = {case.name for case in tested.cases}
    cases = tested.cases + [Case(where, name, False, "did not run") for name in names if name not in ran]
    return report(cases, "only", [{"where": where, "part": part, "seconds": round(seconds, 1)}
                                  for part, seconds in tested.took.items()])


def peer(_options) -> int:
    """What mainline's drivers are known to fail."""
    return summary([case for where, (parts,) in BOOTS["peer"].items() for case in boot(where, parts).cases])


def soak(options) -> int:
    """Each race for long, on the debug kernel."""
    cases = boot(kernel("debug"), "races", seconds=options.seconds).cases
    failed = [case for case in cases if not case.ok]
    print_failed(failed)
    rows = json.loads((OUT / "races.json").read_text())["rows"]
    print(f"soak: {len(rows)} races, {sum(row['seconds'] for row in rows):.0f} s, "
          f"{sum(row['rounds'] for row in rows)} rounds: {f'{len(failed)} failed' if failed else 'all well'}; "
          "see out/races.json")
    return 1 if failed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the tests.")
    parser.set_defaults(level="test", run=test, parts=[])
    commands = parser.add_subparsers()
    for level, function, text in (("test", test, "all tests on the base kernel, and the quick ones on the debug kernel"),
                                  ("full", test, "all tests on both kernels, but what has passed before"),
                                  ("only", test_only, "some suites and cases"),
                                  ("soak", soak, "races between threads, each for long, on the debug kernel"),
                                  ("peer", peer, "what mainline's drivers are known to fail: those cases must fail there")):
        command = commands.add_parser(level, help=text)
        command.set_defaults(level=level, run=function)
        if function is test:
            command.add_argument("parts", nargs="*", help="where, or where:part; default: all")
        elif function is test_only:
            command.add_argument("--kernel", choices=KERNELS)
            command.add_argument("names", nargs="+", help="suites, cases, or suite.case; * stands for anything")
        elif function is soak:
            command.add_argument("seconds", type=float, nargs="?", default=60, help="for each race; default: 60")
    options = parser.parse_args()
    return options.run(options)


if __name__ == "__main__":
    sys.exit(guarded(main))
