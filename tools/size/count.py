# SPDX-License-Identifier: GPL-2.0
"""Counts the bytes of objects and modules, and lines of code."""

import json
import re
from pathlib import Path

from tools.lib.build import run


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
