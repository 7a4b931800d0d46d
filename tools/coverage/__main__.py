# SPDX-License-Identifier: GPL-2.0
"""make coverage: which lines of src/ and samples/ the tests reach on the debug kernel.

The modules are built once more, with what KCOV has compilers put into each basic block and
with what debuggers want to know, and these modules meet the tests. A line counts if it has
such a block; in the place where a function was inlined, too. pagekit_cov.h says how what runs is
recorded. A line of src/ that is never reached must be in unreached.txt, with the reason,
and what is there must not be reached.
"""

import argparse
import json
import os
import re
import sys
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

from tools.lib import guest
from tools.lib.build import LISTS, OUT, TOP, Broken, build_compat, call, guarded, read_list, run, set_up

MODULES = OUT / "modules-coverage"
UNREACHED = LISTS / "unreached.txt"
CALLBACK = "__sanitizer_cov_trace_pc"
PANICS = re.compile(r"__asan_handle_no_return|4core9panicking|slice_index_fail")
# Parts of guest/test.sh.
PARTS = "kunit user failures-smoke matrix"
FOLDERS = ("src", "samples")


def blocks(ko) -> dict[str, list[int]]:
    """By section, where the calls of the callback return to, if what runs is recorded. Without blocks that
    do nothing but panic: nobody may get there."""
    found = {}
    said = run("readelf", "-rW", ko, check=True).stdout
    for text in said.split("\nRelocation section ")[1:] if "pagekit_cov_open" in said else ():
        section = re.match(r"'\.rela(\S+)'", text)[1]
        calls = sorted((int(at, 16) + 4, name)
                       for at, name in re.findall(r"^([0-9a-f]+) .*_PLT32 .* (\S+) - 4$", text, re.M))
        found[section] = [at for (at, name), (_, then) in pairwise([*calls, (0, "")])
                          if name == CALLBACK and not PANICS.search(then)]
    return {section: ats for section, ats in found.items() if ats}


def lines(ko, section, ats) -> dict[int, set[tuple[str, int]]]:
    """The lines of ours that each block is of, and was inlined to."""
    calls = "\n".join(f"{at - 1:x}" for at in ats)
    said = run("addr2line", "-aie", ko, "-j", section, input=calls, check=True).stdout
    found = {}
    for at, text in re.findall(r"^0x([0-9a-f]+)\n((?:(?!0x).*\n?)*)", said, re.M):
        places = re.findall(r"^(.*):(\d+)", text, re.M)
        found[int(at, 16) + 1] = {(str(name), int(line)) for path, line in places
                                  if (name := ours(path)) and int(line)}
    return found


def ours(path) -> str | None:
    """As git names it."""
    path = Path(os.path.normpath(TOP / path))
    name = path.relative_to(TOP) if path.is_relative_to(TOP) else None
    return str(name) if name and name.parts[0] in FOLDERS else None


def recorded(folder) -> dict[str, dict[str, set[int]]]:
    """By module and section, the addresses that ran, from the start of the section."""
    found = defaultdict(lambda: defaultdict(set))
    for path in sorted(folder.glob("coverage.*")):
        text = path.read_text()
        sections = defaultdict(list)
        for module, section, start in re.findall(r"^/sys/module/(\w+)/sections/(\S+):0x([0-9a-f]+)$", text, re.M):
            sections[module].append((int(start, 16), section))
        for module, address in re.findall(r"^(\w+) ([0-9a-f]+)$", text, re.M):
            if module in sections:  # else it has gone before
                start, section = max(s for s in sections[module] if s[0] <= int(address, 16))
                found[module][section].add(int(address, 16) - start)
    return found


def measure(parts) -> Path:
    """Run the tests. Returns where they have left what was recorded."""
    built = set_up("debug")
    call("building the modules", "make", "--silent", "--no-print-directory", "modules", "CONFIG=debug",
             f"OUT={MODULES}", "PAGEKIT_COVERAGE=y")
    build_compat(built)
    tested = guest.test("debug", built, parts, {"COVERAGE": 1}, modules=MODULES, name="coverage",
                        timeout=guest.LONG_TIMEOUT)
    result = tested.result
    if result.status is None or not list(result.out_dir.glob("coverage.*")):
        raise Broken(f"{result.reason} (logs in {os.path.relpath(result.out_dir)})")
    failed = [case.name for case in tested.cases[1:] if not case.ok]
    if failed:
        print(f"coverage: these cases failed: {', '.join(failed)}")
    return result.out_dir


def listed() -> dict[tuple[str, str], str]:
    """(file, text of the line): why it is not reached."""
    rows = [row.split(" | ") for row in read_list(UNREACHED)]
    return {(file, text): reason for file, text, reason in rows}


def summary(ran) -> dict:
    every, reached = defaultdict(set), defaultdict(set)
    for ko in sorted(MODULES.glob("*.ko")):
        for section, ats in blocks(ko).items():
            hit = ran[ko.stem][section]
            for at, places in lines(ko, section, ats).items():
                for name, line in places:
                    every[name].add(line)
                    if at in hit:
                        reached[name].add(line)
    texts = {name: (TOP / name).read_text().splitlines() for name in every}
    percent = {}
    for folder in FOLDERS:
        names = [name for name in every if name.startswith(f"{folder}/")]
        percent[folder] = round(100 * sum(len(reached[n]) for n in names) / sum(len(every[n]) for n in names), 1)
    return percent | {
        "files": {name: {"lines": len(every[name]), "reached": len(reached[name])} for name in sorted(every)},
        "missed": [{"file": name, "line": line, "text": texts[name][line - 1].strip()}
                   for name in sorted(every) for line in sorted(every[name] - reached[name])],
    }


def judge(found) -> list[str]:
    known = listed()
    missed = {(row["file"], row["text"]) for row in found["missed"]}
    new = [f"{file}: {text}: not reached, and not in tests/lists/unreached.txt"
           for file, text in sorted(missed - known.keys()) if file.startswith("src/")]
    return new + [f"{file}: {text}: reached, take it off tests/lists/unreached.txt" for file, text in known.keys() - missed]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.coverage",
                                     description="which lines of src/ and samples/ the tests reach")
    parser.add_argument("parts", nargs="*", help=f"parts of tests/guest/test.sh; default: {PARTS}")
    parser.add_argument("--again", action="store_true", help="of the last run, not a new one")
    options = parser.parse_args()
    folder = OUT / "test-coverage" if options.again else measure(" ".join(options.parts) or PARTS)
    found = summary(recorded(folder))
    (OUT / "coverage.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{'file':30}{'lines':>8}{'reached':>9}")
    for name, row in found["files"].items():
        print(f"{name:30}{row['lines']:8}{row['reached']:9}{100 * row['reached'] / row['lines']:8.1f} %")
    for row in found["missed"]:
        print(f"never reached: {row['file']}:{row['line']}: {row['text']}")
    wrong = judge(found)
    for text in wrong:
        print(f"FAILED {text}")
    print(f"coverage: {found['src']} % of the lines of src/, {found['samples']} % of samples/")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(guarded(main))
