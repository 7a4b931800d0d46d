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
    run,
    set_up,
    source_of,
    text_of,
)
from tools.convert import convert
from tools.figures import write_figures

WORK = OUT / "size"
DOCUMENT = TOP / "Documentation/code-size.rst"
SURVEY = TOP / "Documentation/survey.rst"
# The sample in C. It doesn't link to the helpers as they are for Rust, of which all figures are.
C_SAMPLE = "cdmabuf"
DRIVERS = 24  # where the chart ends: so many drivers of Linux 7.3 define dma_buf_ops

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
# As Kbuild has it.
CRATE_FLAGS = ("$(call rustc-option,-Zhint-mostly-unused) -Cforce-frame-pointers=yes "
               "$(if $(wildcard $(srctree)/rust/kernel/module.rs),,--cfg linux_7_2)")
# What the bytes of a helper are for. All of it is text to `size`.
PURPOSES = {
    "code": r"\.(init\.|exit\.)?text",
    "unwinding": r"\.orc_unwind(_ip)?",
    "constants": r"\.rodata\S*",
    "exports": r"__k(symtab(_strings)?|flagstab|crctab)",
    "module": r"\.(modinfo|note\S*|orc_header|(init|exit)\.data)",
}
UNITS = ("text", "rodata", "data", "total", "loaded", "lines")


# --- Building and counting ---------------------------------------------------------


def sections(file) -> dict[str, int]:
    found = re.findall(r"^([._a-zA-Z]\S*) +(\d+) +\d+$", run("size", "-A", file, check=True).stdout, re.M)
    return {name: int(size) for name, size in found}


def bytes_of(file) -> dict[str, int]:
    text, data, bss, total = map(int, run("size", file, check=True).stdout.split("\n")[1].split()[:4])
    rodata = sum(size for name, size in sections(file).items() if name.startswith(".rodata"))
    return {"text": text, "rodata": rodata, "data": data + bss, "total": total}


def lines_of(files) -> dict[Path, int]:
    """Lines of code: no comments, no blank lines."""
    files = list(files)
    said = run("cloc", "--by-file", "--skip-uniqueness", "--json", "--quiet", *files, check=True).stdout
    found = json.loads(said)
    return {Path(file): found[str(file)]["code"] for file in files}


# --- The samples -------------------------------------------------------------------


class Sample:
    """A driver in samples/, as Kbuild names its objects."""

    def __init__(self, name, objects, modules):
        self.name = name
        self.objects = objects
        self.root = TOP / f"samples/{name}.rs"
        self.ko = modules / f"pagekit_{name}.ko"
        self.helpers = [h.removeprefix("pagekit_") for h in HELPERS if h in depends(self.ko)]
        self.copy = WORK / "duplicated" / name

    def sources(self) -> dict[str, list[Path]]:
        """What it consists of. Plumbing is what samples share."""
        crate = [self.root]
        for source in crate:
            crate += [TOP / f"samples/{name}.rs" for name in re.findall(r"^mod (\w+);", source.read_text(), re.M)]
        shims = [path for path in ((TOP / name).with_suffix(".c") for name in self.objects) if path.exists()]
        for source in shims:
            shims += [TOP / f"samples/{name}" for name in re.findall(r'^#include "(\w+\.h)"', source.read_text(), re.M)]
        return {"driver": crate[:1], "plumbing": crate[1:], "shims": shims}

    def copied(self) -> list[Path]:
        """The sources that it has instead of helpers."""
        patterns = ("samples/pagekit_*.rs", "samples/pagekit_*/*.rs", "src/*.[ch]")
        return [path for pattern in patterns for path in self.copy.glob(pattern)]

    def uses(self) -> int:
        """Lines of the driver that name something of the helpers."""
        code = re.sub(r"^\s*//.*\n", "", self.root.read_text(), flags=re.M)
        names = re.findall(r"\w+", " ".join(re.findall(r"^use pagekit_\w+::([^;]*);", code, re.M)))
        methods = [name for helper in self.helpers for name in re.findall(
            r"^    pub (?:unsafe )?fn (\w+)\(\s*(?:&|mut )", (TOP / f"src/{helper}.rs").read_text(), re.M)]
        use = re.compile(rf"\b(?:{'|'.join(names) or '$^'})\b|\.(?:{'|'.join(methods) or '$^'})\(")
        return sum(1 for line in code.split("\n") if use.search(line))


def samples(modules) -> list[Sample]:
    found = re.findall(r"^pagekit_(\w+)-y := (samples/.*)", (TOP / "Kbuild").read_text(), re.M)
    return [Sample(name, objects.split(), modules) for name, objects in found if name in MAINLINE]


# --- The copies --------------------------------------------------------------------


def without_exports(shim) -> str:
    return re.sub(r'^#include "pagekit_\w+_exports.h"\n', "", shim, flags=re.M)


def as_module(text) -> str:
    """A source as it is when the crates that it names are modules of its own crate."""
    text = re.sub(r"^ *#\[(inline\(never\)|export_name = .*)\]\n", "", text, flags=re.M)
    text = re.sub(r"^#\[cfg\(CONFIG_PAGEKIT_\w+_C\)\]\nmod \w+;\n\n", "", text, flags=re.M)
    return re.sub(r"(?<![\w:])(pagekit_(?:view|pages|pin|vma)::)", r"crate::\1", text)


def copy(sample, modules):
    """Lay out the sources of a driver that has copies of the helpers that the sample links."""
    crate, shims = sample.copy / "samples", sample.copy / "src"
    (crate / "pagekit_view").mkdir(parents=True)
    shims.mkdir()
    for path in filter(Path.is_file, (TOP / "samples").iterdir()):
        (crate / path.name).write_text(as_module(path.read_text()))
    for name in ("view", *sample.helpers):
        (crate / f"pagekit_{name}.rs").write_text(as_module((TOP / f"src/{name}.rs").read_text()))
        with open(crate / sample.root.name, "a") as root:
            root.write(f"mod pagekit_{name};\n")
    shutil.copy(TOP / "src/range.rs", crate / "pagekit_view")
    # What HELPER() has beside a shim is of a module. It is one shim, wherever it stands.
    (shims / "shim.h").write_text(re.sub(r"^\tMODULE_\w+\(.*\n", "", (TOP / "src/shim.h").read_text(), flags=re.M))
    for name in sample.helpers:
        shim = without_exports((TOP / f"src/{name}_shim.c").read_text())
        shim = shim if name == sample.helpers[0] else re.sub(r"^HELPER\(.*\n", "", shim, flags=re.M)
        (shims / f"{name}_shim.c").write_text(shim)
    objects = [*sample.objects, *(f"src/{name}_shim.o" for name in sample.helpers)]
    (sample.copy / "Kbuild").write_text(
        f"obj-m := pagekit_{sample.name}.o\npagekit_{sample.name}-y := {' '.join(objects)}\n"
        f"RUSTFLAGS_samples/{sample.name}.o := --crate-name pagekit_{sample.name} {CRATE_FLAGS} "
        f"-L {modules}/src --extern bitflags\n")


def item(lines, at) -> range:
    """Lines of the item that has its name in one, with its attributes and comments."""
    indent = re.match(" *", lines[at])[0]
    first = last = at
    while re.match(indent + r"(///|//|#\[)", lines[first - 1]):
        first -= 1
    while not re.match(indent + r"(\S.*)?[;}]$", lines[last]):
        last += 1
    return range(first, last + 1)


def leave_out(file, found):
    """Take out the items and imports that the compiler has found unused: (first line, last, kind, name).
    Imports have lines of their own."""
    lines, drop = file.read_text().split("\n"), set()
    for line, last, kind, name in found:
        drop |= set(range(line - 1, last) if kind == "unused" else item(lines, line - 1))
        if kind == "struct":
            for at, text in enumerate(lines):
                if re.match(rf"(unsafe )?impl\b.*\b{name}\b.*{{$", text):
                    drop |= set(item(lines, at))
    file.write_text("\n".join(line for at, line in enumerate(lines) if at not in drop))


def leave_out_names(file, names):
    """Take out what is of no use without these items: their imports, and the shims of that name."""
    text, any_of = file.read_text(), "|".join(names)
    text = re.sub(r"^use [^;]*;", lambda use: re.sub(rf"^ +(?:{any_of}),(?: //)?\n", "", use[0], flags=re.M), text,
                  flags=re.M)
    if file.suffix == ".c":
        text = re.sub(rf"^SHIM\([^,]*, (?:{any_of}),.*\n(?:[ \t].*\n)*", "", text, flags=re.M)
        text = re.sub(rf"^\w[\w *]*\b(?:{any_of})\([^;{{]*(?:;|\n\{{\n.*?^\}})\n", "", text, flags=re.M | re.S)
    file.write_text(text)


def unused_in(said, top) -> dict[Path, list[tuple]]:
    """What the compiler has found unused in copies: by file, as `leave_out` takes it."""
    found = {}
    for line in said.split("\n"):
        lint = json.loads(line) if line.startswith("{") else {}
        if (lint.get("code") or {}).get("code") not in ("dead_code", "unused_imports"):
            continue
        kind = lint["message"].split()[0]
        for span in lint["spans"]:
            text = span["text"][0]
            name = text["text"][text["highlight_start"] - 1:text["highlight_end"] - 1]
            # A field or a variant is a part of what is used.
            if span["is_primary"] and "/pagekit_" in span["file_name"] and not kind.startswith(("field", "variant")):
                found.setdefault(top / span["file_name"], []).append((span["line_start"], span["line_end"], kind, name))
    return found


def build_copies(built, modules, drivers):
    """Build them, leave out what is not used, and again until all is."""
    shutil.rmtree(WORK, ignore_errors=True)
    for sample in drivers:
        copy(sample, modules)
    top = WORK / "duplicated"
    (top / "Kbuild").write_text("".join(f"obj-m += {sample.name}/\n" for sample in drivers))
    while unused := unused_in(kbuild(built, top, "modules", rustflags="--error-format=json"), top):
        for file, found in unused.items():
            leave_out(file, found)
        for sample in drivers:
            names = [name for file, found in unused.items() if sample.copy in file.parents for _, _, kind, name in found
                     if kind not in ("unused", "method", "methods", "associated")]
            for file in sample.copied() if names else []:
                leave_out_names(file, names)


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
    drivers = samples(modules)
    print("size: building copies", flush=True)
    build_copies(built, modules, drivers)
    kernel = mainline(built, [*(MAINLINE[s.name] for s in drivers if s.name in MAINLINE), *SHARED])
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
            "mainline": kernel.get(MAINLINE.get(s.name))})
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


def totals(found, unit) -> tuple[list[float], list[float], int | None]:
    """For 1 to DRIVERS drivers that are as large as the samples are on average: linked, with
    the helpers that any of them links, and with copies. And from which number on linked is less."""
    rows = found["drivers"]
    used = {f"pagekit_{helper}" for row in rows for helper in row["helpers"]}
    helpers = sum(row[unit] for row in found["helpers"] if row["name"] in used)
    linked, duplicated = (sum(row[kind][unit] for row in rows) / len(rows) for kind in ("linked", "duplicated"))
    numbers = range(1, DRIVERS + 1)
    even = next((n for n in numbers if helpers + n * linked <= n * duplicated), None)
    return [helpers + n * linked for n in numbers], [n * duplicated for n in numbers], even


def table(found) -> str:
    def row(name, kind, cells):
        return f"{name:16}{kind:26}" + "".join(f"{cells.get(unit) or '':>8}" for unit in UNITS)

    def counts(name, cells):
        return f"{name:16}" + "".join(f"{cell:>12}" for cell in cells)

    helpers, shared = found["helpers"], found["helpers_shared_lines"]
    out = [f"Linux {found['kernel']}, {found['compiler']}", "", row("", "", {unit: unit for unit in UNITS})]
    for d in found["drivers"]:
        out += [row(d["name"], f"linked to {', '.join(d['helpers'])}", d["linked"]), row("", "with copies", d["duplicated"])]
        if m := d["mainline"]:
            out.append(row("", Path(m["file"]).name + "*" * m["alone"], m))
        out.append(f"{'':16}linked has {d['linked']['text'] / d['duplicated']['text']:.0%} of the copies' text; "
                   f"its object, {d['linked']['object']}")
    out += [row("shared", Path(m["file"]).name + "*" * m["alone"], m) for m in found["mainline_shared"]]
    out += ["", *(row(h["name"], "", h) for h in helpers), row("what they share", "", {"lines": shared})]
    out.append(row("all helpers", "", {unit: sum(h[unit] for h in helpers) + shared * (unit == "lines") for unit in UNITS}))
    out += ["", *(row(h["name"], "more with its C interface", h) for h in found["c_interfaces"])]
    out += [row(d["name"], d["kind"], d) for d in found["c_drivers"]]
    parts = {"driver": "driver", "uses": "of it uses", "plumbing": "plumbing", "shims": "shims", "copied": "copied"}
    out += ["", counts("lines of code", parts.values())]
    out += [counts(d["name"], (d["parts"][part] for part in parts)) for d in found["drivers"]]
    out += ["", counts("text for", PURPOSES), *(counts(h["name"], h["text_for"].values()) for h in helpers)]
    text, loaded = (found[f"break_even_drivers{unit}"] or f"more than {DRIVERS}" for unit in ("", "_loaded"))
    out += ["", f"Linking takes less than copies from {text} drivers on in text and from {loaded} drivers on in loaded size."]
    return "\n".join(line.rstrip() for line in out) + "\n"


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


def size(options) -> int:
    found = measure()
    (OUT / "size.json").write_text(json.dumps(found, indent=1) + "\n")
    (OUT / "size.svg").write_text(draw(found))
    print(f"\n{table(found)}\nsize: out/size.json, out/size.svg; the copies are in out/size/duplicated")
    if options.command == "update":
        shown = "".join(f"   {line}".rstrip() + "\n" for line in table(found).split("\n"))
        DOCUMENT.write_text(re.sub(r"(?<=^\.\. results\n\n::\n\n).*?(?=^\.\. end of results)", lambda _: shown,
                                   DOCUMENT.read_text(), flags=re.M | re.S))
        write_figures(f"{found['kernel']}, {found['compiler']}", {h["name"]: h["text"] for h in found["helpers"]})
    return 0


# --- What stands in the kernel's drivers -------------------------------------------

# Where drivers share memory through dma-bufs, and what they get, pin and map pages with.
PLACES = ("drivers/gpu/drm", "drivers/accel", "drivers/dma-buf", "drivers/media/common/videobuf2",
          "drivers/media/pci/intel", "drivers/misc/fastrpc.c", "drivers/staging/media", "drivers/tee", "drivers/xen")
CALLS = re.compile(r"\b(shmem_read_(mapping_page|folio)\w*|alloc_pages|alloc_pages_bulk|folio_alloc|memfd_pin_folios|"
                   r"pin_user_pages\w*|get_user_pages\w*|vmf_insert_\w+|vm_insert_pages?|vm_map_pages\w*|"
                   r"remap_pfn_range|apply_to_page_range)\(")
FUNCTION = re.compile(r"^(?:[a-z_][\w *]*\n)?(?=[a-z_])(?:[^\n;{}()#]*\W)?(\w+)\([^;{}]*?\)[^;{}()]*\n\{\n.*?^\}",
                      re.M | re.S)
# A row of either table of the survey: only what is a copy has lines.
ROW = re.compile(r"^   (drivers/[^,]*), (\w+), (?:(\d*), )?(.*)$", re.M)


def functions(file) -> dict[str, str]:
    return {match[1]: match[0] for match in FUNCTION.finditer(file.read_text(errors="replace"))}


def callers(tree):
    """Functions that get, pin or map pages: (file, function)."""
    for place in PLACES:
        for path in [tree / place] if place.endswith(".c") else sorted((tree / place).rglob("*.c")):
            file = str(path.relative_to(tree))
            if "test" in file or not CALLS.search(path.read_text(errors="replace")):
                continue
            for name, text in functions(path).items():
                if CALLS.search(re.sub(r"/\*.*?\*/", "", text.partition("{")[2], flags=re.S)):
                    yield file, name


def survey(options) -> int:
    """Count the lines of the functions in the survey again, and look for others."""
    tree = Path(options.tree or source_of(set_up("base", "size")["KDIR"])).resolve()
    text = SURVEY.read_text()
    rows = {match.group(1, 2): match.group(3, 4) for match in ROW.finditer(text)}
    bodies = {file: functions(tree / file) if (tree / file).exists() else {} for file, _ in rows}
    wrong = [f"{file}: {name}() is gone" for file, name in rows if name not in bodies[file]]
    wrong += [f"{file}: {name}() is not in the survey" for file, name in callers(tree) if (file, name) not in rows]
    if wrong:
        print("\n".join(wrong))
        return 1
    folder = OUT / "survey"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copies = {}
    for file, name in (key for key, (lines, _) in rows.items() if lines is not None):
        copies[file, name] = folder / f"{len(copies)}.c"
        copies[file, name].write_text(bodies[file][name])
    lines = lines_of(copies.values())
    counted = {key: lines[path] for key, path in copies.items()}
    whole = [count for key, count in counted.items() if rows[key][1].startswith("all,")]
    total = (f"{len(counted)} functions in {len({file for file, _ in counted})} files, {sum(counted.values())} lines. "
             f"Of these, {len(whole)} with {sum(whole)} lines would go as a whole.")
    text = ROW.sub(lambda row: f"   {row[1]}, {row[2]}, {counted[row[1], row[2]]}, {row[4]}"
                   if row.group(1, 2) in counted else row[0], text)
    SURVEY.write_text(re.sub(r"^\d+ functions in .*$", total, text, flags=re.M))
    print(f"survey: {total}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.set_defaults(run=size)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("update", help="take the results as the figures that the tests hold on to, and document them")
    command = commands.add_parser("survey", help="bring the survey of the kernel's drivers up to date")
    command.add_argument("tree", nargs="?", help="default: the source of the kernel that is set up")
    command.set_defaults(run=survey)
    options = parser.parse_args()
    return options.run(options)


if __name__ == "__main__":
    sys.exit(guarded(main))
