// SPDX-License-Identifier: GPL-2.0

//! Get the array of pages.
//!
//! A driver that shares memory through a dma-buf needs the `struct page` of each page in it: to
//! build a scatter-gather table for a device, or to map the memory for a process. A [`PageArray`]
//! is the array of these. It holds one reference on each page, so that no page is freed while the
//! array has it, and lends them as `&[PageRef<'_>]`.
//!
//! * [`PageArray::from_shmem`] gets the pages of a range of a shmem file: memory that has the
//!   interface of a file, as memfds have, and what is behind most GEM objects.
//! * [`PageArray::alloc`] allocates new pages.
//!
//! Several pages may be of one *folio*, which the kernel manages as a whole. The array has an entry
//! for each page all the same.
//!
//! Held is not pinned: the pages stay allocated, but truncation and hole punching take them out of
//! the file, or zero them where only a part of a large folio is punched. A driver that lets devices
//! at pages which users can reach through a file wants `pagekit_pin`.
//!
//! No lock is held on return. Each function says which locks the kernel takes while it runs.
//!
//! C headers: [`include/linux/shmem_fs.h`](srctree/include/linux/shmem_fs.h),
//! [`include/linux/pagemap.h`](srctree/include/linux/pagemap.h),
//! [`include/linux/gfp.h`](srctree/include/linux/gfp.h)

use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::LocalFile,
    page::PAGE_SHIFT,
    prelude::*, //
};
use pagekit_view::{
    range,
    runs,
    yield_or_eintr,
    PageRef,
    PageVec,
    PMD_ORDER, //
};

pub use pagekit_view::Marks;

#[cfg(CONFIG_PAGEKIT_PAGES_C)]
mod pages_c;

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // mm/shmem.c and mm/folio-compat.c export these, `bindings` does not have them.
    fn shmem_mapping(mapping: *mut bindings::address_space) -> bool;
    fn shmem_read_folio_gfp(
        mapping: *mut bindings::address_space,
        index: c_ulong,
        gfp: bindings::gfp_t,
    ) -> *mut bindings::folio;

    // Static inlines, see pages_shim.c.
    fn pagekit_pages_file_size(file: *mut bindings::file) -> bindings::loff_t;
    fn pagekit_pages_rest(page: *mut bindings::page) -> usize;
    fn pagekit_pages_page(folio: *mut bindings::folio, index: usize) -> *mut bindings::page;
    fn pagekit_pages_usable(folio: *mut bindings::folio, index: usize) -> c_long;
    fn pagekit_pages_take_small_prefix(
        folios: *const *mut bindings::folio,
        n: usize,
        pages: *mut PageRef<'_>,
    ) -> usize;
    fn pagekit_pages_put_small_prefix(pages: *const PageRef<'_>, n: usize, dirty: bool) -> usize;
    fn pagekit_pages_dirty_without_lock(page: *mut bindings::page) -> bool;
    fn pagekit_pages_get(folio: *mut bindings::folio, refs: c_int);
    fn pagekit_pages_put(page: *mut bindings::page, refs: c_int);
    fn pagekit_pages_alloc_large(gfp: bindings::gfp_t, order: c_uint) -> *mut bindings::folio;
    fn pagekit_pages_alloc_bulk(
        gfp: bindings::gfp_t,
        count: usize,
        pages: *mut *mut bindings::page,
    ) -> usize;
}

/// C's `GFP_USER | __GFP_ZERO`. Users see the pages: cpusets hold for them, also where memory is
/// short.
const GFP_USER_ZEROED: bindings::gfp_t =
    bindings::GFP_KERNEL | (1 << bindings::___GFP_HARDWALL_BIT) | bindings::__GFP_ZERO;
/// C's `__GFP_ACCOUNT`.
const GFP_ACCOUNT: bindings::gfp_t = 1 << bindings::___GFP_ACCOUNT_BIT;
/// C's `__GFP_RECLAIM`.
const GFP_RECLAIM: bindings::gfp_t =
    (1 << bindings::___GFP_DIRECT_RECLAIM_BIT) | (1 << bindings::___GFP_KSWAPD_RECLAIM_BIT);
/// C's `__GFP_NORETRY | __GFP_NOWARN`.
const GFP_NORETRY: bindings::gfp_t = (1 << bindings::___GFP_NORETRY_BIT) | bindings::__GFP_NOWARN;
/// C's `__GFP_RETRY_MAYFAIL | __GFP_NOWARN`.
const GFP_RETRY_MAYFAIL: bindings::gfp_t =
    (1 << bindings::___GFP_RETRY_MAYFAIL_BIT) | bindings::__GFP_NOWARN;

/// Single pages allocated, or any released, at once: 2 MiB. This bounds the time between two looks
/// at signals and at others who want to run.
const BULK: usize = (1 << 21) >> PAGE_SHIFT;

/// Order of the largest folio, which is zeroed at once: what a huge mapping takes, but no more than
/// 32 MiB. With pages of 64 KiB a huge mapping would take 512 MiB.
const MAX_ORDER: u32 = if PMD_ORDER + PAGE_SHIFT as u32 <= 25 {
    PMD_ORDER
} else {
    25 - PAGE_SHIFT as u32
};

/// How [`PageArray::from_shmem`] gets pages.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct ShmemFlags(u32);

// The values are those of pagekit.h.
bitflags::bitflags! {
    impl ShmemFlags: u32 {
        /// The pages may be written through the array, by a device or a mapping: they are marked
        /// [`Marks::DIRTY`] when the array is dropped, so that what was written survives reclaim.
        const WRITE = 16;
        /// Fill holes with memory that is free, and reclaim none: `ENOMEM` comes soon. What was
        /// filled until then stays in the file, so that after shrinking the next call goes on. (For
        /// the array itself a little is reclaimed.)
        const NO_RECLAIM = 4;
        /// Reclaim as hard as may be, C's `__GFP_RETRY_MAYFAIL`, but have nobody killed for it:
        /// `ENOMEM` comes instead.
        const RETRY_MAYFAIL = 8;
    }
}

/// How [`PageArray::alloc`] allocates.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct AllocFlags(u32);

// The values are those of pagekit.h.
bitflags::bitflags! {
    impl AllocFlags: u32 {
        /// Charge the pages to the memory cgroup of the caller, C's `__GFP_ACCOUNT`.
        const ACCOUNT = 1;
        /// Try for large folios, the largest first: fewer scatter-gather entries and larger
        /// mappings, for more waste when memory is fragmented.
        const LARGE = 2;
    }
}

/// Pages, one reference held on each.
///
/// Released on drop, or by [`PageArray::put`]. Both may be called by a shrinker.
///
/// # Invariants
///
/// This owns one folio reference for every entry of `pages`. Entries follow each other as the pages
/// of their folios do: the entry after a page is the next page of the same folio, unless the page
/// is its folio's last.
pub struct PageArray {
    pages: PageVec,
    /// What pages are marked with on drop.
    marks: Marks,
}

impl PageArray {
    /// Gets the `count` pages at page offset `pgoff` of the shmem file `file`.
    ///
    /// Resident pages are looked up in batches, holes and swapped-out pages are filled, and pages
    /// that were allocated but never written are zeroed.
    ///
    /// This doesn't ask whether the file was opened for writing, or whether its seals forbid that.
    /// A driver asks before it lets users write to pages of a file of theirs.
    ///
    /// Context: process context, may sleep. Takes folio locks, and what filling a shmem file takes.
    /// The caller need not hold a lock. A fault operation may call it. Not for shrinkers.
    ///
    /// A hole that is punched takes pages out of the file again, even before this returns: a driver
    /// whose pages must stay the file's keeps others from punching holes.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: not a shmem file, `count` is 0, or the range reaches past the end of the file.
    /// * `EIO`: a page of the range, or of a large folio that reaches into it, has a hardware
    ///   memory error, or can't be read from swap.
    /// * `EINTR`: a fatal signal is pending.
    /// * `ENOMEM`: also if there are too many references on a page already. The OOM killer comes
    ///   first, unless the flags say otherwise.
    /// * `ENOSPC`: the file system is full.
    ///
    /// On any error no reference is left.
    ///
    /// C: [`drm_gem_get_pages()`](srctree/drivers/gpu/drm/drm_gem.c);
    /// [`shmem_sg_alloc_table()`](srctree/drivers/gpu/drm/i915/gem/i915_gem_shmem.c), for the flags
    /// that say how to allocate.
    ///
    /// # Examples
    ///
    /// ```
    /// # let shmem = TestFile::pattern(8)?;
    /// # let (file, pgoff, count) = (shmem.file(), 2, 4);
    /// let array = PageArray::from_shmem(file, pgoff, count, ShmemFlags::WRITE)?;
    /// assert_eq!(array.pages().len(), count);
    /// // Or drop it, which marks it dirty: it was got to be written to.
    /// array.put(Marks::DIRTY | Marks::ACCESSED);
    /// ```
    #[export_name = "pagekit_page_array_from_shmem"]
    pub fn from_shmem(
        file: &LocalFile,
        pgoff: usize,
        count: usize,
        flags: ShmemFlags,
    ) -> Result<Self> {
        let (_, end) = range::file_bytes(pgoff, count, PAGE_SHIFT as u32).ok_or(EINVAL)?;
        // SAFETY: An open file has a mapping and a size, and keeps the mapping.
        let (mapping, size) = unsafe {
            (
                (*file.as_ptr()).f_mapping,
                pagekit_pages_file_size(file.as_ptr()),
            )
        };
        // SAFETY: It is the mapping of an open file.
        if end > size || !unsafe { shmem_mapping(mapping) } {
            return Err(EINVAL);
        }
        // SAFETY: It is the mapping of an open file.
        let mut gfp = unsafe { (*mapping).gfp_mask };
        if flags.contains(ShmemFlags::NO_RECLAIM) {
            gfp = (gfp & !GFP_RECLAIM) | GFP_NORETRY;
        } else if flags.contains(ShmemFlags::RETRY_MAYFAIL) {
            gfp |= GFP_RETRY_MAYFAIL;
        }
        // The array is no reason to kill anybody either. `kvmalloc()` must be allowed to reclaim.
        let effort = gfp & (GFP_NORETRY | GFP_RETRY_MAYFAIL);
        let mut array = Self {
            // INVARIANT: There are no entries yet.
            pages: PageVec::with_capacity(count, effort)?,
            // Nothing was written to what is given back on errors.
            marks: Marks::empty(),
        };
        let mut batch = bindings::folio_batch::default();
        while array.len() < count {
            // SAFETY: `mapping` is a shmem mapping, and `file` keeps it. Room was made for `count`
            // entries, and fewer are there.
            unsafe { array.append_found(mapping, gfp, pgoff, count, &mut batch) }?;
            yield_or_eintr()?;
        }
        if flags.contains(ShmemFlags::WRITE) {
            array.marks = Marks::DIRTY;
        }
        Ok(array)
    }

    /// Allocates `count` zeroed pages.
    ///
    /// They are what user memory is, C's `GFP_USER`: on nodes that the cpuset of the caller has,
    /// and where its memory policy wants them, whether large or not. A caller with a policy has
    /// single pages allocated one by one, as those are that [`AllocFlags::ACCOUNT`] charges.
    ///
    /// Context: process context, may sleep. Takes no lock but those of the page allocator. A fault
    /// operation may call it. Not for shrinkers.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: `count` is 0.
    /// * `EINTR`: a fatal signal is pending.
    /// * `ENOMEM`: there is no memory for the pages, or for the array.
    ///
    /// On any error no page is left.
    ///
    /// C: [`system_heap_allocate()`](srctree/drivers/dma-buf/heaps/system_heap.c).
    ///
    /// # Examples
    ///
    /// ```
    /// let array = PageArray::alloc(100, AllocFlags::ACCOUNT | AllocFlags::LARGE)?;
    /// let middle = &array.pages()[25..75];
    /// # assert_eq!(middle.len(), 50);
    /// ```
    #[export_name = "pagekit_page_array_alloc"]
    pub fn alloc(count: usize, flags: AllocFlags) -> Result<Self> {
        if count == 0 {
            return Err(EINVAL);
        }
        let mut array = Self {
            // INVARIANT: There are no entries yet.
            pages: PageVec::with_capacity(count, bindings::__GFP_ZERO)?,
            // No file wants to have them saved.
            marks: Marks::empty(),
        };
        let gfp = if flags.contains(AllocFlags::ACCOUNT) {
            GFP_USER_ZEROED | GFP_ACCOUNT
        } else {
            GFP_USER_ZEROED
        };
        let mut order = if flags.contains(AllocFlags::LARGE) {
            MAX_ORDER
        } else {
            0
        };
        while array.len() < count {
            let left = count.wrapping_sub(array.len());
            while order > 0 {
                let fits = 1usize.wrapping_shl(order) <= left;
                // Orders that are too large or not to be had are not tried again.
                // SAFETY: There is room for the entries that are left, and the folio has no more.
                if fits && unsafe { array.append_new_folio(order, gfp) } {
                    break;
                }
                order -= 1;
            }
            if order == 0 {
                // SAFETY: There is room for the entries that are left, and it was zeroed.
                unsafe { array.append_new_pages(left.min(BULK), gfp) }?;
            }
            yield_or_eintr()?;
        }
        Ok(array)
    }

    /// Appends a new folio of `order`, if there is one to be had without effort.
    ///
    /// # Safety
    ///
    /// There must be room for all of its pages.
    unsafe fn append_new_folio(&mut self, order: u32, gfp: bindings::gfp_t) -> bool {
        // SAFETY: It may be called with any mask and order wherever one may sleep.
        let Some(folio) = NonNull::new(unsafe { pagekit_pages_alloc_large(gfp, order) }) else {
            return false;
        };
        let nr = 1usize.wrapping_shl(order);
        // SAFETY: We own the one reference that a new folio has, and add those of the other
        // entries.
        unsafe { pagekit_pages_get(folio.as_ptr(), (nr as c_int).wrapping_sub(1)) };
        // SAFETY: The folio has `nr` pages with a reference of ours for each, and the caller has
        // made room for them.
        unsafe { self.append_run(folio.cast(), nr) };
        true
    }

    /// Appends `first` and the pages after it, `n` in all.
    ///
    /// # Safety
    ///
    /// They must be of one folio, up to its last page or the last entry, the array must own a
    /// reference for each, and there must be room.
    #[inline(never)]
    unsafe fn append_run(&mut self, first: NonNull<bindings::page>, n: usize) {
        // SAFETY: There are `n` pages from `first` on, and room for as many entries: both are what
        // this function asks for.
        // INVARIANT: So are the references, and that the pages are of one folio and end with it.
        unsafe {
            PageRef::fill(self.pages.spare(), first, n);
            self.pages.add(n);
        }
    }

    /// Appends at least one and at most `count` new single pages.
    ///
    /// # Safety
    ///
    /// There must be room for them, zeroed.
    unsafe fn append_new_pages(&mut self, count: usize, gfp: bindings::gfp_t) -> Result {
        // SAFETY: There is room for `count` pointers, all null: those the allocator fills in.
        let n = unsafe { pagekit_pages_alloc_bulk(gfp, count, self.pages.spare().cast()) };
        if n == 0 {
            return Err(ENOMEM);
        }
        // SAFETY: The allocator has filled in the first `n`, at most as many as there is room for.
        // INVARIANT: A new page has one reference, which is ours.
        unsafe { self.pages.add(n) };
        Ok(())
    }

    fn len(&self) -> usize {
        self.pages().len()
    }

    /// Lends the pages, in the order of the file or the allocation.
    #[inline]
    pub fn pages(&self) -> &[PageRef<'_>] {
        self.pages.pages()
    }

    /// Releases the pages, and marks them first as `marks` says and not as they would be on drop.
    ///
    /// Context: process context, may sleep. Takes no folio lock, and may be called by a shrinker:
    /// the code that allocates may hold any such lock.
    ///
    /// C: [`drm_gem_put_pages()`](srctree/drivers/gpu/drm/drm_gem.c).
    #[inline]
    pub fn put(mut self, marks: Marks) {
        self.release(marks);
    }

    /// Appends what the file has next, of the `count` pages from file page `pgoff` on.
    ///
    /// That is what one batched lookup finds there. If the first page is missing, or can't be used
    /// as it is, it is the folio that shmem fills, reads or zeroes.
    ///
    /// # Safety
    ///
    /// `mapping` must be a shmem mapping that stays valid for the call. There must be room for
    /// `count` entries in all, and fewer must be there.
    unsafe fn append_found(
        &mut self,
        mapping: *mut bindings::address_space,
        gfp: bindings::gfp_t,
        pgoff: usize,
        count: usize,
        batch: &mut bindings::folio_batch,
    ) -> Result {
        let before = self.len();
        // Nothing wraps: the range is one that a file may have.
        let mut next = pgoff.wrapping_add(before);
        let last = pgoff.wrapping_add(count).wrapping_sub(1);
        batch.nr = 0;
        // SAFETY: The caller has a valid mapping; the batch is an empty one.
        let found = unsafe { bindings::filemap_get_folios_contig(mapping, &mut next, last, batch) };
        let folios = &batch.folios[..batch.folios.len().min(found as usize)];
        let slots = self.pages.spare();
        // SAFETY: The lookup took a reference on each folio for us. No folio is found twice, and
        // each has a page of the range that is missing: there is room for as many entries.
        // INVARIANT: A small folio is its first and last page.
        let mut taken = unsafe {
            let n = pagekit_pages_take_small_prefix(folios.as_ptr(), folios.len(), slots);
            self.pages.add(n);
            n
        };
        while let Some(&folio) = folios.get(taken) {
            // SAFETY: The lookup's reference on the folio is ours, too. The caller has made room
            // for `count` entries.
            if unsafe { self.append_folio(folio, pgoff, count) }.is_err() {
                break;
            }
            taken = taken.wrapping_add(1);
        }
        // `append_folio` has put the reference on what it could not take.
        for &folio in folios.iter().skip(taken.wrapping_add(1)) {
            // SAFETY: The lookup's reference is ours, and goes back unused.
            unsafe { pagekit_pages_put(folio.cast(), 1) };
        }
        if taken > 0 {
            return Ok(());
        }

        // SAFETY: The caller has a valid shmem mapping.
        let folio = from_err_ptr(unsafe {
            shmem_read_folio_gfp(mapping, pgoff.wrapping_add(before), gfp)
        })?;
        // SAFETY: The reference that shmem returned is ours. The caller has made room for `count`
        // entries.
        match unsafe { self.append_folio(folio, pgoff, count) } {
            // The file changed meanwhile: the caller comes back.
            Err(e) if e == EAGAIN => Ok(()),
            result => result,
        }
    }

    /// Appends the pages of `folio` that are next of the `count` from file page `pgoff` on.
    ///
    /// # Errors
    ///
    /// `EAGAIN`: it does not have the next page, or was never written. Others: it can't be used.
    ///
    /// # Safety
    ///
    /// The caller must own a reference on `folio`, which this takes over. There must be room for
    /// `count` entries in all.
    unsafe fn append_folio(
        &mut self,
        folio: *mut bindings::folio,
        pgoff: usize,
        count: usize,
    ) -> Result {
        let index = pgoff.wrapping_add(self.len());
        // SAFETY: The reference keeps the folio and its size. More of them can be added: a folio
        // has far fewer pages than it may have references. There is room for the `n` entries, which
        // are not more than `count` in all.
        unsafe {
            let usable = pagekit_pages_usable(folio, index);
            if usable <= 0 {
                pagekit_pages_put(folio.cast(), 1);
                to_result(usable as c_int)?;
                return Err(EAGAIN);
            }
            let n = (usable as usize).min(count.saturating_sub(self.len()));
            pagekit_pages_get(folio, (n as c_int).wrapping_sub(1));
            self.append_run(NonNull::new_unchecked(pagekit_pages_page(folio, index)), n);
        }
        Ok(())
    }

    /// Whether the entries follow each other as the type invariants say.
    fn is_ordered(&self) -> bool {
        let mut pairs = self.pages().windows(2);
        // SAFETY: By the type invariants there is a reference on each page.
        let rest = |page: &PageRef<'_>| unsafe { pagekit_pages_rest(page.as_ptr()) };
        pairs.all(|pair| rest(&pair[0]) == 1 || runs(pair).count() == 1)
    }

    #[export_name = "pagekit_page_array_release"]
    #[inline(never)]
    fn release(&mut self, marks: Marks) {
        debug_assert!(self.is_ordered());
        let dirty = marks.contains(Marks::DIRTY);
        let mut rest = self.pages.pages();
        while let Some(first) = rest.first() {
            let mut n = 0;
            if !marks.contains(Marks::ACCESSED) {
                let most = rest.len().min(BULK);
                // SAFETY: By the type invariants we own a reference for each entry. `truncate`
                // below forgets those that are put.
                n = unsafe { pagekit_pages_put_small_prefix(rest.as_ptr(), most, dirty) };
            }
            if n == 0 {
                let page = first.as_ptr();
                // SAFETY: By the type invariants we own a reference for each entry, and the next
                // `n` are pages of this folio. `truncate` below forgets them.
                unsafe {
                    n = pagekit_pages_rest(page).min(rest.len());
                    if dirty {
                        // If it needs the lock it is a fresh page, which needs no mark.
                        pagekit_pages_dirty_without_lock(page);
                    }
                    if marks.contains(Marks::ACCESSED) {
                        bindings::mark_page_accessed(page);
                    }
                    pagekit_pages_put(page, n as c_int);
                }
            }
            // Releasing goes on whoever is killed.
            let _ = yield_or_eintr();
            rest = rest.get(n..).unwrap_or_default();
        }
        // INVARIANT: No entry is left, as no reference is.
        self.pages.truncate(0);
    }
}

impl Drop for PageArray {
    #[export_name = "pagekit_page_array_drop"]
    #[inline(never)]
    fn drop(&mut self) {
        self.release(self.marks);
        // Here, so that it isn't in each driver.
        // SAFETY: The array is being dropped: nobody uses it afterwards.
        unsafe { self.pages.free() };
    }
}
