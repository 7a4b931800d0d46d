// SPDX-License-Identifier: GPL-2.0

//! Map pages into a VMA at an offset.
//!
//! There are two kinds of mapping, and the driver chooses:
//!
//! * *PFNs*: the kernel sees no `struct page` behind the addresses. GUP and what is built on it
//!   (`O_DIRECT`, `ptrace`) is refused with `EFAULT`; truncating or punching holes into a file that
//!   the pages come from does not disturb the mapping. The mapping holds no references: these
//!   functions are `unsafe`, for the driver promises that the pages outlive it.
//! * *Referenced pages*: ordinary pages, on which the mapping holds references. GUP works. Not for
//!   pages of a file or of a process, which are refused: a file that is truncated would meet
//!   mappings of its pages that it doesn't know of.
//!
//! Each is mapped eagerly, from the driver's mmap operation, or on fault, from its fault operations.
//!
//! One offset rule: a mapping has a `base`, and shows at page offset `pgoff` the page `pgoff - base`
//! of the array. A VMA that was split, moved or shrunk keeps its page offsets, and so its pages. A
//! dma-buf has the base 0; a DRM driver passes the fake offset of its object.
//!
//! No lock is held on return. The mmap lock, held by the caller, is proved by the VMA type.

use core::ops::Range;
use kernel::{
    bindings,
    error::to_result,
    mm::virt::{
        flags,
        vm_flags_t,
        VmaNew,
        VmaRef, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    types::Opaque, //
};
use pagekit_view::{
    range,
    runs,
    PageRef, //
};

module! {
    type: Module,
    name: "pagekit_vma",
    authors: ["The pagekit authors"],
    description: "Page arrays mapped into VMAs for dma-buf drivers",
    license: "GPL",
}

struct Module;

impl kernel::Module for Module {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero deep in structs that are only pointed to."
)]
extern "C" {
    // See vma_shim.c.
    fn pagekit_vma_fill_pfns(
        vma: *mut bindings::vm_area_struct,
        addr: c_ulong,
        size: c_ulong,
        pages: *const PageRef<'_>,
    ) -> c_int;
    fn pagekit_vma_pmd(vmf: *mut bindings::vm_fault) -> c_int;
    fn pagekit_vma_insert_pmd(
        vmf: *mut bindings::vm_fault,
        page: *mut bindings::page,
    ) -> bindings::vm_fault_t;
    fn pagekit_vma_page_to_pfn(page: *mut bindings::page) -> usize;
    fn pagekit_vma_has_mapping(page: *mut bindings::page) -> bool;
}

/// Order of a huge page, C's `PMD_ORDER`.
const PMD_ORDER: u32 = bindings::PMD_SHIFT - PAGE_SHIFT as u32;
/// What one fault fills at the most: the reach of one page table, C's `PMD_SIZE`.
const BLOCK: usize = 1 << bindings::PMD_SHIFT;

// What `pagekit_vma_pmd` tells of where the fault is.
const PMD_TABLE: c_int = 1;
const PMD_LEAF: c_int = 2;

/// A page fault that is being handled, C's `struct vm_fault`.
///
/// # Invariants
///
/// The `vm_fault` is one that the kernel has passed to a `vm_operations_struct` callback that has
/// not returned. So its VMA is valid and locked for reading at least.
#[repr(transparent)]
pub struct VmFault(Opaque<bindings::vm_fault>);

impl VmFault {
    /// Borrows the fault that a `vm_operations_struct` callback is called for.
    ///
    /// # Safety
    ///
    /// `vmf` must be what the invariants of [`VmFault`] ask for, throughout `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(vmf: *mut bindings::vm_fault) -> &'a Self {
        // SAFETY: The caller promises a valid pointer; the type is transparent.
        // INVARIANT: By the safety requirements of this function.
        unsafe { &*vmf.cast() }
    }

    fn fault(&self) -> &bindings::vm_fault__bindgen_ty_1 {
        // SAFETY: By the type invariants, the fault is being handled. These fields don't change.
        unsafe { &(*self.0.get()).__bindgen_anon_1 }
    }

    fn vma(&self) -> &VmaRef {
        // SAFETY: By the type invariants, the VMA is valid and locked.
        unsafe { VmaRef::from_raw(self.fault().vma) }
    }

    fn address(&self) -> usize {
        self.fault().address
    }

    /// Whether the driver maps huge pages here, too.
    fn has_huge_fault(&self) -> bool {
        // SAFETY: By the type invariants, the VMA is valid. Its operations are what called us.
        unsafe { (*(*self.vma().as_ptr()).vm_ops).huge_fault.is_some() }
    }

    /// The faulting page in the array, if the VMA is of this kind and may show the page.
    fn index(&self, pages: &[PageRef<'_>], base: usize, kind: vm_flags_t) -> Option<usize> {
        let vma = self.vma();
        if vma.flags() & (flags::PFNMAP | flags::MIXEDMAP) != kind || is_cow(vma) {
            return None;
        }
        Some(range::window(pages.len(), base, self.fault().pgoff, 1)?.start)
    }

    /// The addresses that this fault may fill.
    fn block(&self) -> Option<Range<usize>> {
        let vma = self.vma();
        range::block(vma.start()..vma.end(), self.address(), BLOCK)
    }

    /// How many pages from page `index` on of `len` pages lie within `block`: before the faulting
    /// one, and from that on.
    fn reach(&self, block: &Range<usize>, index: usize, len: usize) -> (usize, usize) {
        (
            ((self.address() - block.start) >> PAGE_SHIFT).min(index),
            ((block.end - self.address()) >> PAGE_SHIFT).min(len - index),
        )
    }

    /// The first page of `block` if it can be mapped as one huge page. Page `index` is the faulting
    /// one.
    fn huge<'a>(
        &self,
        block: &Range<usize>,
        index: usize,
        pages: &[PageRef<'a>],
    ) -> Option<PageRef<'a>> {
        let vma = self.vma().as_ptr();
        // The kernel chooses the cache mode of huge PFNs. If the driver has, too, leave it at that.
        // SAFETY: By the type invariants, the VMA is locked.
        let same_prot = unsafe {
            (*vma).vm_page_prot.pgprot == bindings::vm_get_page_prot(self.vma().flags()).pgprot
        };
        if block.len() != BLOCK || !same_prot || !cfg!(CONFIG_TRANSPARENT_HUGEPAGE) {
            return None;
        }
        let start = index.checked_sub((self.address() - block.start) >> PAGE_SHIFT)?;
        let pages = pages.get(start..)?.get(..1 << PMD_ORDER)?;
        let run = runs(pages).next()?;
        // SAFETY: The page exists.
        let pfn = unsafe { pagekit_vma_page_to_pfn(run[0].as_ptr()) };
        (run.len() == pages.len() && pfn % pages.len() == 0).then_some(run[0])
    }
}

/// Checks that `vma` may show its window of an array of `len` pages, and returns that.
fn window(vma: &VmaNew, len: usize, base: usize, other: vm_flags_t) -> Result<Range<usize>> {
    // SAFETY: `vma` is locked, so that this is no data race.
    let pgoff = unsafe { (*vma.as_ptr()).vm_pgoff };
    let count = (vma.end() - vma.start()) >> PAGE_SHIFT;
    if vma.flags() & other != 0 || is_cow(vma) {
        return Err(EINVAL);
    }
    range::window(len, base, pgoff, count).ok_or(EINVAL)
}

/// C's `is_cow_mapping()`: private, and writable or to be made so.
fn is_cow(vma: &VmaRef) -> bool {
    vma.flags() & (flags::SHARED | flags::MAYWRITE) == flags::MAYWRITE
}

/// Sets flags on a VMA that is being set up.
///
/// # Safety
///
/// `VM_PFNMAP` and `VM_MIXEDMAP` must not meet, nor `VM_PFNMAP` a COW mapping.
unsafe fn set_flags(vma: &VmaNew, flags: vm_flags_t) {
    // SAFETY: The VMA is being set up, so nobody else sees it.
    unsafe { (*vma.as_ptr()).__bindgen_anon_2.vm_flags |= flags };
}

// --- PFNs ---------------------------------------------------------------------------

/// Sets `vma` up to show PFNs of an array of `len` pages, from a driver's mmap operation.
///
/// Sets `VM_PFNMAP`, `VM_DONTEXPAND` and `VM_DONTDUMP`. Nothing is mapped yet: the driver's fault
/// operation calls [`fault_pfns`]. `vm_page_prot` stays as the driver has left it.
///
/// Context: the mmap operation, under the mmap lock held for writing. Doesn't sleep.
///
/// # Errors
///
/// `EINVAL`: a private mapping that is or could become writable (COW), a window that is not wholly
/// within the array, or a VMA that is a mixed mapping already.
///
/// C: `mmap_udmabuf()` in `drivers/dma-buf/udmabuf.c`.
///
/// # Safety
///
/// The caller must not make `vma` a mixed mapping afterwards.
#[inline(never)]
pub unsafe fn setup_pfns(vma: &VmaNew, len: usize, base: usize) -> Result {
    window(vma, len, base, flags::MIXEDMAP)?;
    // SAFETY: It is neither a mixed nor a COW mapping, and the caller promises to keep it so.
    unsafe { set_flags(vma, flags::PFNMAP | flags::DONTEXPAND | flags::DONTDUMP) };
    Ok(())
}

/// Maps the PFNs of all pages that `vma` shows, from a driver's mmap operation.
///
/// As [`setup_pfns`], and maps at once. `vma` needs no fault operation then.
///
/// Not for pages that the driver revokes: `unmap_mapping_range()` misses a VMA whose mmap operation
/// is still running. Map on fault instead, under the lock that revoking takes.
///
/// Context: the mmap operation, under the mmap lock held for writing. May sleep.
///
/// # Errors
///
/// * `EINVAL`: as from [`setup_pfns`].
/// * `ENOMEM`: no page tables.
///
/// The error must be that of the mmap operation: the kernel unmaps what was mapped, then.
///
/// C: `remap_io_sg()` in `drivers/gpu/drm/i915/i915_mm.c`.
///
/// # Safety
///
/// As for [`setup_pfns`]. Each of `pages` must stay allocated until the mapping of it is gone: until
/// the file that was mapped is released.
#[inline(never)]
pub unsafe fn map_pfns(vma: &VmaNew, pages: &[PageRef<'_>], base: usize) -> Result {
    let window = window(vma, pages.len(), base, flags::MIXEDMAP)?;
    // SAFETY: As in `setup_pfns`.
    unsafe { set_flags(vma, flags::PFNMAP | flags::DONTEXPAND | flags::DONTDUMP) };
    // SAFETY: The VMA is locked and for PFNs, and has as many pages as the window. The caller
    // promises that the pages outlive their mapping.
    unsafe { fill_pfns(vma, vma.start(), &pages[window]) }
}

/// Maps PFNs for a fault in a VMA that [`setup_pfns`] has set up, from a driver's fault operation.
///
/// Maps the faulting page, and while at it what else of `pages` the same page table reaches. What is
/// mapped already stays as it is. PTEs are writable if the VMA is: there is no second fault for a
/// write, and no need for `pfn_mkwrite`. In a block that [`huge_fault_pfns`] could still map as one, it
/// maps just the one page.
///
/// Returns `VM_FAULT_NOPAGE`; `VM_FAULT_SIGBUS` if the address is outside of the array or the VMA
/// isn't one for PFNs; `VM_FAULT_OOM`.
///
/// Context: the fault operation, under the mmap lock or the lock of the VMA. Allocates page tables
/// (may sleep), takes their lock. To revoke mappings, hold a lock of the driver's own around both
/// this call and `unmap_mapping_range()`.
///
/// C: `udmabuf_vm_fault()` in `drivers/dma-buf/udmabuf.c`.
///
/// # Safety
///
/// Each of `pages` must stay allocated until the mapping of it is gone: until the file that was
/// mapped is released, or the driver has zapped the mapping. Until then the array must have the same
/// page in the same place.
#[inline(never)]
pub unsafe fn fault_pfns(
    vmf: &VmFault,
    pages: &[PageRef<'_>],
    base: usize,
) -> bindings::vm_fault_t {
    let vma = vmf.vma();
    let (Some(index), Some(block)) = (vmf.index(pages, base, flags::PFNMAP), vmf.block()) else {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    let (mut before, mut after) = vmf.reach(&block, index, pages.len());
    if vmf.has_huge_fault() && vmf.huge(&block, index, pages).is_some() {
        // SAFETY: The fault is being handled.
        match unsafe { pagekit_vma_pmd(vmf.0.get()) } {
            // Somebody was faster, and mapped it as one.
            PMD_LEAF => return bindings::vm_fault_reason_VM_FAULT_NOPAGE,
            // Once there is a page table, nobody can any more.
            PMD_TABLE => (),
            _ => (before, after) = (0, 1),
        }
    }
    // SAFETY: The range is in the VMA, which is locked and for PFNs, and has as many pages as the
    // slice. The caller promises that the pages outlive their mapping.
    match unsafe {
        fill_pfns(
            vma,
            vmf.address() - (before << PAGE_SHIFT),
            &pages[index - before..index + after],
        )
    } {
        Ok(()) => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
        Err(_) => bindings::vm_fault_reason_VM_FAULT_OOM,
    }
}

/// Maps a huge page of PFNs for a fault, from a driver's `huge_fault` operation.
///
/// Maps the block of `PMD_SIZE` around the faulting address as one if it lies wholly within the VMA
/// and the array, its pages are contiguous and aligned, and `vm_page_prot` is as the kernel has made
/// it. This depends on nothing else.
///
/// The address must be as aligned as the pages for that. dma-buf files don't see to it: whoever maps
/// them chooses the address.
///
/// Returns what [`fault_pfns`] does, and `VM_FAULT_FALLBACK` for other orders and blocks: the kernel
/// calls the fault operation, then.
///
/// Context and safety are those of [`fault_pfns`], which the driver's fault operation must call.
///
/// C: `vmf_insert_pfn_pmd()` in `mm/huge_memory.c`.
///
/// # Safety
///
/// As for [`fault_pfns`].
#[inline(never)]
pub unsafe fn huge_fault_pfns(
    vmf: &VmFault,
    order: c_uint,
    pages: &[PageRef<'_>],
    base: usize,
) -> bindings::vm_fault_t {
    let (Some(index), Some(block)) = (vmf.index(pages, base, flags::PFNMAP), vmf.block()) else {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    if order != PMD_ORDER {
        return bindings::vm_fault_reason_VM_FAULT_FALLBACK;
    }
    match vmf.huge(&block, index, pages) {
        // SAFETY: The VMA is locked, for PFNs and not COW, the block lies within it, and the pages
        // are contiguous and aligned. The caller promises that they outlive their mapping.
        Some(page) => unsafe { pagekit_vma_insert_pmd(vmf.0.get(), page.as_ptr()) },
        None => bindings::vm_fault_reason_VM_FAULT_FALLBACK,
    }
}

/// # Safety
///
/// `vma` must be for PFNs, the range from `addr` on as long as `pages` are in it, and the pages
/// outlive their mapping.
unsafe fn fill_pfns(vma: &VmaRef, addr: usize, pages: &[PageRef<'_>]) -> Result {
    // SAFETY: As the caller promises. The VMA is locked.
    to_result(unsafe {
        pagekit_vma_fill_pfns(
            vma.as_ptr(),
            addr,
            pages.len() << PAGE_SHIFT,
            pages.as_ptr(),
        )
    })
}

// --- Referenced pages ------------------------------------------------------------

/// Sets `vma` up to show referenced pages of an array of `len` pages, from a driver's mmap
/// operation.
///
/// Sets `VM_MIXEDMAP`, `VM_DONTEXPAND` and `VM_DONTDUMP`. Nothing is mapped yet: the driver's fault
/// operation calls [`fault_pages`]. `vm_page_prot` stays as the driver has left it.
///
/// Context: the mmap operation, under the mmap lock held for writing. Doesn't sleep.
///
/// # Errors
///
/// `EINVAL`: a private mapping that is or could become writable (COW), a window that is not wholly
/// within the array, or a VMA that is one for PFNs already.
///
/// C: `drm_gem_shmem_mmap()` in `drivers/gpu/drm/drm_gem_shmem_helper.c`.
#[inline(never)]
pub fn setup_pages(vma: &VmaNew, len: usize, base: usize) -> Result {
    window(vma, len, base, flags::PFNMAP)?;
    // SAFETY: It is not one for PFNs.
    unsafe { set_flags(vma, flags::MIXEDMAP | flags::DONTEXPAND | flags::DONTDUMP) };
    Ok(())
}

/// Maps all pages that `vma` shows and takes references on them, from a driver's mmap operation.
///
/// As [`setup_pages`], and maps at once. Without a fault operation, what a process drops with
/// `madvise(MADV_DONTNEED)` is gone for it: `SIGBUS`.
///
/// Context: the mmap operation, under the mmap lock held for writing. May sleep.
///
/// # Errors
///
/// * `EINVAL`: as from [`setup_pages`]; or a page that is a file's or a process's, or can't be mapped
///   for another reason (a part of a high-order allocation that is not compound, a slab).
/// * `ENOMEM`: no page tables.
///
/// The error must be that of the mmap operation: the kernel unmaps what was mapped, then.
///
/// C: `vm_insert_pages()` in `mm/memory.c`.
#[inline(never)]
pub fn map_pages(vma: &VmaNew, pages: &[PageRef<'_>], base: usize) -> Result {
    let window = window(vma, pages.len(), base, flags::PFNMAP)?;
    let pages = &pages[window];
    if !pages.iter().all(|page| is_free_standing(*page)) {
        return Err(EINVAL);
    }
    // SAFETY: It is not one for PFNs.
    unsafe { set_flags(vma, flags::MIXEDMAP | flags::DONTEXPAND | flags::DONTDUMP) };
    // SAFETY: The VMA is locked and a mixed mapping, and has as many pages as the slice.
    unsafe { insert_pages(vma, vma.start(), pages) }.map_err(|(_, e)| e)
}

/// Maps referenced pages for a fault in a VMA that [`setup_pages`] has set up, from a driver's fault
/// operation.
///
/// Maps the faulting page, and while at it what else of `pages` the same page table reaches. What is
/// mapped already stays as it is. PTEs are writable if the VMA is.
///
/// Returns `VM_FAULT_NOPAGE`; `VM_FAULT_SIGBUS` if the address is outside of the array, the VMA isn't
/// one for referenced pages, or the page is one that [`map_pages`] refuses; `VM_FAULT_OOM`.
///
/// Context: the fault operation, under the mmap lock or the lock of the VMA. Allocates page tables
/// (may sleep), takes their lock.
///
/// C: `vmf_insert_page_mkwrite()` in `mm/memory.c`.
#[inline(never)]
pub fn fault_pages(vmf: &VmFault, pages: &[PageRef<'_>], base: usize) -> bindings::vm_fault_t {
    let vma = vmf.vma();
    let (Some(index), Some(block)) = (vmf.index(pages, base, flags::MIXEDMAP), vmf.block()) else {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    if !is_free_standing(pages[index]) {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    }
    // The page that is needed first: it decides.
    // SAFETY: The fault is being handled, the VMA is a mixed mapping, the page may be mapped.
    let result =
        unsafe { bindings::vmf_insert_page_mkwrite(vmf.0.get(), pages[index].as_ptr(), false) };
    if result != bindings::vm_fault_reason_VM_FAULT_NOPAGE {
        return result;
    }
    let (before, after) = vmf.reach(&block, index, pages.len());
    let mut rest = &pages[index - before..index + after];
    let mut addr = vmf.address() - (before << PAGE_SHIFT);
    while !rest.is_empty() {
        let run = rest
            .iter()
            .take_while(|page| is_free_standing(**page))
            .count();
        // SAFETY: The VMA is locked and a mixed mapping, and the pages lie within it.
        let done = match unsafe { insert_pages(vma, addr, &rest[..run]) } {
            Ok(()) => run,
            // What is mapped already, or may not be, is stepped over.
            Err((done, e)) if e == EBUSY => done,
            Err(_) => break,
        };
        let step = (done + 1).min(rest.len());
        rest = &rest[step..];
        addr += step << PAGE_SHIFT;
    }
    result
}

/// Whether a page is neither a file's nor a process's.
fn is_free_standing(page: PageRef<'_>) -> bool {
    // SAFETY: The page exists.
    !unsafe { pagekit_vma_has_mapping(page.as_ptr()) }
}

/// Maps pages, until one can't be: returns how many were mapped, and why not more.
///
/// # Safety
///
/// `vma` must be a mixed mapping. The range from `addr` on as long as `pages` must be in it.
unsafe fn insert_pages(
    vma: &VmaRef,
    addr: usize,
    pages: &[PageRef<'_>],
) -> Result<(), (usize, Error)> {
    let mut left = pages.len();
    // SAFETY: As the caller promises. The VMA is locked. The array is only read.
    let result = unsafe {
        bindings::vm_insert_pages(
            vma.as_ptr(),
            addr,
            pages.as_ptr().cast_mut().cast(),
            &mut left,
        )
    };
    to_result(result).map_err(|e| (pages.len() - left, e))
}
