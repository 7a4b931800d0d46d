# SPDX-License-Identifier: GPL-2.0
"""Drivers of the kernel tree, converted to pagekit.h by semantic patches, and built as modules
beside the originals: as they were and converted.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tools.lib.build import TOOLS, TOP, Broken, kbuild, modules_dir, run, source_of


@dataclass
class Driver:
    """What a module is made of, the first of which is converted. NAME.cocci does that, and before it
    NAME-module.cocci makes of each source what can be a module of its own."""
    sources: tuple[str, ...]
    module: str  # what its name begins with
    # By name, what has gone and what has come. A patch that finds nothing to change says nothing.
    gone: tuple[str, ...]
    come: tuple[str, ...]
    headers: tuple[str, ...] = ()


DRIVERS = {
    "udmabuf": Driver(
        ("drivers/dma-buf/udmabuf.c",), "udmabuf",
        ("memfd_pin_folios(", "unpin_folio(", "vmf_insert_pfn(", "vm_flags_set(", "folios"),
        ("pagekit_pin_memfd(", "pagekit_unpin(", "pagekit_setup_pfns(", "pagekit_fault_pfns(",
         "pagekit_huge_fault_pfns(")),
    # With vgem, which is a driver that stands on it.
    "drm_gem_shmem": Driver(
        ("drivers/gpu/drm/drm_gem_shmem_helper.c", "drivers/gpu/drm/vgem/vgem_drv.c", "drivers/gpu/drm/vgem/vgem_fence.c"),
        "vgem",
        ("vmf_insert_pfn", "try_insert_pfn", "page_offset", "mkwrite", "vma_is_cow_mapping(", "vm_flags_set("),
        ("pagekit_setup_pfns(", "pagekit_fault_pfns(", "pagekit_huge_fault_pfns("),
        ("drivers/gpu/drm/vgem/vgem_drv.h",)),
}


def spatch(patch, file):
    result = run("spatch", "--very-quiet", "--no-show-diff", "--in-place", "--sp-file",
                 TOOLS / f"convert/{patch}.cocci", file)
    if result.returncode:
        raise Broken(f"tools/convert/{patch}.cocci does not apply to {file.name}: {result.stderr.strip()[-300:]}")


def build(config, built, name) -> Path:
    """Build it, both as it was and converted: in the folders before and after. Returns where both modules are,
    MODULE_before.ko and MODULE_converted.ko."""
    print(f"{config}: converting the kernel's {name}", flush=True)
    driver, modules = DRIVERS[name], modules_dir(config)
    folder = modules.with_name(f"{modules.name}-{name}")
    shutil.rmtree(folder, ignore_errors=True)
    before, after = folder / "before", folder / "after"
    before.mkdir(parents=True)
    for path in driver.sources + driver.headers:
        shutil.copy(source_of(built["KDIR"]) / path, before)
    for path in driver.sources:
        spatch(f"{name}-module", before / Path(path).name)
    shutil.copytree(before, after)
    converted = after / Path(driver.sources[0]).name
    spatch(name, converted)
    text = converted.read_text()
    if odd := [word for word in driver.gone if word in text] + [word for word in driver.come if word not in text]:
        raise Broken(f"{driver.sources[0]} of this kernel is another than tools/convert/{name}.cocci converts: see what it "
                     f"makes of {' '.join(odd)} in {os.path.relpath(converted)}")
    objects = [Path(path).with_suffix(".o").name for path in driver.sources]
    made = {"before": f"{driver.module}_before", "after": f"{driver.module}_converted"}
    (folder / "Kbuild").write_text(
        f"obj-m := {' '.join(f'{module}.o' for module in made.values())}\nccflags-y := -I {TOP}/include\n" +
        "".join(f"{module}-y := {' '.join(f'{place}/{each}' for each in objects)}\n" for place, module in made.items()))
    kbuild(built, folder, "modules", f"KBUILD_EXTRA_SYMBOLS={modules}/Module.symvers")
    return folder
