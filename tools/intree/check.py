# SPDX-License-Identifier: GPL-2.0
"""What make check says of make intree: on the few files of a kernel tree that it looks at,
and with the tree's own checkpatch.
"""

import contextlib
import io
import os
import re
import shutil
import tempfile
from pathlib import Path

from tools.intree import place
from tools.lib.build import TOP, Broken, run
from tools.lib.tap import case

# checkpatch --strict must have nothing else to say. The imported crate is left out, as the
# tree does with its own. Documentation/intree.rst has the reason for each.
IGNORED = ("MISSING_SIGN_OFF", "FILE_PATH_CHANGES", "LEADING_SPACE", "MACRO_ARG_REUSE", "MACRO_WITH_FLOW_CONTROL",
           "MULTISTATEMENT_MACRO_USE_DO_WHILE", "AVOID_EXTERNS", "BIT_MACRO")


def snapshot(tree: Path) -> dict[str, bytes | None]:
    """All that is there, folders too."""
    return {str(path.relative_to(tree)): path.read_bytes() if path.is_file() else None for path in tree.rglob("*")}


def excerpt(source: Path, tree: Path) -> Path:
    """The files of a kernel tree that placing reads or changes."""
    for name in ("Makefile", *place.content().hooks):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, tree / name)
    (tree / "rust").mkdir()
    return tree


def refused(what, wanted, action, *args) -> str:
    """What is wrong if the action is not refused with this word, or has changed something all the same."""
    tree = args[0]
    before = snapshot(tree)
    try:
        action(*args)
    except place.Error as error:
        return "" if wanted in str(error) and snapshot(tree) == before else f"{what}: {error}"
    return f"{what}: not refused"


def refusals(tree: Path, scratch: Path):
    """Trees that are none, or not as they should be. The tree has pagekit, and keeps it."""
    yield refused("another folder", "not a kernel source tree", place.place, scratch / "empty")
    makefile, hook, shim = tree / "Makefile", tree / "drivers/dma-buf/Makefile", tree / place.HOME / "src/shim.h"
    (scratch / "build").mkdir()
    (scratch / "build/source").symlink_to(tree)
    yield refused("a build directory", f"its source is {tree}", place.place, scratch / "build")
    # Each with a file changed for the moment.
    for what, path, change, wanted, action, *args in (
            ("an old kernel", makefile, lambda t: re.sub("(?m)^PATCHLEVEL.*", "PATCHLEVEL = 0", t), "supported", place.place),
            ("a changed file", shim, lambda t: t + "/* */\n", "src/shim.h", place.place),
            ("a changed file", shim, lambda t: t + "/* */\n", "src/shim.h", place.undo, False),
            ("a changed hook", hook, lambda t: t.replace("+= pagekit/", "+= pagekit/ more/"), "by hand", place.undo, True),
            ("a changed hook", hook, lambda t: t.replace("+= pagekit/", "+= pagekit/ more/"), str(hook.name), place.place),
            ("a lost hook", hook, lambda t: t.replace("obj-$(CONFIG_RUST)\t\t+= pagekit/\n", ""), "lacks", place.place),
            ("no place", hook, lambda t: re.sub("(?m)^.*(UDMABUF|pagekit).*\n", "", t), "no place", place.place)):
        text = path.read_text()
        path.write_text(change(text))
        yield refused(what, wanted, action, tree, *args)
        path.write_text(text)
    shim.rename(scratch / "shim.h")
    yield refused("a lost file", "lacks", place.place, tree)
    (scratch / "shim.h").rename(shim)


def placing(source: Path, scratch: Path):
    tree = excerpt(source, scratch / "tree")
    (scratch / "empty").mkdir()
    before = snapshot(tree)
    place.place(tree)
    after = snapshot(tree)
    added = [name for name in after.keys() - before.keys() if (tree / name).is_file()]
    yield case("intree.place", "" if sorted(added) == sorted(place.content().files) else "files are missing")
    stamps = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    place.place(tree)
    again = {path: path.stat().st_mtime_ns for path in tree.rglob("*")}
    yield case("intree.place_twice", "" if stamps == again else "changes something")
    yield case("intree.refuses", "; ".join(filter(None, refusals(tree, scratch))))
    place.undo(tree, False)
    yield case("intree.undo", "" if snapshot(tree) == before else "leaves something")
    # Part of it, as after an accident.
    place.place(tree)
    shutil.rmtree(tree / place.HOME / "src")
    place.undo(tree, False)
    yield case("intree.undo_part", "" if snapshot(tree) == before else "leaves something")


def documents() -> str:
    """Documents in the tree refer to each other only."""
    pages = {Path(name).stem for name in place.content().files if name.startswith(place.DOCS)}
    wanted = {(page, other) for page in pages - {"index"}
              for other in re.findall(r":doc:`(?:[^`<]*<)?([\w-]+)",
                                      (TOP / f"Documentation/{page}.rst").read_text())}
    return ", ".join(f"{page} refers to {other}" for page, other in sorted(wanted) if other not in pages)


def includes() -> str:
    """What a file includes by a path is there, or made by the Makefile."""
    files = place.content().files
    found = [(name, os.path.normpath(Path(name).parent / other)) for name, text in files.items()
             if name.startswith(place.HOME) for other in re.findall(r'(?m)^#include "(.*)"', text)]
    return ", ".join(f"{name} includes {other}" for name, other in found
                     if other not in files and not other.endswith("_exports.h"))


def series(source: Path, scratch: Path):
    patches = place.write_series(source, scratch / "patches")
    base = place.pristine(source, place.content())
    yield case("intree.patches", "" if place.applied(patches, base) == place.placed(base) else
               "git am makes something else of a tree than make intree")
    said = run("perl", source / "scripts/checkpatch.pl", "--strict", "--terse", "--no-summary", "--show-types",
               f"--root={source}", f"--ignore={','.join(IGNORED)}", *patches[2:]).stdout
    yield case("intree.checkpatch", " | ".join(re.findall(r"(?m)^.*/(.*)$", said)))


def cases(kdir) -> list:
    source = Path(kdir, "source") if Path(kdir, "source").exists() else Path(kdir)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        try:
            return [case("intree.documents", documents()), case("intree.includes", includes()),
                    *placing(source, Path(scratch).resolve()), *series(source, Path(scratch).resolve())]
        except Broken as error:
            return [case("intree.setup", str(error))]
