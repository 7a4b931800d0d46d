# SPDX-License-Identifier: GPL-2.0
"""What make size has found, as a table, and from how many drivers on linking is less."""

from pathlib import Path

DRIVERS = 24  # where the chart ends: so many drivers of Linux 7.3 define dma_buf_ops
UNITS = ("text", "rodata", "data", "total", "loaded", "lines")


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
    out += ["", counts("text for", helpers[0]["text_for"]), *(counts(h["name"], h["text_for"].values()) for h in helpers)]
    text, loaded = (found[f"break_even_drivers{unit}"] or f"more than {DRIVERS}" for unit in ("", "_loaded"))
    out += ["", f"Linking takes less than copies from {text} drivers on in text and from {loaded} drivers on in loaded size."]
    return "\n".join(line.rstrip() for line in out) + "\n"
