# SPDX-License-Identifier: GPL-2.0
"""What the documents show."""

import re

from tools.lib.build import TESTS, TOP
from tools.lib.tap import case


def lines_of(code) -> set[str]:
    """Lines of code, in examples within comments as well."""
    return {re.sub(r"^//[/!] ?(# )?", "", line.strip()).strip() for line in code.splitlines()}


def cases():
    """Each line of Rust or C that a document shows is one that is compiled."""
    compiled = lines_of((TESTS / "compile/readme.rs").read_text())
    for folder in ("src", "samples", "tests/kunit"):
        for path in (TOP / folder).glob("*.[rc]*"):
            compiled |= lines_of(path.read_text())
    for path in [TOP / "README.md", *sorted((TOP / "Documentation").glob("*.rst"))]:
        blocks = re.findall(r"^```rust\n(.*?)^```|^\.\. code-block:: (?:rust|c)\n\n(.*?)(?=^\S|\Z)", path.read_text(),
                            re.M | re.S)
        shown = lines_of("\n".join(a or b for a, b in blocks))
        wrong = sorted(line for line in shown - compiled if line and not line.startswith("//"))
        yield case(f"docs.{path.name}", f"not in any source: {' | '.join(wrong)}" if wrong else "")
