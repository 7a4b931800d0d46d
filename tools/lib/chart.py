# SPDX-License-Identifier: GPL-2.0
"""What the charts in documents have in common. This needs the Python that
`setup.sh matplotlib` prints.
"""

import io
import re
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

BLUE, ORANGE, GREY, RED = "#1b6ca8", "#e08a1e", "#999999", "#c0143c"

matplotlib.rcParams |= {
    # The same figures make the same file, and text stays text.
    "svg.hashsalt": "pagekit",
    "svg.fonttype": "none",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "font.size": 9,
    "axes.titlesize": 10,
    "figure.titlesize": 10,
    "lines.linewidth": 1.5,
    "xtick.bottom": False,
    "ytick.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}


def figure(width, height) -> Figure:
    """In inches. What is in it is laid out so that nothing overlaps."""
    return Figure((width, height), layout="constrained")


def save(figure, path):
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = re.sub(r"^ +| +$", "", file.getvalue(), flags=re.M)
    text = re.sub(r"(\.\d{3})\d+", r"\1", text)
    Path(path).write_text(text.replace("?>\n", "?>\n<!-- SPDX-License-Identifier: GPL-2.0 -->\n", 1))
