# SPDX-License-Identifier: GPL-2.0
"""make size: what linking to the helpers saves against copies of their code.

Each sample is built twice: linked to the helpers, and with copies of just the helper
code that it uses. The copies are sources, in out/size/duplicated, of which the compiler
has said what to leave out. Both builds must pass the same smoke test.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import sys
from pathlib import Path

from tools import guest
from tools.bench.chart import line, text
from tools.build import (
    HELPERS,
    OUT,
    TOP,
    Broken,
    build_compat,
    compiler,
    depends,
    guarded,
    kbuild,
    modules_dir,
    plain_helpers,
    release,
    set_up,
    source_of,
    text_of,
)
from tools.convert import convert
from tools.figures import write_figures
from tools.size import survey
from tools.size.copies import WORK, build_copies, samples
from tools.size.count import bytes_of, lines_of, sections
from tools.size.results import DRIVERS, table, totals

DOCUMENT = TOP / "Documentation/code-size.rst"
# The sample in C. It doesn't link to the helpers as they are for Rust, of which all figures are.
C_SAMPLE = "cdmabuf"
# The driver of the kernel that each sample is like. A new sample that has one adds a line.
MAINLINE = {
    "udmabuf": "drivers/dma-buf/udmabuf.c",
    "heap": "drivers/dma-buf/heaps/system_heap.c",
    "i915_style": "drivers/gpu/drm/i915/gem/i915_gem_dmabuf.c",
    "nouveau_style": "drivers/gpu/drm/nouveau/nouveau_prime.c",
    "radeon_style": "drivers/gpu/drm/radeon/radeon_prime.c",
}
# What those of DRM lean on.
SHARED = ("drivers/gpu/drm/drm_prime.c", "drivers/gpu/drm/drm_gem_shmem_helper.c")
# Numbers that headers want of a driver that is switched off.
NUMBERS = [f"-DCONFIG_DRM_I915_{name}=1" for name in ("TIMESLICE_DURATION", "PREEMPT_TIMEOUT", "HEARTBEAT_INTERVAL")]
# What the bytes of a helper are for. All of it is text to `size`.
PURPOSES = {
    "code": r"\.(init\.|exit\.)?text",
    "unwinding": r"\.orc_unwind(_ip)?",
    "constants": r"\.rodata\S*",
    "exports": r"__k(symtab(_strings)?|flagstab|crctab)",
    "module": r"\.(modinfo|note\S*|orc_header|(init|exit)\.data)",
}


# --- The kernel's drivers ----------------------------------------------------------


def mainline(built, files) -> dict[str, dict]:
    """Drivers of the kernel as it has built them. Where they are switched off, they are compiled
    alone with the kernel's flags, if that can be done."""
    tree, folder = source_of(built["KDIR"]), WORK / "mainline"
    folder.mkdir()
    lines = lines_of(tree / file for file in files)
    found = {}
    for file in files:
        here = Path(built["KDIR"], file).with_suffix(".o")
        alone = folder / Path(file).name
        if not here.exists():
            shutil.copy(tree / file, alone)
            include = [f"-I $(srctree)/{parent}/{name}" for parent in list(Path(file).parents)[:3]
                       for name in (".", "include", "include/nvkm")]
            (folder / "Kbuild").write_text(f"obj-m := {alone.stem}.o\nccflags-y := {' '.join(NUMBERS + include)}\n")
            with contextlib.suppress(Broken):
                kbuild(built, folder, f"{alone.stem}.o")
        made = next(filter(Path.exists, (here, alone.with_suffix(".o"))), None)
        found[file] = {"file": file, "text": None} | (bytes_of(made) if made else {}) | {
            "lines": lines[tree / file], "alone": made != here}
    return found


# --- Loading both kinds ------------------------------------------------------------


def smoke(built, kind, modules) -> tuple[list[str], dict[str, int]]:
    """Load the modules and run the smoke test. Returns its cases and how large each module is when loaded."""
    # Without movable memory, which only the KUnit part takes away from user space.
    tested = guest.test("base", built, "smoke", {}, modules=modules, name=kind, append=(), echo=False)
    logs = f"logs in {os.path.relpath(tested.result.out_dir)}"
    if tested.result.reason:
        raise Broken(f"smoke test, {kind}: {tested.result.reason} ({logs})")
    cases = tested.cases[1:]
    if failed := [case.name for case in cases if not case.ok]:
        raise Broken(f"smoke test, {kind}: failed: {', '.join(failed)} ({logs})")
    print(f"size: smoke test, {kind}: {len(cases)} passed", flush=True)
    loaded = re.findall(r"^# coresize (\S+) (\d+)", tested.text, re.M)
    return sorted(case.name for case in cases), {name: int(size) for name, size in loaded}


def load(built, modules, plain, drivers) -> tuple[dict, dict]:
    """How large the modules are when loaded, linked and with copies."""
    linked, folder = WORK / "linked", WORK / "modules"
    linked.mkdir()
    build_compat()
    for path in [*modules.glob("*.ko"), *plain.glob("*.ko")]:
        if not path.stem.endswith(("_kunit", C_SAMPLE)):
            shutil.copy(path, linked)
    shutil.copytree(linked, folder)  # what tests mappings needs the helpers, too
    for sample in drivers:
        made = sample.copy / sample.ko.name
        if others := depends(made):
            raise Broken(f"{os.path.relpath(made)} still links to {', '.join(others)}")
        shutil.copy(made, folder)
    cases, linked = smoke(built, "linked", linked)
    others, duplicated = smoke(built, "duplicated", folder)
    if cases != others:
        raise Broken(f"the smoke test ran other cases on the copies: {set(cases) ^ set(others)}")
    return linked, duplicated


# --- Results -----------------------------------------------------------------------


def in_c(built, modules, plain) -> tuple[list[dict], list[dict]]:
    """What helpers have more with their functions for C, and drivers in C that call those."""
    folder = convert.build("base", built).parent
    sources = {name: TOP / f"src/{name.removeprefix('pagekit_')}_c.rs" for name in HELPERS}
    objects = [("cdmabuf.c", "in C, its object", TOP / f"samples/{C_SAMPLE}.c", modules / f"samples/{C_SAMPLE}.o"),
               *(("udmabuf.c", kind, folder / f"{name}.c", folder / f"{name}.o") for kind, name in
                 (("mainline's, as a module", convert.BEFORE), ("converted to pagekit.h", convert.AFTER)))]
    lines = lines_of([*sources.values(), *(source for _, _, source, _ in objects)])
    interfaces = []
    for name, source in sources.items():
        less = bytes_of(plain / f"{name}.ko")
        more = {unit: size - less[unit] for unit, size in bytes_of(modules / f"{name}.ko").items()}
        interfaces.append({"name": name} | more | {"lines": lines[source]})
    return interfaces, [{"name": name, "kind": kind} | bytes_of(made) | {"lines": lines[source]}
                        for name, kind, source, made in objects]


def measure() -> dict:
    built = set_up("base", "size")
    modules = modules_dir("base")
    plain = plain_helpers(modules)
    drivers = samples(modules, MAINLINE)
    print("size: building copies", flush=True)
    build_copies(built, modules, drivers)
    kernel = mainline(built, [*(MAINLINE[s.name] for s in drivers), *SHARED])
    interfaces, c_drivers = in_c(built, modules, plain)
    linked, duplicated = load(built, modules, plain, drivers)

    sources = {name: [TOP / f"src/{name.removeprefix('pagekit_')}{end}" for end in (".rs", "_shim.c")]
               for name in HELPERS}
    sources["shared"] = [TOP / f"src/{name}" for name in ("view.rs", "range.rs", "shim.h")]
    groups = [*sources.values(), *(s.copied() for s in drivers), *(f for s in drivers for f in s.sources().values())]
    lines = lines_of({file for files in groups for file in files})

    def count(files):
        return sum(lines[file] for file in files)

    rows = []
    for s in drivers:
        parts = {part: count(files) for part, files in s.sources().items()}
        own, copied = sum(parts.values()), count(s.copied())
        rows.append({
            "name": s.name, "helpers": s.helpers, "parts": parts | {"uses": s.uses(), "copied": copied},
            "linked": bytes_of(s.ko) | {"loaded": linked[s.ko.stem], "lines": own,
                                        "object": text_of(s.ko.with_suffix(".o"))},
            "duplicated": bytes_of(s.copy / s.ko.name) | {"loaded": duplicated[s.ko.stem], "lines": own + copied},
            "mainline": kernel[MAINLINE[s.name]]})
    helpers = []
    for name in HELPERS:
        file = plain / f"{name}.ko"
        text_for = {purpose: sum(size for section, size in sections(file).items() if re.fullmatch(pattern, section))
                    for purpose, pattern in PURPOSES.items()}
        helpers.append({"name": name} | bytes_of(file) | {"loaded": linked[name], "lines": count(sources[name]),
                                                          "text_for": text_for})
    found = {"kernel": release(built["KDIR"]), "compiler": compiler(built["KDIR"]), "drivers": rows,
             "helpers": helpers, "helpers_shared_lines": count(sources["shared"]),
             "mainline_shared": [kernel[file] for file in SHARED], "c_interfaces": interfaces, "c_drivers": c_drivers}
    return found | {"break_even_drivers": totals(found, "text")[2],
                    "break_even_drivers_loaded": totals(found, "loaded")[2]}


def draw(found) -> str:
    """Total size of 1 to DRIVERS drivers, in text and loaded."""
    width, height, left, top = 400, 260, 60, 50
    shapes = []
    for panel, (unit, title) in enumerate((("text", "text"), ("loaded", "loaded size, in whole pages"))):
        linked, duplicated, even = totals(found, unit)
        most = max(*linked, *duplicated) / 1024
        step = next(2 ** n for n in range(3, 32) if most / 2 ** n <= 7)
        most = step * (int(most / step) + 1)
        zero = left + panel * (width + 110)

        def x(n):
            return zero + width * (n - 1) / (DRIVERS - 1)

        def y(size):
            return top + height * (1 - size / 1024 / most)

        shapes.append(text(zero, top - 20, f"{title}, KiB", weight="bold"))
        for value in range(0, most + 1, step):
            shapes.append(line(zero, y(value * 1024), zero + width, y(value * 1024)))
            shapes.append(text(zero - 8, y(value * 1024) + 4, value, "end"))
        for n in (1, *range(4, DRIVERS + 1, 4)):
            shapes.append(text(x(n), top + height + 18, n, "middle"))
        shapes.append(text(zero + width / 2, top + height + 38, "drivers as large as the samples on average", "middle"))
        for sizes, colour, label in ((duplicated, "#c2410c", "with copies"), (linked, "#1d4ed8", "linked, with the helpers")):
            points = " ".join(f"{x(n):.1f},{y(size):.1f}" for n, size in enumerate(sizes, 1))
            shapes.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
            # Clear of the line, which rises along the text.
            at = y(sizes[-11]) + 16 if sizes[-1] < max(linked[-1], duplicated[-1]) else y(sizes[-1]) - 10
            shapes.append(text(x(DRIVERS), at, label, "end", colour=colour))
        if even:
            shapes.append(line(x(even), top + height, x(even), top + height / 2, "#444", extra='stroke-dasharray="4 3"'))
            shapes.append(f'<circle cx="{x(even):.1f}" cy="{y(linked[even - 1]):.1f}" r="4" fill="#444"/>')
            shapes.append(text(x(even) - 4, top + height / 2 - 8, f"less from {even} drivers on"))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width + 210}" height="{top + height + 60}" '
            f'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(shapes) + "\n</svg>\n")


def update(found):
    """Makes these the figures that the tests hold on to, and shows them in the document."""
    shown = "".join(f"   {line}".rstrip() + "\n" for line in table(found).split("\n"))
    DOCUMENT.write_text(re.sub(r"(?<=^\.\. results\n\n::\n\n).*?(?=^\.\. end of results)", lambda _: shown,
                               DOCUMENT.read_text(), flags=re.M | re.S))
    write_figures(f"{found['kernel']}, {found['compiler']}", {h["name"]: h["text"] for h in found["helpers"]})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.size", description=__doc__.split("\n")[0])
    parser.add_argument("--update", action="store_true",
                        help="take the results as the figures that the tests hold on to, and document them")
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("survey", help="bring the survey of the kernel's drivers up to date")
    command.add_argument("tree", nargs="?", help="default: the source of the kernel that is set up")
    options = parser.parse_args()
    if options.command:
        return survey.update(Path(options.tree or source_of(set_up("base", "size")["KDIR"])).resolve())
    found = measure()
    (OUT / "size.json").write_text(json.dumps(found, indent=1) + "\n")
    (OUT / "size.svg").write_text(draw(found))
    print(f"\n{table(found)}\nsize: out/size.json, out/size.svg; the copies are in out/size/duplicated")
    if options.update:
        update(found)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
