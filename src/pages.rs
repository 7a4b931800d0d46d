// SPDX-License-Identifier: GPL-2.0

//! Get the array of pages.
//!
//! A [`PageArray`] holds one reference on each page of a shmem file range and
//! lends them as `&[PageRef<'_>]`. Held is not pinned: the pages stay allocated,
//! but truncation and hole punching take them out of the file, or zero them where
//! only a part of a large folio is punched. A driver that lets devices at
//! user-visible file pages wants `pagekit_pin`.
//!
//! No lock is held on return. What the kernel takes inside a call is said there.

use core::ptr::NonNull;
use kernel::{
    alloc::Flags,
    bindings,
    error::from_err_ptr,
    fs::LocalFile,
    page::PAGE_SHIFT,
    prelude::*, //
};
use pagekit_view::{
    range,
    PageRef, //
};

module! {
    type: Module,
    name: "pagekit_pages",
    authors: ["The pagekit authors"],
    description: "Arrays of held pages for dma-buf drivers",
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
    // mm/shmem.c and mm/folio-compat.c export these, `bindings` does not have them.
    fn shmem_mapping(mapping: *mut bindings::address_space) -> bool;
    fn shmem_read_folio_gfp(
        mapping: *mut bindings::address_space,
        index: c_ulong,
        gfp: bindings::gfp_t,
    ) -> *mut bindings::folio;

    // Static inlines, see pages_shim.c.
    fn pagekit_pages_page_folio(page: *mut bindings::page) -> *mut bindings::folio;
    fn pagekit_pages_file_size(file: *mut bindings::file) -> bindings::loff_t;
    fn pagekit_pages_nr(folio: *mut bindings::folio) -> usize;
    fn pagekit_pages_refs(folio: *mut bindings::folio) -> c_int;
    fn pagekit_pages_index(folio: *mut bindings::folio) -> usize;
    fn pagekit_pages_uptodate(folio: *mut bindings::folio) -> bool;
    fn pagekit_pages_poisoned(folio: *mut bindings::folio) -> bool;
    fn pagekit_pages_get(folio: *mut bindings::folio, refs: c_int);
    fn pagekit_pages_put(folio: *mut bindings::folio, refs: c_int);
    fn pagekit_pages_alloc_large(gfp: bindings::gfp_t, order: c_uint) -> *mut bindings::folio;
    fn pagekit_pages_alloc_bulk(
        gfp: bindings::gfp_t,
        count: usize,
        pages: *mut *mut bindings::page,
    ) -> usize;
    fn pagekit_pages_cond_resched();
    fn pagekit_pages_fatal_signal() -> bool;
}

/// References on a folio beyond which there are no further ones from here.
const MAX_REFS: c_int = c_int::MAX / 2;

/// The largest order that [`AllocFlags::LARGE`] tries: a huge page, C's `PMD_ORDER`.
const LARGE_ORDER: u32 = bindings::PMD_SHIFT - PAGE_SHIFT as u32;
/// Single pages allocated, or any released, at once: bounds the time between two looks at signals
/// and others.
const BULK: usize = 512;

/// Gives way to others, and looks whether it's any use to go on.
fn yield_or_eintr() -> Result {
    // SAFETY: This runs in process context and holds no lock.
    unsafe { pagekit_pages_cond_resched() };
    // SAFETY: It reads the flags of the current task.
    if unsafe { pagekit_pages_fatal_signal() } {
        Err(EINTR)
    } else {
        Ok(())
    }
}

/// What [`PageArray::put`] tells the page cache about the pages it releases.
///
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct Marks(u8);

bitflags::bitflags! {
    impl Marks: u8 {
        /// The pages were written to: they must not be dropped without being saved.
        const DIRTY = 1;
        /// The pages were used: reclaim should look elsewhere first.
        const ACCESSED = 2;
    }
}

/// How [`PageArray::alloc`] allocates.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct AllocFlags(u8);

bitflags::bitflags! {
    impl AllocFlags: u8 {
        /// Charge the pages to the memory cgroup of the caller, C's `__GFP_ACCOUNT`.
        const ACCOUNT = 1;
        /// Try for large folios, the largest first: fewer scatter-gather entries and larger
        /// mappings, for more waste when memory is fragmented.
        const LARGE = 2;
    }
}

/// Pages, one reference held on each.
///
/// Released on drop, or by [`PageArray::put`].
///
/// # Invariants
///
/// This owns one folio reference for every entry of `pages`. Entries follow each other as the
/// pages of their folios do: the entry after a page is the next page of the same folio, unless the
/// page is its folio's last.
pub struct PageArray {
    pages: KVVec<PageRef<'static>>,
}

impl PageArray {
    /// Gets the `count` pages at page offset `pgoff` of the shmem file `file`.
    ///
    /// Resident pages are looked up in batches; holes and swapped-out pages are
    /// filled; pages that were allocated but never written are zeroed.
    ///
    /// Context: process context, may sleep. Takes folio locks, and what filling a
    /// shmem file takes. The caller need not hold anything. Pages may leave the
    /// file again at once if somebody punches a hole: who needs them to stay the
    /// file's keeps such changes out.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: not a shmem file, `count` is 0, or the range reaches past the
    ///   end of the file.
    /// * `EIO`: a page of the range, or of a large folio that reaches into it, has a hardware
    ///   memory error.
    /// * `EINTR`: a fatal signal is pending.
    /// * `ENOMEM`: also if there are too many references on a page already.
    /// * `ENOSPC`: the file system is full.
    ///
    /// On any error no reference is left.
    ///
    /// C: `drm_gem_get_pages()` in `drivers/gpu/drm/drm_gem.c`.
    ///
    /// # Examples
    ///
    /// ```
    /// # let shmem = TestFile::pattern(8)?;
    /// # let (file, pgoff, count) = (shmem.file(), 2, 4);
    /// let array = PageArray::from_shmem(file, pgoff, count)?;
    /// assert_eq!(array.pages().len(), count);
    /// // Or drop it, if nothing was written.
    /// array.put(Marks::DIRTY | Marks::ACCESSED);
    /// ```
    #[inline(never)]
    pub fn from_shmem(file: &LocalFile, pgoff: usize, count: usize) -> Result<Self> {
        let (_, end) = range::file_bytes(pgoff, count, PAGE_SHIFT as u32).ok_or(EINVAL)?;
        // SAFETY: An open file has a mapping and a size, and keeps the mapping.
        let (mapping, size) = unsafe {
            (
                (*file.as_ptr()).f_mapping,
                pagekit_pages_file_size(file.as_ptr()),
            )
        };
        // SAFETY: As above.
        if end > size || !unsafe { shmem_mapping(mapping) } {
            return Err(EINVAL);
        }
        let mut array = Self::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
        while array.pages.len() < count {
            // SAFETY: `mapping` is a shmem mapping, and `file` keeps it.
            unsafe { array.fill(mapping, pgoff + array.pages.len(), count) }?;
            yield_or_eintr()?;
        }
        Ok(array)
    }

    /// Allocates `count` zeroed pages.
    ///
    /// Context: process context, may sleep.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: `count` is 0.
    /// * `EINTR`: a fatal signal is pending.
    /// * `ENOMEM`
    ///
    /// On any error no page is left.
    ///
    /// C: `system_heap_allocate()` in `drivers/dma-buf/heaps/system_heap.c`.
    ///
    /// # Examples
    ///
    /// ```
    /// let array = PageArray::alloc(100, AllocFlags::ACCOUNT | AllocFlags::LARGE)?;
    /// let middle = &array.pages()[25..75];
    /// # assert_eq!(middle.len(), 50);
    /// ```
    #[inline(never)]
    pub fn alloc(count: usize, flags: AllocFlags) -> Result<Self> {
        if count == 0 {
            return Err(EINVAL);
        }
        let mut array = Self::with_capacity(count, GFP_KERNEL_ACCOUNT | __GFP_ZERO)?;
        let gfp = bindings::__GFP_ZERO
            | if flags.contains(AllocFlags::ACCOUNT) {
                bindings::GFP_KERNEL_ACCOUNT
            } else {
                bindings::GFP_KERNEL
            };
        let mut order = if flags.contains(AllocFlags::LARGE) {
            LARGE_ORDER
        } else {
            0
        };
        while array.pages.len() < count {
            let left = count - array.pages.len();
            while order > 0 {
                // Orders that are too large or not to be had are not tried again.
                if 1 << order <= left && array.push_large(order, gfp) {
                    break;
                }
                order -= 1;
            }
            if order == 0 {
                array.push_bulk(left.min(BULK), gfp)?;
            }
            yield_or_eintr()?;
        }
        Ok(array)
    }

    /// Appends a folio of `order` if there is one to be had without effort.
    fn push_large(&mut self, order: u32, gfp: bindings::gfp_t) -> bool {
        // SAFETY: Plain call.
        let Some(folio) = NonNull::new(unsafe { pagekit_pages_alloc_large(gfp, order) }) else {
            return false;
        };
        let nr = 1usize << order;
        // SAFETY: We own the one reference that a new folio has, and add those of the other entries.
        unsafe { pagekit_pages_get(folio.as_ptr(), nr as c_int - 1) };
        for i in 0..nr {
            // SAFETY: The folio has `nr` pages, whose `struct page`s are contiguous, and this array
            // now owns a reference for this entry.
            let page = unsafe { PageRef::from_raw(folio.cast().add(i)) };
            // INVARIANT: As above. There is room, for the caller has asked for no more than that.
            let _ = self.pages.push_within_capacity(page);
        }
        true
    }

    /// Appends at least one and at most `count` single pages.
    fn push_bulk(&mut self, count: usize, gfp: bindings::gfp_t) -> Result {
        // The allocator fills in what is null, which `alloc` has seen to.
        let spare = &mut self.pages.spare_capacity_mut()[..count];
        // SAFETY: These are `count` pointers.
        let n = unsafe { pagekit_pages_alloc_bulk(gfp, count, spare.as_mut_ptr().cast()) };
        if n == 0 {
            return Err(ENOMEM);
        }
        // SAFETY: The allocator has filled in the first `n`.
        // INVARIANT: A new page has one reference, which is ours.
        unsafe { self.pages.inc_len(n) };
        Ok(())
    }

    fn with_capacity(count: usize, flags: Flags) -> Result<Self> {
        Ok(Self {
            // INVARIANT: There are no entries yet.
            pages: KVVec::with_capacity(count, flags | __GFP_NOWARN)?,
        })
    }

    /// Lends the pages, in the order of the file or the allocation.
    #[inline]
    pub fn pages(&self) -> &[PageRef<'_>] {
        &self.pages
    }

    /// Releases the pages, and marks them first as `marks` says.
    ///
    /// Context: process context, may sleep. Takes folio locks to mark pages dirty.
    ///
    /// C: `drm_gem_put_pages()` in `drivers/gpu/drm/drm_gem.c`.
    #[inline(never)]
    pub fn put(mut self, marks: Marks) {
        self.release(marks);
    }

    /// Appends the folios that one batched lookup finds at file page `index`, or if the first is
    /// missing or can't be used as it is, the folio that shmem fills, reads or zeroes there.
    ///
    /// # Safety
    ///
    /// `mapping` must be a shmem mapping that stays valid for the call.
    unsafe fn fill(
        &mut self,
        mapping: *mut bindings::address_space,
        index: usize,
        count: usize,
    ) -> Result {
        let before = self.pages.len();
        let mut next = index;
        let mut batch = bindings::folio_batch::default();
        // SAFETY: The caller promises a valid mapping; a zeroed `folio_batch` is an empty one.
        let found = unsafe {
            bindings::filemap_get_folios_contig(
                mapping,
                &mut next,
                index + (count - before) - 1,
                &mut batch,
            )
        };

        let mut result = Ok(true);
        for &folio in batch.folios.iter().take(found as usize) {
            let index = index + (self.pages.len() - before);
            if matches!(result, Ok(true)) {
                // SAFETY: The lookup took a reference on the folio for us.
                result = unsafe { self.push(folio, index, count) };
            } else {
                // SAFETY: As above; it goes back unused.
                unsafe { pagekit_pages_put(folio, 1) };
            }
        }
        result?;
        if self.pages.len() > before {
            return Ok(());
        }

        // SAFETY: The caller promises a valid shmem mapping.
        let folio =
            from_err_ptr(unsafe { shmem_read_folio_gfp(mapping, index, (*mapping).gfp_mask) })?;
        // If the file changed meanwhile, nothing was added and the caller comes back.
        // SAFETY: We own the reference that shmem returned.
        unsafe { self.push(folio, index, count) }.map(|_| ())
    }

    /// Appends the pages of `folio` from file page `index` on, up to `count` entries in all.
    ///
    /// Returns whether that could be done: the folio may be yet to be zeroed or have moved.
    ///
    /// # Safety
    ///
    /// The caller must own a reference on `folio`, which this takes over.
    unsafe fn push(
        &mut self,
        folio: *mut bindings::folio,
        index: usize,
        count: usize,
    ) -> Result<bool> {
        // SAFETY: The reference that the caller owns keeps the folio and its size, in all of these.
        let (nr, first, uptodate, poisoned) = unsafe {
            (
                pagekit_pages_nr(folio),
                pagekit_pages_index(folio),
                pagekit_pages_uptodate(folio),
                pagekit_pages_poisoned(folio),
            )
        };
        let skip = index.wrapping_sub(first);
        if poisoned || !uptodate || skip >= nr {
            // SAFETY: The reference is ours.
            unsafe { pagekit_pages_put(folio, 1) };
            return if poisoned { Err(EIO) } else { Ok(false) };
        }
        let take = (nr - skip).min(count - self.pages.len());
        // Users may repeat this. What adds references must see to it that they don't overflow.
        // SAFETY: We hold a reference.
        if !(0..MAX_REFS).contains(&unsafe { pagekit_pages_refs(folio) }) {
            // SAFETY: The reference is ours.
            unsafe { pagekit_pages_put(folio, 1) };
            return Err(ENOMEM);
        }
        // SAFETY: We hold a reference. There is room for more of them: a folio has far fewer than
        // `MAX_REFS` pages.
        unsafe { pagekit_pages_get(folio, take as c_int - 1) };
        for i in skip..skip + take {
            // SAFETY: `i` is less than the number of pages of the folio, whose `struct page`s
            // start where it does and are contiguous.
            let page = unsafe { NonNull::new_unchecked(folio.cast::<bindings::page>().add(i)) };
            // SAFETY: This array now owns a reference for this entry.
            let page = unsafe { PageRef::from_raw(page) };
            // INVARIANT: The pages of one folio follow each other, and there is a reference for
            // each. There is room: `take` was cut to `count`, the capacity.
            let _ = self.pages.push_within_capacity(page);
        }
        Ok(true)
    }

    fn release(&mut self, marks: Marks) {
        let mut rest = &self.pages[..];
        let mut quota = BULK;
        while let Some(page) = rest.first() {
            if quota == 0 {
                // SAFETY: This runs in process context and holds no lock.
                unsafe { pagekit_pages_cond_resched() };
                quota = BULK;
            }
            let page = page.as_ptr();
            // SAFETY: We own references on all pages in `rest`.
            let folio = unsafe { pagekit_pages_page_folio(page) };
            // SAFETY: As above. The page is one of the folio's.
            let left = unsafe {
                pagekit_pages_nr(folio) - page.offset_from(folio.cast::<bindings::page>()) as usize
            };
            let n = left.min(rest.len());
            if marks.contains(Marks::DIRTY) {
                // SAFETY: We own a reference; may sleep.
                unsafe { bindings::set_page_dirty_lock(page) };
            }
            if marks.contains(Marks::ACCESSED) {
                // SAFETY: We own a reference.
                unsafe { bindings::folio_mark_accessed(folio) };
            }
            // SAFETY: By the type invariants the next `n` entries are pages of this folio, and we
            // own a reference for each. `clear` below forgets them.
            unsafe { pagekit_pages_put(folio, n as c_int) };
            rest = &rest[n..];
            quota = quota.saturating_sub(n);
        }
        // INVARIANT: No entry is left, as no reference is.
        self.pages.clear();
    }
}

impl Drop for PageArray {
    fn drop(&mut self) {
        self.release(Marks::empty());
    }
}
