# SPDX-License-Identifier: GPL-2.0
"""What the modules link to, call, export and weigh, and which version they say they are."""

import itertools
import os
import re

from tools.lib.build import HELPERS, LISTS, TOP, compiler, depends, plain_helpers, read_list, release, run, text_of
from tools.lib.figures import read_figures
from tools.lib.tap import case

HEADER = TOP / "include/pagekit.h"
GROWTH = 1.05
# What drivers in Rust link to: see Kbuild.
IN_RUST = re.compile("pagekit_(page_array|pin_array|vma)_")


def depends_cases(modules):
    listed = set()
    for line in read_list(LISTS / "depends.txt"):
        module, wanted = (part.strip() for part in line.split(":"))
        listed.add(module)
        path = modules / f"{module}.ko"
        got = depends(path) if path.exists() else ["(not built)"]
        same = set(got) == set(filter(None, wanted.split(",")))
        yield case(f"depends.{module}", "" if same else f"depends on {','.join(got) or 'nothing'}")
    for path in sorted(modules.glob("*.ko")):
        if path.stem not in listed:
            yield case(f"depends.{path.stem}", "not in tests/lists/depends.txt")


def export_cases(modules):
    """A helper exports what a sample, a test or a line of the porting guide uses, and nothing else."""
    others = [path for path in modules.glob("*.ko") if path.stem not in HELPERS]
    used = {line.split()[-1] for line in run("nm", "-u", *others).stdout.splitlines() if line}
    guide = re.findall(r"(\w+)\(\)", (TOP / "Documentation/porting.rst").read_text())
    documented = tuple(f"_{function}" for function in guide)  # behind a module or type
    in_c = set()
    for name in HELPERS:
        exported = re.findall(r" __ksymtab_(\S+)", run("nm", modules / f"{name}.ko").stdout)
        in_c |= set(itertools.filterfalse(IN_RUST.match, exported))
        unused = [symbol for symbol in exported if symbol not in {*used, *guide} and not symbol.endswith(documented)]
        words = f"in no sample, test or row of porting.rst: {', '.join(unused)}" if unused else ""
        yield case(f"exports.{name}", words if exported else "nothing")
    # That they agree otherwise is for the compiler to see.
    declared = set(re.findall(r"^(?!static )\w.*?\b(pagekit_\w+)\(", HEADER.read_text(), re.M))
    yield case("exports.header", f"only one of pagekit.h and the modules has: {', '.join(declared ^ in_c)}"
               if declared != in_c else "")


def size_cases(modules, kdir):
    """No helper grows unnoticed. Other kernels and compilers have other figures, or none."""
    key = f"{release(kdir)}, {compiler(kdir)}"
    figures = {} if os.environ.get("KDIR") else read_figures().get(key, {})
    if not figures:
        print(f"size: no figures for {os.environ.get('KDIR') or key}, so that the helpers may grow")
    plain = plain_helpers(modules)
    for name in HELPERS:
        now, then = text_of(plain / f"{name}.ko"), figures.get(name)
        grown = then and now > GROWTH * then
        words = f"{now} bytes of text, not {then}; if it must be: python3 -m tools.size --update"
        yield case(f"size.{name}", words if grown else "")


# No helper takes a lock or waits, but within these calls of the kernel's.
LOCKS = re.compile(r"mutex|spin|sem|lock|ww_|resv|rcu|wait|completion|(^|_)(down|up)_|atomic|refcount")
LOCKS_ALLOWED = {
    "unpin_user_page_range_dirty_lock": "takes the folio lock of user memory that is of a file on a disk, which keeps "
                                        "truncation away while the page is marked",
}


def lock_cases(modules):
    """What the helpers call. Inline atomics are invisible here: reviews say the rest."""
    for name in HELPERS:
        symbols = {line.split()[-1] for line in run("nm", "-u", modules / f"{name}.ko").stdout.splitlines()}
        locks = sorted(filter(LOCKS.search, symbols - LOCKS_ALLOWED.keys()))
        yield case(f"locks.{name}", f"calls {', '.join(locks)}" if locks else "" if symbols else "calls nothing at all")


def panic_cases(modules):
    """No helper can panic."""
    for name in HELPERS:
        symbols = {line.split()[-1] for line in run("nm", "-u", modules / f"{name}.ko").stdout.splitlines()}
        panics = sorted(filter(re.compile(r"panic|_fail$").search, symbols))
        yield case(f"panics.{name}", f"calls {', '.join(panics)}" if panics else "" if symbols else "calls nothing at all")


def version_cases(modules):
    """There is one version: that of src/Cargo.toml. And one least version of Rust: the set-up's."""
    def first(file, pattern):
        found = re.search(pattern, (TOP / file).read_text(), re.M)
        return found[1] if found else "none"

    version = first("src/Cargo.toml", r'^version = "(.*)"')
    shown = {path.name: run("modinfo", "-F", "version", path).stdout.strip() for path in modules.glob("*.ko")}
    shown |= {"CHANGELOG.md": first("CHANGELOG.md", r"^## ([\d.]+)"),
              "tests/user/Cargo.toml": first("tests/user/Cargo.toml", r'^version = "(.*)"')}
    wrong = sorted(f"{name}: {other or 'none'}" for name, other in shown.items() if other != version)
    yield case("version.agrees", f"not {version}: {', '.join(wrong)}" if wrong else "")
    least = first("tools/setup/versions.env", r"^MIN_RUSTC=(.*)\.0$")
    said = {name: first(name, r'^rust-version = "(.*)"') for name in ("src/Cargo.toml", "tests/user/Cargo.toml")}
    said["README.md"] = first("README.md", r"^\* `rustc` and `cargo` ([\d.]+) or newer")
    wrong = [f"{name}: {other}" for name, other in said.items() if other != least]
    yield case("version.rustc", f"not {least}: {', '.join(wrong)}" if wrong else "")


def cases(modules, built):
    yield from lock_cases(modules)
    yield from panic_cases(modules)
    yield from depends_cases(modules)
    yield from export_cases(modules)
    yield from version_cases(modules)
    yield from size_cases(modules, built["KDIR"])
