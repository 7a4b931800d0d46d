# SPDX-License-Identifier: GPL-2.0
"""What the types forbid, what drivers must not do to allocate, and what the helpers must not know of machines."""

import os
import re
import shlex

from tools.lib.build import TESTS, TOP, run
from tools.lib.tap import case


def compile_cases(modules, built):
    """What the types forbid must not compile. Compiled as kbuild has compiled a crate
    that uses the helpers; the second line of each file says with what it must end."""
    command = (modules / "tests/kunit/.examples.o.cmd").read_text().splitlines()[0].partition(" := ")[2].partition(" ; ")[0]
    words = shlex.split(re.sub(r"--(?:emit=|out-dir |crate-name )\S+", "", command))[:-1]
    first = words.index("rustc")
    env = os.environ | {"RUSTC_BOOTSTRAP": "1", "PATH": built["PATH"]} | dict(w.split("=", 1) for w in words[:first])
    for path in sorted((TESTS / "compile").glob("*.rs")):
        result = run(*words[first:], "--crate-name", path.stem, "--emit=metadata", "--out-dir", TOP / "out/compile", path,
                     cwd=modules, env=env)
        wanted = path.read_text().splitlines()[1].removeprefix("// ")
        found = re.findall(r"^error\[E\d+\]|^error: (?!aborting).*", result.stderr, re.M)
        got = ", ".join(found) or ("ok" if result.returncode == 0 else result.stderr[-200:])
        yield case(f"compile.{path.stem}", "" if got == wanted else f"{got}, not {wanted}")


def charge_cases():
    """What users have a driver allocate is charged to their memory cgroup."""
    free = [f"{path.name}:{number}" for path in sorted((TOP / "samples").glob("*.[rc]*"))
            for number, line in enumerate(path.read_text().splitlines(), 1)
            if re.search(r"GFP_KERNEL\b|k\w*alloc_obj\([^,]*\)", line)]
    yield case("charges.samples", ", ".join(free))


# What speaks of one architecture, but in comments. s390 may be named: its page tables are half a page.
COMMENT = re.compile(r"//.*|/\*[^*]*(?:\*(?!/)[^*]*)*\*/")
OF_ONE = re.compile(r"(?i)\b(?:CONFIG_)?(?:x86|i386|amd64|arm(?:64)?|aarch64|riscv|loongarch|powerpc|ppc)(?:_\w+)?\b|"
                    r"target_arch|<asm/\S+")


def architecture_cases():
    """No helper knows which machine it is for."""
    found = [f"{path.name}: {word}" for path in sorted((TOP / "src").glob("*.[rch]*"))
             for word in OF_ONE.findall(COMMENT.sub("", path.read_text()))]
    yield case("architecture.src", ", ".join(found))


def cases(modules, built):
    yield from compile_cases(modules, built)
    yield from charge_cases()
    yield from architecture_cases()
