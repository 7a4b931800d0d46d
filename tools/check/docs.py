# SPDX-License-Identifier: GPL-2.0
"""What the documents show."""

import re
import textwrap

from tools.lib.build import TOOLS, TOP
from tools.lib.tap import case

# In Markdown, and in reStructuredText, where a block is what is indented more than its directive.
BLOCKS = (re.compile(r"^()```(\w+)\n(.*?)^```", re.M | re.S),
          re.compile(r"^( *)\.\. code-block:: (\w+)\n((?:\n|\1 +.*\n?)+)", re.M))
# Where the code of a language is from.
SOURCES = {
    "rust": ("src/*.rs", "samples/*.rs", "tests/kunit/*.rs", "tests/compile/readme.rs"),
    "c": ("samples/*.[ch]", "src/*.[ch]", "tests/kunit/*.[ch]", "include/*.h"),
    "make": ("Kbuild", "samples/template/Kbuild", "samples/template/Makefile"),
    "kconfig": ("Kconfig",),
    "diff": ("tools/convert/*.cocci",),
}
COMMENT = {"rust": r"//", "c": r"//|/?\*", "make": "#", "kconfig": "#", "diff": "//"}


def code(text, language) -> str:
    """Its lines, but for comments and blank ones."""
    lines = (line.strip() for line in text.splitlines())
    return "".join(f"{line}\n" for line in lines if line and not re.match(COMMENT[language], line))


def compiled(language) -> list[str]:
    """The code of each file, and that of the examples in its comments."""
    found = []
    for text in (path.read_text() for pattern in SOURCES[language] for path in sorted(TOP.glob(pattern))):
        examples = "".join(re.findall(r"^ *//[/!] ?((?!# ).*\n)", text, re.M))
        found += ["\n" + code(text, language), "\n" + code(examples, language)]
    return found


def shown(text):
    """The code that a document shows, cut where it has a blank line."""
    for _, language, block in (match.groups() for blocks in BLOCKS for match in blocks.finditer(text)):
        for part in re.split(r"\n\s*\n", textwrap.dedent(block)) if language in SOURCES else ():
            if lines := code(part, language):
                yield language, lines


def unfounded():
    """Figures in the table of README.md that are not on the page which the row links to."""
    row = r"^\| [^|]* \| ([^|]*) \| [^|]*\]\(([\w./-]*)[^|]*\) \|$"
    for figures, page in re.findall(row, (TOP / "README.md").read_text(), re.M):
        text = (TOP / page).read_text()
        for figure in re.findall(r"\d[\d.]*%?(?: [a-z]+)?", figures):
            if not re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", text):
                yield f"{figure}, on {page}"


def lost_links(path):
    """Links of a page that goes into a kernel tree to one that doesn't."""
    placed = re.findall(r"^   (\w+)$", (TOOLS / "intree/index.rst").read_text(), re.M)
    links = re.findall(r":doc:`(?:[^`<]*<)?([\w-]+)>?`", path.read_text())
    return [f"link to {link}, which a kernel tree lacks" for link in links if path.stem in placed and link not in placed]


def cases():
    """Each piece of code that a document shows is a run of lines of one file that is compiled."""
    sources = {language: compiled(language) for language in SOURCES}
    for path in [TOP / "README.md", *sorted((TOP / "Documentation").glob("*.rst"))]:
        wrong = [lines.strip().replace("\n", " | ") for language, lines in shown(path.read_text())
                 if not any("\n" + lines in text for text in sources[language])]
        wrong = [f"in this order in no source: {code}" for code in wrong] + lost_links(path)
        if path.name == "README.md":
            wrong += unfounded()
        yield case(f"docs.{path.name}", "; ".join(wrong))
