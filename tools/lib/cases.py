# SPDX-License-Identifier: GPL-2.0
"""Which cases there must be. A suite that is gone, or that loads and runs nothing, fails nothing by
itself: so tests/lists/cases.txt has their number, by suite and part of the tests, and sources and
programs say which ones they have.
"""

import os
import re
from collections import defaultdict
from fnmatch import fnmatchcase

from tools.lib.build import BIN, LISTS, TESTS, TOP, Broken, build_user, read_list, run
from tools.lib.tap import Case

COUNTS = LISTS / "cases.txt"
# The parts of guest/test.sh with only the quick ones of the cases of others.
SMOKE = {"user": "smoke", "failures": "failures-smoke", "qemu": "qemu-smoke"}


def suite_of(name) -> str:
    """What fails or refuses has a suite for each device."""
    return re.match(r"(?:(?:dma|failures|inputs)\.)?[^.]+", name)[0]


def part_of(name) -> str:
    """The part that runs the whole suite."""
    kind = name.split(".")[0].removesuffix("-mainline")
    if kind.startswith("pagekit_"):
        return "kunit"
    return kind if kind in ("dma", "failures", "inputs", "races", "cma", "numa", "qemu") else "user"


# --- What sources and programs say ---------------------------------------------------


def in_kunit() -> list[str]:
    """The cases of KUnit suites, also those that examples in comments are made to."""
    examples = run("awk", "-f", TESTS / "kunit/examples.awk", *sorted((TOP / "src").glob("*.rs")), check=True).stdout
    names = []
    for text in (examples, *(path.read_text() for path in sorted((TESTS / "kunit").glob("*.[rc]*")))):
        if suite := re.search(r'#\[kunit_tests\((\w+)\)\]|struct kunit_suite suite = \{\n\t\.name = "(\w+)"', text):
            cases = re.findall(r"^ *#\[test\]\n(?: *#\[.*\n)* *fn (\w+)|^\tKUNIT_CASE\w*\((\w+)", text, re.M)
            names += [f"{suite[1] or suite[2]}.{rust or c}" for rust, c in cases]
    return names


def in_user_space(*options) -> list[str]:
    build_user()
    return run(BIN / "pagekit-test", "--list", *options, check=True).stdout.split()


def contents() -> dict[tuple[str, str], list[str]]:
    """The names, by suite and part."""
    found = defaultdict(list)
    for name in [*in_kunit(), *in_user_space(), *in_user_space("--inputs", "-")]:
        found[suite_of(name), part_of(name)].append(name)
    for name in in_user_space("--smoke"):
        if part_of(name) in SMOKE:
            found[suite_of(name), SMOKE[part_of(name)]].append(name)
    return found


def choose(words) -> tuple[list[str], list[str]]:
    """The names that these words stand for: a suite, a case of any suite, or both with a dot between
    them. What is named pagekit_ can be named without. KUnit suites alone need nothing of user space.
    The second list is the first with `suite.` for all cases of a suite."""
    names = in_kunit()
    suites = {suite.removeprefix("pagekit_") for suite in map(suite_of, names)}
    if not suites.issuperset(word.removeprefix("pagekit_").split(".")[0] for word in words):
        names += [*in_user_space(), *in_user_space("--inputs", "-")]
    there, found = defaultdict(list), []
    for name in names:
        there[suite_of(name).removeprefix("pagekit_")].append(name)
    for word in words:
        patterns = (word, f"{word}.*", f"*.{word}")
        matching = [name for name in names if any(fnmatchcase(alias, pattern) for pattern in patterns
                                                  for alias in (name, name.removeprefix("pagekit_")))]
        if not matching:
            suite = suite_of(word).removeprefix("pagekit_")
            raise Broken(f"there is no suite or case {word}, but " + (
                ", ".join(there[suite]) if suite in there else f"the suites {', '.join(sorted(there))}"))
        found += matching
    chosen = dict.fromkeys(found)
    whole = {suite_of(each[0]) for each in there.values() if chosen.keys() >= {*each}}
    return list(chosen), list(dict.fromkeys(f"{suite_of(name)}." if suite_of(name) in whole else name for name in chosen))


# --- What must be ----------------------------------------------------------------------


def counts() -> dict[tuple[str, str], int]:
    """How many, by suite and part."""
    return {(suite, part): int(number) for suite, *words in map(str.split, read_list(COUNTS))
            for part, number in (word.split("=") for word in words)}


def counted_as(suite, part, where, listed) -> str:
    """Which of a suite's numbers is the one of a part: that of the kernel and its series, of one of them, or the plain one."""
    series = os.environ.get("KVER")
    names = (f"{part}-{where}-{series}", f"{part}-{series}", f"{part}-{where}")
    return next((name for name in names if (suite, name) in listed), part)


def absent(where, parts) -> set[str]:
    """What the kernel there does not have, for its series, its architecture or its page size."""
    lists = [LISTS / f"absent-{word}.txt" for word in (os.environ.get("KVER"), *where.split("-"))]
    lines = [line.split() for path in lists if path.exists() for line in read_list(path)]
    return {name for name, *parts_of in lines if {*parts_of} & {*parts.split()}}


def judge(cases, where, parts, *, suites=None, without=()) -> list[Case]:
    """The cases, and a failed one for each suite that has come with others than these parts must have.
    Of some suites only, and without some cases, if wanted."""
    listed, parts_of = counts(), defaultdict(list)
    for suite, part in listed:
        if part in parts.split() and (not suites or suite in suites):
            parts_of[suite].append(counted_as(suite, part, where, listed))
    gone = {*absent(where, parts), *without}
    # What passes all the same is not to be in the list.
    cases = [case for case in cases if case.ok or case.name not in gone]
    came = defaultdict(set)
    for case in cases:
        if "." in case.name and (not suites or suite_of(case.name) in suites):
            came[suite_of(case.name)].add(case.name)
    wrong = []
    for suite in {**parts_of, **came}:
        due = sum(listed[suite, part] for part in parts_of[suite]) - sum(suite_of(name) == suite for name in gone)
        if len(came[suite]) != due:
            part = (parts_of[suite] or parts.split())[0]
            # Where nothing has come, all are lost: no need to build what knows them.
            lost = sorted({*contents().get((suite, part), ())} - came[suite] - gone) if came[suite] else []
            wrong.append(Case(where, f"{suite}.count", False, f"{len(came[suite])} cases, not {due}" + (
                "" if not came[suite] else (f", without {', '.join(lost)}" if lost else "") +
                f"; if that is right, write {part}={listed.get((suite, part), 0) + len(came[suite]) - due} "
                "in tests/lists/cases.txt")))
    return cases + wrong
