# SPDX-License-Identifier: GPL-2.0
"""The samples with copies of the helper code that they use: sources of which the compiler
has said what to leave out.
"""

import json
import re
import shutil
from pathlib import Path

from tools.lib.build import HELPERS, OUT, TOP, depends, kbuild

WORK = OUT / "size"
# As Kbuild has it.
CRATE_FLAGS = ("$(call rustc-option,-Zhint-mostly-unused) -Cforce-frame-pointers=yes "
               "$(if $(wildcard $(srctree)/rust/kernel/module.rs),,--cfg linux_7_2)")


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


def samples(modules, names) -> list[Sample]:
    found = re.findall(r"^pagekit_(\w+)-y := (samples/.*)", (TOP / "Kbuild").read_text(), re.M)
    # With Linux 7.2 there is no GEM driver.
    return [Sample(name, objects.split(), modules) for name, objects in found
            if name in names and (modules / f"pagekit_{name}.ko").exists()]


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
    # A constant's value may begin on a line of its own.
    end = r".*;$" if lines[at].endswith("=") else indent + r"(\S.*)?[;}]$"
    while not re.match(end, lines[last]):
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
