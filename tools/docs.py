# SPDX-License-Identifier: GPL-2.0
"""For reading and for editors: make rustdoc, make htmldocs and make rust-analyzer."""

import argparse
import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

from tools.lib.build import HELPERS, OUT, TOP, Broken, build_htmldocs, call, guarded, modules_dir, set_up, source_of

LINK = re.compile(r'<a [^>]*?href="([^"#?]+)')


def commands(modules) -> dict[str, list[str]]:
    """How kbuild has compiled each crate of ours, by its name."""
    found = {}
    for path in sorted(modules.rglob(".*.cmd")):
        command = path.read_text().splitlines()[0].partition(" := ")[2].partition(" ; ")[0]
        if "RUST_MODFILE=" in command:
            words = shlex.split(command)
            found[words[words.index("--crate-name") + 1]] = words
    return found


def source(words) -> Path:
    return Path(next(word for word in words if word.endswith(".rs")))


def externs(words) -> list[str]:
    return [word for flag, word in zip(words, words[1:], strict=False) if flag == "--extern"]


def rustdoc(_options) -> int:
    built = set_up("base", "modules")
    modules, folder = modules_dir("base"), OUT / "rustdoc"
    kernel = Path(built["KDIR"], "Documentation/output/rust/rustdoc")
    env = os.environ | {"RUSTC_BOOTSTRAP": "1"} | {name: built[name] for name in ("PATH", "RUST_LIB_SRC") if name in built}
    if not (kernel / "kernel/index.html").exists():
        print("rustdoc: the kernel's own first, to link to", flush=True)
        llvm = [f"LLVM={built['LLVM']}"] if "LLVM" in built else []
        call("make rustdoc in the kernel tree", "make", "--silent", "-C", built["KDIR"], *llvm, "rustdoc", env=env)
    shutil.rmtree(folder, ignore_errors=True)
    # Its crates beside ours, so that links lead there.
    (folder / "src").mkdir(parents=True)
    for crate in (path.parent for path in kernel.glob("*/all.html")):
        (folder / crate.name).symlink_to(crate)
        (folder / "src" / crate.name).symlink_to(kernel / "src" / crate.name)
    ours = ("pagekit_view", *HELPERS)
    for name in ours:
        words = commands(modules)[name]
        first = words.index("rustc")
        kept = [word for word in words[first + 1:]
                if not re.match(r"--emit=|-Zhint-mostly-unused|--remap-path-scope", word)]
        at = kept.index("--out-dir")
        call(f"rustdoc of {name}", "env", "-C", modules, *words[:first], "rustdoc", *kept[:at], *kept[at + 2:],
                 "-Drustdoc::all", "-Arustdoc::private_doc_tests", "--output", folder, env=env)
    link_sources(folder, ours, source_of(built["KDIR"]))
    if broken := sorted(broken_links(folder, ours)):
        raise Broken(f"links to nothing: {', '.join(broken[:10])}")
    print(f"rustdoc: ok; begin at {os.path.relpath(folder)}/pagekit_pin/index.html")
    return 0


def link_sources(folder, crates, tree):
    """Lead links to C sources into the kernel tree, as its own rustdoc does."""
    for page in (page for crate in crates for page in (folder / crate).rglob("*.html")):
        text = page.read_text()
        if '"srctree/' in text:
            page.write_text(text.replace('"srctree/', f'"{os.path.relpath(tree, page.parent)}/'))


def broken_links(folder, crates) -> set[str]:
    """Links of our pages that lead nowhere."""
    return {f"{page.relative_to(folder)} -> {link}"
            for crate in crates for page in (folder / crate).rglob("*.html")
            for link in LINK.findall(page.read_text())
            # zerocopy implements traits for all types that there are, and its documents hide some.
            if not re.match(r"[a-z]+:|.*/zerocopy/", link) and not (page.parent / link).exists()}


def htmldocs(_options) -> int:
    folder = OUT / "htmldocs"
    if problem := build_htmldocs(folder):
        raise Broken(problem)
    print(f"htmldocs: ok; begin at {os.path.relpath(folder)}/index.html")
    return 0


def rust_analyzer(_options) -> int:
    """The kernel's own description of its crates, and ours behind it."""
    built = set_up("base", "modules")
    modules = modules_dir("base")
    llvm = [f"LLVM={built['LLVM']}"] if "LLVM" in built else []
    env = os.environ | {name: built[name] for name in ("PATH", "RUST_LIB_SRC", "LIBCLANG_PATH") if name in built}
    empty = OUT / "rust-analyzer"
    empty.mkdir(parents=True, exist_ok=True)
    (empty / "Kbuild").write_text("")
    call("make rust-analyzer", "make", "--silent", "-C", built["KDIR"], f"M={empty}", *llvm, "rust-analyzer", env=env)
    project = json.loads((empty / "rust-project.json").read_text())
    crates = project["crates"]
    index = {crate["display_name"]: at for at, crate in enumerate(crates)}
    like = crates[index["kernel"]]
    ours = commands(modules)
    # What others name comes first.
    for name in sorted(ours, key=lambda name: (len(externs(ours[name])), name not in HELPERS)):
        words = ours[name]
        index[name] = len(crates)
        deps = ["core", *(extern for extern in externs(words) if extern in index)]
        crates.append({
            "display_name": name, "root_module": str(source(words)), "is_workspace_member": name != "bitflags",
            "deps": [{"crate": index[dep], "name": dep} for dep in deps], "cfg": like["cfg"], "edition": "2021",
            "env": {"RUST_MODFILE": name, "PAGEKIT_EXAMPLES": str(modules / "tests/kunit/examples.inc")},
            "is_proc_macro": False})
    (TOP / "rust-project.json").write_text(json.dumps(project, indent=1) + "\n")
    print(f"rust-analyzer: ok; rust-project.json has {len(crates)} crates, {len(ours)} of them ours and bitflags")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, function, text in (("rustdoc", rustdoc, "the helpers' interfaces, with links into the kernel's"),
                                 ("htmldocs", htmldocs, "Documentation/ as HTML"),
                                 ("rust-analyzer", rust_analyzer, "a project file for editors")):
        commands.add_parser(name, help=text).set_defaults(run=function)
    options = parser.parse_args()
    return options.run(options)


if __name__ == "__main__":
    sys.exit(guarded(main))
