# SPDX-License-Identifier: GPL-2.0
"""How the sources look to the tools that the kernel uses."""

import re
import shutil

from tools.lib.build import TESTS, TOOLS, TOP, build_htmldocs, run, setup_tool
from tools.lib.tap import case

# What such a comment says nothing with.
REFERS = re.compile(r"// SAFETY: (?:As above|As the caller promises|By the safety requirements|Plain call).*")
# In columns: prose, which goes into a kernel tree beside pages of that width, and comments.
PROSE, COMMENT = 80, 100
SPDX = re.compile(r'SPDX-License-Identifier(: |": ")GPL-2\.0')


def source_cases():
    tracked = run("git", "ls-files", cwd=TOP, check=True).stdout.split()
    sources = [TOP / name for name in tracked if name.endswith(".rs")]
    python = [name for name in tracked if name.endswith(".py")]
    yield case("lint.rustfmt", run("rustfmt", "--check", "--edition", "2021", "-l", *sources).stdout.strip())
    if shutil.which("shellcheck"):
        scripts = ("tools/setup/setup.sh", ".ci/run", "src/install.sh", "samples/new-driver.sh")
        found = run("shellcheck", "-x", *scripts, cwd=TOP).stdout
        # What the guest runs has no first line of its own, and splits lists of modules.
        guest = [*(TESTS / "guest").glob("*.sh"), TOOLS / "mutate/guest.sh", TOOLS / "lib/init.sh"]
        found += run("shellcheck", "-s", "sh", "-S", "warning", *guest).stdout
    else:
        found = "not installed"
    yield case("lint.shellcheck", found.strip())
    ruff = setup_tool("ruff")
    yield case("lint.ruff", run(ruff, "check", "--quiet", "--no-cache", "--output-format=concise", "--line-length=132",
                                 "--select=E,F,W,B,I,UP", "--ignore=F402,B023", *python, cwd=TOP).stdout.strip())
    bare = [f"{path.relative_to(TOP)}: {found}" for path in sources
            for found in re.findall(r"#!?\[allow\([^\]]*\]", path.read_text()) if "reason" not in found]
    yield case("lint.allow", "no reason: " + ", ".join(bare) if bare else "")
    refers = [f"{path.relative_to(TOP)}: {found}" for path in sources for found in REFERS.findall(path.read_text())]
    yield case("lint.safety", " | ".join(refers))
    yield from width_cases(tracked)
    yield case("lint.htmldocs", build_htmldocs(TOP / "out/htmldocs"))
    # The last two go into a kernel tree as they are.
    without = ("COPYING", ".gitignore", "tools/intree/MAINTAINERS", "tools/intree/bitflags.md")
    unsigned = [name for name in tracked if name not in without and not name.endswith(".lock")
                and not SPDX.search((TOP / name).read_text()[:300])]
    yield case("lint.spdx", f"no SPDX tag of GPL-2.0 in {', '.join(unsigned)}" if unsigned else "")


def wide_prose(path):
    """Where it is too wide, but for what is as it is: code and what commands print, rows, links."""
    literal = None
    for number, line in enumerate(path.read_text().splitlines(), 1):
        indent = len(line) - len(line.lstrip())
        if literal is not None and line and (line == "```" or indent <= literal):
            literal = None
        elif literal is None and re.match(r"\s*\.\. (code-block|csv-table)::|(?!\s*\.\. ).*::$|```", line):
            literal = -1 if line.startswith("```") else indent
        elif literal is None and len(line) > PROSE and " " in line.strip() and not line.startswith(("|", "![")):
            yield number


def wide_comments(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if len(line) > COMMENT and re.match(r"\s*(//|/?\*)", line):
            yield number


def width_cases(tracked):
    documents = [name for name in tracked if name.endswith(".rst") or name == "README.md"]
    sources = [name for name in tracked if name.endswith((".rs", ".c", ".h"))]
    wide = [f"{name}:{number}" for names, lines in ((documents, wide_prose), (sources, wide_comments))
            for name in names for number in lines(TOP / name)]
    yield case("lint.width", f"prose wider than {PROSE} columns, or comments than {COMMENT}: {', '.join(wide)}" if wide else "")


def clippy_cases(config):
    """The kernel's choice of lints, with nothing that was built before in the way."""
    folder = TOP / "out/clippy"
    shutil.rmtree(folder, ignore_errors=True)
    result = run("make", "--silent", "modules", "CLIPPY=1", f"KERNEL_NAME={config}", f"OUT={folder}", cwd=TOP)
    said = result.stdout + result.stderr
    found = re.findall(r"^(?:warning|error).*\n.*-->.*", said, re.M)
    yield case("lint.clippy", " | ".join(" ".join(w.split()) for w in found) or (said[-500:] if result.returncode else ""))


def cases():
    yield from source_cases()
    yield from clippy_cases("base")
