# SPDX-License-Identifier: GPL-2.0
"""Runs a script of tests/guest in a virtual machine, with our modules to load: any, or the
one of the tests.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

from tools.lib import vm
from tools.lib.build import HEAP, TESTS, build_compat, build_selftests, load_order, modules_dir, new_drivers, set_up
from tools.lib.cases import counts
from tools.lib.tap import Case, parse_tap

# A kernel may have KUnit switched off: suites load, run nothing and say ok.
KUNIT_ON = ("kunit.enable=1", "kunit.autorun=1")
# Memory that pinned pages must be moved out of. At its end is what the kernel took
# while booting: page structures, and with KASAN an eighth of all memory.
MOVABLE = "movablecore=25%"
# For a heap of it.
CMA_HEAP = "cma=128M"
# The base kernel, booted otherwise: all DMA goes through bounce buffers, so that a missing sync
# shows, and heaps charge their buffers; or there are no memory cgroups to charge to; or there is a CMA
# area, which movable pages come from first as it is most of what is free; or there are two NUMA nodes.
BOOTS = {
    # Linux 7.2 knows no more than force. arm64 makes the buffer small, unless somebody says how large it is: 128 MiB.
    "swiotlb": ("swiotlb=force", "swiotlb=65536,force,track_hiwater", "dma_heap.mem_accounting=1"),
    "nocgroup": ("cgroup_disable=memory",),
    "cma": ("cma=1280M@512M",),
    "numa": (),
}
# The memory of each node there. The first is filled up: the less it has, the sooner.
NODES = ("512M", "1536M")
# What scripts have in common.
LIB = TESTS / "guest/lib.sh"
# Drivers of the kernel tree, converted, and a device that one of them drives.
CONVERTED_QEMU = ("-device", "virtio-gpu-pci")
CONVERTED = TESTS / "guest/converted.sh"
# What the kernel reports in these parts without a failure: the core whenever an exporter can't map a
# buffer for the kernel, which fails on purpose there, and kmemleak what the last part judges.
EXPECTED = {"failures": r"WARNING: .* dma_buf_vmap", "leaks": "kmemleak: "}
# Seconds for hardware acceleration (vm.py scales them), by kernel and how it is booted.
TIMEOUT = {"base": 60, "swiotlb": 30, "nocgroup": 60, "cma": 30, "numa": 30, "debug": 100, "prod": 80, "16k": 120, "64k": 300}
# What other parts need than the usual, and KUnit where a huge page has 512 MiB.
MEMORY = {"selftest": "6500M", "converted": "6500M", "64k": "14G"}
# On the debug kernel, of what takes longest there.
LONG = ("user", "failures")
LONG_TIMEOUT = 300
# What a race takes before and after its time.
RACE_OVERHEAD = 5
# For 20,000 operations, or to find the shortest sequence that fails.
FUZZ_ROOM = 120
# The options of pagekit-fuzz. What runs often begins with the same each time.
QUICK_FUZZ = "--seed 1 --seconds 40"


def run(config, built, script, env, modules=None, order=None, name=None, **options) -> vm.Result:
    """Run a script with these modules, or all that were built for this kernel."""
    modules = modules or modules_dir(config)
    order = order or load_order(modules)
    suites = [module for module in order if module.endswith("_kunit")]
    plain = [module for module in order if module not in (*suites, HEAP)]
    env = {"MODDIR": modules, "BIN": built["BIN"], "PAGE_SIZE": 1 << int(built["PAGE_SHIFT"]),
           "MODULES": " ".join(plain), "UNLOAD": " ".join(reversed(plain)),
           "KUNIT": " ".join(suites)} | env
    return vm.run(built["KDIR"], TESTS / "guest" / f"{script}.sh", f"{script}-{name or config}", beside=[LIB, CONVERTED], env=env,
                  built=built, **options)


# --- Tests -----------------------------------------------------------------------------


@dataclass
class Tested:
    result: vm.Result
    text: str  # what test.sh has printed
    cases: list[Case]
    took: dict[str, float]  # by part, in seconds


def how(where) -> str:
    """What a kernel is like, or how the base kernel is booted there, of any architecture."""
    return name if (name := where.split("-")[-1]) in TIMEOUT else "base"


def config_of(where) -> str:
    """Which kernel boots there."""
    return where.removesuffix(how(where)).removesuffix("-") or "base" if how(where) in BOOTS else where


def prepare(where, parts) -> tuple[dict, dict]:
    """Build what these parts of test.sh take. Returns what set_up() says, and what they want to know."""
    config, env = config_of(where), {}
    built = set_up(config, "convert" if "converted" in parts else "kernel", user=parts != "kunit")
    if parts != "kunit":
        build_compat(built)
    if {"selftest", "converted", "peer"} & {*parts.split()}:
        build_selftests(built)
    if "template" in parts:
        env |= new_drivers(config, built)
    return built, env


def test(where, built, parts, env, *, seconds=1, fuzz=QUICK_FUZZ, timeout=None, modules=None, order=None, append=None,
         **options) -> Tested:
    """Run these parts of test.sh. seconds: how long each race lasts."""
    if append is None:
        # Only KUnit cases want movable memory. User-space cases of the same boot have it taken away first.
        append = (*BOOTS.get(how(where), ()), *((*KUNIT_ON, MOVABLE) if "kunit" in parts else ()),
                  *((*KUNIT_ON, CMA_HEAP) if "converted" in parts else ()))
    modules = modules or modules_dir(config_of(where))
    # In an order of somebody's own there is no heap.
    heap = [] if order else load_order(modules, HEAP)
    timeout = timeout or (LONG_TIMEOUT if how(where) == "debug" and {*LONG} & {*parts.split()} else TIMEOUT[how(where)])
    if "races" in parts:
        timeout += counts()["races", "races"] * (seconds + RACE_OVERHEAD)
    if "fuzz" in parts:
        timeout += FUZZ_ROOM
    memory = next((MEMORY[word] for word in (how(where), *parts.split()) if word in MEMORY), "2G")
    options = {"name": where, "memory": memory,
               "nodes": NODES if "numa" in parts else (),
               "qemu": CONVERTED_QEMU if "converted" in parts else ()} | options
    result = run(config_of(where), built, "test",
                 env | {"PARTS": parts, "HEAP": " ".join(heap), "RACE_SECONDS": seconds, "FUZZ": fuzz}, modules, order,
                 timeout=timeout, append=append,
                 expected="|".join(text for part, text in EXPECTED.items() if part in parts), **options)
    text = (result.out_dir / "stdout.log").read_text(errors="replace")
    broken = re.findall(r"^# broken: (.*)", text, re.M) if result.status else []
    detail = "; ".join([result.reason, *broken, f"logs in {os.path.relpath(result.out_dir)}"]) if result.reason else ""
    took = Counter()
    for (part, begun), (_, ended) in pairwise(re.findall(r"^# began (\S+) ([\d.]+)$", text, re.M)):
        took[part] += float(ended) - float(begun)
    return Tested(result, text, [Case(where, "vm.clean", not result.reason, detail), *parse_tap(text, where)],
                  {"boot": result.seconds - took.total()} | took)
