# SPDX-License-Identifier: GPL-2.0
"""make intree and make patches: place pagekit in a kernel tree or take it out again, or write
that as a series of patches.
"""

import argparse
import os
import sys
from pathlib import Path

from tools.intree import place
from tools.lib.build import TOOLS, guarded


def fetched() -> Path:
    """The source that the set-up has fetched and built."""
    env = {name: value for name, value in os.environ.items() if name != "KDIR"}
    return Path(place.run(TOOLS / "setup/setup.sh", "modules", "base", env=env).split()[-1], "source").resolve()


def main() -> int:
    parser = argparse.ArgumentParser(description="Place pagekit in a kernel tree, or write patches that do.")
    parser.add_argument("command", choices=("place", "undo", "patches"))
    parser.add_argument("--kdir", default=os.environ.get("KDIR"), help="a kernel source tree (default: $KDIR)")
    parser.add_argument("--force", action="store_true", help="undo what was changed since it was placed, too")
    options = parser.parse_args()
    if options.command == "patches":
        place.make_patches(Path(options.kdir).resolve() if options.kdir else fetched())
    elif not options.kdir:
        raise place.Error("which kernel source tree? Give it with KDIR=")
    elif options.command == "undo":
        place.undo(Path(options.kdir).resolve(), options.force)
    else:
        tree = Path(options.kdir).resolve()
        caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        if tree.is_relative_to(Path(os.environ.get("PAGEKIT_CACHE") or Path(caches, "pagekit")).resolve()):
            raise place.Error(f"KDIR={tree} is what the tests build their kernels from; copy it first")
        place.place(tree)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
