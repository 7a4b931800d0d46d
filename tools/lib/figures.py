# SPDX-License-Identifier: GPL-2.0
"""What the helpers weigh, by kernel and compiler: tests/lists/size.txt."""

from tools.lib.build import LISTS, read_list

FIGURES = LISTS / "size.txt"


def read_figures() -> dict[str, dict[str, int]]:
    lines = [line.rpartition(": ") for line in read_list(FIGURES)]
    return {key: {name: int(text) for name, text in (word.split("=") for word in row.split())} for key, _, row in lines}


def write_figures(key, row):
    head = [line for line in FIGURES.read_text().splitlines() if line.startswith("#")]
    rows = sorted((read_figures() | {key: row}).items())
    lines = [f"{key}: " + " ".join(f"{name}={text}" for name, text in row.items()) for key, row in rows]
    FIGURES.write_text("\n".join([*head, "", *lines]) + "\n")
