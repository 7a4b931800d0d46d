# SPDX-License-Identifier: GPL-2.0
"""bench.svg: per case ours beside the peers, and what sizes of objects do to it."""

from html import escape
from math import ceil, floor, log10

from tools.bench import figures

WIDTH, LEFT, RIGHT = 1000, 190, 170
BAR, GAP = 13, 12
COLUMNS, PLOT_HEIGHT = 3, 150
COLOURS = {figures.OURS: "#1b6ca8", figures.FLOOR: "#d5d5d5"}
PEER_COLOURS = ("#e08a1e", "#8c6bb1", "#41ab5d")
GOAL = "#c0143c"


def text(x, y, words, anchor="start", size=11, colour="#222", weight="normal"):
    # The white rim keeps it readable where lines cross it.
    return (f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{colour}" '
            f'font-weight="{weight}" stroke="white" stroke-width="3" paint-order="stroke">{escape(str(words))}</text>')


def line(x1, y1, x2, y2, colour="#ddd", width=1, extra=""):
    return (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
            f'stroke-width="{width}" {extra}/>')


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


class Log:
    """A logarithmic axis: a value's place between two ends."""

    def __init__(self, low, high, start, end):
        self.low, self.high = floor(log10(low)), max(ceil(log10(high)), floor(log10(low)) + 1)
        self.start, self.end = start, end

    def __call__(self, value):
        part = (log10(max(value, 10 ** self.low)) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self):
        return [10.0 ** n for n in range(self.low, self.high + 1)]


def colours(rows):
    """A colour for each that is measured in one case."""
    peers = iter(PEER_COLOURS * 2)
    return {name: COLOURS.get(name) or next(peers) for name in dict.fromkeys(row["impl"] for row in rows)}


def bars(run, y):
    """A group of bars for each row of the table."""
    rows = run["rows"]
    groups = [(row, [r for r in figures.same(rows, row) if "total" in r]) for row in figures.headlines(run)]
    groups = [(row, group) for row, group in groups if group]
    values = [r["total"] for _, group in groups for r in group]
    axis = Log(min(values), max(values), LEFT, WIDTH - RIGHT)
    top, out, labels = y, [], []
    for row, group in groups:
        height, colour = BAR * len(group), colours(group)
        labels.append(text(LEFT - 8, y + height / 2 + 4, f"{row['case']}, {row['backing']}", "end", weight="bold"))
        for i, r in enumerate(group):
            end = axis(r["total"])
            out.append(f'<rect x="{LEFT}" y="{y + i * BAR:.1f}" width="{max(end - LEFT, 1):.1f}" '
                       f'height="{BAR - 2}" fill="{colour[r["impl"]]}"/>')
            labels.append(text(end + 5, y + i * BAR + 9.5, f"{number(r['total'])}  {r['impl']}", size=10))
        goal = figures.verdict(rows, row)[0] if "total" in row else None
        if goal:
            out.append(line(axis(goal), y - 4, axis(goal), y + height + 2, GOAL, 1.5))
        y += height + GAP
    grid = [line(axis(t), top - 8, axis(t), y) for t in axis.ticks()]
    grid += [text(axis(t), y + 12, f"{t:g}", "middle", 10, "#666") for t in axis.ticks()]
    return grid + out + labels, y + 30


def spread(places, bottom, step=10):
    """Moves labels apart that would cover each other."""
    moved, last = {}, -step
    for key, y in sorted(places.items(), key=lambda item: item[1]):
        moved[key] = last = max(y, last + step)
    for key, y in reversed(list(moved.items())):
        moved[key] = bottom = min(y, bottom)
        bottom -= step
    return moved


def sizes(run, case, x, y, width):
    """A plot of one case: cost of a page against the size of the object."""
    rows = [r for r in run["rows"] if r["case"] == case and "total" in r]
    values = [r["total"] for r in rows]
    across = Log(1, 4096, x + 34, x + width - 96)
    across.low, across.high = 0, log10(4096)
    up = Log(min(values), max(values), y + PLOT_HEIGHT, y + 16)
    out = [text(x + 34, y + 4, case, weight="bold")]
    for tick in up.ticks():
        out += [line(across.start, up(tick), across.end, up(tick)), text(x + 30, up(tick) + 3, f"{tick:g}", "end", 9, "#666")]
    for mib in (1, 8, 64, 512, 4096):
        label = f"{mib >> 10} GiB" if mib >= 1024 else f"{mib} MiB" if mib == 1 else mib
        out.append(text(across(mib), y + PLOT_HEIGHT + 13, label, "middle", 9, "#666"))
    colour, ends = colours(rows), {}
    for name, backing in dict.fromkeys((r["impl"], r["backing"]) for r in rows):
        points = sorted((r["pages"] // 256, r["total"]) for r in rows if (r["impl"], r["backing"]) == (name, backing))
        path = " ".join(f"{across(mib):.1f},{up(total):.1f}" for mib, total in points)
        dash = 'stroke-dasharray="4 2"' if backing == "2m" else ""
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour[name]}" '
                   f'stroke-width="{2 if name == figures.OURS else 1.3}" {dash}/>')
        out += [f'<circle cx="{across(mib):.1f}" cy="{up(total):.1f}" r="2" fill="{colour[name]}"/>' for mib, total in points]
        ends[name, backing] = up(points[-1][1])
    for (name, backing), place in spread(ends, y + PLOT_HEIGHT).items():
        label = colour[name] if name != figures.FLOOR else "#999"
        out.append(text(across.end + 6, place + 3, f"{name}, {backing}", size=9, colour=label))
    return out


def draw(run) -> str:
    parts, y = bars(run, 84)
    cases = [c for c in figures.CASES if c != "memory" and
             len({r["pages"] for r in run["rows"] if r["case"] == c and "total" in r}) > 1]
    if cases:
        parts.append(text(20, y + 6, "Instructions per page against the size of the object", size=14, weight="bold"))
        parts.append(text(20, y + 24, "Solid: pages of 4 KiB. Dashed: of 2 MiB.", colour="#555"))
        y += 50
        width = (WIDTH - 20) / COLUMNS
        for i, case in enumerate(cases):
            parts += sizes(run, case, 10 + i % COLUMNS * width, y + i // COLUMNS * (PLOT_HEIGHT + 44), width)
        y += -(-len(cases) // COLUMNS) * (PLOT_HEIGHT + 44)
    head = [text(20, 28, f"pagekit on Linux {run['kernel']}, beside what mainline does", size=16, weight="bold"),
            text(20, 48, "Guest instructions per 4 KiB page, objects of 64 MiB (memory: bytes per page). Logarithmic. "
                         "4k, 2m: what pages the object is made of.", colour="#555"),
            line(20, 61, 20, 72, GOAL, 1.5), text(26, 70, "goal", colour="#555")]
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y:.0f}" viewBox="0 0 {WIDTH} {y:.0f}" '
            f'font-family="sans-serif">\n<rect width="100%" height="100%" fill="white"/>\n'
            + "\n".join(head + parts) + "\n</svg>\n")
