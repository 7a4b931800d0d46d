# SPDX-License-Identifier: GPL-2.0
"""Drivers of the kernel tree that nothing here can run, converted to pagekit.h and compiled, one
object each, for x86-64 and arm64. And those of which mmap_offset.cocci mends the page that a mapping shows.
"""

import argparse
import json
import os
import re
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tools.convert.convert import spatch
from tools.lib.build import (
    OUT,
    TOOLS,
    TOP,
    Broken,
    guarded,
    run,
    set_up,
    source_of,
    text_of,
)
from tools.size.count import lines_of
from tools.size.survey import SURVEY, functions

ARCHS = ("x86", "arm64")
FOLDER = OUT / "objects"


@dataclass
class Object:
    """A source that NAME.cocci converts, with the headers beside it in which it has its structures."""
    source: str
    gone: tuple[str, ...]  # words that say whether all of the patch has applied
    headers: tuple[str, ...] = ()
    archs: tuple[str, ...] = ARCHS
    changes: tuple[str, ...] = ()  # in what users see


OFFSET = "mappings at an offset, and what is left of one that was split, show the pages at their offset"
FAULT = "a fault maps what else is in the same 2 MiB"
COW = "private mappings that can be written to are refused (EINVAL)"
COW_BUG = f"{COW}: their faults hit BUG_ON() in vmf_insert_pfn_prot()"
KILLED = "a fatal signal ends the wait for many pages (EINTR)"
LONG_TERM = "pins for the long term: pages leave CMA and movable memory first"
ALL = "all is pinned or none; what is not mapped is EFAULT"

OBJECTS = {
    "amdxdna": Object("drivers/accel/amdxdna/amdxdna_ubuf.c", ("npages", "ubuf->pages", "unpin_user_pages"),
                      changes=(ALL, KILLED, "an entry without pages is refused (EINVAL)")),
    "etnaviv": Object("drivers/gpu/drm/etnaviv/etnaviv_gem.c",
                      ("linear_page_delta", "vm_pgoff = 0", "vm_flags_set", "pin_user_pages_fast", "unpin_user_pages"),
                      ("etnaviv_gem.h",), changes=(OFFSET, FAULT, COW_BUG, KILLED)),
    "exynos_g2d": Object("drivers/gpu/drm/exynos/exynos_drm_g2d.c", ("pin_user_pages", "->npages", "userptr->pages"),
                         changes=(ALL, KILLED)),
    "gma500": Object("drivers/gpu/drm/gma500/gem.c", ("linear_page_delta", "page_offset"), archs=("x86",),
                     changes=(OFFSET, FAULT, "stolen memory is shown page by page, not its first page everywhere")),
    "habanalabs": Object("drivers/accel/habanalabs/common/memory.c", ("pin_user_pages", "userptr->pages", "userptr->npages"),
                         ("habanalabs.h",), changes=(ALL, KILLED)),
    "ipu3": Object("drivers/staging/media/ipu3/ipu3-dmamap.c", ("alloc_buffer(size", "free_buffer(", "split_page"),
                   changes=("large pages are compound", KILLED)),
    "ivpu": Object("drivers/accel/ivpu/ivpu_gem_userptr.c", ("gup_flags", "pinned", "free_sgt", "unpin_user_page"),
                   changes=(ALL, KILLED, "the array is kept: eight bytes a page")),
    "msm": Object("drivers/gpu/drm/msm/msm_gem.c", ("linear_page_delta", "vmf_insert_pfn", "vm_flags_set"),
                  changes=(OFFSET, FAULT, COW_BUG)),
    "panthor": Object("drivers/gpu/drm/panthor/panthor_gem.c", ("insert_page(", "page_offset", "vm_flags_set", "is_cow"),
                      changes=(OFFSET, FAULT)),
    "privcmd_buf": Object("drivers/xen/privcmd-buf.c", ("alloc_page(", "__free_page", "vm_map_pages_zero"),
                          changes=("core dumps leave the memory out", KILLED)),
    "qaic": Object("drivers/accel/qaic/qaic_control.c", ("get_user_pages_fast", "put_page(", "->page_list", "xfer->nr_pages"),
                   changes=(LONG_TERM, ALL, KILLED)),
    "rockchip": Object("drivers/gpu/drm/rockchip/rockchip_drm_gem.c", ("vm_map_pages", "vm_pgoff = 0"),
                       changes=(OFFSET, COW, KILLED)),
    "tegra": Object("drivers/gpu/drm/tegra/gem.c", ("linear_page_delta", "vmf_insert_page", "VM_MIXEDMAP"),
                    changes=(OFFSET, FAULT, COW)),
    "ttm": Object("drivers/gpu/drm/ttm/ttm_bo_vm.c", (),
                  changes=("a fault of such a buffer maps what else is in the same 2 MiB, not 16 pages",)),
    "vb2_dma_sg": Object("drivers/media/common/videobuf2/videobuf2-dma-sg.c", ("vm_map_pages", "vm_flags_set"),
                         changes=(COW, KILLED)),
    "xen_drm_front": Object("drivers/gpu/drm/xen/xen_drm_front_gem.c", ("vm_map_pages", "vm_flags_mod", "vm_pgoff = 0"),
                            changes=(OFFSET, "O_DIRECT and the like refuse mappings (EFAULT), which are of PFNs now", COW, KILLED)),
}

# Those that show the wrong page, and how that is seen there: at an offset, after a split, or both.
MENDED = {
    "drivers/accel/amdxdna/amdxdna_cbuf.c": "both",
    "drivers/accel/amdxdna/amdxdna_gem.c": "at an offset",
    "drivers/accel/qaic/qaic_data.c": "at an offset",
    "drivers/gpu/drm/armada/armada_gem.c": "after a split",
    "drivers/gpu/drm/drm_gem_shmem_helper.c": "both",
    "drivers/gpu/drm/etnaviv/etnaviv_gem.c": "both",
    "drivers/gpu/drm/exynos/exynos_drm_gem.c": "at an offset",
    "drivers/gpu/drm/gma500/gem.c": "after a split",
    "drivers/gpu/drm/msm/msm_gem.c": "both",
    "drivers/gpu/drm/omapdrm/omap_gem.c": "both",
    "drivers/gpu/drm/omapdrm/omap_gem_dmabuf.c": "both",
    "drivers/gpu/drm/panthor/panthor_gem.c": "both",
    "drivers/gpu/drm/rockchip/rockchip_drm_gem.c": "at an offset",
    "drivers/gpu/drm/tegra/gem.c": "both",
    "drivers/gpu/drm/xen/xen_drm_front_gem.c": "at an offset",
}
MEND = "mmap_offset"


class Tree:
    """Where single objects of the kernel can be compiled. Its source is the set-up's, which stays as it is."""

    def __init__(self, arch, built):
        self.source, self.build = source_of(built["KDIR"]), FOLDER / arch / "build"
        self.make = ["make", "-C", self.source, f"O={self.build}", f"ARCH={arch}", f"LLVM={built['LLVM']}"]
        config = self.build / "objects.config"
        configs = [TOOLS / f"setup/config/{name}.config" for name in ("base", arch)] + [TOOLS / "convert/objects.config"]
        # Of two lines about a symbol the later one is meant. Without Rust the tree is ready at once.
        lines = {line.split("=")[0].split(" is ")[0].removeprefix("# "): line for path in configs if path.exists()
                 for line in path.read_text().splitlines() if "CONFIG_" in line and "RUST" not in line}
        self.build.mkdir(parents=True, exist_ok=True)
        text = "".join(f"{line}\n" for line in lines.values())
        if not config.exists() or config.read_text() != text:
            config.write_text(text)
            run(*self.make, "-s", f"KCONFIG_ALLCONFIG={config}", "allnoconfig", check=True)

    def compile(self, paths):
        """As they are, all at once. That also says how it is done."""
        objects = [str(Path(path).with_suffix(".o")) for path in paths]
        run(*self.make, "-s", f"-j{os.cpu_count()}", *objects, check=True)

    def compile_alone(self, path, file, *options) -> Path:
        """Another text of it, in the same way, to an object beside that."""
        made = Path(path).with_suffix(".o")
        command = (self.build / made.parent / f".{made.name}.cmd").read_text().split(":= ", 1)[1].split("\n")[0]
        if str(self.source / path) not in command:
            raise Broken(f"{path}: the kernel's makefiles compile it in a way that is not understood")
        other = file.with_suffix(".o")
        command = re.sub(rf"(?<=\s){re.escape(str(made))}(?=\s|$)", str(other), command)
        # armada is of 32-bit machines. Where the file lies must not count: texts may have its name.
        options = [*options, "-Werror", "-Wno-error=format", f"-fmacro-prefix-map={file.parent}={Path(path).parent}"]
        command = command.replace(f" {self.source / path}", f" {' '.join(options)} {file}")
        run("sh", "-c", command, cwd=self.build, check=True)
        return other


def diff(before, after) -> str:
    return run("diff", "-u", "--label", before.name, "--label", after.name, before, after).stdout


def changed(tree, folder, patch, path, headers=()) -> dict:
    """Copies in the folders before and after, one of which is changed, and both compiled."""
    source = tree.source / path
    files = [source, *(source.parent / name for name in headers)]
    shutil.rmtree(folder, ignore_errors=True)
    for place in ("before", "after"):
        (folder / place).mkdir(parents=True)
        for file in files:
            shutil.copy(file, folder / place)
    for file in files:
        after = folder / "after" / file.name
        spatch(patch, after)
        after.write_text(re.sub(r"[ \t]+$", "", after.read_text(), flags=re.MULTILINE))  # spatch leaves such lines
    sizes = [text_of(tree.compile_alone(path, folder / place / source.name, f"-iquote {source.parent}", f"-I {TOP}/include"))
             for place in ("before", "after")]
    return {"text_before": sizes[0], "text_after": sizes[1],
            "diff": "".join(diff(folder / "before" / file.name, folder / "after" / file.name) for file in files)}


def convert(tree, name, arch) -> dict:
    row = OBJECTS[name]
    folder = FOLDER / arch / name
    sizes = changed(tree, folder, name, row.source, row.headers)
    before, after = (folder / place / Path(row.source).name for place in ("before", "after"))
    patch = (TOOLS / f"convert/{name}.cocci").read_text()
    come = set(re.findall(r"^\+.*?(pagekit_\w+\()", patch, re.MULTILINE))
    text = after.read_text()
    if odd := [word for word in row.gone if word in text] + [word for word in come if word not in text]:
        raise Broken(f"{row.source} of this kernel is another than tools/convert/{name}.cocci converts: see what it makes "
                     f"of {' '.join(odd)} in {os.path.relpath(after)}")
    lines = lines_of([before, after])
    return {"driver": name, "source": row.source, "arch": arch,
            "functions_gone": [function for function in functions(before) if function not in functions(after)],
            "lines_before": lines[before], "lines_after": lines[after], **sizes,
            "tests": [], "behaviour_changes": list(row.changes), "verdict": "compiled only"}


def mend(tree, path, arch) -> dict:
    sizes = changed(tree, FOLDER / arch / MEND / Path(path).stem, MEND, path)
    if not sizes["diff"]:
        raise Broken(f"{path} of this kernel is another than tools/convert/{MEND}.cocci mends")
    return {"source": path, "arch": arch, "seen": MENDED[path], **sizes}


def update(converted, mended):
    """Shows the results in the survey."""
    def text_of_all(rows, key, value):
        return [f"{row['text_before']} -> {row['text_after']}" if row else "none" for row in
                (next((row for row in rows if row[key] == value and row["arch"] == arch), None) for arch in ARCHS)]

    def table(header, widths, rows):
        lines = [".. csv-table::", f"   :header: {header}", f"   :widths: {widths}", ""]
        return "\n".join([*lines, *(f"   {', '.join(row)}" for row in rows)]) + "\n"

    first = {row["driver"]: row for row in converted}
    shown = table("driver, source, lines, text on x86-64, on arm64", "13, 42, 13, 16, 16", [
        [name, row["source"], f"{row['lines_before']} -> {row['lines_after']}", *text_of_all(converted, "driver", name)]
        for name, row in first.items()])
    shown += "\nWhat users see of it:\n\n"
    changes = {change: [name for name, row in first.items() if change in row["behaviour_changes"]]
               for row in first.values() for change in row["behaviour_changes"]}
    for change, names in changes.items():
        shown += textwrap.fill(f"* {change}: {', '.join(names)}", 80, subsequent_indent="  ", break_on_hyphens=False) + "\n"
    shown += f"\nWhat ``{MEND}.cocci`` mends, and how that is seen:\n\n"
    shown += table("source, text on x86-64, on arm64, seen", "46, 18, 18, 18", [
        [path, *text_of_all(mended, "source", path), seen] for path, seen in MENDED.items()])
    SURVEY.write_text(re.sub(r"(?<=^\.\. results\n\n).*?(?=^\.\. end of results)", lambda _: f"{shown}\n",
                             SURVEY.read_text(), flags=re.MULTILINE | re.DOTALL))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python3 -m tools.convert.objects", description=__doc__)
    parser.add_argument("--arch", choices=ARCHS, action="append", help="default: all")
    parser.add_argument("--update", action="store_true", help="compile all, and show the results in Documentation/survey.rst")
    parser.add_argument("names", nargs="*", metavar="name", help=f"default: all of {', '.join((*OBJECTS, MEND))}")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in OBJECTS and name != MEND]:
        parser.error(f"there is no conversion of {' '.join(unknown)}")
    if options.update and (options.arch or options.names):
        parser.error("--update is of all")
    built, found, mended = set_up("base", "convert", user=False), [], []
    for arch in options.arch or ARCHS:
        names = [name for name in options.names or OBJECTS if name in OBJECTS and arch in OBJECTS[name].archs]
        paths = [path for path in MENDED if (MEND in options.names or not options.names)
                 and (arch in OBJECTS["gma500"].archs or "gma500" not in path)]
        print(f"{arch}: compiling {len(names)} drivers, and {len(paths)} sources to be mended", flush=True)
        tree = Tree(arch, built)
        tree.compile({*paths, *(OBJECTS[name].source for name in names)})
        for name in names:
            found.append(convert(tree, name, arch))
            print("{arch:6} {driver:14} {lines_before:5} -> {lines_after:5} lines, {text_before:6} -> {text_after:6} bytes of "
                  "text".format_map(found[-1]), flush=True)
        for path in paths:
            mended.append(mend(tree, path, arch))
            print("{arch:6} mended: {source}, {text_before:6} -> {text_after:6} bytes of text".format_map(mended[-1]), flush=True)
    (OUT / "objects.json").write_text(json.dumps({"converted": found, "mended": mended}, indent=1) + "\n")
    if options.update:
        update(found, mended)
    return 0


if __name__ == "__main__":
    sys.exit(guarded(main))
