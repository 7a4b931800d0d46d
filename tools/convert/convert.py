# SPDX-License-Identifier: GPL-2.0
"""The kernel tree's own udmabuf driver, converted to pagekit.h by a semantic patch, and
built as a module beside the original: /dev/udmabuf-converted."""

import os
import shutil
from pathlib import Path

from tools.lib.build import TOOLS, TOP, Broken, kbuild, modules_dir, run, source_of

SOURCE = "drivers/dma-buf/udmabuf.c"
BEFORE, AFTER = "udmabuf_before", "udmabuf_converted"
# By name, what has gone and what has come. A patch that finds nothing to change says nothing.
GONE = ("memfd_pin_folios(", "unpin_folio(", "vmf_insert_pfn(", "vm_flags_set(", "folios")
COME = ("pagekit_pin_memfd(", "pagekit_unpin(", "pagekit_setup_pfns(", "pagekit_fault_pfns(",
        "pagekit_huge_fault_pfns(")


def spatch(patch, file):
    result = run("spatch", "--very-quiet", "--no-show-diff", "--in-place", "--sp-file",
                      TOOLS / f"convert/{patch}.cocci", file)
    if result.returncode:
        raise Broken(f"tools/convert/{patch}.cocci does not apply to {SOURCE}: {result.stderr.strip()[-300:]}")


def build(config, built) -> Path:
    """Build it, both as it was and converted. Returns the module that was converted."""
    print(f"{config}: converting the kernel's udmabuf driver", flush=True)
    modules = modules_dir(config)
    folder = modules.with_name(f"{modules.name}-converted")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    before, after = folder / f"{BEFORE}.c", folder / f"{AFTER}.c"
    shutil.copyfile(source_of(built["KDIR"]) / SOURCE, before)
    spatch("module", before)
    shutil.copyfile(before, after)
    spatch("udmabuf", after)
    text = after.read_text()
    if odd := [name for name in GONE if name in text] + [name for name in COME if name not in text]:
        raise Broken(f"{SOURCE} of this kernel is another than tools/convert/udmabuf.cocci converts: see what it "
                       f"makes of {' '.join(odd)} in {os.path.relpath(after)}")
    (folder / "Kbuild").write_text(f"obj-m := {BEFORE}.o {AFTER}.o\nccflags-y := -I {TOP}/include\n")
    kbuild(built, folder, "modules", f"KBUILD_EXTRA_SYMBOLS={modules}/Module.symvers")
    return folder / f"{AFTER}.ko"
