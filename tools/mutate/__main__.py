# SPDX-License-Identifier: GPL-2.0
"""make mutate: break src/ in one place at a time, and see that the tests notice.

rules.py says where. What compiles to the same is equivalent. The others meet the tests
that make test runs, the quickest first: the host's, the KUnit suites on the base kernel,
many mutants in one boot, and for those that are left the suites on the debug kernel, and
the cases in user space. What is left then must be listed, with the reason, in
tests/lists/survivors.txt; what is listed meets the first of these only. Results are kept
in out/mutate by the code of the mutant; those that survived are tried again when the tests
have changed.
"""

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

from tools.lib import guest, vm
from tools.lib.build import HELPERS, LISTS, OUT, TOOLS, TOP, Broken, build_compat, depends, guarded, kbuild, read_list, run, set_up
from tools.mutate import rules

WORK = OUT / "mutate"
TREE = WORK / "tree"
RESULTS = WORK / "results.json"
SURVIVORS = LISTS / "survivors.txt"
BATCH = 40  # mutants in one boot
# Seconds for a mutant, with hardware. What hangs is found out by the guest.
TIMEOUT = {"base": 8, "debug": 30}
# What is run from user space, where, and the seconds that it has.
PARTS = (("base", "smoke", 60), ("swiotlb", "bounce", 30), ("base", "user matrix", 60),
         ("debug", "smoke failures-smoke leaks", 100))
# How far a mutant has come that is not killed yet.
PASSES = "passes on base", "passes on debug"


def key(mutant) -> str:
    """Stays when comments change."""
    code = re.sub(r"(?m)^\s*//.*\n|/\*(?s:.*?)\*/", "", mutant.text)
    return hashlib.sha256(f"{mutant.file}\n{code}".encode()).hexdigest()[:16]


def tracked(*folders) -> list[str]:
    return run("git", "ls-files", *folders, cwd=TOP, check=True).stdout.split()


def stamp(*folders) -> str:
    """Changes with the sources there."""
    names = [name for name in tracked(*folders) if name.endswith((".rs", ".c", ".h", ".awk", "/test.sh", "/lib.sh"))]
    return hashlib.sha256(b"".join((TOP / name).read_bytes() for name in names)).hexdigest()[:16]


class Build:
    """The helpers and their suites, or all modules, for one kernel, of the tree with one mutant in it."""

    def __init__(self, config, everything=False):
        self.config, self.built = config, set_up(config)
        self.folder = WORK / (f"{config}-all" if everything else config)
        self.folder.mkdir(parents=True, exist_ok=True)
        symbols = re.findall(r"^config (\w+)", (TOP / "Kconfig").read_text(), re.M)
        wanted = "." if everything else r"^PAGEKIT_\w+_KUNIT_TEST$|^PAGEKIT_(PAGES|PIN|VMA)(_C)?$"
        self.symbols = [f"CONFIG_{name}={('y' if name.endswith('_C') else 'm') if re.search(wanted, name) else 'n'}"
                        for name in symbols]
        self.whole = self.modules(self.symbols)
        self.cases = None  # how many each suite has
        self.kos = WORK / f"ko/{config}-{stamp('src', 'tests')}"

    def modules(self, symbols) -> dict[str, bytes]:
        kbuild(self.built, TREE, f"MO={self.folder}", f"BITFLAGS={self.built['BITFLAGS']}", *symbols, "modules")
        return {path.stem: path.read_bytes() for path in self.folder.glob("*.ko")}

    def mutated(self, mutant) -> dict[str, bytes]:
        """The modules that differ: helpers, and where something is inlined what uses them."""
        path = TREE / mutant.file
        whole = path.read_text()
        path.write_text(mutant.text)
        try:
            kos = self.modules(self.symbols)
            return {name: kos[name] for name in self.whole if kos[name] != self.whole[name]}
        finally:
            path.write_text(whole)


def lay_out():
    """The sources, without what is not tracked."""
    for name in [*tracked("Kbuild", "include", "src", "samples", "tests")]:
        new, path = (TOP / name).read_bytes(), TREE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != new:
            path.write_bytes(new)


def prepare(build, name, changed):
    """A folder with the mutant's modules and the suites that see them, and another with whole ones."""
    needs = {suite: set(depends(build.folder / f"{suite}.ko")) for suite in build.whole if suite not in HELPERS}
    suites = [suite for suite in needs if suite in changed or needs[suite] & changed.keys()]
    for path, replaced in ((build.kos / f"{name}.whole", {}), (build.kos / name, changed)):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(parents=True)
        for module in {*suites, *(helper for suite in suites for helper in needs[suite])}:
            (path / f"{module}.ko").write_bytes((build.whole | replaced)[module])


def boot(build, names, limit) -> tuple[dict[str, str | dict[str, int]], str]:
    """Run the suites, until a mutant ends the machine. Returns by what each was killed, or how many cases
    of which suite have passed, and the time that a mutant has."""
    env = {"MUTANTS": " ".join(names), "KO": build.kos, "LIMIT": limit,
           "PAGE_SIZE": 1 << int(build.built["PAGE_SHIFT"])}
    result = vm.run(build.built["KDIR"], TOOLS / "mutate/guest.sh", f"mutants-{build.config}", beside=[guest.LIB],
                    memory="2G", echo=False, env=env,
                    append=(*guest.KUNIT_ON, guest.MOVABLE), timeout=30 + TIMEOUT[build.config] * len(names))
    said = (result.out_dir / "stdout.log").read_text(errors="replace")
    console = (result.out_dir / "console.log").read_text(errors="replace").replace("\r", "")
    if "# broken" in said or not (result.out_dir / "started").exists():
        raise Broken(f"the machine is not fit: {result.reason}")
    verdicts, doubtful = {}, []
    for section in re.split(r"^== (?=[0-9a-f]{16}$|whole$)", said, flags=re.M)[1:]:
        name, _, text = section.partition("\n")
        own, again, after = text.partition("== again\n")
        failed = re.search(r"not ok \d+ (\S+)", own)
        log = re.split(r"^\[.*\] == ", console.partition(f"] == {name}\n")[2], maxsplit=1, flags=re.M)[0]
        report = vm.REPORT.search(log)
        if not failed and not report and "== done" not in own:
            verdicts[name] = "hang" if "# hang" in own else result.reason or "ends the machine"
        elif report and (not failed or failed[1] == "kernel-report"):
            verdicts[name] = report[0][report.start(1) - report.start():].strip()
            doubtful += [name] if "panicked at" not in verdicts[name] else []
        else:
            ran = re.findall(r"^# ran (\S+) (\d+)", own, re.M)
            verdicts[name] = failed[1] if failed else {suite: int(cases) for suite, cases in ran}
            doubtful += [name] if failed else []
        if again and "== healthy" in after:
            doubtful = []
    # The first may have made the others fail.
    sure = {name: verdict for name, verdict in verdicts.items() if name not in doubtful[1:]}
    return sure, match[1] if (match := re.search(r"^# limit (\d+)", said, re.M)) else limit


def suites(build, found, mark, then):
    """Build these mutants and run the suites with them, in as many boots as it takes. Those that pass are `then`."""
    if not found:
        return
    todo = {}
    for number, mutant in enumerate(found, 1):
        name = key(mutant)
        print(f"{build.config}: building {number} of {len(found)}: {mutant.file}:{mutant.line}", flush=True)
        if not (build.kos / name).exists():
            try:
                changed = build.mutated(mutant)
            except Broken:
                mark(mutant, "not compiled")
                continue
            if not changed:
                mark(mutant, "equivalent")
                continue
            prepare(build, name, changed)
        todo[name] = mutant
    prepare(build, "whole", build.whole)
    limit = ""
    while todo:
        verdicts, limit = boot(build, list(todo)[:BATCH], limit)
        whole = verdicts.pop("whole", build.cases)
        if not isinstance(whole, dict) or not verdicts:
            raise Broken(f"the suites fail without a mutant: {whole} (logs in out/mutants-{build.config})")
        build.cases = whole
        for name, verdict in verdicts.items():
            if isinstance(verdict, dict):
                less = [suite for suite, cases in verdict.items() if cases != whole[suite]]
                verdict = f"{less[0]} runs fewer cases" if less else ""
            mark(todo.pop(name), "killed" if verdict else then, f"{build.config}: {verdict}" if verdict else "")
        print(f"{build.config}: {len(verdicts)} in this boot, {len(todo)} left", flush=True)


def on_host(found, mark):
    """What needs no kernel has its tests on the host."""
    for mutant in found:
        path = TREE / mutant.file
        whole = path.read_text()
        path.write_text(mutant.text)
        try:
            result = run("cargo", "test", "--quiet", "--locked", "--manifest-path", TREE / "src/Cargo.toml",
                              "--target-dir", OUT / "host", timeout=300)
            failed = re.search(r"^    (\w+)$", result.stdout, re.M)
            if result.returncode and failed:
                mark(mutant, "killed", f"host: {failed[1]}")
        except subprocess.TimeoutExpired:
            mark(mutant, "killed", "host: hang")
        finally:
            path.write_text(whole)


def in_user_space(found, mark):
    """One boot for each: a heap can't be unloaded."""
    if not found:
        return
    builds = {config: Build(config, everything=True) for config in ("base", "debug")}
    build_compat(builds["base"].built)
    for mutant in found:
        mutated = {}
        for where, parts, timeout in PARTS:
            config = guest.config_of(where)
            build = builds[config]
            print(f"{where}: {parts}: {mutant.file}:{mutant.line}", flush=True)
            changed = mutated[config] = mutated.get(config) or build.mutated(mutant)
            for name, ko in changed.items():
                (build.folder / f"{name}.ko").write_bytes(ko)
            tested = guest.test(where, build.built, parts, {}, modules=build.folder, name="mutant", echo=False,
                                timeout=timeout)
            for name in changed:
                (build.folder / f"{name}.ko").write_bytes(build.whole[name])
            bad = [case.name for case in tested.cases[1:] if not case.ok]
            if bad or tested.result.reason:
                mark(mutant, "killed", f"{where}: {bad[0] if bad else tested.result.reason}")
                break
        else:
            mark(mutant, "survived")


# --- What came out -------------------------------------------------------------------


def words(row) -> str:
    return f"{row['file']}:{row['line']}: {row['rule']}: {row['was']} -> {row['now'] or '(nothing)'}"


def row_of(mutant) -> str:
    """How the list names it."""
    line = (TOP / mutant.file).read_text().splitlines()[mutant.line - 1].strip()
    return f"{mutant.file} | {line} | {mutant.was}"


def is_listed(mutant) -> bool:
    return row_of(mutant) in read_list(SURVIVORS)


def report(names, found, results) -> int:
    rows = [{name: value for name, value in asdict(m).items() if name != "text"} | results[key(m)] for m in found]
    kinds = ("killed", "survived", "equivalent", "not compiled")
    for row in rows:
        if row["outcome"] in PASSES:
            row["outcome"] = "survived"
    (OUT / "mutate.json").write_text(json.dumps({"mutants": rows}, indent=1) + "\n")
    counts = Counter((row["file"], row["outcome"]) for row in rows)
    print(f"\n{'file':20}" + "".join(f"{kind:>14}" for kind in kinds))
    for file in dict.fromkeys(row["file"] for row in rows):
        print(f"{file:20}" + "".join(f"{counts[file, kind] or '':>14}" for kind in kinds))
    survivors = [mutant for mutant, row in zip(found, rows, strict=True) if row["outcome"] == "survived"]
    unlisted = [mutant for mutant in survivors if not is_listed(mutant)]
    for mutant in survivors:
        print(f"SURVIVED {words(asdict(mutant))}" +
              (f"; not in tests/lists/survivors.txt: {row_of(mutant)}" if mutant in unlisted else ""))
    alive = {row_of(mutant) for mutant, row in zip(found, rows, strict=True) if row["outcome"] != "killed"}
    gone = [row for row in read_list(SURVIVORS) if row.partition(" | ")[0] in names and row not in alive]
    for row in gone:
        print(f"GONE {row}: gone or killed, take it off tests/lists/survivors.txt")
    total = Counter(row["outcome"] for row in rows)
    print(f"{total['killed'] + total['survived']} mutants, {total['killed']} killed, {total['survived']} survived")
    return int(bool(unlisted or gone))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.mutate",
                                     description="break src/ in one place at a time, and see that the tests notice")
    parser.add_argument("file", nargs="*", help="sources in src/; default: all")
    parser.add_argument("--list", action="store_true", help="only say where")
    parser.add_argument("--once", action="store_true", help="of what is checked in a line only that it is")
    parser.add_argument("--quick", action="store_true", help="only the suites on the base kernel")
    options = parser.parse_args()
    names = options.file or sorted(name for name in tracked("src") if name.endswith((".rs", ".c", ".h")))
    found = [mutant for name in names for mutant in rules.of(name, (TOP / name).read_text())]
    if options.once:
        found = rules.once(found)
    if options.list:
        print("\n".join(words(asdict(m)) for m in found))
        return 0
    TREE.mkdir(parents=True, exist_ok=True)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    now = stamp("tests")
    for name, row in list(results.items()):
        if row["outcome"] in (*PASSES, "survived") and row["tests"] != now:
            del results[name]

    def mark(mutant, outcome, by=""):
        results[key(mutant)] = {"outcome": outcome, "by": by, "tests": now}
        RESULTS.write_text(json.dumps(results))
        if outcome != "equivalent":
            print(f"  {outcome}: {words(asdict(mutant))}" + (f" ({by})" if by else ""), flush=True)

    def left(outcome=None):
        return [m for m in found if results.get(key(m), {}).get("outcome") == outcome]

    lay_out()
    on_host([m for m in left() if m.file == "src/range.rs"], mark)
    base = Build("base")
    for name in names:
        suites(base, [m for m in left() if m.file == name], mark, PASSES[0])
    if not options.quick:
        suites(Build("debug"), [m for m in left(PASSES[0]) if not is_listed(m)], mark, PASSES[1])
        in_user_space([m for m in left(PASSES[1]) if not is_listed(m)], mark)
    return report(names, found, results)


if __name__ == "__main__":
    sys.exit(guarded(main))
