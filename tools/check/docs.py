# SPDX-License-Identifier: GPL-2.0
"""What the documents show, and how wide they are."""

import re
import textwrap

from tools.lib.build import TESTS, TOP, run
from tools.lib.tap import case

BLOCK = re.compile(r"^```(rust|c)\n(.*?)^```|^\.\. code-block:: (rust|c|make|kconfig)\n\n(.*?)(?=^\S|\Z)", re.M | re.S)
# Where the code of a language is from.
SOURCES = {
    "rust": ("src/*.rs", "samples/*.rs", "tests/kunit/*.rs", "tests/compile/readme.rs"),
    "c": ("samples/*.[ch]", "src/*.[ch]", "tests/kunit/*.[ch]", "include/*.h"),
    "make": ("Kbuild", "samples/template/Kbuild", "samples/template/Makefile"),
    "kconfig": ("Kconfig",),
}
COMMENT = {"rust": r"//", "c": r"//|/?\*", "make": "#", "kconfig": "#"}
# In columns. What a command prints and code may be as wide as sources are.
TEXT, SOURCE = 80, 100


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
    for match in BLOCK.finditer(text):
        language = match[1] or match[3]
        for part in re.split(r"\n\s*\n", textwrap.dedent(match[2] or match[4])):
            if lines := code(part, language):
                yield language, lines


def wide_lines(path, most):
    """Lines that are too wide, but for such as can't be broken: tables, links."""
    literal = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if line and literal is not None and indent <= literal:
            literal = None
        if len(line) > (SOURCE if literal is not None else most) and len(line.split()) > 1:
            yield f"{path.relative_to(TOP)}:{number}"
        if literal is None and re.match(r"\s*\.\. (code-block|csv-table)|(?!\s*\.\. ).*::$", line):
            literal = indent


def cases():
    """Each piece of code that a document shows is a run of lines of one file that is compiled."""
    sources = {language: compiled(language) for language in SOURCES}
    for path in [TOP / "README.md", *sorted((TOP / "Documentation").glob("*.rst"))]:
        wrong = [lines.strip().replace("\n", " | ") for language, lines in shown(path.read_text())
                 if not any("\n" + lines in text for text in sources[language])]
        yield case(f"docs.{path.name}", f"not in this order in any source: {' || '.join(wrong)}" if wrong else "")
