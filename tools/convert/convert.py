# SPDX-License-Identifier: GPL-2.0
"""Drivers of the kernel tree, converted to pagekit.h by semantic patches, and built as modules
beside the originals: as they were and converted.
"""

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from tools.lib.build import LISTS, TESTS, TOOLS, TOP, Broken, depends, kbuild, modules_dir, read_list, run, source_of


@dataclass
class Bug:
    """In this function, `was` becomes `now`: tests must notice."""
    function: str
    was: str
    now: str


@dataclass
class Driver:
    """What a module is made of, the first of which is converted. NAME.cocci does that, and before it
    NAME-module.cocci makes of each source what can be a module of its own."""
    sources: tuple[str, ...]
    module: str  # what its name begins with
    # By name, what has gone and what has come. A patch that finds nothing to change says nothing.
    gone: tuple[str, ...]
    come: tuple[str, ...]
    # Those of include/ are converted, too, and come before the kernel's.
    headers: tuple[str, ...] = ()
    # What else of the sources is converted, by which patch. Of some only these functions are taken.
    more: dict[str, str] = field(default_factory=dict)
    only: dict[str, tuple[str, ...]] = field(default_factory=dict)
    # Modules of the kernel that the converted sources are put into as well, where it has them.
    others: dict[str, str] = field(default_factory=dict)
    # Modules of the kernel that the sources are parts of. All become one, for what they export to each other has
    # changed. And a module that is tried on it.
    merged: tuple[str, ...] = ()
    user: str = ""
    # The suites of tests/guest/converted.sh, without the kind, and what they must notice. One of
    # tests/converted is linked into the others, for what their own tests leave out.
    tests: tuple[str, ...] = ()
    bugs: tuple[Bug, ...] = ()
    suite: str = ""
    changes: tuple[str, ...] = ()  # of behaviour
    config: str = "base"  # the kernel that make convert tries it on

    def converted(self, name) -> dict[str, str]:
        """The sources that are converted, and their patches."""
        return {self.sources[0]: name} | self.more

    def public(self) -> list[str]:
        """The headers that are converted."""
        return [path for path in self.headers if path.startswith("include/")]

    def possible(self, kdir) -> bool:
        """Has this kernel what it is made of?"""
        have = [Path(kdir, f"{path}.mod").exists() for path in (*self.merged, *self.others.values())]
        return all(have) if self.merged else bool(self.module) or any(have)


DRIVERS = {
    "udmabuf": Driver(
        ("drivers/dma-buf/udmabuf.c",), "udmabuf",
        ("memfd_pin_folios(", "unpin_folio(", "vmf_insert_pfn(", "vm_flags_set(", "folios"),
        ("pagekit_pin_memfd(", "pagekit_unpin(", "pagekit_setup_pfns(", "pagekit_fault_pfns(",
         "pagekit_huge_fault_pfns("),
        tests=("selftest-udmabuf", "selftest-mmap-udmabuf", "selftest-guest-udmabuf", "selftest-life-udmabuf"),
        bugs=(
            Bug("udmabuf_create", "list[i].offset >> PAGE_SHIFT, list[i].size", "(list[i].offset >> PAGE_SHIFT) ^ 1, list[i].size"),
            Bug("deinit_udmabuf", "pagekit_unpin(&ubuf->pins, PAGEKIT_DIRTY)", "(void)ubuf"),
            Bug("udmabuf_fault", "ubuf->pins.count, 0", "ubuf->pins.count, 1"),
            Bug("udmabuf_huge_fault", "ubuf->pins.count, 0", "ubuf->pins.count, PTRS_PER_PTE"),
            Bug("mmap_udmabuf", "ubuf->pins.count, 0, 0", "ubuf->pins.count, 1, 0"),
        ),
        changes=(
            "Huge pages are mapped as such, and one fault maps what else is in the same 2 MiB.",
            "Pages that were allocated but never written are zeroed: before, they show what was in memory.",
            "What was written through a mapping is marked dirty when the buffer is released.",
        )),
    # With the pages of its objects, which drm_gem.c gets, and vgem, which is a driver that stands on it.
    "drm_gem_shmem": Driver(
        ("drivers/gpu/drm/drm_gem_shmem_helper.c", "drivers/gpu/drm/drm_gem.c",
         "drivers/gpu/drm/vgem/vgem_drv.c", "drivers/gpu/drm/vgem/vgem_fence.c"),
        "vgem",
        ("vmf_insert_pfn", "try_insert_pfn", "page_offset", "mkwrite", "vma_is_cow_mapping(", "vm_flags_set(",
         "shmem_read_folio_gfp(", "kvfree("),
        ("pagekit_get_pages(", "pagekit_put_pages(",
         "pagekit_setup_pfns(", "pagekit_fault_pfns(", "pagekit_huge_fault_pfns("),
        ("drivers/gpu/drm/vgem/vgem_drv.h",),
        {"drivers/gpu/drm/drm_gem.c": "drm_gem"},
        {"drivers/gpu/drm/drm_gem.c": ("drm_gem_check_release_batch", "drm_gem_get_pages", "drm_gem_put_pages")},
        {"drm_gem_shmem_test": "drivers/gpu/drm/tests/drm_gem_shmem_test", "virtio_gpu": "drivers/gpu/drm/virtio/virtio-gpu"},
        tests=("selftest-mmap-vgem", "selftest-mmap-vgem-node", "selftest-guest-vgem", "selftest-life-vgem",
               "selftest-mmap-virtio_gpu", "selftest-mmap-virtio_gpu-node", "selftest-guest-virtio_gpu",
               "selftest-life-virtio_gpu", "drm_gem_shmem"),
        bugs=(
            Bug("drm_gem_put_pages", "dirty ? PAGEKIT_DIRTY : 0", "0"),
            Bug("drm_gem_put_pages", "pagekit_put_pages(pages", "get_page(pages[0]); pagekit_put_pages(pages"),
            Bug("drm_gem_shmem_any_fault", "vmf, order, shmem->pages, count, base", "vmf, order, shmem->pages, count, base + 1"),
            Bug("drm_gem_shmem_any_fault", "vmf, shmem->pages, count, base", "vmf, shmem->pages, count, base + 1"),
            Bug("drm_gem_shmem_mmap", "shmem->pages_mark_dirty_on_put = true", "(void)0"),
            Bug("drm_gem_get_pages", "obj->filp, 0, obj->size >> PAGE_SHIFT", "obj->filp, 1, (obj->size >> PAGE_SHIFT) - 1"),
        ),
        changes=(
            "A mapping at an offset of a dma-buf, and what is left of one that was split or has lost its head, shows "
            "the right pages.",
            "One fault maps what else is in the same 2 MiB. Entries are writable from the start where the VMA is.",
            "Pages are marked dirty when they are put, not one by one when they are first written to; the times of the "
            "file stay.",
            "A fatal signal ends the wait for a large object.",
        ), config="prod"),
    # The table of an object stays, for all of i915 reads it.
    "i915": Driver(
        ("drivers/gpu/drm/i915/gem/i915_gem_shmem.c", "drivers/gpu/drm/i915/gem/i915_gem_ttm.c"), "",
        ("shmem_read_folio_gfp(", "shmem_sg_alloc_table(", "shmem_sg_free_table(", "i915_sg_trim("),
        ("pagekit_get_pages(", "pagekit_put_pages(", "shmem_get_table(", "shmem_put_table("),
        more={"drivers/gpu/drm/i915/gem/i915_gem_ttm.c": "i915_ttm"},
        others={"i915": "drivers/gpu/drm/i915/i915"},
        suite="i915_shmem",
        tests=("i915", "i915_shmem"),
        bugs=(
            Bug("shmem_get_table", "ret = sg_alloc_table", "swap(pages[0], pages[1]); ret = sg_alloc_table"),
            Bug("shmem_get_table", "page_count, 0, size, max_segment", "page_count, PAGE_SIZE / 2, size, max_segment"),
            Bug("shmem_put_table", "dirty ? PAGEKIT_DIRTY : 0", "0"),
            Bug("shmem_put_table", "size >> PAGE_SHIFT", "(size >> PAGE_SHIFT) - 1"),
            Bug("shmem_put_table", "pagekit_put_pages(pages", "put_page(pages[0]); pagekit_put_pages(pages"),
            Bug("shmem_put_table", "shmem_clear_unevictable(filp->f_mapping)", "(void)0"),
        ),
        changes=(
            "An object has an array of its pages beside its table.",
            "i915 shrinks its own objects once for an object that lacks pages, not once for each page.",
            "A fatal signal ends the wait for a large object.",
        ), config="prod"),
    "system_heap": Driver(
        ("drivers/dma-buf/heaps/system_heap.c",), "system_heap",
        ("alloc_largest_available", "dup_sg_table", "remap_pfn_range(", "__free_pages(", "buffer->sg_table", "ORDER"),
        ("pagekit_alloc_pages(", "pagekit_put_pages(", "pagekit_map_pfns("),
        tests=("selftest-heaps-system_heap", "selftest-mmap-system_heap", "selftest-life-system_heap"),
        bugs=(
            Bug("system_heap_allocate", "pagekit_alloc_pages(count", "pagekit_alloc_pages(count - 1"),
            Bug("system_heap_free", "pagekit_put_pages(buffer->pages, count, 0)", "(void)0"),
            Bug("system_heap_mmap", "buffer->pages, buffer->len >> PAGE_SHIFT, 0", "buffer->pages, buffer->len >> PAGE_SHIFT, 1"),
        ),
        changes=(
            "Folios are as large as a huge page, where there are some; before, 1 MiB at the most.",
            "A buffer has an array of its pages: it is there for each mapping that follows, but takes more than the table "
            "did where folios are large.",
        )),
    "cma_heap": Driver(
        ("drivers/dma-buf/heaps/cma_heap.c",), "cma_heap",
        ("vmf_insert_pfn(", "vm_flags_set("),
        ("pagekit_setup_pfns(", "pagekit_fault_pfns(", "pagekit_huge_fault_pfns("),
        tests=("selftest-heaps-cma_heap", "selftest-mmap-cma_heap", "selftest-life-cma_heap"),
        bugs=(
            Bug("cma_heap_vm_fault", "buffer->pagecount, 0", "buffer->pagecount, 1"),
            Bug("cma_heap_huge_fault", "buffer->pagecount, 0", "buffer->pagecount, PTRS_PER_PTE"),
            Bug("cma_heap_mmap", "buffer->pagecount, 0, 0", "buffer->pagecount, 1, 0"),
        ),
        changes=(
            "Huge pages are mapped as such, and one fault maps what else is in the same 2 MiB.",
            "A private mapping that can't be written to is let through.",
            "VM_IO isn't set any more.",
        )),
    # With all that looks into a vector, and has to know what it is like.
    "frame_vector": Driver(
        tuple(f"drivers/media/common/videobuf2/{name}.c" for name in
              ("frame_vector", "videobuf2-memops", "videobuf2-vmalloc", "videobuf2-dma-contig")), "frames",
        ("pin_user_pages_fast(", "unpin_user_pages(", "nr_allocated", "got_ref", "ptrs"),
        ("pagekit_pin_user(", "pagekit_unpin("),
        ("include/media/frame_vector.h",),
        merged=tuple(f"drivers/media/common/videobuf2/videobuf2-{name}" for name in ("common", "memops", "vmalloc", "dma-contig")),
        user="drivers/media/test-drivers/vivid/vivid",
        tests=("selftest-frames", "v4l2-compliance"),
        bugs=(
            Bug("get_vaddr_frames", "untagged_addr(start), nr_frames", "untagged_addr(start) + PAGE_SIZE, nr_frames"),
            Bug("get_vaddr_frames", "write ? PAGEKIT_WRITE : 0", "0"),
            Bug("get_vaddr_frames", "vec->is_pfns = false",
                "if (nr_frames > 1) swap(vec->pins.pages[nr_frames - 1], vec->pins.pages[nr_frames - 2]); vec->is_pfns = false"),
            Bug("put_vaddr_frames", "pagekit_unpin(&vec->pins, 0)", "(void)0"),
        ),
        changes=(
            "All pages are pinned or none is; what can't be pinned is EFAULT.",
            "A fatal signal ends the wait for many pages.",
            "The array is memory of its own.",
        ), config="prod"),
}


# A function, from its first line to its last.
FUNCTION = re.compile(r"^(?!static const|#|/)\w[^;{}=#]*?\b(\w+)\([^;{}#]*\)\n\{.*?^\}\n", re.M | re.S)
COMMENT = re.compile(r"/\*.*?\*/", re.S)


def functions(text) -> dict[str, str]:
    return {found[1]: found[0] for found in FUNCTION.finditer(COMMENT.sub("", text))}


def spatch(patch, file):
    result = run("spatch", "--very-quiet", "--no-show-diff", "--in-place", "--timeout", "60", "--sp-file",
                 TOOLS / f"convert/{patch}.cocci", file)
    if result.returncode:
        raise Broken(f"tools/convert/{patch}.cocci does not apply to {file.name}: {result.stderr.strip()[-300:]}")


def check_replaced(name, folder):
    """A function that a patch replaces as a whole may have changed since: then who keeps the patch must look."""
    known = {tuple(line.split()) for line in read_list(LISTS / "converted.txt")}
    for path, patch in DRIVERS[name].converted(name).items():
        found = functions((folder / Path(path).name).read_text())
        for function in re.findall(r"^-.*?\b(\w+)\(\.\.\.\) \{ \.\.\. \}", (TOOLS / f"convert/{patch}.cocci").read_text(), re.M):
            digest = hashlib.sha256(" ".join(found.get(function, "").split()).encode()).hexdigest()[:12]
            if (Path(path).name, function, digest) not in known:
                raise Broken(f"{name}: {function}() of this kernel is another than tools/convert/{patch}.cocci replaces. If that "
                             f"is right all the same, write to tests/lists/converted.txt: {Path(path).name} {function} {digest}")


def take(source, file, names):
    """Of a source only these functions, and what they include."""
    text = source.read_text()
    found = functions(text)
    if lost := [name for name in names if name not in found]:
        raise Broken(f"{source.name} of this kernel has no {' '.join(lost)}")
    includes = re.findall(r"^#include .*\n", text, re.M)
    file.write_text("".join(includes) + "".join(f"\n{found[name]}" for name in names))


def copy(name, built, folder):
    """The sources, as they were and converted: in the folders before and after."""
    driver, tree = DRIVERS[name], source_of(built["KDIR"])
    before, after = folder / "before", folder / "after"
    shutil.rmtree(folder, ignore_errors=True)
    before.mkdir(parents=True)
    for path in driver.sources + driver.headers:
        if path in driver.only:
            take(tree / path, before / Path(path).name, driver.only[path])
        else:
            shutil.copy(tree / path, before)
    for path in driver.sources:
        if (TOOLS / f"convert/{name}-module.cocci").exists():
            spatch(f"{name}-module", before / Path(path).name)
    check_replaced(name, before)
    shutil.copytree(before, after)
    for path, patch in (driver.converted(name) | dict.fromkeys(driver.public(), name)).items():
        spatch(patch, after / Path(path).name)
    text = "".join((after / Path(path).name).read_text() for path in (*driver.converted(name), *driver.public()))
    if odd := [word for word in driver.gone if word in text] + [word for word in driver.come if word not in text]:
        raise Broken(f"{name}: {' '.join(driver.converted(name))} of this kernel is another than tools/convert/{name}.cocci "
                     f"converts: see what it makes of {' '.join(odd)} in {os.path.relpath(after)}")


def plant(name, folder, bug, kind):
    """A copy with this bug in it, of the source that has the function."""
    for path in DRIVERS[name].converted(name):
        source = folder / "after" / Path(path).name
        text = source.read_text()
        was = re.compile(r"\s+".join(map(re.escape, bug.was.split())))
        for found in FUNCTION.finditer(text):
            if found[1] == bug.function and (where := was.search(text, *found.span())):
                (folder / kind).mkdir()
                (folder / kind / source.name).write_text(text[:where.start()] + bug.now + text[where.end():])
                return
    raise Broken(f"{name}: {bug.function}() has no {bug.was} to be made {bug.now}")


def borrow(built, folder, path) -> list[str]:
    """The objects of a module of the kernel, unchanged, beside ours. Returns their names."""
    place = folder / "kernel"
    place.mkdir(exist_ok=True)
    names = []
    for line in Path(built["KDIR"], f"{path}.mod").read_text().split():
        made = Path(built["KDIR"], line)
        name = line.replace("/", "-")
        shutil.copy(made, place / name)
        shutil.copy(made.with_name(f".{made.name}.cmd"), place / f".{name}.cmd")
        names.append(name)
    return names


def build(config, built, name, bugs=()) -> Path:
    """Build it, both as it was and converted, and with bugs. Returns where the modules are: MODULE_before.ko,
    MODULE_converted.ko, MODULE_bug0.ko and so on."""
    print(f"{config}: converting the kernel's {name}", flush=True)
    driver, modules = DRIVERS[name], modules_dir(config)
    folder = modules.with_name(f"{modules.name}-{name}")
    copy(name, built, folder)
    kinds = {"before": "before", "converted": "after"} | {f"bug{i}": f"bug{i}" for i in range(len(bugs))}
    for kind, bug in zip([*kinds][2:], bugs, strict=True):
        plant(name, folder, bug, kind)

    def objects(place, paths):
        """Where it is not, it is what was converted."""
        files = [Path(path).with_suffix(".o").name for path in paths]
        return [f"{place if (folder / place / file).with_suffix('.c').exists() else 'after'}/{file}" for file in files]

    def rest(path, sources):
        """What a module of the kernel has else."""
        mine = {source.replace("/", "-")[:-1] + "o" for source in sources}
        return [f"kernel/{each}" for each in borrow(built, folder, path) if each not in mine]

    merged = [each for path in driver.merged for each in rest(path, driver.sources)]
    parts = {driver.module: (merged, driver.sources)} if driver.module else {}
    for module, path in driver.others.items():
        if Path(built["KDIR"], f"{path}.mod").exists():
            borrowed = rest(path, driver.converted(name))
            if driver.suite:
                shutil.copy(TESTS / f"converted/{driver.suite}.c", folder)
                borrowed.append(f"{driver.suite}.o")
            parts[module] = (borrowed, driver.converted(name))
    places = {parent: None for path in driver.sources for parent in list(Path(path).parents)[:2]}
    text = f"ccflags-y := -I {TOP}/include -I {TESTS}/kunit {' '.join(f'-I $(srctree)/{place}' for place in places)}\n"
    for kind, place in kinds.items():
        for header in driver.public() if place != "before" else ():
            text += "".join(f"CFLAGS_{place}/{Path(path).stem}.o := -include {folder}/after/{Path(header).name}\n"
                            for path in driver.sources if (folder / place / Path(path).name).exists())
        for module, (borrowed, paths) in parts.items():
            # A bug need be in one module only.
            if place not in ("before", "after") and driver.module not in ("", module):
                continue
            text += f"obj-m += {module}_{kind}.o\n{module}_{kind}-y := {' '.join([*objects(place, paths), *borrowed])}\n"
    (folder / "Kbuild").write_text(text)
    kbuild(built, folder, "modules", f"KBUILD_EXTRA_SYMBOLS={modules}/Module.symvers")
    if built.get("LLVM", "").startswith("-"):
        # With what debuggers want, i915 has 100 MB.
        run(f"llvm-strip{built['LLVM']}", "--strip-debug", *folder.glob("*.ko"), check=True)
    return folder


def needs(built, folder, driver) -> tuple[list[Path], list[Path]]:
    """The modules of the kernel that those in a folder need, each after what it needs itself; and those that need
    what has been merged, up to the one that is tried."""
    known = {path.stem.replace("-", "_"): path for path in
             (Path(built["KDIR"], line).with_suffix(".ko") for line in
              Path(built["KDIR"], "modules.order").read_text().split())}
    order, users = [], []

    def needed(module):
        return [path for name in depends(module) if (path := known.get(name.replace("-", "_")))]

    def add(module):
        for path in needed(module):
            if path not in order:
                add(path)
                order.append(path)

    for module in sorted(folder.glob("*_converted.ko")):
        add(module)
    if driver.user:
        add(user := Path(built["KDIR"], driver.user).with_suffix(".ko"))
        order.append(user)
    merged = [Path(built["KDIR"], path).with_suffix(".ko") for path in driver.merged]
    for path in order:
        if path not in merged and {*merged, *users} & {*needed(path)}:
            users.append(path)
    return [path for path in order if path not in (*merged, *users)], users


def environment(config, built, names=DRIVERS, bugs=False) -> dict:
    """Build what this kernel can have of these, and return what tests/guest/converted.sh wants to know. TRY has the
    converted ones."""
    env, there = {}, []
    for name in names:
        driver = DRIVERS[name]
        if not driver.possible(built["KDIR"]):
            continue
        folder = build(config, built, name, driver.bugs if bugs else ())
        there.append(f"{name}:converted")
        needed, users = needs(built, folder, driver)
        env |= {f"CONVERTED_{name.upper()}": folder, f"CONVERTED_{name.upper()}_NEEDS": " ".join(map(str, needed)),
                f"CONVERTED_{name.upper()}_USERS": " ".join(map(str, users))}
    return env | {"TRY": " ".join(there)}
