# SPDX-License-Identifier: GPL-2.0
"""pagekit in a kernel tree: places it there, takes it out again, and writes that as a
series of patches.

Which files go there, and in which patch, is in intree/series.txt. Kbuild and Kconfig
are cut down to what is there, so that each patch builds alone.
"""

import fnmatch
import functools
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tools.lib.build import OUT, TOOLS, TOP, Broken

OURS = TOOLS / "intree"
PATCHES = OUT / "patches"
HOME = "drivers/dma-buf/pagekit"
DOCS = "Documentation/driver-api/pagekit"
CRATE = "rust/bitflags"


class Error(Broken):
    """The tree can't be changed as asked for; nothing was."""


def run(*cmd, **options) -> str:
    try:
        return subprocess.run([str(c) for c in cmd], check=True, stdout=subprocess.PIPE, text=True, **options).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise Error(f"{' '.join(str(c) for c in cmd[:2])} failed: {error}") from error


# --- What goes into a tree ----------------------------------------------------------


@dataclass
class Patch:
    patterns: list[str]
    subject: str
    body: str


@dataclass
class Content:
    """New files, and lines to be added to files of the tree, each after what its pattern matches."""
    files: dict[str, str] = field(default_factory=dict)
    hooks: dict[str, tuple[str, str]] = field(default_factory=dict)


def series() -> list[Patch]:
    """The cover letter first."""
    found = re.findall(r"^==(.*)\n(.*)\n\n((?:(?!==).*\n)*)", (OURS / "series.txt").read_text(), re.M)
    return [Patch(patterns.split(), subject, body.strip()) for patterns, subject, body in found]


def ours(name) -> str:
    """A file of ours without its SPDX tag: that is not the one of what is made of it."""
    return (OURS / name).read_text().partition("\n")[2]


@functools.cache
def sources() -> dict[str, str]:
    """All new files but Makefile and Kconfig."""
    names = run("git", "ls-files", "include", "src", "samples", "tests/drivers/compat.h", "tests/kunit", cwd=TOP).split()
    # The kernel's version is that of modules in its tree.
    kept = [name for name in names if name.endswith((".rs", ".c", ".h", ".awk")) and name != "src/version.h"]
    files = {f"{HOME}/{name}": (TOP / name).read_text() for name in kept}
    files[f"{HOME}/.kunitconfig"] = (OURS / "kunitconfig").read_text()
    files[f"{HOME}/.gitignore"] = "# SPDX-License-Identifier: GPL-2.0\n*_exports.h\n*.inc\n"
    index = (OURS / "index.rst").read_text()
    for name in ["index", *re.findall(r"^   (\w+)$", index, re.M)]:
        files[f"{DOCS}/{name}.rst"] = index if name == "index" else (TOP / f"Documentation/{name}.rst").read_text()
    return files | bitflags()


def bitflags() -> dict[str, str]:
    """The crate, as the tree has others: by name and version, with SPDX tags, and only what is compiled."""
    env = {name: value for name, value in os.environ.items() if name != "KDIR"}
    lib = Path(run(TOOLS / "setup/setup.sh", "bitflags", env=env).strip())
    todo, files = ["lib.rs"], {}
    for name in todo:
        text = (lib.parent / name).read_text()
        todo += [f"{mod}.rs" for cfg, mod in re.findall(r"^(#\[cfg.*\n)?(?:pub )?mod (\w+);", text, re.M) if not cfg]
        files[f"{CRATE}/{name}"] = "// SPDX-License-Identifier: Apache-2.0 OR MIT\n\n" + text
    version = lib.parent.parent.name.rpartition("-")[2]
    readme = ours("bitflags.md").replace("@VERSION@", version)
    return files | {f"{CRATE}/README.md": readme}


def kbuild(text, files) -> str:
    """What Kbuild says of the crates that are among the files."""
    def there(*names):
        return all({f"{HOME}/{name}.rs", f"{HOME}/{name}.c"} & files.keys() for name in names)

    def module(match):
        return match[0] if there(*re.findall(r"(\S+)\.o$", match["parts"].replace(" ", "\n"), re.M)) else ""

    def user(match):
        return match[0] if there(match[1]) else ""

    def helper(match):
        return match[0] if there(f"src/{match[1]}") else ""

    kept = ""
    for section in re.split(r"(?m)^(?=# --- )", text):
        cut = re.sub(r"(?m)^(?:#.*\n)*obj-.*\n(?P<parts>(?:(?!obj-)\w+-\S+ [:+]= .*\n)+)"
                     r"(?:CFLAGS_.*\n)?", module, section)
        cut = re.sub(r"(?m)^\$\(eval \$\(call user,(.*?),.*\n", user, cut)
        cut = re.sub(r"(?m)^\$\(eval \$\(call helper,(.*?),.*\n", helper, cut)
        # Definitions that nothing uses any more go, and rules for what isn't there.
        if ("$(eval" in cut or "$(eval" not in section) and there(*re.findall(r"(?m)^\$\(obj\)/([\w/]+)\.o:", cut)):
            kept += cut
    return re.sub(r"\n{3,}", "\n\n", kept).rstrip() + "\n"


def kconfig(text, makefile) -> str:
    """The symbols that the Makefile knows."""
    kept = set(re.findall(r"CONFIG_(\w*PAGEKIT\w*)", makefile))
    blocks = re.split(r"(?m)^(?=config |endmenu)", text)
    text = "".join(b for b in blocks if not b.startswith("config ") or b.split()[1] in kept)
    if lost := set(re.findall(r"\b\w*PAGEKIT_\w+", text)) - kept:
        raise Error(f"Kconfig: {', '.join(sorted(lost))} would come in a later patch than what needs it")
    return text


def after(pattern):
    """Where lines go in a file: behind the only line that matches."""
    def find(text):
        ends = [match.end() for match in re.finditer(rf"(?m)^{pattern}\n", text)]
        return ends[0] if len(ends) == 1 else None
    return find


def in_order(text):
    """Where our entry goes in MAINTAINERS: behind the last one of this letter that sorts before it."""
    title = ours("MAINTAINERS").partition("\n")[0]
    entries = re.finditer(rf"(?<=\n\n)({title[0]}.*)\n[A-Z]:\t(?:.+\n)+\n", text)
    return max((entry.end() for entry in entries if entry[1] < title), default=None)


def content(patches=None) -> Content:
    """What the first patches of the series add, or all of them."""
    everything, all_patches = sources(), series()[1:]

    def chosen(patches):
        patterns = [pattern for patch in patches for pattern in patch.patterns]
        return {name: text for name, text in everything.items() if any(fnmatch.fnmatch(name, p) for p in patterns)}

    if lost := everything.keys() - chosen(all_patches):
        raise Error(f"tools/intree/series.txt has no patch for {', '.join(sorted(lost))}")
    files = chosen(all_patches if patches is None else patches)

    def has(folder):
        return any(name.startswith(folder) for name in files)

    new = Content(files)
    if has(HOME):
        files[f"{HOME}/Makefile"] = kbuild((TOP / "Kbuild").read_text(), files)
        files[f"{HOME}/Kconfig"] = kconfig((TOP / "Kconfig").read_text(), files[f"{HOME}/Makefile"])
        entry = ours("MAINTAINERS").splitlines(keepends=True)
        new.hooks = {
            "drivers/dma-buf/Kconfig": (after('source "drivers/dma-buf/heaps/Kconfig"'),
                                        f'\nsource "{HOME}/Kconfig"\n'),
            "drivers/dma-buf/Makefile": (after(r"obj-\$\(CONFIG_UDMABUF\).*"),
                                         "obj-$(CONFIG_RUST)\t\t+= pagekit/\n"),
            "MAINTAINERS": (in_order, "".join(s for s in entry if not s.startswith("F:") or has(s.split()[1]))),
        }
    if has(DOCS):
        new.hooks["Documentation/driver-api/index.rst"] = (after("   dma-buf"), "   pagekit/index\n")
    return new


# --- A tree ------------------------------------------------------------------------


def supported() -> list[str]:
    """What make test-intree builds: the default series."""
    return re.findall(r"(?m)^KVER_DEFAULT=(.*)", (TOOLS / "setup/versions.env").read_text())


def version(tree: Path) -> str:
    """The version of the kernel source there, if it is one that we know."""
    if not tree.is_dir():
        raise Error(f"KDIR={tree}: no such directory")
    makefile = (tree / "Makefile").read_text() if (tree / "Makefile").is_file() else ""
    parts = dict(re.findall(r"(?m)^(VERSION|PATCHLEVEL|SUBLEVEL) = (\d+)$", makefile))
    if len(parts) < 3 or not (tree / "MAINTAINERS").is_file():
        source = tree / "source"
        raise Error(f"KDIR={tree} is a build directory; its source is {source.resolve()}" if source.is_symlink() else
                    f"KDIR={tree} is not a kernel source tree")
    series = f"{parts['VERSION']}.{parts['PATCHLEVEL']}"
    if series not in supported():
        raise Error(f"KDIR={tree} is Linux {series}; supported: {', '.join(supported())}")
    return f"{series}.{parts['SUBLEVEL']}"


@dataclass
class State:
    """What is in a tree of what we would add."""
    same: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)


def state(tree: Path, new: Content) -> State:
    found = State()
    for name, text in new.files.items():
        path = tree / name
        where = found.missing if not path.exists() else found.same if path.read_text() == text else found.changed
        where.append(name)
    for name, (find, lines) in new.hooks.items():
        text = read(tree, name)
        where = found.same if text.count(lines) == 1 else found.changed if "pagekit" in text.lower() else found.missing
        where.append(name)
        if where is found.missing and find(text) is None:
            raise Error(f"{tree / name} has no place for our lines")
    return found


def read(tree: Path, name) -> str:
    try:
        return (tree / name).read_text()
    except OSError as error:
        raise Error(f"{tree / name}: {error.strerror}") from error


def write(path: Path, text):
    """By a new file, so that a tree of hard links leaves others as they are."""
    if path.exists() and path.read_text() == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".pagekit-new")
    new.write_text(text)
    if path.exists():
        shutil.copymode(path, new)
    new.rename(path)


def add(tree: Path, new: Content):
    for name, text in new.files.items():
        write(tree / name, text)
    for name, (find, lines) in new.hooks.items():
        text = read(tree, name)
        if lines not in text:
            at = find(text)
            write(tree / name, text[:at] + lines + text[at:])


def remove(tree: Path, new: Content, names):
    for name in names:
        if name in new.hooks:
            write(tree / name, read(tree, name).replace(new.hooks[name][1], ""))
        else:
            (tree / name).unlink()
    folders = {parent for name in new.files for parent in Path(name).parents}
    for folder in sorted((f for f in folders if str(f).startswith((HOME, DOCS, CRATE))), reverse=True):
        if (tree / folder).is_dir() and not any((tree / folder).iterdir()):
            (tree / folder).rmdir()


def shown(names) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def place(tree: Path):
    release, new = version(tree), content()
    found = state(tree, new)
    if not found.missing and not found.changed:
        print(f"intree: {tree} (Linux {release}) has pagekit already; nothing to do")
        return
    if found.changed:
        raise Error(f"{tree} has something else in {shown(found.changed)}; to take out what is there: UNDO=1 FORCE=1")
    if found.same:
        raise Error(f"{tree} lacks a part of what is placed, {shown(found.missing)}; to take out the rest: UNDO=1")
    try:
        add(tree, new)
    except OSError as error:
        remove(tree, new, state(tree, new).same)
        raise Error(f"{error.filename}: {error.strerror}; nothing is placed") from error
    print(f"intree: placed in {tree} (Linux {release}): {len(new.files)} files, and lines in {', '.join(new.hooks)}\n"
          f"intree: next: make menuconfig there, under Device Drivers, DMABUF options")


def undo(tree: Path, force):
    release, new = version(tree), content()
    found = state(tree, new)
    hooks = [name for name in found.changed if name in new.hooks]
    if hooks or found.changed and not force:
        how = "take the lines with pagekit out by hand" if hooks else "to remove it all the same: UNDO=1 FORCE=1"
        raise Error(f"{tree} has something else in {shown(hooks or found.changed)}; {how}")
    names = found.same + found.changed
    if not names:
        print(f"intree: {tree} (Linux {release}) has no pagekit; nothing to do")
        return
    remove(tree, new, names)
    left = [folder for folder in (HOME, DOCS, CRATE) if (tree / folder).exists()]
    print(f"intree: taken out of {tree} (Linux {release})"
          + (f"; left, because there is more in it: {', '.join(left)}" if left else ""))


# --- Patches ------------------------------------------------------------------------


def git(repo, *args, **options):
    last = run("git", "log", "-1", "--format=%an%n%ae%n%cI", cwd=TOP).splitlines()
    env = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in
           zip(("NAME", "EMAIL", "DATE"), last, strict=True)}
    return run("git", "-c", "core.autocrlf=false", "-c", "core.safecrlf=false", *args, cwd=repo,
               env=os.environ | env | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}, **options)


def pristine(tree: Path, new: Content) -> dict[str, str]:
    """The files that get lines, without ours."""
    return {name: read(tree, name).replace(lines, "") for name, (_, lines) in new.hooks.items()}


def repository(path: Path, files) -> Path:
    path.mkdir()
    git(path, "init", "--quiet", "--initial-branch=base")
    for name, text in files.items():
        write(path / name, text)
    git(path, "add", "--all", "--force")
    git(path, "commit", "--quiet", "--message=base")
    return path


def write_series(tree: Path, out: Path) -> list[Path]:
    """Patches, from a scratch repository of the files that they touch; they apply to any with the same."""
    release, (cover, *patches), base = version(tree), series(), pristine(tree, content())
    shutil.rmtree(out, ignore_errors=True)
    with tempfile.TemporaryDirectory() as scratch:
        repo = repository(Path(scratch, "repo"), base)
        git(repo, "checkout", "--quiet", "-b", "pagekit")
        for i, patch in enumerate(patches, 1):
            for name, text in base.items():
                write(repo / name, text)
            add(repo, content(patches[:i]))
            git(repo, "add", "--all", "--force")
            git(repo, "commit", "--quiet", "--message", f"{patch.subject}\n\n{patch.body}")
        blobs = git(repo, "ls-tree", "-r", "--format=%(objectname) %(path)", "base")
        git(repo, "config", "branch.pagekit.description",
            f"{cover.subject}\n\n{cover.body}\n\nBased on Linux {release}, of which this changes:\n\n{blobs}")
        git(repo, "format-patch", "--quiet", "--cover-letter", "--cover-from-description=subject",
            "--output-directory", out.resolve(), "base")
    return sorted(out.glob("*.patch"))


def applied(patches, base) -> dict[str, str]:
    """What git am makes of these files, and of new ones."""
    with tempfile.TemporaryDirectory() as scratch:
        repo = repository(Path(scratch, "repo"), base)
        git(repo, "am", "--quiet", *(path.resolve() for path in patches[1:]))
        return {name: (repo / name).read_text() for name in git(repo, "ls-files").splitlines()}


def placed(base) -> dict[str, str]:
    """The same of make intree."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in base.items():
            write(Path(scratch, name), text)
        add(Path(scratch), content())
        return {str(path.relative_to(scratch)): path.read_text() for path in Path(scratch).rglob("*") if path.is_file()}


def make_patches(tree: Path):
    patches, base = write_series(tree, PATCHES), pristine(tree, content())
    if applied(patches, base) != placed(base):
        raise Error("the patches make something else of a tree than make intree")
    print(f"patches: {len(patches) - 1} and a cover letter in {os.path.relpath(PATCHES)}, for Linux {version(tree)}")
