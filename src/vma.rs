// SPDX-License-Identifier: GPL-2.0

//! Map pages into a VMA at an offset.
//!
//! When a process maps a buffer, the kernel makes a *VMA* for it, a range of addresses, and calls
//! the driver's mmap operation. The range is empty. The driver fills in page table entries, either
//! there and then (eagerly) or when the process first touches an address: then the CPU faults, and
//! the kernel calls the driver's fault operation. There are functions here for both operations.
//!
//! There are two kinds of mapping, and the driver chooses:
//!
//! * *PFNs*, numbers of page frames: the kernel sees no `struct page` behind the addresses. Code
//!   that wants the pages behind addresses (get-user-pages, GUP, as for `O_DIRECT` and `ptrace`) is
//!   refused with `EFAULT`; truncating or punching holes into a file that the pages come from does
//!   not disturb the mapping. The mapping holds no references: these functions are `unsafe`, for
//!   the driver promises that the pages outlive it.
//! * *Referenced pages*: ordinary pages, on which the mapping holds references. GUP works, and what
//!   it pins outlives the mapping. So it is only for pages that are given back by their reference
//!   counts: a pool that hands pages out again without a look at these lends slices that the
//!   functions don't take. Nor is it for pages of a file or of a process, which are refused: a file
//!   that is truncated would meet mappings of its pages that it doesn't know of.
//!
//! Both refuse a private mapping that can be written to. There the kernel copies a page on the
//! first write (copy on write, COW), so that the buffer would never have what was written.
//!
//! Mappings are writable where user space asks for that. Pages that a process may only read, as
//! those that were pinned without `PinFlags::WRITE`, are mapped by the `_ro` function of each kind.
//!
//! One rule for cache modes: PFNs are cached, or write-combined after [`write_combine`], by entries
//! of all sizes. Where the kernel knows better, as it does on x86, they are what the memory is set
//! to, as those of `vmf_insert_pfn()` and `vmf_insert_pfn_pmd()` are. So all pages of an array must
//! be set to the same: the kernel is asked for one of those that are mapped together. Referenced
//! pages are cached.
//!
//! One offset rule: a mapping has a `base`, and shows at page offset `pgoff` the page
//! `pgoff - base` of the array. A VMA that was split, moved or shrunk keeps its page offsets, and
//! so its pages. A dma-buf has the base 0. A DRM driver maps all its objects through one file, each
//! at an offset of its own in there, the *fake offset*: that is the base of an object
//! (`drm_vma_node_start()`).
//!
//! No lock is held on return. The mmap lock, held by the caller, is proved by the VMA type.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/linux/huge_mm.h`](srctree/include/linux/huge_mm.h)

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
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sizes::SZ_2M,
    types::Opaque, //
};
use pagekit_view::{
    range,
    yield_or_eintr,
    PageRef,
    PfnOnly,
    PMD_ORDER, //
};

#[cfg(CONFIG_PAGEKIT_VMA_C)]
mod vma_c;

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // See vma_shim.c.
    fn pagekit_vma_fill_pfns(
        vma: *mut bindings::vm_area_struct,
        addr: c_ulong,
        pages: *const PageRef<'_, PfnOnly>,
        count: usize,
    ) -> c_int;
    fn pagekit_vma_is_huge(vmf: *mut bindings::vm_fault) -> bool;
    fn pagekit_vma_insert_huge_pfn(
        vmf: *mut bindings::vm_fault,
        page: *mut bindings::page,
    ) -> bindings::vm_fault_t;
    fn pagekit_vma_insert_huge_page(
        vmf: *mut bindings::vm_fault,
        page: *mut bindings::page,
    ) -> bindings::vm_fault_t;
    fn pagekit_vma_insert_page(
        vma: *mut bindings::vm_area_struct,
        addr: c_ulong,
        page: *mut bindings::page,
    ) -> bindings::vm_fault_t;
    fn pagekit_vma_page_to_pfn(page: *mut bindings::page) -> usize;
    fn pagekit_vma_set_write_combine(vma: *mut bindings::vm_area_struct);
    fn pagekit_vma_are_free_standing(pages: *const PageRef<'_, PfnOnly>, count: usize) -> bool;

    // Only where there are debug assertions.
    fn pagekit_vma_assert_mmap(vma: *mut bindings::vm_area_struct);
    fn pagekit_vma_assert_fault(vmf: *mut bindings::vm_fault);
}

/// C's `VM_RAND_READ`. When the kernel unmaps a page it tells reclaim that the page was used, but
/// not where a VMA is read at random. Referenced pages are on no LRU list: reclaim never sees them.
const RAND_READ: vm_flags_t = 1 << bindings::VMA_RAND_READ_BIT;
/// No VMA has both.
const PFNS_AND_MIXED: vm_flags_t = flags::PFNMAP | flags::MIXEDMAP;
/// How many bytes a huge page has, and a page table reaches, as in C.
const PMD_SIZE: usize = PAGE_SIZE << PMD_ORDER;
/// Whether the kernel has huge PFNs. Without, GUP would take such an entry for one of a folio.
const HUGE_PFNS: bool = cfg!(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP);

/// How many referenced pages are mapped before others get the CPU, and a fatal signal is noticed.
/// So few that what was looked at before is still cached: 16 KiB of `struct page`s.
const CHUNK: usize = 1 << 8;
/// How many bytes one fault maps by small entries at the most, all of them under one lock: what a
/// page table reaches where pages have 4 KiB. Where they have 64, that would be 512 MiB.
const AROUND: usize = if PMD_SIZE < SZ_2M { PMD_SIZE } else { SZ_2M };

/// A page fault that is being handled, C's `struct vm_fault`.
///
/// # Invariants
///
/// The `vm_fault` is one that the kernel has passed to a `fault` or `huge_fault` operation that has
/// not returned, nor dropped a lock. So its VMA is valid and locked for reading at least, and what
/// handles it may sleep.
#[repr(transparent)]
pub struct VmFault(Opaque<bindings::vm_fault>);

impl VmFault {
    /// Borrows the fault that a `fault` or `huge_fault` operation is called for.
    ///
    /// # Safety
    ///
    /// `vmf` must be what the invariants of [`VmFault`] ask for, throughout `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(vmf: *mut bindings::vm_fault) -> &'a Self {
        // SAFETY: The caller promises a valid pointer; the type is transparent.
        // INVARIANT: The caller promises that it is of a fault that is being handled, throughout
        // `'a`.
        unsafe { &*vmf.cast() }
    }

    #[inline]
    fn fault(&self) -> &bindings::vm_fault__bindgen_ty_1 {
        // SAFETY: By the type invariants, the fault is being handled. These fields don't change.
        unsafe { &(*self.0.get()).__bindgen_anon_1 }
    }

    /// The VMA that the fault is in. What a driver has put into its `vm_private_data` is reached by
    /// [`VmaRef::as_ptr`].
    #[inline]
    pub fn vma(&self) -> &VmaRef {
        // SAFETY: By the type invariants, the VMA is valid and locked.
        unsafe { VmaRef::from_raw(self.fault().vma) }
    }

    fn address(&self) -> usize {
        self.fault().address
    }

    /// The faulting page and those that can be mapped along with it, in an aligned range of `size`
    /// bytes, if the VMA may show it: it was set up here, for PFNs or not, and is not COW.
    #[inline(never)]
    fn block<'p, 'a>(
        &self,
        pages: &'p [PageRef<'a, PfnOnly>],
        base: usize,
        pfns: bool,
        size: usize,
    ) -> Option<Block<'p, 'a>> {
        if cfg!(debug_assertions) {
            // SAFETY: By the type invariants, the fault is being handled.
            unsafe { pagekit_vma_assert_fault(self.0.get()) };
        }
        let (vma, pgoff) = (self.vma(), self.fault().pgoff);
        // What it must have, of what it may have.
        let (must, may) = if pfns {
            (flags::PFNMAP, flags::PFNMAP | flags::MIXEDMAP)
        } else {
            (flags::DONTEXPAND, flags::DONTEXPAND | flags::PFNMAP)
        };
        if vma.flags() & may != must || is_cow(vma) {
            return None;
        }
        Block::new(vma, self.address(), pages, pgoff.checked_sub(base)?, size)
    }

    /// Whether another thread has mapped a huge page there, so that nothing is left to map.
    fn is_huge(&self) -> bool {
        // SAFETY: By the type invariants, the fault is being handled.
        unsafe { pagekit_vma_is_huge(self.0.get()) }
    }
}

/// What is mapped at once, by one page table: pages, and the address of the first. They lie in a
/// VMA, so that sums and differences of their addresses never wrap.
struct Block<'p, 'a> {
    addr: usize,
    pages: &'p [PageRef<'a, PfnOnly>],
}

impl<'p, 'a> Block<'p, 'a> {
    /// What is in the aligned range of `size` bytes, no more than a page table reaches, around
    /// `address`, which shows page `index` of `pages`.
    #[inline(never)]
    fn new(
        vma: &VmaRef,
        address: usize,
        pages: &'p [PageRef<'a, PfnOnly>],
        index: usize,
        size: usize,
    ) -> Option<Self> {
        let (before, after) = range::around(
            vma.start()..vma.end(),
            address,
            size,
            PAGE_SHIFT as u32,
            index,
            pages.len(),
        )?;
        Some(Self {
            addr: address.wrapping_sub(before << PAGE_SHIFT),
            pages: pages.get(index.wrapping_sub(before)..index.wrapping_add(after))?,
        })
    }

    /// The first page if all of them can be mapped as one huge page.
    #[inline(never)]
    fn huge(&self) -> Option<PageRef<'a, PfnOnly>> {
        const COUNT: usize = 1 << PMD_ORDER;
        let first = *self.pages.first()?;
        // SAFETY: The page exists.
        let pfn = unsafe { pagekit_vma_page_to_pfn(first.as_ptr()) };
        (self.pages.len() == COUNT && pfn % COUNT == 0 && self.is_run(first)).then_some(first)
    }

    /// Whether all pages, a multiple of eight, are contiguous from `first` on.
    fn is_run(&self, first: PageRef<'_, PfnOnly>) -> bool {
        let after = |page: PageRef<'_, PfnOnly>, n| page.as_ptr().wrapping_add(n);
        // Mostly, the last page says no. Else all must be looked at, which is most of what a huge
        // fault costs here: by eights, for there are as many branches less.
        self.pages.last().map(|p| p.as_ptr()) == Some(after(first, self.pages.len() - 1))
            && (self.pages.chunks_exact(8).enumerate()).all(|(n, some)| {
                some[0].as_ptr() == after(first, 8 * n)
                    && (1..8).all(|i| some[i].as_ptr() == after(some[0], i))
            })
    }
}

/// Whether the driver maps huge pages in `vma`, too. `EINVAL` if there is nothing else that it maps
/// then: the kernel may never ask for huge ones.
fn has_huge_fault(vma: &VmaRef) -> Result<bool> {
    // SAFETY: The VMA is locked, and its operations are null or valid.
    match unsafe { (*vma.as_ptr()).vm_ops.as_ref() } {
        Some(ops) if ops.huge_fault.is_some() => ops.fault.map(|_| true).ok_or(EINVAL),
        _ => Ok(false),
    }
}

/// Checks that `vma` may show its window of an array of `len` pages, and returns that.
fn window(vma: &VmaNew, len: usize, base: usize, refused: vm_flags_t) -> Result<Range<usize>> {
    if cfg!(debug_assertions) {
        // SAFETY: The VMA is valid.
        unsafe { pagekit_vma_assert_mmap(vma.as_ptr()) };
    }
    // SAFETY: `vma` is locked, so that this is no data race.
    let pgoff = unsafe { (*vma.as_ptr()).vm_pgoff };
    let count = vma.end().wrapping_sub(vma.start()) >> PAGE_SHIFT;
    if vma.flags() & refused != 0 || is_cow(vma) {
        return Err(EINVAL);
    }
    range::window(len, base, pgoff, count).ok_or(EINVAL)
}

/// C's `is_cow_mapping()`: private, and writable or to be made so.
fn is_cow(vma: &VmaRef) -> bool {
    vma.flags() & (flags::SHARED | flags::MAYWRITE) == flags::MAYWRITE
}

/// Has `vma`, which must not be writable, never become so.
#[inline]
fn keep_read_only(vma: &VmaNew) -> Result {
    vma.try_clear_maywrite().map_err(|_| EACCES)
}

/// Sets flags on a VMA that is being set up.
///
/// # Safety
///
/// `VM_PFNMAP` and `VM_MIXEDMAP` must not meet, nor `VM_PFNMAP` a COW mapping.
unsafe fn set_flags(vma: &VmaNew, flags: vm_flags_t) {
    debug_assert!((vma.flags() | flags) & PFNS_AND_MIXED != PFNS_AND_MIXED);
    debug_assert!(flags & PFNS_AND_MIXED != flags::PFNMAP || !is_cow(vma));
    // SAFETY: The VMA is being set up, so nobody else sees it.
    unsafe { (*vma.as_ptr()).__bindgen_anon_2.vm_flags |= flags };
}

/// Checks that `vma` may show its window of an array of `len` pages, and sets flags on it.
///
/// # Safety
///
/// As for [`set_flags`], for a VMA that is not COW and has none of the `refused` flags.
#[export_name = "pagekit_vma_setup"]
unsafe fn setup(
    vma: &VmaNew,
    len: usize,
    base: usize,
    flags: vm_flags_t,
    refused: vm_flags_t,
) -> Result {
    window(vma, len, base, refused)?;
    // SAFETY: The VMA is not COW and has none of the `refused` flags, for `window` has looked. The
    // caller promises that `flags` may be set then.
    unsafe { set_flags(vma, flags) };
    Ok(())
}

// --- PFNs ---------------------------------------------------------------------------

/// Has the CPU write to the PFNs of `vma` past its caches, combining what it writes: C's
/// `pgprot_writecombine()`, from a driver's mmap operation, before [`setup_pfns`] or [`map_pfns`].
///
/// For devices that don't snoop: without caches, there is nothing to be done before each access.
/// Small and huge pages are mapped so alike.
///
/// On x86 it changes nothing for memory that is cached, as all is before `set_pages_array_wc()`.
///
/// Context: the mmap operation, under the mmap lock held for writing. Doesn't sleep.
///
/// C: [`drm_gem_shmem_mmap()`](srctree/drivers/gpu/drm/drm_gem_shmem_helper.c), with `map_wc`.
///
/// # Safety
///
/// * `vma` must be set up for PFNs. The kernel uses referenced pages that it finds by GUP through
///   its own mapping, which is cached.
/// * The memory of each page must have what was written to the page, if only zeroes, when it is
///   mapped: whoever had it before has left data there, which the process would see. Caches are
///   cleaned by `dma_map_sgtable()`, for `DMA_TO_DEVICE` or `DMA_BIDIRECTIONAL`, and later by
///   `dma_sync_sgtable_for_device()`. Both only do so for a device that doesn't snoop: where
///   `dev_is_dma_coherent()`, nothing cleans them, and a mapping must stay cached. On x86 nothing
///   need be cleaned.
///
/// # Examples
///
/// ```
/// fn mmap(vma: &VmaNew, pages: &[PageRef<'_>]) -> Result {
/// #   clean(pages)?;
///     // SAFETY: It is not made a mixed mapping. The array stays until the file is released, and
///     // was mapped for a device that doesn't snoop.
///     unsafe {
///         write_combine(vma);
///         map_pfns(vma, pages, 0)
///     }
/// }
/// # fn fault(vmf: &VmFault, pages: &[PageRef<'_>]) -> vm_fault_t {
/// #     // SAFETY: The array stays until the file is released.
/// #     unsafe { fault_pfns(vmf, pages, 0) }
/// # }
/// # assert!(!Driver::new(mmap)?.fault(fault).shows_its_pages()?);
/// ```
#[export_name = "pagekit_vma_write_combine"]
pub unsafe fn write_combine(vma: &VmaNew) {
    // SAFETY: The VMA is being set up, so nobody else sees it.
    unsafe { pagekit_vma_set_write_combine(vma.as_ptr()) };
}

/// Sets `vma` up to show PFNs of an array of `len` pages, from a driver's mmap operation.
///
/// Sets `VM_PFNMAP`, `VM_DONTEXPAND` and `VM_DONTDUMP`. Nothing is mapped yet: the driver's fault
/// operation calls [`fault_pfns`]. The mapping is cached, unless [`write_combine`] was called
/// before.
///
/// Context: the mmap operation, under the mmap lock held for writing. Doesn't sleep.
///
/// # Errors
///
/// `EINVAL`: a private mapping that is or could become writable (COW), a window that is not wholly
/// within the array, or a VMA that is a mixed mapping already.
///
/// C: [`mmap_udmabuf()`](srctree/drivers/dma-buf/udmabuf.c).
///
/// # Safety
///
/// * The caller must not make `vma` a mixed mapping afterwards.
/// * The process that has mapped it must be allowed to write each page that it will show: the
///   driver's own, say, or pinned with `PinFlags::WRITE`. None may be a zero page. Others are for
///   [`setup_pfns_ro`].
///
/// # Examples
///
/// ```
/// fn mmap(vma: &VmaNew, pages: &[PageRef<'_>]) -> Result {
///     // SAFETY: It is not made a mixed mapping.
///     unsafe { setup_pfns(vma, pages.len(), 0) }
/// }
///
/// fn fault(vmf: &VmFault, pages: &[PageRef<'_>]) -> vm_fault_t {
///     // SAFETY: The array stays as it is until the file is released.
///     unsafe { fault_pfns(vmf, pages, 0) }
/// }
/// # assert!(!Driver::new(mmap)?.fault(fault).shows_its_pages()?);
/// ```
#[inline]
pub unsafe fn setup_pfns(vma: &VmaNew, len: usize, base: usize) -> Result {
    let flags = flags::PFNMAP | flags::DONTEXPAND | flags::DONTDUMP;
    // SAFETY: It is no mixed mapping if this succeeds, and the caller promises to keep it so.
    unsafe { setup(vma, len, base, flags, flags::MIXEDMAP) }
}

/// [`setup_pfns`], for pages that a process may read but not write.
///
/// Clears `VM_MAYWRITE`, so that `mprotect()` can't make the mapping writable either. What is
/// private and can't be written to is no COW mapping: it is accepted, too, and shows the pages.
///
/// # Errors
///
/// * `EACCES`: the mapping is to be writable.
/// * `EINVAL`: a window that is not wholly within the array, or a VMA that is a mixed mapping
///   already.
///
/// # Safety
///
/// The caller must not make `vma` a mixed mapping afterwards.
#[inline]
pub unsafe fn setup_pfns_ro(vma: &VmaNew, len: usize, base: usize) -> Result {
    keep_read_only(vma)?;
    // SAFETY: The caller promises not to make it a mixed mapping. Nobody can write to its pages.
    unsafe { setup_pfns(vma, len, base) }
}

/// Maps the PFNs of all pages that `vma` shows, from a driver's mmap operation.
///
/// As [`setup_pfns`], and maps at once. `vma` needs no fault operation then. If the driver has set
/// operations for huge faults before, blocks that [`huge_fault_pfns`] can map as one are left to
/// them.
///
/// Not for pages that the driver revokes: [`zap`] misses a VMA whose mmap operation is still
/// running. Map on fault instead, under the lock that revoking takes.
///
/// Context: the mmap operation, under the mmap lock held for writing. May sleep.
///
/// # Errors
///
/// * `EINVAL`: as from [`setup_pfns`], or the VMA has an operation for huge faults but none for
///   others.
/// * `EINTR`: a fatal signal is pending.
/// * `ENOMEM`: no page tables.
///
/// The error must be that of the mmap operation: the kernel unmaps what was mapped, then.
///
/// C: [`remap_io_sg()`](srctree/drivers/gpu/drm/i915/i915_mm.c).
///
/// # Safety
///
/// * As for [`setup_pfns`].
/// * Each of `pages` must stay allocated until the mapping of it is gone: until the file that was
///   mapped is released.
///
/// # Examples
///
/// ```
/// fn mmap(vma: &VmaNew, pages: &[PageRef<'_>]) -> Result {
///     // SAFETY: It is not made a mixed mapping. The array stays until the file is released.
///     unsafe { map_pfns(vma, pages, 0) }
/// }
/// # // This VMA has operations for huge faults.
/// # fn fault(vmf: &VmFault, pages: &[PageRef<'_>]) -> vm_fault_t {
/// #     // SAFETY: The array stays until the file is released.
/// #     unsafe { fault_pfns(vmf, pages, 0) }
/// # }
/// # assert!(!Driver::new(mmap)?.fault(fault).shows_its_pages()?);
/// ```
#[inline]
pub unsafe fn map_pfns<Of>(vma: &VmaNew, pages: &[PageRef<'_, Of>], base: usize) -> Result {
    // SAFETY: The caller promises that the pages stay until the mapping is gone, and that `vma` is
    // not made a mixed mapping.
    unsafe { map_any(vma, PageRef::pfns(pages), base) }
}

/// [`map_pfns`], for pages that a process may read but not write: see [`setup_pfns_ro`].
///
/// # Safety
///
/// * The caller must not make `vma` a mixed mapping afterwards.
/// * Each of `pages` must stay allocated until the mapping of it is gone: until the file that was
///   mapped is released.
#[inline]
pub unsafe fn map_pfns_ro<Of>(vma: &VmaNew, pages: &[PageRef<'_, Of>], base: usize) -> Result {
    keep_read_only(vma)?;
    // SAFETY: The caller promises that the pages stay, and not to make it a mixed mapping. Nobody
    // can write to them.
    unsafe { map_pfns(vma, pages, base) }
}

/// [`map_pfns`], for pages of all kinds.
///
/// # Safety
///
/// As for [`map_pfns`].
#[export_name = "pagekit_vma_map_pfns"]
unsafe fn map_any(vma: &VmaNew, pages: &[PageRef<'_, PfnOnly>], base: usize) -> Result {
    let window = window(vma, pages.len(), base, flags::MIXEDMAP)?;
    let huge = HUGE_PFNS && has_huge_fault(vma)?;
    // SAFETY: It is neither a mixed nor a COW mapping, and the caller promises to keep it so.
    unsafe { set_flags(vma, flags::PFNMAP | flags::DONTEXPAND | flags::DONTDUMP) };
    let mut rest = Block {
        addr: vma.start(),
        pages: pages.get(window).ok_or(EINVAL)?,
    };
    while let Some(mut block) = Block::new(vma, rest.addr, rest.pages, 0, PMD_SIZE) {
        yield_or_eintr()?;
        if !(huge && block.huge().is_some()) {
            block.pages = block
                .pages
                .chunks(AROUND >> PAGE_SHIFT)
                .next()
                .ok_or(EINVAL)?;
            // SAFETY: The VMA is locked and for PFNs, and the block is in it. The caller promises
            // that the pages outlive their mapping.
            unsafe { fill_pfns(vma, &block) }?;
        }
        rest.addr = rest.addr.wrapping_add(block.pages.len() << PAGE_SHIFT);
        rest.pages = rest.pages.get(block.pages.len()..).ok_or(EINVAL)?;
    }
    Ok(())
}

/// Maps PFNs for a fault in a VMA that [`setup_pfns`] has set up, from a driver's fault operation.
///
/// Maps the faulting page, and while at it what else of `pages` is in the same 2 MiB of addresses:
/// to map less, pass a part of the array and move `base` with it. What is mapped already stays as
/// it is. PTEs are writable if the VMA is: there is no second fault for a write, and no need for
/// `pfn_mkwrite`.
///
/// Returns `VM_FAULT_NOPAGE`; `VM_FAULT_SIGBUS` if the address is outside of the array or the VMA
/// isn't one for PFNs; `VM_FAULT_OOM`.
///
/// Context: the fault operation, under the mmap lock or the lock of the VMA. Allocates page tables
/// (may sleep), takes their lock. To revoke mappings, hold a lock of the driver's own around both
/// this call and [`zap`].
///
/// C: [`udmabuf_vm_fault()`](srctree/drivers/dma-buf/udmabuf.c).
///
/// # Safety
///
/// * Each of `pages` must stay allocated until the mapping of it is gone: until the file that was
///   mapped is released, or the driver has zapped the mapping. Until then the array must have the
///   same page in the same place.
/// * Unless the VMA is of [`setup_pfns_ro`] or [`map_pfns_ro`], whoever has mapped it must be
///   allowed to write each of `pages`. None may be a zero page.
#[inline]
pub unsafe fn fault_pfns<Of>(
    vmf: &VmFault,
    pages: &[PageRef<'_, Of>],
    base: usize,
) -> bindings::vm_fault_t {
    // SAFETY: The caller promises that the pages stay, in their places, until the mapping is gone.
    unsafe { fault_any(vmf, PageRef::pfns(pages), base) }
}

/// [`fault_pfns`], for pages of all kinds.
///
/// # Safety
///
/// As for [`fault_pfns`].
#[export_name = "pagekit_vma_fault_pfns"]
unsafe fn fault_any(
    vmf: &VmFault,
    pages: &[PageRef<'_, PfnOnly>],
    base: usize,
) -> bindings::vm_fault_t {
    let Some(block) = vmf.block(pages, base, true, AROUND) else {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    if vmf.is_huge() {
        return bindings::vm_fault_reason_VM_FAULT_NOPAGE;
    }
    // SAFETY: The block is in the VMA, which is locked and for PFNs. The caller promises that the
    // pages outlive their mapping.
    match unsafe { fill_pfns(vmf.vma(), &block) } {
        // There is no place for a page table because somebody has mapped a huge page since.
        Err(_) if !vmf.is_huge() => bindings::vm_fault_reason_VM_FAULT_OOM,
        _ => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
    }
}

/// Maps a huge page of PFNs for a fault, from a driver's `huge_fault` operation.
///
/// Maps the block of `PMD_SIZE` around the faulting address as one if it lies wholly within the VMA
/// and the array, and its pages are contiguous and aligned. This function looks at nothing else.
/// The kernel doesn't call the operation where a process does without huge pages
/// (`madvise(MADV_NOHUGEPAGE)`, `prctl(PR_SET_THP_DISABLE)`).
///
/// The address must be as aligned as the pages for that. dma-buf files don't see to it: whoever
/// maps them chooses the address.
///
/// Returns what [`fault_pfns`] does, and `VM_FAULT_FALLBACK` for other orders and blocks, and where
/// the architecture has no huge PFNs (`CONFIG_ARCH_SUPPORTS_PMD_PFNMAP`): the kernel calls the
/// fault operation, then.
///
/// Context and safety are those of [`fault_pfns`], which the driver's fault operation must call.
///
/// C: [`vmf_insert_pfn_pmd()`](srctree/mm/huge_memory.c).
///
/// # Safety
///
/// * As for [`fault_pfns`].
/// * None of `pages` may be anonymous memory of a process: `CONFIG_PAGE_TABLE_CHECK` takes a second
///   huge page table entry that shows it for a bug (`BUG_ON`).
///
/// # Examples
///
/// ```
/// # fn mmap(vma: &VmaNew, pages: &[PageRef<'_>]) -> Result {
/// #     // SAFETY: It is not made a mixed mapping.
/// #     unsafe { setup_pfns(vma, pages.len(), 0) }
/// # }
/// # fn fault(vmf: &VmFault, pages: &[PageRef<'_>]) -> vm_fault_t {
/// #     // SAFETY: The array stays as it is until the file is released.
/// #     unsafe { fault_pfns(vmf, pages, 0) }
/// # }
/// fn huge_fault(vmf: &VmFault, order: c_uint, pages: &[PageRef<'_>]) -> vm_fault_t {
///     // SAFETY: The array stays as it is until the file is released.
///     unsafe { huge_fault_pfns(vmf, order, pages, 0) }
/// }
/// # assert!(Driver::new(mmap)?.fault(fault).huge_fault(huge_fault).shows_its_pages()?);
/// ```
#[inline]
pub unsafe fn huge_fault_pfns<Of>(
    vmf: &VmFault,
    order: c_uint,
    pages: &[PageRef<'_, Of>],
    base: usize,
) -> bindings::vm_fault_t {
    // SAFETY: The caller promises that the pages stay, in their places, until the mapping is gone.
    unsafe { huge_fault_any(vmf, order, PageRef::pfns(pages), base) }
}

/// [`huge_fault_pfns`], for pages of all kinds.
///
/// # Safety
///
/// As for [`huge_fault_pfns`].
#[export_name = "pagekit_vma_huge_fault_pfns"]
unsafe fn huge_fault_any(
    vmf: &VmFault,
    order: c_uint,
    pages: &[PageRef<'_, PfnOnly>],
    base: usize,
) -> bindings::vm_fault_t {
    if !HUGE_PFNS || order != PMD_ORDER {
        return bindings::vm_fault_reason_VM_FAULT_FALLBACK;
    }
    let Some(block) = vmf.block(pages, base, true, PMD_SIZE) else {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    match block.huge() {
        // SAFETY: The VMA is locked, for PFNs and not COW, the block lies within it, and the pages
        // are contiguous and aligned. The caller promises that they outlive their mapping.
        Some(page) => unsafe { pagekit_vma_insert_huge_pfn(vmf.0.get(), page.as_ptr()) },
        None => bindings::vm_fault_reason_VM_FAULT_FALLBACK,
    }
}

/// # Safety
///
/// `vma` must be for PFNs, `block` in it, and its pages must outlive their mapping.
unsafe fn fill_pfns(vma: &VmaRef, block: &Block<'_, '_>) -> Result {
    debug_assert!(vma.flags() & PFNS_AND_MIXED == flags::PFNMAP);
    // SAFETY: The VMA is locked. The caller promises that it is for PFNs, and that the block is in
    // it and of pages that outlive their mapping.
    to_result(unsafe {
        pagekit_vma_fill_pfns(
            vma.as_ptr(),
            block.addr,
            block.pages.as_ptr(),
            block.pages.len(),
        )
    })
}

// --- Referenced pages ------------------------------------------------------------

/// Sets `vma` up to show referenced pages of an array of `len` pages, from a driver's mmap
/// operation.
///
/// Sets `VM_DONTEXPAND`, `VM_DONTDUMP` and `VM_RAND_READ`. Nothing is mapped yet: the driver's
/// fault operation calls [`fault_pages`]. The driver leaves `vm_page_prot` as it is.
///
/// Not for pages of CMA areas: whoever pins such a page for long (`FOLL_LONGTERM`, as `io_uring`
/// and RDMA do) has it moved out of there first. The kernel finds it on no LRU list, moves nothing,
/// and tries again until the process is killed. No module can ask where a page is from. Map their
/// PFNs.
///
/// If the driver has set operations before, with one for faults and none for huge faults, it is a
/// mixed mapping (`VM_MIXEDMAP`), in which [`fault_pages`] maps pages in bulk. Else it is none:
/// when the kernel splits a huge page in a mixed mapping, it loses the references. The kernel must
/// not track what is written to the file that is mapped; it doesn't for dma-bufs.
///
/// Context: the mmap operation, under the mmap lock held for writing. Doesn't sleep.
///
/// # Errors
///
/// `EINVAL`: a private mapping that is or could become writable (COW), a window that is not wholly
/// within the array, or a VMA that is one for PFNs already.
///
/// C: [`drm_gem_shmem_mmap()`](srctree/drivers/gpu/drm/drm_gem_shmem_helper.c).
///
/// # Examples
///
/// ```
/// fn mmap(vma: &VmaNew, pages: &[PageRef<'_>]) -> Result {
///     setup_pages(vma, pages.len(), 0)
/// }
///
/// fn fault(vmf: &VmFault, pages: &[PageRef<'_>]) -> vm_fault_t {
///     fault_pages(vmf, pages, 0)
/// }
/// # assert!(!Driver::new(mmap)?.fault(fault).shows_its_pages()?);
/// ```
#[inline]
pub fn setup_pages(vma: &VmaNew, len: usize, base: usize) -> Result {
    // SAFETY: The VMA is locked, and its operations are null or valid.
    let mixed = match unsafe { (*vma.as_ptr()).vm_ops.as_ref() } {
        Some(ops) if ops.fault.is_some() && ops.huge_fault.is_none() => flags::MIXEDMAP,
        _ => 0,
    };
    let flags = flags::DONTEXPAND | flags::DONTDUMP | RAND_READ | mixed;
    // SAFETY: It is not for PFNs if this succeeds.
    unsafe { setup(vma, len, base, flags, flags::PFNMAP) }
}

/// [`setup_pages`], for pages that a process may read but not write: see [`setup_pfns_ro`].
#[inline]
pub fn setup_pages_ro(vma: &VmaNew, len: usize, base: usize) -> Result {
    keep_read_only(vma)?;
    setup_pages(vma, len, base)
}

/// Maps all pages that `vma` shows and takes references on them, from a driver's mmap operation.
///
/// Sets `VM_MIXEDMAP`, `VM_DONTEXPAND`, `VM_DONTDUMP` and `VM_RAND_READ`. A fault operation with
/// [`fault_pages`] is not needed, but without one, what a process drops with
/// `madvise(MADV_DONTNEED)` is gone for it: `SIGBUS`. As with [`setup_pages`], no pages of CMA
/// areas.
///
/// Context: the mmap operation, under the mmap lock held for writing. May sleep.
///
/// # Errors
///
/// * `EINVAL`: as from [`setup_pages`]; or a page that is a file's or a process's, or can't be
///   mapped for another reason (a part of a high-order allocation that is not compound, a slab).
/// * `EBUSY`: something is mapped there already.
/// * `EINTR`: a fatal signal is pending.
/// * `ENOMEM`: no page tables.
///
/// The error must be that of the mmap operation: the kernel unmaps what was mapped, then.
///
/// C: [`vm_insert_pages()`](srctree/mm/memory.c).
///
/// # Examples
///
/// ```
/// fn mmap(vma: &VmaNew, pages: &[PageRef<'_>]) -> Result {
///     map_pages(vma, pages, 0)
/// }
/// # assert!(!Driver::new(mmap)?.shows_its_pages()?);
/// ```
#[export_name = "pagekit_vma_map_pages"]
pub fn map_pages(vma: &VmaNew, pages: &[PageRef<'_>], base: usize) -> Result {
    let window = window(vma, pages.len(), base, flags::PFNMAP)?;
    let pages = pages.get(window).ok_or(EINVAL)?;
    // SAFETY: None of these is one of the two.
    unsafe { set_flags(vma, flags::DONTEXPAND | flags::DONTDUMP | RAND_READ) };
    let mut addr = vma.start();
    for some in pages.chunks(CHUNK) {
        yield_or_eintr()?;
        let some = PageRef::pfns(some);
        if !are_free_standing(some) {
            return Err(EINVAL);
        }
        // SAFETY: The VMA is being set up and not one for PFNs: the kernel makes it a mixed
        // mapping. The pages are counted, as the type of `pages` says.
        let (_, result) = unsafe { insert_pages(vma, addr, some) };
        // The addresses are those of the VMA: what was not to be had is an upper page table.
        result.map_err(|e| if e == EFAULT { ENOMEM } else { e })?;
        addr = addr.wrapping_add(some.len() << PAGE_SHIFT);
    }
    Ok(())
}

/// Maps pages from `addr` on, up to the first that can't be. Returns how many, and why no more.
///
/// # Safety
///
/// `vma` must be a mixed mapping, or being set up and not for PFNs. All pages must be counted, and
/// free-standing.
#[inline(never)]
unsafe fn insert_pages(
    vma: &VmaRef,
    addr: usize,
    pages: &[PageRef<'_, PfnOnly>],
) -> (usize, Result) {
    let mut left = pages.len();
    // SAFETY: The VMA is locked, and mixed or about to be, which the caller promises. The kernel
    // looks whether the addresses are in it. The slice is only read.
    let result = to_result(unsafe {
        bindings::vm_insert_pages(
            vma.as_ptr(),
            addr,
            pages.as_ptr().cast_mut().cast(),
            &mut left,
        )
    });
    (pages.len().wrapping_sub(left), result)
}

/// [`map_pages`], for pages that a process may read but not write: see [`setup_pfns_ro`].
#[inline]
pub fn map_pages_ro(vma: &VmaNew, pages: &[PageRef<'_>], base: usize) -> Result {
    keep_read_only(vma)?;
    map_pages(vma, pages, base)
}

/// Maps referenced pages for a fault in a VMA that [`setup_pages`] or [`map_pages`] has set up,
/// from a driver's fault operation.
///
/// Maps the faulting page, and while at it what else of `pages` is in the same 2 MiB of addresses:
/// to map less, pass a part of the array and move `base` with it. What is mapped already stays as
/// it is. PTEs are what `vm_page_prot` says, and so writable if the VMA is. All that is mapped
/// counts as memory of the process, when it is chosen to be killed, say.
///
/// Returns `VM_FAULT_NOPAGE`; `VM_FAULT_SIGBUS` if the address is outside of the array, the VMA is
/// one for PFNs, or the page is one that [`map_pages`] refuses; `VM_FAULT_OOM`, also when
/// `madvise(MADV_DONTNEED)` frees the page table twice meanwhile: a process has it fault again, a
/// system call fails with `EFAULT`.
///
/// Context: the fault operation, under the mmap lock or the lock of the VMA. Allocates page tables
/// (may sleep), takes their lock.
///
/// C: [`vmf_insert_page_mkwrite()`](srctree/mm/memory.c).
#[export_name = "pagekit_vma_fault_pages"]
pub fn fault_pages(vmf: &VmFault, pages: &[PageRef<'_>], base: usize) -> bindings::vm_fault_t {
    let Some(block) = vmf.block(PageRef::pfns(pages), base, false, AROUND) else {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    if vmf.is_huge() {
        return bindings::vm_fault_reason_VM_FAULT_NOPAGE;
    }
    let insert = |i: usize| {
        let (addr, page) = match block.pages.get(i..=i) {
            Some(page) if are_free_standing(page) => {
                (block.addr.wrapping_add(i << PAGE_SHIFT), page[0])
            }
            _ => return bindings::vm_fault_reason_VM_FAULT_SIGBUS,
        };
        // SAFETY: The address is in the VMA, which is locked and not one for PFNs. The page is one
        // of `pages`, and so counted: the reference that the mapping takes keeps it.
        unsafe { pagekit_vma_insert_page(vmf.vma().as_ptr(), addr, page.as_ptr()) }
    };
    // The page that is needed decides.
    let needed = vmf.address().wrapping_sub(block.addr) >> PAGE_SHIFT;
    let mut result = insert(needed);
    if result == bindings::vm_fault_reason_VM_FAULT_OOM {
        // The kernel says so, too, when somebody freed the page table at the same time.
        result = insert(needed);
    }
    if result != bindings::vm_fault_reason_VM_FAULT_NOPAGE {
        return result;
    }
    // The others are a favour, for which nobody is to run out of memory.
    if vmf.vma().flags() & flags::MIXEDMAP == 0 || !are_free_standing(block.pages) {
        (0..block.pages.len()).find(|i| insert(*i) == bindings::vm_fault_reason_VM_FAULT_OOM);
        return result;
    }
    let mut next = 0;
    while let Some(rest) = block.pages.get(next..).filter(|rest| !rest.is_empty()) {
        let addr = block.addr.wrapping_add(next << PAGE_SHIFT);
        // SAFETY: It is a mixed mapping. The pages are some of `pages`, and so counted, and all are
        // free-standing.
        match unsafe { insert_pages(vmf.vma(), addr, rest) } {
            // One that is mapped already, as the one that was needed is.
            (n, Err(e)) if e == EBUSY => next = next.wrapping_add(n).wrapping_add(1),
            _ => break,
        }
    }
    result
}

/// Maps a huge page and takes a reference on it for a fault, from a driver's `huge_fault`
/// operation.
///
/// The block of `PMD_SIZE` around the faulting address must lie wholly within the VMA and the
/// array, and its pages must be those of one folio. The VMA must be one that [`setup_pages`] has
/// set up, not [`map_pages`].
///
/// The kernel asks for huge pages of this kind where the administrator lets processes have
/// transparent huge pages always, or on `madvise(MADV_HUGEPAGE)` and the process has done that. As
/// to the address, see [`huge_fault_pfns`].
///
/// Returns what [`fault_pages`] does, and `VM_FAULT_FALLBACK` for other orders, blocks and VMAs:
/// the kernel calls the fault operation, then.
///
/// Context: that of [`fault_pages`], which the driver's fault operation must call.
///
/// C: [`vmf_insert_folio_pmd()`](srctree/mm/huge_memory.c).
///
/// # Safety
///
/// While this runs no other fault may be handled in the VMA: the driver must hold a lock of its own
/// around this and what its fault operation does, as `drm_gem_shmem` does with the reservation
/// lock. The kernel takes it for a bug (`VM_BUG_ON`) if a huge page appears while pages are
/// inserted.
///
/// # Examples
///
/// ```
/// # fn mmap(vma: &VmaNew, pages: &[PageRef<'_>]) -> Result {
/// #     setup_pages(vma, pages.len(), 0)
/// # }
/// # fn fault(vmf: &VmFault, pages: &[PageRef<'_>]) -> vm_fault_t {
/// #     fault_pages(vmf, pages, 0)
/// # }
/// fn huge_fault(vmf: &VmFault, order: c_uint, pages: &[PageRef<'_>]) -> vm_fault_t {
///     // SAFETY: The driver takes its lock in both operations.
///     unsafe { huge_fault_pages(vmf, order, pages, 0) }
/// }
/// # assert!(Driver::new(mmap)?.fault(fault).huge_fault(huge_fault).shows_its_pages()?);
/// ```
#[export_name = "pagekit_vma_huge_fault_pages"]
pub unsafe fn huge_fault_pages(
    vmf: &VmFault,
    order: c_uint,
    pages: &[PageRef<'_>],
    base: usize,
) -> bindings::vm_fault_t {
    if order != PMD_ORDER || vmf.vma().flags() & flags::MIXEDMAP != 0 {
        return bindings::vm_fault_reason_VM_FAULT_FALLBACK;
    }
    let Some(block) = vmf.block(PageRef::pfns(pages), base, false, PMD_SIZE) else {
        return bindings::vm_fault_reason_VM_FAULT_SIGBUS;
    };
    match block.huge() {
        Some(page) => {
            // SAFETY: The VMA is locked, neither for PFNs nor mixed nor COW, and the block lies
            // within it. The page is one of `pages`, and so counted. The shim looks at the folio.
            // The caller promises that no page is being inserted.
            unsafe { pagekit_vma_insert_huge_page(vmf.0.get(), page.as_ptr()) }
        }
        None => bindings::vm_fault_reason_VM_FAULT_FALLBACK,
    }
}

/// Whether pages belong to no file and no process. Those of processes and of shmem never become so.
/// A page of another file does when it is truncated, and no file takes it back.
fn are_free_standing(pages: &[PageRef<'_, PfnOnly>]) -> bool {
    // SAFETY: The pages exist.
    unsafe { pagekit_vma_are_free_standing(pages.as_ptr(), pages.len()) }
}

// --- Both kinds ----------------------------------------------------------------------

/// Takes `pages`, a range of indices of an array, out of all mappings of a file that has the array
/// at page offset `base`.
///
/// This is the other direction of the fault operations, which bring pages back. A driver that
/// revokes holds a lock of its own around this, until the pages have gone or are others, and around
/// what its fault operations do. It misses VMAs whose mmap operation is still running: pages that
/// are mapped eagerly can't be revoked.
///
/// Where objects share one mapping, as those of a DRM device do, each has a `base` of its own.
///
/// Context: may sleep. Takes the lock of the mapping (`i_mmap_rwsem`) and those of page tables. A
/// shrinker may call it, and a fault operation for other pages than the faulting one.
///
/// C: [`drm_vma_node_unmap()`](srctree/include/drm/drm_vma_manager.h).
///
/// # Safety
///
/// `mapping` must be that of an inode that exists while this runs: the `f_mapping` of the file that
/// was mapped.
///
/// # Examples
///
/// ```
/// fn revoke(file: &LocalFile, pages: &[PageRef<'_>]) {
///     // SAFETY: The file has a mapping while it is open.
///     unsafe { zap((*file.as_ptr()).f_mapping, 0..pages.len(), 0) };
/// }
/// # let file = TestFile::shmem(1)?;
/// # revoke(file.file(), PageArray::from_shmem(file.file(), 0, 1, ShmemFlags::empty())?.pages());
/// ```
#[inline]
pub unsafe fn zap(mapping: *mut bindings::address_space, pages: Range<usize>, base: usize) {
    // For the kernel, no pages are all up to the end of the file.
    if let (Some(first), false) = (base.checked_add(pages.start), pages.is_empty()) {
        // SAFETY: The caller promises that it is the mapping of an inode that exists.
        unsafe { bindings::unmap_mapping_pages(mapping, first, pages.len(), true) };
    }
}
