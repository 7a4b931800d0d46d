# SPDX-License-Identifier: GPL-2.0
"""make test-intree: build a kernel with pagekit in its tree, patch by patch, built in and as
modules, run kunit.py on it, and boot both kinds with the user-space cases.

The base kernel's build is taken over, so that little more than pagekit is compiled.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.intree import place
from tools.lib import guest, vm
from tools.lib.build import HELPERS, TOP, build_compat, call, guarded, set_up
from tools.lib.build import OUT as TOP_OUT
from tools.lib.cases import counts, judge
from tools.lib.tap import Case, case, report

OUT = TOP_OUT / "intree"
# What is there before any user space: no swap, no disk.
WITHOUT_USER_SPACE = re.compile(r"swapped_out|survives_reclaim|memory_of_disks")
SUITES = tuple(sorted({suite for suite, part in counts() if part == "kunit"}))
DRIVERS = ("udmabuf", "i915", "nouveau", "radeon", "heap")
# What is built in is not to be unloaded.
ONLY_MODULES = tuple(f"{driver}.unload_refused" for driver in DRIVERS[1:4])
# kunit.py takes KVM wherever /dev/kvm opens; this is for machines where guests hang on it.
QEMU = """\
#!/bin/bash
for arg; do shift; case $arg in kvm | hvf) arg=tcg ;; esac; set -- "$@" "$arg"; done
PATH=${PATH#*:} exec qemu-system-x86_64 "$@"
"""


class Tree:
    """A kernel tree of our own, and builds of it."""

    def __init__(self, built):
        self.built, self.folder = Path(built["KDIR"]), Path(built["PAGEKIT_CACHE"]) / "intree"
        self.env = os.environ | {name: built[name] for name in ("PATH", "RUST_LIB_SRC", "LIBCLANG_PATH")}
        self.llvm = f"LLVM={built['LLVM']}"
        self.source = self.folder / "linux"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        call("copying the source", "cp", "-al", (self.built / "source").resolve(), self.source)

    def build_of(self, kind) -> Path:
        """A copy of the base build whose commands name its own folders: make finds nothing to do."""
        new, old_source = self.folder / kind, (self.built / "source").resolve()
        call("copying the build", "cp", "-a", self.built, new)
        (new / "source").unlink()
        (new / "source").symlink_to(self.source)
        for path in [new / "Makefile", *new.rglob(".*.cmd")]:
            text = path.read_text()
            path.write_text(text.replace(str(old_source), str(self.source)).replace(str(self.built), str(new)))
        return new

    def make(self, build, what, *args):
        """What failed, if it did. Any warning is a failure."""
        log = OUT / f"{build.name}-{what}.log"
        with open(log, "w") as out:
            result = subprocess.run(["make", "-C", self.source, f"O={build}", self.llvm, f"-j{os.cpu_count()}", *args],
                                    env=self.env, stdout=out, stderr=subprocess.STDOUT)
        said = re.findall(r"(?im)^.*\b(?:warning|error)(?:\[\w+\])?: .*", log.read_text())
        if result.returncode or said:
            return f"{' | '.join(said[:3]) or 'make failed'}; see {os.path.relpath(log)}"
        return ""

    def configure(self, build, lines):
        """As the lines want it, and nothing else changed."""
        names = "|".join(line.partition("=")[0] for line in lines) or "nothing"
        config = re.sub(rf"(?m)^(# )?({names})[ =].*\n", "", (build / ".config").read_text())
        (build / ".config").write_text(config + "\n".join(dict.fromkeys(lines)) + "\n")


def symbols(text) -> list[str]:
    return [f"CONFIG_{name}" for name in re.findall(r"(?m)^config (\w+)", text)]


def all_of(text, value) -> list[str]:
    """All symbols, y where they can't be modules."""
    kinds = re.findall(r"(?m)^config (\w+)\n\t(bool|tristate) ", text)
    return [f"CONFIG_{name}={value if kind == 'tristate' else 'y'}" for name, kind in kinds]


def kunitconfig(tree) -> list[str]:
    lines = (tree.source / place.HOME / ".kunitconfig").read_text().splitlines()
    return [line for line in lines if line.startswith("CONFIG")]


def menu(tree, build):
    """What menuconfig has to show."""
    wanted = symbols((tree.source / place.HOME / "Kconfig").read_text())
    said = ""
    # What is chosen is not shown, and some are only shown with the helpers, or with their C interfaces.
    helpers = [f"CONFIG_{name.upper()}" for name in HELPERS]
    alone = [f"{name}=m" for name in helpers]
    for lines in [], alone, [*alone, *(f"{name}_C=y" for name in helpers)]:
        tree.configure(build, lines)
        tree.make(build, "help", "helpnewconfig")
        said += (OUT / f"{build.name}-help.log").read_text()
    lost = [name for name in wanted if not re.search(rf"(?m)^{name}:\n\n(?:.+\n)+", said)]
    yield case("intree.menu", f"no help for {', '.join(lost)}" if lost or not wanted else "")


def patch_by_patch(tree, build):
    """Each patch builds alone, with all built in that there is."""
    patches, base = place.series()[1:], place.pristine(tree.source, place.content())
    for i, patch in enumerate(patches, 1):
        new = place.content(patches[:i])
        for name, text in base.items():
            place.write(tree.source / name, text)
        place.add(tree.source, new)
        if f"{place.HOME}/Kconfig" not in new.files:
            continue
        tree.configure(build, [f"{name}=y" for name in symbols(new.files[f"{place.HOME}/Kconfig"])])
        name = re.sub(r"\W+", "-", patch.subject)
        yield case(f"intree.{name}", tree.make(build, name, "olddefconfig", f"{place.HOME}/"))


def kunit(tree, build):
    """As a user runs it, but for the build directory."""
    extra = ["CONFIG_SERIAL_8250=y", "CONFIG_SERIAL_8250_CONSOLE=y"]  # as kunit.py adds for this architecture
    (build / "last_used_kunitconfig").write_text("\n".join(kunitconfig(tree) + extra) + "\n")
    env = dict(tree.env)
    if vm.probe(tree.built, vm.find_virtme_run()) != "kvm":
        (OUT / "bin").mkdir(exist_ok=True)
        (OUT / "bin/qemu-system-x86_64").write_text(QEMU)
        (OUT / "bin/qemu-system-x86_64").chmod(0o755)
        env["PATH"] = f"{OUT / 'bin'}:{env['PATH']}"
    with open(OUT / "kunit.log", "w") as out:
        subprocess.run(["tools/testing/kunit/kunit.py", "run", "--arch=x86_64", "--make_options", tree.llvm,
                        f"--build_dir={build}", f"--kunitconfig={place.HOME}", "--timeout=900",
                        f"--json={OUT / 'kunit.json'}"], cwd=tree.source, env=env, stdout=out, stderr=subprocess.STDOUT)
    if not (OUT / "kunit.json").exists():
        yield Case("kunit.py", "intree.kunit", False, f"no results; see {os.path.relpath(OUT / 'kunit.log')}")
        return
    for suite in json.loads((OUT / "kunit.json").read_text())["sub_groups"]:
        for test in suite["test_cases"]:
            name, status = f"{suite['name']}.{test['name']}", test["status"]
            if suite["name"].startswith("pagekit_"):
                skips = bool(WITHOUT_USER_SPACE.search(name))
                yield Case("kunit.py", name, status == ("SKIP" if skips else "PASS"), status)
        # A case with parameters is a group.
        for group in suite["sub_groups"] if suite["name"].startswith("pagekit_") else ():
            name, tests = f"{suite['name']}.{group['name']}", group["test_cases"]
            bad = [test["name"] for test in tests if test["status"] != "PASS"]
            yield Case("kunit.py", name, bool(tests) and not bad, ", ".join(bad))


def in_vm(tree, built, build, kind):
    """The user-space cases, and for modules KUnit too."""
    modules = OUT / f"modules-{kind}"
    modules.mkdir()
    for path in (build / place.HOME).glob("*.ko"):
        shutil.copy(path, modules)
    importer = ["make", "-s", "-C", build, f"M={TOP}", f"MO={OUT / f'importer-{kind}'}", tree.llvm,
                "CONFIG_PAGEKIT_TEST_IMPORTER=m", "modules"]
    call("building the test importer", *importer, env=tree.env)
    shutil.copy(OUT / f"importer-{kind}/pagekit_importer.ko", modules)
    # What is built in has run its KUnit cases by then.
    order, parts, append = ["pagekit_importer"], "smoke", guest.KUNIT_ON
    if kind == "m":
        order, parts, append = None, "kunit smoke", None
    tested = guest.test("base", built | {"KDIR": build}, parts, {}, modules=modules, order=order, name=f"intree-{kind}",
                        append=append)
    for found in tested.cases:
        found.where = kind
    if kind == "m":
        return judge(tested.cases, kind, f"vm {parts}", suites=(*DRIVERS, *SUITES))
    cases = [case for case in tested.cases if case.name not in ONLY_MODULES]
    return judge(cases, kind, f"vm {parts}", suites=DRIVERS, without=ONLY_MODULES)


def main() -> int:
    os.environ.pop("KDIR", None)
    built = set_up("base")
    build_compat(built)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    tree = Tree(built)
    y, m = tree.build_of("y"), tree.build_of("m")

    print("intree: building patch by patch, with log files in out/intree", flush=True)
    cases = [*patch_by_patch(tree, y), *menu(tree, m)]
    kconfig = (tree.source / place.HOME / "Kconfig").read_text()
    print("intree: building it built in, and as modules", flush=True)
    for build in (y, m):
        tree.configure(build, [*all_of(kconfig, build.name), *(kunitconfig(tree) if build is y else [])])
        cases.append(case(f"intree.build_{build.name}", tree.make(build, "all", "olddefconfig", "bzImage", "modules")))
    print("intree: kunit.py", flush=True)
    cases += judge([*kunit(tree, y)], "kunit.py", "kunit", suites=SUITES)
    for build in (y, m):
        cases += in_vm(tree, built, build, build.name)
    return report(cases, "intree")


if __name__ == "__main__":
    sys.exit(guarded(main))
