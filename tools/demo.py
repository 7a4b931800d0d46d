# SPDX-License-Identifier: GPL-2.0
"""make demo: share a file through the sample driver in a VM."""

import argparse
import os
import shutil
import sys
from pathlib import Path

from tools.lib import guest
from tools.lib.build import KERNELS, OUT, Broken, guarded, kernel, set_up
from tools.lib.tap import Case

# The file lives in the guest's memory once; the rest is room for the guest.
MAX_MIB = 1024
ROOM_MIB = 512


def share(file, config):
    if file:
        mib(Path(file))  # before the set-up, which may take long
    built = set_up(config)
    file = Path(file or Path(built["KDIR"], built["IMAGE"]))
    size = mib(file)
    # A copy, because the guest does not see all of the host's file systems.
    copy = OUT / "demo-file" / file.name
    copy.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(file, copy)
        result = guest.run(config, built, "demo", {"FILE": copy, "LIMIT_MB": max(64, size)},
                           memory=f"{ROOM_MIB + 2 * size}M", timeout=30 + size // 2)
    finally:
        copy.unlink(missing_ok=True)
    verdict = result.out_dir / "verdict"
    verdict = verdict.read_text().strip().removeprefix("demo: ") if verdict.exists() else ""
    reason = result.reason
    if verdict != "ok" and (not reason or result.status == 1 and not reason.startswith("kernel report")):
        reason = verdict or reason or "pagekit-demo came to no verdict"
    if reason:
        raise Broken(f"{reason} (logs in {os.path.relpath(result.out_dir)})")


def mib(path: Path) -> int:
    """The size of a file that the demo can share."""
    try:
        if not path.is_file():
            raise Broken(f"{path}: " + ("not a regular file" if path.exists() else "no such file"))
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise Broken(f"{path}: {error.strerror}") from error
    if not size:
        raise Broken(f"{path}: the file is empty")
    if size > MAX_MIB << 20:
        raise Broken(f"{path}: {size >> 20} MiB are too much for the VM; the most is {MAX_MIB} MiB")
    return (size >> 20) + 1


def cases(where) -> list[Case]:
    """The same as a test, with the kernel image."""
    try:
        share(None, where)
    except (Broken, OSError) as failure:
        return [Case(where, "demo.shares", False, str(failure))]
    return [Case(where, "demo.shares", True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=f"Share a file, of at most {MAX_MIB} MiB.")
    parser.add_argument("--kernel", choices=KERNELS, default="base")
    parser.add_argument("file", nargs="?", help="default: the kernel image")
    options = parser.parse_args()
    try:
        share(options.file, kernel(options.kernel))
    except (Broken, OSError) as failure:
        print(f"demo: {failure}")
        return 1
    print("demo: ok")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
