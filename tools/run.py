# SPDX-License-Identifier: GPL-2.0
"""The demo, the tests and the benchmark: build everything, boot the VM, judge what
comes out of it.

A case is named `suite.case`, and where it ran: `host`, or the kernel. Which cases
must run where is held by expected.txt, because a suite that is gone, or that loads
and runs nothing, would pass otherwise.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tools import bench, chart, host, reliability, vm
from tools.convert import convert
from tools.host import LISTS, TESTS, TOOLS, TOP, Case
from tools.intree import check as intree_check

OUT = vm.OUT
BIN = OUT / "user" / "release"
EXPECTED = LISTS / "expected.txt"
UNLISTED = "not in tests/lists/expected.txt"
# What scripts in the guest have in common.
GUEST_LIB = TESTS / "guest/lib.sh"
SAMPLE = "pagekit_udmabuf"
# What the core says whenever an exporter can't map a buffer for the kernel, which is one of the
# things that fail on purpose.
VMAP_WARNING = r"WARNING: .* dma_buf_vmap\+"
# Once loaded, it stays, and what it needs stays with it.
HEAP = "pagekit_heap"
# The kernel tree's own tests, with where the headers are that the machine lacks, or has of
# an older kernel.
SELFTESTS = {
    "udmabuf": ("include/uapi", "drivers/dma-buf/udmabuf.c"),
    "pfnmap": ("tools/include/uapi", "mm/pfnmap.c", "mm/vm_util.c"),
    "heaps": ("include/uapi", "dmabuf-heaps/dmabuf-heap.c"),
}

# The demo's file lives in the guest's memory once; the rest is room for the guest.
DEMO_MAX_MIB = 1024
DEMO_ROOM_MIB = 512

# What runs where: by level, the parts of guest/test.sh. Time limits are for hardware
# acceleration (vm.py scales them); the selftests need the 6 GiB.
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
    ("matrix", "base"): "matrix",
    ("matrix", "debug"): "matrix",
    ("fuzz", "base"): "fuzz",
    ("fuzz", "debug"): "fuzz",
}
# How long each race lasts, by level; in a soak as long as people like.
RACE_SECONDS = {"test": 1, "full": 5}
# The options of pagekit-fuzz. What runs often begins with the same each time.
FUZZ = {"test": "--seed 1 --seconds 40", "full": "--ops 20000"}
# What an importer does, and in which order.
STEPS = ("create", "attach", "map", "unmap", "close")
# A kernel may have KUnit switched off: suites load, run nothing and say ok.
KUNIT_ON = ("kunit.enable=1", "kunit.autorun=1")
# Memory that pinned pages must be moved out of. At its end is what the kernel took
# while booting: page structures, and with KASAN an eighth of all memory.
MOVABLE = "movablecore=25%"
# The base kernel, booted otherwise: all DMA goes through bounce buffers, so that a missing sync
# shows, and heaps charge their buffers; or there are no memory cgroups to charge to; or there is a CMA
# area, which movable pages come from first as it is most of what is free.
BOOTS = {
    # Linux 7.2 knows no more than force.
    "swiotlb": ("swiotlb=force", "swiotlb=force,track_hiwater", "dma_heap.mem_accounting=1"),
    "nocgroup": (*KUNIT_ON, MOVABLE, "cgroup_disable=memory"),
    "cma": ("cma=1024M@512M",),
}
TIMEOUT = {"base": 60, "swiotlb": 30, "nocgroup": 60, "cma": 30, "debug": 100}
FULL_DEBUG_TIMEOUT = 300
# A driver as a newcomer makes it, and where: beside the root that the helpers are installed in.
DRIVER = "acme_share"
DRIVERS = OUT / "drivers"
# What a race takes before and after its time.
RACE_OVERHEAD = 5
# How many checks the table of bad inputs must reach: rows that reach the same one count once.
INPUT_CHECKS = 120
# For 20,000 operations, or to find the shortest sequence that fails.
FUZZ_ROOM = 120
# The benchmark's largest objects have 4 GiB.
BENCH_MEMORY = "6500M"
BENCH_TIMEOUT = 60


class Broken(vm.Error):
    """Something the demo or the tests stand on did not work."""


# --- Building ------------------------------------------------------------------


def call(what, *cmd, **options):
    """Run a command with its output visible."""
    try:
        return subprocess.run([str(c) for c in cmd], check=True, cwd=TOP, **options)
    except subprocess.CalledProcessError as error:
        raise Broken(f"{what} failed: {cmd[0]} ended with exit status {error.returncode}") from error
    except OSError as error:
        raise Broken(f"{what} failed: {error}") from error


def modules_dir(config) -> Path:
    return OUT / f"modules-{'custom' if os.environ.get('KDIR') else config}"


def set_up(config, what="kernel") -> dict:
    """Kernel, modules and user-space side; quiet when nothing is to do. Returns what
    `setup.sh env` says."""
    call(f"setting up the {config} kernel", TOOLS / "setup/setup.sh", what, config, stdout=subprocess.DEVNULL)
    text = call("setup.sh env", TOOLS / "setup/setup.sh", "env", config, stdout=subprocess.PIPE, text=True).stdout
    env = dict(word.split("=", 1) for word in shlex.split(text) if "=" in word)
    call("building the modules", "make", "--silent", "--no-print-directory", "modules", f"CONFIG={config}")
    quiet = ["--quiet"] if (BIN / "pagekit-test").exists() else []
    call("building the user-space side", "cargo", "build", *quiet, "--release", "--locked",
         "--manifest-path", TESTS / "user/Cargo.toml", "--target-dir", OUT / "user")
    os.environ |= {name: env[name] for name in ("PAGEKIT_CACHE", "PATH")}
    return env


def load_order(modules: Path, *wanted) -> list[str]:
    """The modules wanted, or all there, each after those it depends on."""
    order = []

    def add(name):
        if name not in order and (path := modules / f"{name}.ko").exists():
            for other in host.depends(path):
                add(other)
            order.append(name)

    for name in wanted or sorted(path.stem for path in modules.glob("*.ko")):
        add(name)
    for name in wanted or [SAMPLE]:
        if name not in order:
            raise Broken(f"{name}.ko is not in {modules}")
    return order


def build_selftests(kdir: Path):
    """The kernel tree's own, unchanged."""
    source = kdir / "source" if (kdir / "source").exists() else kdir
    selftests = source / "tools/testing/selftests"
    for name, (headers, *files) in SELFTESTS.items():
        place = "-isystem" if headers.startswith("tools") else "-idirafter"
        call(f"building the kernel's {name} selftest", "cc", "-O2", "-w", "-D__user=", "-I", selftests,
             place, source / headers, *(selftests / file for file in files), "-o", BIN / f"{name}-selftest")


def build_compat():
    """The 32-bit program: without libc, for which a 64-bit machine has no other."""
    multiarch = call("cc -print-multiarch", "cc", "-print-multiarch", stdout=subprocess.PIPE, text=True).stdout.strip()
    call("building the 32-bit program", "cc", "-m32", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding",
         "-fno-stack-protector", "-fno-pie", "-no-pie", "-nostdlib", "-static",
         "-idirafter", Path("/usr/include", multiarch), TESTS / "user/compat.c", "-o", BIN / "pagekit-compat")


def build_converted(config, built) -> Path:
    """The kernel tree's udmabuf driver, converted to pagekit.h."""
    print(f"{config}: converting the kernel's udmabuf driver", flush=True)
    return convert.build(built, modules_dir(config)) / f"{convert.AFTER}.ko"


def run_vm(config, built, script, env, modules=None, order=None, name=None, **options) -> vm.Result:
    modules = modules or modules_dir(config)
    order = order or load_order(modules)
    plain = [name for name in order if not name.endswith("_kunit") and name != HEAP]
    env |= {
        "MODDIR": modules, "BIN": BIN, "MODULES": " ".join(plain), "UNLOAD": " ".join(reversed(plain)),
        "KUNIT": " ".join(name for name in order if name.endswith("_kunit"))}
    return vm.run(built["KDIR"], TESTS / "guest" / f"{script}.sh", f"{script}-{name or config}", beside=[GUEST_LIB],
                  virtme_run=Path(built["VNG"]).with_name("virtme-run"), env=env, **options)


# --- The demo --------------------------------------------------------------------


def demo(options) -> int:
    try:
        share(options.file, options.kernel or "base")
    except (vm.Error, OSError) as failure:
        print(f"demo: {failure}")
        return 1
    print("demo: ok")
    return 0


def share(file, config):
    if file:
        mib(Path(file))  # before the set-up, which may take long
    built = set_up(config)
    file = Path(file or Path(built["KDIR"], "arch/x86/boot/bzImage"))
    size = mib(file)
    # A copy, because the guest does not see all of the host's file systems.
    copy = OUT / "demo-file" / file.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(file, copy)
        result = run_vm(config, built, "demo", memory=f"{DEMO_ROOM_MIB + 2 * size}M", timeout=30 + size // 2,
                        env={"FILE": copy, "LIMIT_MB": max(64, size)})
    finally:
        copy.unlink(missing_ok=True)
    verdict = result.out_dir / "verdict"
    verdict = verdict.read_text().strip().removeprefix("demo: ") if verdict.exists() else ""
    reason = result.reason
    if verdict != "ok" and (not reason or result.status == 1 and not reason.startswith("kernel report")):
        reason = verdict or reason or "pagekit-demo came to no verdict"
    if reason:
        raise Broken(f"{reason} (logs in {os.path.relpath(result.out_dir)})")


def mib(path: Path) -> int:
    """The size of a file that the demo can share."""
    try:
        if not path.is_file():
            raise Broken(f"{path}: " + ("not a regular file" if path.exists() else "no such file"))
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Broken(f"{path}: {error.strerror}") from error
    if not size:
        raise Broken(f"{path}: the file is empty")
    if size > DEMO_MAX_MIB << 20:
        raise Broken(f"{path}: {size >> 20} MiB are too much for the VM; the most is {DEMO_MAX_MIB} MiB")
    return (size >> 20) + 1


# --- A driver made of the template ---------------------------------------------------


def install(config, *targets, **variables):
    """Build and install with these targets of make, below out/drivers."""
    call(f"make {targets[-1]}", "make", "--silent", "--no-print-directory", *targets, f"CONFIG={config}",
         f"INSTALL_MOD_PATH={DRIVERS / 'root'}", *(f"{name}={value}" for name, value in variables.items()))


def install_driver(folder, config, built) -> dict:
    """Build it against helpers that are installed, and install it. Returns what driver.sh wants to know."""
    install(config, "-C", folder, "modules", "modules_install", KDIR=built["KDIR"])
    shutil.copyfile(folder / "share.py", DRIVERS / "share.py")
    shutil.copyfile(TESTS / "guest/driver.sh", DRIVERS / "driver.sh")
    name = next(folder.glob("*.ko")).stem
    return {"DRIVER": name, "ROOT": DRIVERS / "root", "SHARE": DRIVERS / "share.py", "PYTHON": sys.executable,
            "DRIVER_SH": DRIVERS / "driver.sh"}


def new_driver(config, built) -> dict:
    """Make one as newcomers do."""
    shutil.rmtree(DRIVERS, ignore_errors=True)
    install(config, "modules_install")
    install(config, "new-driver", NAME=DRIVER, DIR=DRIVERS / DRIVER)
    return install_driver(DRIVERS / DRIVER, config, built)


def try_driver(options) -> int:
    """Load somebody's in the VM."""
    config, folder = options.kernel or "base", Path(options.dir).resolve()
    if not (folder / "share.py").is_file():
        raise Broken(f"DIR={options.dir}: no driver is there that make new-driver has created")
    built = set_up(config)
    install(config, "modules_install")
    result = run_vm(config, built, "driver", install_driver(folder, config, built))
    if result.reason:
        raise Broken(f"{result.reason} (logs in {os.path.relpath(result.out_dir)})")
    print(f"try-driver: ok: {options.dir}")
    return 0


# --- The benchmark ----------------------------------------------------------------


def measure(*args, ours=False) -> dict:
    built = set_up("base", "kernel" if ours else "convert")
    env = {"ARGS": " ".join(args), "HEAP": HEAP, "CONVERTED": "" if ours else build_converted("base", built)}
    result = run_vm("base", built, "bench", env=env, icount=True, memory=BENCH_MEMORY, timeout=BENCH_TIMEOUT)
    if result.reason:
        raise Broken(f"{result.reason} (logs in {os.path.relpath(result.out_dir)})")
    return bench.read(result.out_dir)


def run_bench(options) -> int:
    for name in options.case:
        if name not in bench.CASES:
            raise Broken(f"there is no case {name}, but {', '.join(bench.CASES)}")
    if options.case and options.update:
        raise Broken("only all cases together make figures")
    run = measure(*options.case)
    (OUT / "bench.json").write_text(json.dumps(run, indent=1) + "\n")
    (OUT / "bench.svg").write_text(chart.draw(run))
    if options.update:
        bench.update(run)
    print("\n" + "\n".join(bench.table(run)) + "; see out/bench.json and out/bench.svg")
    return int(any("error" in row for row in run["rows"]))


def test_bench(_level, where) -> list[Case]:
    run = measure("--ours", "--mib", "64", ours=True)
    return [Case(where, f"bench.{name}", ok, words) for name, ok, words in bench.gate(run)]


# --- The tests -------------------------------------------------------------------

# KUnit indents its cases by four, and parameters of a case deeper.
TAP = re.compile(r"(?: {4})?(not )?ok\b(?: (\d+))?(?: -)? +(.*?)(?: *# ?(.*))?$")


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


def race_rows(text) -> list[dict]:
    """What races say of themselves before their result: how long, and the rounds of each side."""
    rows, seconds, sides = [], 0, Counter()
    for line in text.splitlines():
        if said := re.match(r"# raced ([\d.]+) s: (.*)", line):
            seconds += float(said[1])
            for name, n in re.findall(r"(\S.*?)=(\d+)", said[2]):
                sides[name] += int(n)
        elif (match := TAP.match(line)) and match[3] in races():
            rows.append({"race": match[3].removeprefix("races."), "ok": not match[1], "seconds": round(seconds, 1),
                         "rounds": sides.total(), "sides": dict(sides)})
            seconds, sides = 0, Counter()
    return rows


def races() -> list[str]:
    return [name for name in read_expected() if name.startswith("races.") and name != "races.unload"]


def test_vm(level, where, seconds=0, fuzz="", timeout=0) -> list[Case]:
    seconds = seconds or RACE_SECONDS.get(level, 0)
    config = "base" if where in BOOTS else where
    parts = PARTS[level, where]
    built = set_up(config, "convert" if "converted" in parts else "kernel")
    build_compat()
    if "selftest" in parts:
        build_selftests(Path(built["KDIR"]))
    driver = new_driver(config, built) if "template" in parts else {}
    timeout = timeout or (FULL_DEBUG_TIMEOUT if (level, where) == ("full", "debug") else TIMEOUT[where])
    if "races" in parts:
        timeout += len(races()) * (seconds + RACE_OVERHEAD)
    if "fuzz" in parts:
        timeout += FUZZ_ROOM
    # There all memory is alike. Pages that are referenced can't be moved to be pinned, and two that pin
    # a movable page at once can be refused: what must come of it would depend.
    append = () if level in ("soak", "fuzz") else BOOTS.get(where, (*KUNIT_ON, MOVABLE))
    result = run_vm(config, built, "test", name=where, memory="6500M" if "selftest" in parts else "2G",
                    timeout=timeout, append=append, expected=VMAP_WARNING if "failures" in parts else None,
                    env=driver | {
                        "PARTS": parts, "HEAP": " ".join(load_order(modules_dir(config), HEAP)),
                        "CONVERTED": build_converted(config, built) if "converted" in parts else "",
                        "RACE_SECONDS": seconds, "FUZZ": fuzz or FUZZ.get(level, "")})
    for name in ("matrix.json", "fuzz.json"):
        if (result.out_dir / name).exists():
            shutil.copyfile(result.out_dir / name, OUT / name)
    cases = []
    if (inputs := result.out_dir / "inputs").exists():
        rows = [json.loads(line) for line in inputs.read_text().splitlines()]
        (OUT / "inputs.json").write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        checks = len({row["check"] for row in rows})
        cases.append(Case(where, "inputs.checks", checks >= INPUT_CHECKS, f"{checks} different ones"))
    text = (result.out_dir / "stdout.log").read_text(errors="replace")
    if "races" in parts:
        (OUT / "races.json").write_text(json.dumps({"rows": race_rows(text)}, indent=1) + "\n")
    if "failures" in parts:
        report_failures(text)
    broken = re.findall(r"^# broken: (.*)", text, re.M) if result.status else []
    detail = "; ".join([result.reason, *broken, f"logs in {os.path.relpath(result.out_dir)}"]) if result.reason else ""
    return [Case(where, "vm.clean", not result.reason, detail), *cases, *parse_tap(text, where)]


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
    return cases + host.cases(modules_dir("base"), set_up("base"))


def read_list(path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def read_expected() -> dict[str, set[str]]:
    lines = map(str.split, read_list(EXPECTED))
    return {name: set(wheres) for name, *wheres in lines}


def absent() -> list[str]:
    """What this series of the kernel does not have."""
    path = LISTS / f"absent-{os.environ.get('KVER')}.txt"
    return read_list(path) if path.exists() else []


def judge(cases, where, level) -> list[Case]:
    """The cases that count: those that ran, and those that should have."""
    wanted = {name for name, wheres in read_expected().items()
              if where in wheres or level == "full" and f"{where}-full" in wheres}.difference(absent())
    for case in cases:
        if case.ok and case.name not in wanted:
            case.ok, case.detail = False, UNLISTED
    ran = {case.name for case in cases}
    return cases + [Case(where, name, False, "did not run") for name in sorted(wanted - ran)]


def test(options) -> int:
    level = options.level
    kernels = [options.kernel] if options.kernel else ["base"] if os.environ.get("KDIR") else ["base", "debug"]
    if "base" in kernels:
        kernels[1:1] = ["swiotlb", "nocgroup", "cma"] if level == "full" else ["swiotlb"]
    if level == "full":
        reliability.forget()
    jobs = [] if options.kernel == "debug" else [("host", test_host)]
    cases = []
    jobs += [(kernel, test_vm) for kernel in kernels]
    if level == "full" and "base" in kernels:
        jobs.append(("bench", test_bench))
    for where, run in jobs:
        try:
            found = run(level, where)
        except (vm.Error, OSError, subprocess.SubprocessError) as failure:
            found = [Case(where, "setup", False, str(failure))]
        cases += judge(found, where, level)
    if level == "full":
        reliability.write()
    return report(cases, level)


def print_failed(failed):
    for case in failed:
        print(f"FAILED {case.name}" + (f": {case.detail}" if case.detail else ""))


def matrix(options) -> int:
    """Who shares with whom, and when pages are pinned."""
    seen = OUT / "matrix.json"
    seen.unlink(missing_ok=True)
    cases = test_vm("matrix", options.kernel or "base")
    failed = [case for case in cases if not case.ok]
    if seen.exists():
        print_matrix(json.loads(seen.read_text()), {case.name for case in failed})
    print_failed(failed)
    print(f"{len(cases) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def peer(_options) -> int:
    """What mainline's drivers are known to fail."""
    cases = test_vm("peer", "base") + test_vm("peer", "swiotlb")
    failed = [case for case in cases if not case.ok]
    print_failed(failed)
    print(f"{len(cases) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def soak(options) -> int:
    """Each race for long, on the debug kernel."""
    cases = test_vm("soak", "debug", options.seconds)
    ran = {case.name for case in cases}
    failed = [case for case in cases if not case.ok]
    failed += [Case("debug", name, False, "did not run") for name in races() if name not in ran]
    print_failed(failed)
    rows = json.loads((OUT / "races.json").read_text())["rows"]
    print(f"soak: {len(rows)} races, {sum(row['seconds'] for row in rows):.0f} s, "
          f"{sum(row['rounds'] for row in rows)} rounds: {f'{len(failed)} failed' if failed else 'all well'}; "
          "see out/races.json")
    return 1 if failed else 0


def print_matrix(cells, failed):
    line = "{:20}  {:13}  {:>4}  {:>10}  {:>6}" + "  {:>6}" * len(STEPS) + "  {}"
    print("\n" + " " * 64 + "pages pinned after")
    print(line.format("exporter", "importer", "data", "at offsets", "itself", *STEPS, ""))
    for cell in cells:
        verdict = "ok" if cell["data_ok"] and cell["offset_ok"] else "mainline fails"
        print(line.format(
            cell["exporter"], cell["importer"],
            *("yes" if cell[key] else "no" for key in ("data_ok", "offset_ok", "self_import")),
            *(cell["pins"][step] for step in STEPS),
            "FAILED" if f"matrix.{cell['exporter']}.{cell['importer']}" in failed else verdict))


def fuzz(options) -> int:
    """Random operations for a while. The seed of the sequence that fails begins with it."""
    config = options.kernel or "debug"
    seen = OUT / "fuzz.json"
    seen.unlink(missing_ok=True)
    seconds = round(60 * options.minutes)
    seed = "" if options.seed is None else f" --seed {options.seed}"
    cases = test_vm("fuzz", config, fuzz=f"--seconds {seconds}{seed}", timeout=seconds)
    failed = [case for case in cases if not case.ok]
    print_failed(failed)
    if not seen.exists():
        # The last that the kernel heard of is where it died.
        log = OUT / f"test-{config}" / "console.log"
        last = re.findall(r"pagekit-fuzz: sequence (\d+)", log.read_text(errors="replace") if log.exists() else "")
        print("fuzz: failed" + (f"; to replay it: make fuzz SEED={last[-1]}" if last else ""))
        return 1
    done = json.loads(seen.read_text())
    verdict = "ok" if not failed else "failed" + (
        f"; to replay it: make fuzz SEED={done['failed']}" if done["failed"] is not None else "")
    print(f"fuzz: {done['ops']} operations and {done['raw_ioctls']} raw ioctls in {done['seconds']} s, "
          f"seed {done['seed']}: {verdict}")
    return 1 if failed else 0


def check(options) -> int:
    """All that needs no machine to boot. What the set-up prints comes first."""
    try:
        built = set_up("base", "check")
        print("check: clippy builds everything once more", flush=True)
        cases = [*host.cases(modules_dir("base"), built), *host.style_cases(), *host.clippy_cases("base"),
                 *intree_check.cases(built["KDIR"])]
    except (vm.Error, OSError, subprocess.SubprocessError) as failure:
        cases = [Case("host", "setup", False, str(failure))]
    return report(cases, "check")


def report(cases, level) -> int:
    failed = [case for case in cases if not case.ok]
    passed = len(cases) - len(failed)
    OUT.mkdir(exist_ok=True)
    (OUT / f"{level if level in ('check', 'intree') else 'test'}.json").write_text(json.dumps(
        {"level": level, "passed": passed, "failed": len(failed), "cases": [asdict(c) for c in cases]}, indent=1))
    suites = Counter((c.where, c.name.split(".")[0]) for c in cases)
    bad = Counter((c.where, c.name.split(".")[0]) for c in failed)
    print(f"\n{'where':8}{'suite':28}{'passed':>8}{'failed':>8}")
    for key, count in suites.items():
        print(f"{key[0]:8}{key[1]:28}{count - bad[key]:8}{bad[key] or '':>8}")
    # The cause first: a crash makes many cases not run.
    for case in sorted(failed, key=lambda c: (c.detail == "did not run", c.name != "vm.clean")):
        print(f"FAILED {case.where}: {case.name}" + (f": {case.detail}" if case.detail else ""))
    if any(case.detail == UNLISTED for case in failed):
        print("To list new cases: python3 -m tools.run expected --update")
    print(f"{passed} passed, {len(failed)} failed")
    return 1 if failed or not passed else 0


def expected(options) -> int:
    """Compare the list with the last run, or make it agree."""
    try:
        last = json.loads((OUT / "test.json").read_text())
    except OSError as error:
        raise Broken(f"no run to compare with: {error}") from error
    # Names without a dot are no cases but say what broke; a broken run teaches nothing.
    broken = {c["where"] for c in last["cases"] if not c["ok"] and c["detail"] != UNLISTED
              and ("." not in c["name"] or c["name"] == "vm.clean")}
    ran = {(c["name"], c["where"]) for c in last["cases"] if c["detail"] != "did not run"}
    table = read_expected()
    for where in {c["where"] for c in last["cases"]} - broken:
        for name in sorted({name for name, _ in ran} | set(table)):
            tokens = table.setdefault(name, set())
            due = where in tokens or last["level"] == "full" and f"{where}-full" in tokens
            if ((name, where) in ran) == due:
                continue
            if due:
                tokens -= {where, f"{where}-full"}
            else:
                tokens.discard(f"{where}-full")
                tokens.add(f"{where}-full" if last["level"] == "full" and where == "debug" else where)
            print(f"{'-' if due else '+'} {name} {where}")
    if options.update:
        head = [line for line in EXPECTED.read_text().splitlines() if line.startswith("#")]
        rows = [f"{name} {' '.join(sorted(tokens))}" for name, tokens in sorted(table.items()) if tokens]
        EXPECTED.write_text("\n".join(head + [""] + rows) + "\n")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function, text in (("demo", demo, f"share a file, of at most {DEMO_MAX_MIB} MiB"),
                                 ("test", test, "all tests; on the debug kernel the quick ones"),
                                 ("test-full", test, "all tests on both kernels"),
                                 ("try-driver", try_driver, "a driver made of the template, in the VM"),
                                 ("matrix", matrix, "who shares with whom, and when pages are pinned"),
                                 ("soak", soak, "races between threads, each for long, on the debug kernel"),
                                 ("peer", peer, "what mainline's drivers are known to fail: those cases must fail there"),
                                 ("fuzz", fuzz, "random operations and garbage"),
                                 ("check", check, "the sources, the documents and what the modules link to"),
                                 ("expected", expected, "compare expected.txt with the last run")):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=function, level="full" if name == "test-full" else "test")
        if function is expected:
            command.add_argument("--update", action="store_true", help="make the list agree")
        elif function is soak:
            command.add_argument("seconds", type=float, nargs="?", default=60, help="for each race; default: 60")
        elif function is not check:
            command.add_argument("--kernel", choices=("base", "debug"))
        if function is try_driver:
            command.add_argument("dir", help="where make new-driver has created it")
        if function is fuzz:
            command.add_argument("--minutes", type=float, default=1)
            command.add_argument("--seed", type=int, help="of the first sequence (default: drawn)")
        if function is demo:
            command.add_argument("file", nargs="?", help="default: the kernel image")
    command = commands.add_parser("bench", help="measure the helpers and their peers")
    command.set_defaults(run=run_bench)
    command.add_argument("--update", action="store_true", help="make these the figures that make test-full holds to")
    command.add_argument("case", nargs="*", help="default: all")
    options = parser.parse_args()
    return options.run(options)


if __name__ == "__main__":
    sys.exit(vm.guarded(main))
