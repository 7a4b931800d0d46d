# SPDX-License-Identifier: GPL-2.0
"""make try-driver: load a driver that make new-driver has created in a VM, and share a buffer."""

import argparse
import os
import re
import sys
from pathlib import Path

from tools.lib import guest
from tools.lib.build import KERNELS, Broken, guarded, install, install_drivers, kernel, set_up


def main() -> int:
    parser = argparse.ArgumentParser(description="Try a driver made of the template in a VM.")
    parser.add_argument("--kernel", choices=KERNELS, default="base")
    parser.add_argument("dir", help="where make new-driver has created it")
    options = parser.parse_args()
    if not options.dir:
        raise Broken("which driver? make try-driver DIR=../my_driver")
    folder = Path(options.dir).resolve()
    if not all((folder / name).is_file() for name in ("share.py", "Makefile")):
        raise Broken(f"DIR={options.dir}: no driver is there that make new-driver has created; "
                     "python3 -m tools.boot loads any other: see Documentation/testing.rst")
    config = kernel(options.kernel)
    built = set_up(config)
    made_for = re.search(r"^ARCH \?= (\w+)$", (folder / "Makefile").read_text(), re.M)
    if made_for and made_for[1] != built["ARCH"]:
        raise Broken(f"DIR={options.dir}: a driver for ARCH={made_for[1]}, which this command is to be told, too")
    install(config, "modules_install")
    result = guest.run(config, built, "driver", install_drivers([folder], config, built))
    if result.reason:
        raise Broken(f"{result.reason} (logs in {os.path.relpath(result.out_dir)})")
    print(f"try-driver: ok: {options.dir}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
