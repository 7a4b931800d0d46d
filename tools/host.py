# SPDX-License-Identifier: GPL-2.0
"""What is checked without a machine to boot: what the modules link to, call, export and
weigh, what the types forbid, what the documents show, and how the sources look.
"""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tools import vm

TOOLS = Path(__file__).resolve().parent
TOP = TOOLS.parent
TESTS = TOP / "tests"
LISTS = TESTS / "lists"
HELPERS = ("pagekit_pages", "pagekit_pin", "pagekit_vma")
HEADER = TOP / "include/pagekit.h"
FIGURES = LISTS / "size.txt"
GROWTH = 1.05
# What drivers in Rust link to: see Kbuild.
IN_RUST = re.compile("pagekit_(page_array|pin_array|vma)_")
SPDX = re.compile(r'SPDX-License-Identifier(: |": ")GPL-2\.0')


@dataclass
class Case:
    where: str
    name: str
    ok: bool
    detail: str = ""


def case(name, problem) -> Case:
    return Case("host", name, not problem, problem or "")


def run(*cmd, **options):
    return subprocess.run([str(c) for c in cmd], capture_output=True, text=True, **options)


def release(kdir) -> str:
    return Path(kdir, "include/config/kernel.release").read_text().strip()


def compiler(kdir) -> str:
    """The one of C and the one of Rust."""
    text = Path(kdir, "include/config/auto.conf").read_text()
    return ", ".join(sorted(re.findall(r'^CONFIG_(?:RUSTC|CC)_VERSION_TEXT="?(.*?)"?$', text, re.M)))


def kbuild(built, folder, *targets, rustflags="") -> str:
    """Build in a folder of its own. Returns what the compilers said."""
    llvm = [f"LLVM={built['LLVM']}"] if "LLVM" in built else []
    env = os.environ | {name: built[name] for name in ("PATH", "RUST_LIB_SRC", "LIBCLANG_PATH") if name in built}
    result = run("make", "-C", built["KDIR"], f"M={folder}", *llvm, f"KRUSTFLAGS={rustflags}", *targets, env=env)
    if result.returncode:
        said = "\n".join(json.loads(line)["rendered"] if line.startswith("{") else line
                         for line in result.stderr.split("\n"))
        raise vm.Error(f"{os.path.relpath(folder)} does not build:\n{said[max(said.find('error'), 0):][:3000]}")
    return result.stderr


def source_of(kdir) -> Path:
    """The kernel's source, if it was built elsewhere. cloc wants no links."""
    return (Path(kdir, "source") if Path(kdir, "source").exists() else Path(kdir)).resolve()


def depends(module: Path) -> list[str]:
    found = run("modinfo", "-F", "depends", module, check=True).stdout
    return [name for name in found.strip().split(",") if name]


def depends_cases(modules):
    listed = set()
    for line in (LISTS / "depends.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            module, wanted = (part.strip() for part in line.split(":"))
            listed.add(module)
            path = modules / f"{module}.ko"
            got = depends(path) if path.exists() else ["(not built)"]
            same = set(got) == set(filter(None, wanted.split(",")))
            yield case(f"depends.{module}", "" if same else f"depends on {','.join(got) or 'nothing'}")
    for path in sorted(modules.glob("*.ko")):
        if path.stem not in listed:
            yield case(f"depends.{path.stem}", "not in tests/lists/depends.txt")


def export_cases(modules):
    """A helper exports what a sample, a test or a line of the porting guide uses, and nothing else."""
    others = [path for path in modules.glob("*.ko") if path.stem not in HELPERS]
    used = {line.split()[-1] for line in run("nm", "-u", *others).stdout.splitlines() if line}
    guide = re.findall(r"(\w+)\(\)", (TOP / "Documentation/porting.rst").read_text())
    documented = tuple(f"_{function}" for function in guide)  # behind a module or type
    in_c = set()
    for name in HELPERS:
        exported = re.findall(r" __ksymtab_(\S+)", run("nm", modules / f"{name}.ko").stdout)
        in_c |= set(itertools.filterfalse(IN_RUST.match, exported))
        unused = [symbol for symbol in exported if symbol not in {*used, *guide} and not symbol.endswith(documented)]
        yield case(f"exports.{name}", "nothing" if not exported else f"used by nobody: {', '.join(unused)}" if unused else "")
    # That they agree otherwise is for the compiler to see.
    declared = set(re.findall(r"^\w.*?\b(pagekit_\w+)\(", HEADER.read_text(), re.M))
    yield case("exports.header", f"only one of pagekit.h and the modules has: {', '.join(declared ^ in_c)}"
               if declared != in_c else "")


def plain_helpers(modules) -> Path:
    """The helpers without what they have for C: what figures are of."""
    folder = modules.with_name(f"{modules.name}-plain")
    symbols = " ".join(name.upper() for name in HELPERS)
    run("make", "--silent", "modules", f"SYMBOLS={symbols}", f"OUT={folder}", cwd=TOP, check=True)
    return folder


def text_of(file) -> int:
    return int(run("size", file, check=True).stdout.split("\n")[1].split()[0])


def read_figures() -> dict[str, dict[str, int]]:
    lines = [line.rpartition(": ") for line in FIGURES.read_text().splitlines() if line and not line.startswith("#")]
    return {key: {name: int(text) for name, text in (word.split("=") for word in row.split())} for key, _, row in lines}


def write_figures(key, row):
    head = [line for line in FIGURES.read_text().splitlines() if line.startswith("#")]
    rows = sorted((read_figures() | {key: row}).items())
    lines = [f"{key}: " + " ".join(f"{name}={text}" for name, text in row.items()) for key, row in rows]
    FIGURES.write_text("\n".join([*head, "", *lines]) + "\n")


def size_cases(modules, kdir):
    """No helper grows unnoticed. Other kernels and compilers have other figures, or none."""
    key = f"{release(kdir)}, {compiler(kdir)}"
    figures = {} if os.environ.get("KDIR") else read_figures().get(key, {})
    if not figures:
        print(f"size: no figures for {os.environ.get('KDIR') or key}, so that the helpers may grow")
    plain = plain_helpers(modules)
    for name in HELPERS:
        now, then = text_of(plain / f"{name}.ko"), figures.get(name)
        grown = then and now > GROWTH * then
        yield case(f"size.{name}", f"{now} bytes of text, not {then}; if it must be: python3 -m tools.size update" if grown else "")


# No helper takes a lock or waits, but within these calls of the kernel's.
LOCKS = re.compile(r"mutex|spin|sem|lock|ww_|resv|rcu|wait|completion|(^|_)(down|up)_|atomic|refcount")
LOCKS_ALLOWED = {
    "set_page_dirty_lock": "takes the folio lock, which keeps truncation away while the page is marked",
    "unpin_user_page_range_dirty_lock": "the same",
}


def lock_cases(modules):
    """What the helpers call. Inline atomics are invisible here: reviews say the rest."""
    for name in HELPERS:
        symbols = {line.split()[-1] for line in run("nm", "-u", modules / f"{name}.ko").stdout.splitlines()}
        locks = sorted(filter(LOCKS.search, symbols - LOCKS_ALLOWED.keys()))
        yield case(f"locks.{name}", f"calls {', '.join(locks)}" if locks else "" if symbols else "calls nothing at all")


def panic_cases(modules):
    """No helper can panic."""
    for name in HELPERS:
        symbols = {line.split()[-1] for line in run("nm", "-u", modules / f"{name}.ko").stdout.splitlines()}
        panics = sorted(filter(re.compile(r"panic|_fail$").search, symbols))
        yield case(f"panics.{name}", f"calls {', '.join(panics)}" if panics else "" if symbols else "calls nothing at all")


def compile_cases(modules, built):
    """What the types forbid must not compile. Compiled as kbuild has compiled a crate
    that uses the helpers; the second line of each file says with what it must end."""
    command = (modules / "tests/kunit/.examples.o.cmd").read_text().partition(" := ")[2].partition(" ; ")[0]
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


def lines_of(code) -> set[str]:
    """Lines of code, in examples within comments as well."""
    return {re.sub(r"^//[/!] ?(# )?", "", line.strip()).strip() for line in code.splitlines()}


def version_cases(modules):
    """There is one version: that of src/Cargo.toml. And one least version of Rust: the set-up's."""
    def first(file, pattern):
        found = re.search(pattern, (TOP / file).read_text(), re.M)
        return found[1] if found else "none"

    version = first("src/Cargo.toml", r'^version = "(.*)"')
    shown = {path.name: run("modinfo", "-F", "version", path).stdout.strip() for path in modules.glob("*.ko")}
    shown |= {"CHANGELOG.md": first("CHANGELOG.md", r"^## ([\d.]+)"),
              "tests/user/Cargo.toml": first("tests/user/Cargo.toml", r'^version = "(.*)"')}
    wrong = sorted(f"{name}: {other or 'none'}" for name, other in shown.items() if other != version)
    yield case("version.agrees", f"not {version}: {', '.join(wrong)}" if wrong else "")
    least = first("tools/setup/versions.env", r"^MIN_RUSTC=(.*)\.0$")
    said = {name: first(name, r'^rust-version = "(.*)"') for name in ("src/Cargo.toml", "tests/user/Cargo.toml")}
    said["README.md"] = first("README.md", r"^\* `rustc` and `cargo` ([\d.]+) or newer")
    wrong = [f"{name}: {other}" for name, other in said.items() if other != least]
    yield case("version.rustc", f"not {least}: {', '.join(wrong)}" if wrong else "")


# What make new-driver refuses, with a word of what it says.
NAMES = {
    "": "which name", "7up": "begins with a letter", "Acme": "a to z", "acme-share": "a to z", "a b": "a to z",
    "../acme": "a to z", "a" * 56: "at most 55", "kernel": "a crate", "pagekit_pin": "its own modules"}
TEMPLATE_LINES = 60


def template_cases():
    """The template is small, and new-driver makes nothing where it should not."""
    code = re.findall(r"^\s*(?!//)\S.*$", (TOP / "samples/template.rs").read_text(), re.M)
    yield case("template.lines", f"{len(code)} lines of code" if len(code) > TEMPLATE_LINES else "")
    folder = TOP / "out/new-driver"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env = os.environ | {"KDIR": "/kernel"}

    def new(name, place):
        made = run(TOP / "samples/new-driver.sh", name, folder / place, env=env)
        return "" if made.returncode == 0 else made.stderr

    wrong = [name for name, why in NAMES.items() if why not in new(name, "refused")]
    yield case("template.bad-names", f"not refused as they should: {wrong}" if wrong else "")
    (folder / "taken").mkdir()
    (folder / "link").symlink_to("nowhere")
    kept = all("exists" in new("acme", place) for place in ("taken", "link")) and not any((folder / "taken").iterdir())
    yield case("template.keeps-existing", "" if kept else "a folder that exists was touched")
    said = new("acme_2", "acme")
    source = "".join(path.read_text() for path in (folder / "acme").glob("*.*"))
    names = re.findall(r'name: "(\w+)"|name = c"(\S+)"|export_fd\(c"(\w+)"', source)
    ok = not said and "pagekit_template" not in source and "".join(map("".join, names)) == "acme_2acme-2acme_2"
    yield case("template.names", said or ("" if ok else f"the new driver has these names: {names}"))
    left = sorted(path.name for path in folder.iterdir())
    yield case("template.leaves-nothing", "" if left == ["acme", "link", "taken"] else f"left: {', '.join(left)}")


def docs_cases():
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


def cases(modules, built) -> list[Case]:
    return [
        *compile_cases(modules, built),
        *lock_cases(modules),
        *panic_cases(modules),
        *depends_cases(modules),
        *export_cases(modules),
        *template_cases(),
        *version_cases(modules),
        *size_cases(modules, built["KDIR"]),
        *charge_cases(),
        *docs_cases(),
    ]


def tool(name) -> str:
    """Where the set-up has it."""
    return run(TOOLS / "setup/setup.sh", name, check=True).stdout.strip()


def htmldocs_problem(folder) -> str:
    """Make HTML of the documents. Returns what Sphinx says against them."""
    return run(tool("sphinx"), "-q", "-E", "-W", "--keep-going", "-b", "html", TOP / "Documentation", folder).stderr.strip()


def style_cases():
    """How the sources look to the tools that the kernel uses."""
    tracked = run("git", "ls-files", cwd=TOP, check=True).stdout.split()
    sources = [TOP / name for name in tracked if name.endswith(".rs")]
    python = [name for name in tracked if name.endswith(".py")]
    yield case("style.rustfmt", run("rustfmt", "--check", "--edition", "2021", "-l", *sources).stdout.strip())
    if shutil.which("shellcheck"):
        scripts = ("tools/setup/setup.sh", ".ci/run", "src/install.sh", "samples/new-driver.sh")
        found = run("shellcheck", "-x", *scripts, cwd=TOP).stdout
        # What the guest runs has no first line of its own, and splits lists of modules.
        guest = [*(TESTS / "guest").glob("*.sh"), TOOLS / "mutate/guest.sh"]
        found += run("shellcheck", "-s", "sh", "-S", "warning", *guest).stdout
    else:
        found = "not installed"
    yield case("style.shellcheck", found.strip())
    ruff = tool("ruff")
    yield case("style.ruff", run(ruff, "check", "--quiet", "--no-cache", "--output-format=concise", "--line-length=132",
                                 "--select=E,F,W,B,I,UP", "--ignore=F402,B023", *python, cwd=TOP).stdout.strip())
    bare = [f"{path.relative_to(TOP)}: {found}" for path in sources
            for found in re.findall(r"#!?\[allow\([^\]]*\]", path.read_text()) if "reason" not in found]
    yield case("style.allow", "no reason: " + ", ".join(bare) if bare else "")
    yield case("style.htmldocs", htmldocs_problem(TOP / "out/htmldocs"))
    # The last two go into a kernel tree as they are.
    without = ("COPYING", ".gitignore", "tools/intree/MAINTAINERS", "tools/intree/bitflags.md")
    unsigned = [name for name in tracked if name not in without and not name.endswith(".lock")
                and not SPDX.search((TOP / name).read_text()[:300])]
    yield case("style.spdx", ", ".join(unsigned))


def clippy_cases(config):
    """The kernel's choice of lints, with nothing that was built before in the way."""
    folder = TOP / "out/clippy"
    shutil.rmtree(folder, ignore_errors=True)
    result = run("make", "--silent", "modules", "CLIPPY=1", f"CONFIG={config}", f"OUT={folder}", cwd=TOP)
    said = result.stdout + result.stderr
    found = re.findall(r"^(?:warning|error).*\n.*-->.*", said, re.M)
    yield case("style.clippy", " | ".join(" ".join(w.split()) for w in found) or (said[-500:] if result.returncode else ""))
