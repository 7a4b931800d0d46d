// SPDX-License-Identifier: GPL-2.0

//! Map pages into a VMA at an offset.
//!
//! Pages are mapped as *PFNs*: the kernel sees no `struct page` behind the addresses. GUP and
//! what is built on it (`O_DIRECT`, `ptrace`) is refused with `EFAULT`; truncating or punching holes
//! into a file that the pages come from does not disturb the mapping. The mapping holds no
//! references, so that these functions are `unsafe`: the driver promises that the pages outlive it.
//!
//! One offset rule: a mapping has a `base`, and shows at page offset `pgoff` the page `pgoff - base`
//! of the array. A VMA that was split, moved or shrunk keeps its page offsets, and so its pages. A
//! dma-buf has the base 0; a DRM driver passes the fake offset of its object.
//!
//! No lock is held on return. The mmap lock, held by the caller, is proved by the VMA type.

use kernel::{
    bindings,
    mm::virt::{
        flags,
        VmaNew,
        VmaRef, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    types::Opaque, //
};
use pagekit_view::{
    range,
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
}

/// What one fault fills at the most: the reach of one page table.
const FAULT_AROUND: usize = 1 << bindings::PMD_SHIFT;

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
}

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
/// # Safety
///
/// The caller must not make `vma` a mixed mapping afterwards.
///
/// C: `mmap_udmabuf()` in `drivers/dma-buf/udmabuf.c`.
#[inline(never)]
pub unsafe fn setup_pfns(vma: &VmaNew, len: usize, base: usize) -> Result {
    // SAFETY: `vma` is locked, so that this is no data race.
    let pgoff = unsafe { (*vma.as_ptr()).vm_pgoff };
    let count = (vma.end() - vma.start()) >> PAGE_SHIFT;
    range::window(len, base, pgoff, count).ok_or(EINVAL)?;
    let old = vma.flags();
    if old & flags::MIXEDMAP != 0 || old & (flags::SHARED | flags::MAYWRITE) == flags::MAYWRITE {
        return Err(EINVAL);
    }
    // SAFETY: The VMA is being set up, so nobody else sees it. It is no mixed mapping, and the
    // caller promises to keep it so. It isn't a COW mapping, the other thing that `VM_PFNMAP` can't
    // be combined with.
    unsafe {
        (*vma.as_ptr()).__bindgen_anon_2.vm_flags =
            old | flags::PFNMAP | flags::DONTEXPAND | flags::DONTDUMP
    };
    Ok(())
}

/// Maps PFNs for a fault in a VMA that [`setup_pfns`] has set up, from a driver's fault operation.
///
/// Maps the faulting page, and while at it what else of `pages` the same page table reaches. What is
/// mapped already stays as it is. PTEs are writable if the VMA is: there is no second fault for a
/// write, and no need for `pfn_mkwrite`.
///
/// Returns `VM_FAULT_NOPAGE`; `VM_FAULT_SIGBUS` if the address is outside of the array or the VMA
/// isn't one for PFNs; `VM_FAULT_OOM`.
///
/// Context: the fault operation, under the mmap lock or the lock of the VMA. Allocates page tables
/// (may sleep), takes their lock. To revoke mappings, hold a lock of the driver's own around both
/// this call and `unmap_mapping_range()`.
///
/// # Safety
///
/// Each of `pages` must stay allocated until the mapping of it is gone: until the file that was
/// mapped is released, or the driver has zapped the mapping.
///
/// C: `udmabuf_vm_fault()` in `drivers/dma-buf/udmabuf.c`.
#[inline(never)]
pub unsafe fn fault_pfns(
    vmf: &VmFault,
    pages: &[PageRef<'_>],
    base: usize,
) -> bindings::vm_fault_t {
    // SAFETY: By the type invariants, the fault is valid and being handled.
    let fault = unsafe { &(*vmf.0.get()).__bindgen_anon_1 };
    // SAFETY: By the type invariants, the VMA is locked.
    let vma = unsafe { VmaRef::from_raw(fault.vma) };
    let kind = flags::PFNMAP | flags::MIXEDMAP | flags::SHARED | flags::MAYWRITE;
    let kind = vma.flags() & kind;
    if kind & (flags::PFNMAP | flags::MIXEDMAP) != flags::PFNMAP
        || kind & (flags::SHARED | flags::MAYWRITE) == flags::MAYWRITE
    {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    }
    let (Some(index), Some(block)) = (
        range::window(pages.len(), base, fault.pgoff, 1),
        range::block(vma.start()..vma.end(), fault.address, FAULT_AROUND),
    ) else {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    let before = ((fault.address - block.start) >> PAGE_SHIFT).min(index.start);
    let after = ((block.end - fault.address) >> PAGE_SHIFT).min(pages.len() - index.start);
    let pages = &pages[index.start - before..index.start + after];
    // SAFETY: The range is in the VMA, which is locked and for PFNs, and has as many pages as the
    // slice. The caller promises that the pages outlive their mapping.
    match unsafe {
        pagekit_vma_fill_pfns(
            vma.as_ptr(),
            fault.address - (before << PAGE_SHIFT),
            pages.len() << PAGE_SHIFT,
            pages.as_ptr(),
        )
    } {
        0 => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
        _ => bindings::vm_fault_reason_VM_FAULT_OOM,
    }
}
