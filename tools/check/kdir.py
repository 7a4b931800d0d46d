# SPDX-License-Identifier: GPL-2.0
"""What make modules leaves out for a kernel that lacks an option."""

import os
import re
import shlex
import shutil
from pathlib import Path

from tools.lib.build import OUT, TOOLS, TOP, run
from tools.lib.tap import case

# Without Rust nothing is built. Of these two a kernel has one.
NOT_TRIED = {"RUST", "SPARSEMEM_VMEMMAP", "FLATMEM"}


def left_out(kdir, option) -> set[str]:
    """What the set-up says of the same kernel without it."""
    tree, config = OUT / "kdir", "include/config/auto.conf"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / config).parent.mkdir(parents=True)
    for name in ("rust", "Module.symvers"):
        (tree / name).symlink_to(Path(kdir, name))
    (tree / config).write_text(re.sub(rf"(?m)^CONFIG_{option}=.*\n", "", Path(kdir, config).read_text()))
    said = run(TOOLS / "setup/setup.sh", "env", "base", env=os.environ | {"KDIR": str(tree)}, check=True).stdout
    words = dict(word.split("=", 1) for word in shlex.split(said))["LEFT_OUT"].split()
    return {word.removeprefix("CONFIG_").removesuffix("=n") for word in words}


def cases(kdir):
    """An entry goes with what it depends on and selects."""
    entries = {text.split()[0]: set(re.findall(r"\w+", " ".join(re.findall(r"^\t(?:depends on|select) (.*)", text, re.M))))
               for text in re.split("(?m)^config ", (TOP / "Kconfig").read_text())[1:]}
    wrong = []
    for option in sorted({word for words in entries.values() for word in words if word.isupper()} - entries.keys() - NOT_TRIED):
        wanted = {option}
        while more := {name for name, words in entries.items() if words & wanted} - wanted:
            wanted |= more
        if odd := wanted - {option} ^ left_out(kdir, option):
            wrong.append(f"{option}: {' '.join(sorted(odd))}")
    yield case("kdir.left-out", f"left out or not, by mistake, without {'; '.join(wrong)}" if wrong else "")
