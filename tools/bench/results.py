# SPDX-License-Identifier: GPL-2.0
"""What is to be reached in each case, and the table of what was."""

from dataclasses import dataclass, field

from tools.bench import traffic

OURS, FLOOR = "pagekit", "floor"
# Mainline's udmabuf, converted to pagekit.h: no peer either.
CONVERTED, ORIGINAL = "converted", "udmabuf"
HEADLINE = 64  # MiB of the objects in the table


@dataclass
class Case:
    """What is to be reached with pages of a size: instructions of x86 or bytes a page, or a part
    of what the best peer takes; and the cache lines that no code can do without. The
    documentation says what is measured, and what these lines are."""
    goals: dict
    lines: dict = field(default_factory=dict)
    ratio: bool = False
    unit: str = "instructions"


CASES = {
    "udmabuf": Case({"4k": 400, "2m": 20}, {"4k": 3.75, "2m": 1.13}),
    "udmabuf-unaligned": Case({}, {"4k": 3.75, "2m": 1.5}),
    "pages": Case({"4k": 100, "2m": 5}, {"4k": 1.25, "2m": 0.13}),
    "release": Case({"4k": 19, "2m": 4}, {"4k": 1.125, "2m": 0.005}),
    "map-pfns": Case({"4k": 126, "2m": 126}, {"4k": 1.375, "2m": 1.375}),
    "map-pages": Case({"4k": 495, "2m": 330}, {"4k": 3.375, "2m": 1.375}),
    "fault": Case({"4k": 130, "2m": 8}, {"4k": 1.25, "2m": 1}),
    "fault-pages": Case({}, {"4k": 2.25, "2m": 1.25}),
    "pin-user": Case({"4k": 1.02, "2m": 1.02}, {"4k": 2.375, "2m": 0.25}, ratio=True),
    "pin-memfd": Case({"4k": 0.95, "2m": 0.5}, {"4k": 2.375, "2m": 0.13}, ratio=True),
    "heap": Case({"4k": 4300}, {"4k": 65.5}),
    # What is to be reached is not said: zeroing the pages is nearly all of it.
    "gem": Case({}),
    "memory": Case({"4k": 8, "2m": 8}, unit="bytes"),
}


def same(rows, row) -> list:
    """All that was measured in the same case, of the same pages."""
    return [r for r in rows if all(r[key] == row[key] for key in ("case", "backing", "pages"))]


def best_peer(rows, row):
    peers = [r for r in same(rows, row) if r["impl"] not in (OURS, FLOOR, CONVERTED) and "total" in r]
    return min(peers, key=lambda r: r["total"], default=None)


def headlines(run) -> list:
    """Our rows of the table. Memory is measured in larger objects."""
    rows = [row for row in run["rows"] if row["impl"] == OURS and
            (row["mib"] == HEADLINE or row["case"] == "memory")]
    return sorted(rows, key=lambda row: (list(CASES).index(row["case"]), row["backing"].endswith("m")))


def shown(row) -> str:
    """What a page costs, and whether that is doubtful: no two runs were alike."""
    return f"{row['total']:.2f}" + "~" * ("spread" in row)


def verdict(run, row) -> tuple:
    """The goal in instructions or bytes, how it reads, whether it is met, and in words."""
    case, rows = CASES[row["case"]], run["rows"]
    goal = case.goals.get(row["backing"])
    if goal is None or (run["arch"] != "x86" and case.unit == "instructions" and not case.ratio):
        return None, "", None, ""
    text = f"{goal:g}"
    if case.ratio:
        text += "x"
        peer = best_peer(rows, row)
        if not peer:
            return None, text, False, "no peer"
        goal *= peer["total"]
    if row["total"] <= goal + 0.005:
        return goal, text, True, "yes"
    floor = next((r["total"] for r in same(rows, row) if r["impl"] == FLOOR and "total" in r), None)
    words = f"no: {row['total'] / goal - 1:.1%} more"
    if floor:
        words += f"; {row['total'] / floor - 1:.1%} above the floor, {floor:.2f}"
    return goal, text, False, words


def by_size(run) -> list[str]:
    """What ours costs in small and large objects."""
    ours = [row for row in run["rows"] if row["impl"] == OURS and "total" in row and row["case"] != "memory"]
    sizes = sorted({row["mib"] for row in ours})
    if len(sizes) < 2:
        return []
    lines = ["", f"{'ours, in objects of':24}" + "".join(f"{mib:>8} MiB" for mib in sizes)]
    for head in headlines(run):
        row = {r["mib"]: f"{shown(r):>12}" for r in ours if (r["case"], r["backing"]) == (head["case"], head["backing"])}
        if row:
            lines.append((f"{head['case']:18} {head['backing']:5}" + "".join(row.get(mib, " " * 12) for mib in sizes)).rstrip())
    return lines


def by_conversion(run) -> list[str]:
    """What a driver of mainline's costs before and after its conversion."""
    lines = ["", f"{'udmabuf, converted to pagekit.h':34} {'before':>8} {'after':>8}"]
    for head in headlines(run):
        totals = {r["impl"]: shown(r) for r in same(run["rows"], head) if "total" in r}
        if CONVERTED in totals and ORIGINAL in totals:
            lines.append(f"{head['case']:28} {head['backing']:5} {totals[ORIGINAL]:>8} {totals[CONVERTED]:>8}")
    return lines if len(lines) > 2 else []


def lines_of(row):
    """How many cache lines a page of it takes, if they were counted."""
    return row["traffic"]["total"]["lines"] if "traffic" in row else None


def leanest_peer(rows, row):
    """The one that touches fewest lines."""
    peers = [r for r in same(rows, row) if r["impl"] not in (OURS, FLOOR, CONVERTED) and "traffic" in r]
    return min(peers, key=lines_of, default=None)


def by_traffic(run) -> list[str]:
    """What a page takes of memory: ours, and all that it is measured against."""
    heads = [row for row in headlines(run) if "traffic" in row]
    if not heads:
        return []
    lines = ["", f"memory traffic per page; misses of {traffic.caches()}",
             f"{'case':18} {'pages':5} {'':16} {'loads':>8} {'stores':>8} {'lines':>7} {'least':>6} {'L1':>7} {'L2':>7}"]
    behind = []
    for head in heads:
        for row in (r for r in same(run["rows"], head) if "traffic" in r):
            total, least = row["traffic"]["total"], CASES[row["case"]].lines.get(row["backing"])
            least = f"{least:.2f}" if row is head and least is not None else ""
            lines.append(f"{row['case']:18} {row['backing']:5} {row['impl']:16} {total['loads']:8.2f} {total['stores']:8.2f} "
                         f"{total['lines']:7.2f} {least:>6} {total['l1']:7.2f} {total['l2']:7.2f}")
        peer = leanest_peer(run["rows"], head)
        if peer and lines_of(head) > lines_of(peer) + 0.005:
            behind.append(f"{head['case']} {head['backing']}")
    lines += ["", "more lines than a peer: " + (", ".join(behind) if behind else "in no case")]
    return lines


def of(row) -> str:
    return f"{row['case']:18} {row['backing']:5} {row['impl']} at {row['pages']} pages"


def table(run, sizes=True) -> list[str]:
    lines = [f"Linux {run['kernel']}, instructions per page (memory: bytes per page)", "",
             f"{'case':18} {'pages':5} {'ours':>8} {'peer':>8} {'':16} {'ratio':>5} {'goal':>6}  met?"]
    met = missed = failed = 0
    for row in headlines(run):
        start = f"{row['case']:18} {row['backing']:5} "
        if "error" in row:
            failed += 1
            lines.append(f"{start}failed: {row['error']}")
            continue
        peer = best_peer(run["rows"], row)
        peer = f"{shown(peer):>8} {peer['impl']:16} {row['ratio_to_peer']:5.2f}" if peer else " " * 31
        _, goal, ok, words = verdict(run, row)
        met, missed = met + (ok is True), missed + (ok is False)
        lines.append(f"{start}{shown(row):>8} {peer} {goal:>6}  {words}".rstrip())
    # What is no goal is not to be passed over either.
    for row in run["rows"]:
        if "error" in row and row not in headlines(run):
            failed += 1
            lines.append(f"{of(row)} failed: {row['error']}")
    lines += by_traffic(run) + (by_size(run) if sizes else []) + by_conversion(run)
    doubtful = [row for row in run["rows"] if "spread" in row]
    lines += ["", *(f"~ {of(row)}: the two quickest runs differ by {row['spread']:.1%}" for row in doubtful)]
    return [*lines, f"{met} goals met, {missed} missed, {failed} measurements failed, {len(doubtful)} did not settle"]
