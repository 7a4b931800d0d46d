# SPDX-License-Identifier: GPL-2.0
"""make convert: convert drivers of the kernel tree to pagekit.h, and let tests judge, before and after."""

import argparse
import difflib
import json
import os
import re
import sys
import textwrap
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from tools.convert import convert
from tools.convert.convert import DRIVERS
from tools.convert.objects import OBJECTS
from tools.lib import guest
from tools.lib.build import (
    ARCH,
    OUT,
    TOP,
    Broken,
    build_compat,
    build_selftests,
    guarded,
    kernel,
    set_up,
    text_of,
)
from tools.size.count import lines_of

DOCUMENT = TOP / "Documentation/conversions.rst"
RESULTS = OUT / "convert.json"
LIFE = "selftest-life-"


def measure(name, folder) -> dict:
    """What is another in the sources and the objects."""
    driver = DRIVERS[name]
    files = [Path(path).name for path in (*driver.converted(name), *driver.public())]
    was, now = {}, {}
    for place, found in (("before", was), ("after", now)):
        for file in files:
            found |= convert.functions((folder / place / file).read_text())
    lines = lines_of(folder / place / file for place in ("before", "after") for file in files)
    row = {"driver": name, "sources": list(driver.converted(name)),
           "functions_gone": sorted({*was} - {*now}),
           "functions_converted": sorted(f for f, text in now.items() if "pagekit_" in text)}
    for place in ("before", "after"):
        row |= {f"lines_{place}": sum(lines[folder / place / file] for file in files),
                f"text_{place}": sum(text_of((folder / place / file).with_suffix(".o")) for file in files if file.endswith(".c"))}
    diff = [line for file in files for line in difflib.unified_diff(
        *((folder / place / file).read_text().splitlines(keepends=True) for place in ("before", "after")),
        f"before/{file}", f"after/{file}", n=1)]
    (folder / "conversion.diff").write_text("".join(diff))
    return row


def outcome(tested, suite, kind) -> list:
    return [case for case in tested.cases if case.name.startswith(f"{suite}-{kind}.")]


def judge(row, kind, tested):
    """What tests said, and what buffers take."""
    place = {"before": "before", "converted": "after"}[kind]
    row[f"memory_{place}"] = None
    for suite in DRIVERS[row["driver"]].tests:
        cases = outcome(tested, suite, kind)
        test = next((test for test in row["tests"] if test["name"] == suite), None)
        if not test:
            row["tests"].append(test := {"name": suite})
        test[place] = f"{sum(case.ok for case in cases)} of {len(cases)}"
        section = tested.text.partition(f"== {suite}-{kind}\n")[2].partition("\n== ")[0]
        held = re.search(r"# held ([\d.]+) bytes a page", section)
        if held and row[f"memory_{place}"] is None:  # of several users the first
            row[f"memory_{place}"] = float(held[1])


def attempt(rows, config, built, env, with_bugs):
    """Try all kinds in one machine. What ends it is noticed, too: the others are run in another."""
    kinds = [(row, kind, None) for kind in ("before", "converted") for row in rows]
    if with_bugs:
        kinds += [(row, f"bug{i}", bug) for row in rows for i, bug in enumerate(DRIVERS[row["driver"]].bugs)]
        for row in rows:
            row["bugs"] = []
    # As test.sh does: heaps stay once they are loaded.
    kinds.sort(key=lambda each: each[0]["driver"].endswith("_heap"))
    while kinds:
        what = " ".join(f"{row['driver']}:{kind}" for row, kind, _ in kinds)
        tested = guest.test(config, built, "converted", env | {"TRY": what}, name=f"{config}-convert",
                            timeout=guest.TIMEOUT["prod"] * 8)
        console = (tested.result.out_dir / "console.log").read_text(errors="replace").replace("\r", "")
        if "] == begin " not in console:
            raise Broken(f"{tested.result.reason} (logs in {os.path.relpath(tested.result.out_dir)})")
        for row, kind, bug in list(kinds):
            del kinds[0]
            name = row["driver"]
            log = re.split(r"\] == begin ", console.partition(f"] == begin {name} {kind}\n")[2])[0]
            report = guest.vm.REPORT.search(log)
            ended = f"# tried {name} {kind}\n" not in tested.text
            if bug:
                red = [case.name for suite in DRIVERS[name].tests for case in outcome(tested, suite, kind) if not case.ok
                       and not case.detail.startswith("SKIP")]
                said = tested.text.partition(f"# tried {name} {kind}\n")[0].rpartition("# tried ")[2]
                died = re.search(r"^# broken: (\S+: exit status \d+)$", said, re.M)
                said_in_log = report and f"{report[1].strip(' :')} in the kernel's log"
                noticed = red[0] if red else said_in_log or ("the machine ended" if ended else died and died[1])
                row["bugs"].append({"function": bug.function, "was": bug.was, "now": bug.now, "noticed": noticed})
            else:
                judge(row, kind, tested)
            if report or ended:
                break


STEPS = ("make", "touch", "release")


def costs(rows, config, built, env):
    """What the steps of a buffer's life cost, in instructions for each page, before and after: all in one machine."""
    rows = [row for row in rows if any(suite.startswith(LIFE) for suite in DRIVERS[row["driver"]].tests)]
    if not rows:
        return
    what = " ".join(f"{row['driver']}:{kind}" for row in rows for kind in ("before", "converted"))
    result = guest.run(config, built, "costs", env | {"TRY": what}, icount=True, memory="2G", append=(guest.CMA_HEAP,),
                       qemu=guest.CONVERTED_QEMU)
    if result.reason:
        raise Broken(f"{result.reason} (logs in {os.path.relpath(result.out_dir)})")
    text = (result.out_dir / "stdout.log").read_text(errors="replace")
    found = {name: dict(re.findall(r"^# cost (\S+) (\S+)$", said, re.M))
             for name, said in re.findall(r"^== costs-(\S+)\n(.*?)(?=^== |\Z)", text, re.M | re.S)}
    for row in rows:
        names = [suite.removeprefix(LIFE) for suite in DRIVERS[row["driver"]].tests if suite.startswith(LIFE)]
        row["costs"] = [{"name": name, "step": step, "before": float(before[step]), "after": float(after[step]),
                         "ratio": round(float(after[step]) / float(before[step]), 3)}
                        for name in names for before, after in [(found[f"{name}-before"], found[f"{name}-converted"])]
                        for step in STEPS]


def verdict(row) -> str:
    if not row["tests"]:
        return "compiled only"
    if failed := [test["name"] for test in row["tests"] if len({*test["after"].split(" of ")}) != 1 or test["after"][0] == "0"]:
        return f"fails: {', '.join(failed)}"
    if "bugs" not in row:
        return "passes; no bugs tried"
    noticed = {bug["function"] for bug in row["bugs"] if bug["noticed"]}
    if not noticed:
        return "passes; no test notices a bug"
    blind = [name for name in row["functions_converted"] if name not in noticed]
    return "tested" if not blind else f"tested; compiled only: {', '.join(blind)}"


def run(names, with_bugs) -> list[dict]:
    rows = []
    for config in dict.fromkeys(DRIVERS[name].config for name in names):
        mine, where = [name for name in names if DRIVERS[name].config == config], kernel(config)
        built = set_up(where, "size")
        build_selftests(built)
        build_compat(built)
        env = convert.environment(where, built, mine, with_bugs)
        found = [measure(name, Path(env[f"CONVERTED_{name.upper()}"])) | {"tests": []} for name in mine]
        if not ARCH:
            costs(found, where, built, env)
            attempt(found, where, built, env, with_bugs)
        rows += [row | {"behaviour_changes": list(DRIVERS[row["driver"]].changes), "verdict": verdict(row)}
                 for row in found]
    return rows


def cost_lines(row):
    for name, steps in groupby(row.get("costs", ()), itemgetter("name")):
        steps = [(cost["step"], cost["before"], cost["after"]) for cost in steps]
        steps.append(("all", *(sum(step[i] for step in steps) for i in (1, 2))))
        yield f"    {name}, instructions a page: " + ", ".join(
            f"{step} {before:.0f} -> {after:.0f} ({after / before:.2f})" for step, before, after in steps)


def table(rows) -> str:
    line = "{:14} {:>5} {:>13} {:>15} {:>15}  {}"
    text = [line.format("driver", "gone", "lines", "text", "bytes a page", "verdict")]
    for row in rows:
        memory = [row.get(f"memory_{place}") for place in ("before", "after")]
        text.append(line.format(
            row["driver"], len(row["functions_gone"]), f"{row['lines_before']} -> {row['lines_after']}",
            f"{row['text_before']} -> {row['text_after']}",
            "" if None in memory else f"{memory[0]:.2f} -> {memory[1]:.2f}", row["verdict"]))
        text += cost_lines(row)
        text += [f"    {test['name']}: {test['before']} -> {test['after']}" for test in row["tests"] if "after" in test]
        text += [f"    {bug['function']}: {bug['now']}: {bug['noticed'] or 'nobody notices'}" for bug in row.get("bugs", ())]
    return "\n".join(text)


def update(rows):
    """Show them in the document. What was not run stays as it is there."""
    shown = "".join(textwrap.fill(f"   {line}", 80, subsequent_indent=" " * 11, break_on_hyphens=False).rstrip() + "\n"
                    for line in table(rows).split("\n"))
    before, mark, rest = DOCUMENT.read_text().partition(".. results\n\n::\n\n")
    was, end, after = rest.partition("\n.. end of results")
    # By the name that a row begins with. The first is the head of the table.
    found = {row.split()[0]: row for text in (was, shown) for row in re.findall(r"^   \w.*\n(?:    .*\n)*", text, re.M)}
    shown = "".join(found[name] for name in ("driver", *DRIVERS) if name in found)
    counted = f"Tests judge {len(DRIVERS)} drivers, and {len(OBJECTS)} drivers are compiled only."
    before = re.sub(r"(?m)^Tests judge .*", counted, before)
    DOCUMENT.write_text(f"{before}{mark}{shown}{end}{after}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.convert", description=__doc__)
    parser.add_argument("--bugs", action="store_true", help="build each conversion with bugs as well, which tests must notice")
    parser.add_argument("--update", action="store_true", help="document the results")
    parser.add_argument("drivers", nargs="*", help="default: all")
    options = parser.parse_args()
    if unknown := [name for name in options.drivers if name not in DRIVERS]:
        raise Broken(f"tests run no {' '.join(unknown)}, but {' '.join(DRIVERS)}. Converted and compiled only, by "
                     f"python3 -m tools.convert.objects: {' '.join(OBJECTS)}")
    rows = run(options.drivers or [*DRIVERS], options.bugs)
    # What was not asked for stays as it was.
    known = {row["driver"]: row for row in (json.loads(RESULTS.read_text()) if RESULTS.exists() else [])}
    for row in rows:
        if not options.bugs and "bugs" in known.get(row["driver"], {}):
            row["bugs"] = known[row["driver"]]["bugs"]
            row["verdict"] = verdict(row)
        known[row["driver"]] = row
    rows_known = [known[name] for name in DRIVERS if name in known]
    RESULTS.write_text(json.dumps(rows_known, indent=1) + "\n")
    print(f"\n{table(rows)}\nconvert: out/convert.json; the diffs are out/modules-*-DRIVER/conversion.diff")
    if options.update:
        update(rows_known)
    return 1 if any(row["verdict"].startswith("fails") for row in rows) else 0


if __name__ == "__main__":
    sys.exit(guarded(main))
