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

from tools.convert import convert
from tools.lib import guest
from tools.lib.build import (
    HELPERS,
    OUT,
    TOP,
    Broken,
    build_compat,
    compiler,
    depends,
    draw,
    guarded,
    kbuild,
    modules_dir,
    plain_helpers,
    release,
    set_up,
    source_of,
    text_of,
)
from tools.lib.figures import write_figures
from tools.size import survey
from tools.size.copies import WORK, build_copies, samples
from tools.size.count import bytes_of, lines_of, sections
from tools.size.results import table, totals

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
    "gem": "drivers/gpu/drm/vgem/vgem_drv.c",
}
# What those of DRM lean on, and what one has instead that evicts its objects.
SHARED = ("drivers/gpu/drm/drm_prime.c", "drivers/gpu/drm/drm_gem_shmem_helper.c",
          "drivers/gpu/drm/panthor/panthor_gem.c")
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
    tested = guest.test("base", built, "smoke", {}, modules=modules, name=kind, echo=False)
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
    build_compat(built)
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
    folder = convert.build("base", built, "udmabuf")
    sources = {name: TOP / f"src/{name.removeprefix('pagekit_')}_c.rs" for name in HELPERS}
    objects = [("cdmabuf.c", "in C, its object", TOP / f"samples/{C_SAMPLE}.c", modules / f"samples/{C_SAMPLE}.o"),
               *(("udmabuf.c", kind, folder / place / "udmabuf.c", folder / place / "udmabuf.o") for kind, place in
                 (("mainline's, as a module", "before"), ("converted to pagekit.h", "after")))]
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


def update(found, file):
    """Makes these the figures that the tests hold on to, and shows them in the document."""
    shown = "".join(f"   {line}".rstrip() + "\n" for line in table(found).split("\n"))
    DOCUMENT.write_text(re.sub(r"(?<=^\.\. results\n\n::\n\n).*?(?=^\.\. end of results)", lambda _: shown,
                               DOCUMENT.read_text(), flags=re.M | re.S))
    write_figures(f"{found['kernel']}, {found['compiler']}", {h["name"]: h["text"] for h in found["helpers"]})
    draw("tools.size.chart", file, DOCUMENT.with_suffix(".svg"))


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
    file = OUT / "size.json"
    file.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\n{table(found)}\nsize: out/size.json; the copies are in out/size/duplicated")
    if options.update:
        update(found, file)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
