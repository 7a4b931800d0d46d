// SPDX-License-Identifier: GPL-2.0

//! What the three helpers share: a borrowed array of pages, and ranges of it.
//!
//! The currency is `&[PageRef<'_>]`: a slice of pointers to `struct page` that live as long as what
//! holds or pins the pages. In memory it is C's `struct page **` and a length. What produces pages
//! lends such a slice, what maps pages takes one, and neither knows the other. Cut it with the
//! ordinary slice operations.
//!
//! A page has one of two kinds. [`Counted`] pages are given back by their reference counts, and
//! users may see them: whoever takes a reference may keep the page. Of [`PfnOnly`] pages only the
//! number of the page frame (PFN) may be used, because their owner doesn't look at reference counts
//! or decides who may write to them: pages of a pool, and pinned pages. What takes references
//! doesn't accept these.
//!
//! This crate is metadata only. It is all inline, has no symbols and no module.
//!
//! C header: [`include/linux/mm_types.h`](srctree/include/linux/mm_types.h)

use core::{
    hint::assert_unchecked,
    marker::PhantomData,
    mem::ManuallyDrop,
    ops::BitOr,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    page::PAGE_SHIFT,
    prelude::*, //
};

#[doc(hidden)]
pub mod range;

#[cfg(not(any(CONFIG_SPARSEMEM_VMEMMAP, CONFIG_FLATMEM)))]
compile_error!("pagekit needs struct pages that are contiguous where their pfns are");

#[cfg(not(CONFIG_64BIT))]
compile_error!("pagekit needs a 64-bit kernel: file offsets are page offsets in a usize");

extern "C" {
    // Static inlines, see `HELPER()` and `ARRAY()` in shim.h.
    fn pagekit_yield() -> bool;
    fn pagekit_array(count: usize, how: bindings::gfp_t) -> *mut c_void;
}

/// Reschedules if needed. `EINTR` if a fatal signal is pending.
///
/// Context: may sleep.
#[doc(hidden)]
#[inline]
pub fn yield_or_eintr() -> Result {
    // SAFETY: It needs nothing but a context that may sleep, and reads the current task's flags.
    if unsafe { pagekit_yield() } {
        Err(EINTR)
    } else {
        Ok(())
    }
}

/// Order of a huge page, C's `PMD_ORDER`: what a page table reaches, which is a page of entries, or
/// half of one on s390. bindgen doesn't know it on all architectures: shim.h holds it against C's.
#[doc(hidden)]
pub const PMD_ORDER: u32 = PAGE_SHIFT as u32 - if cfg!(CONFIG_S390) { 4 } else { 3 };

/// What may be done with a page beyond mapping its PFN: take references on it, which may outlive
/// the slice. See [`PageRef`].
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum Counted {}

/// Nothing: the owner of the page may take it back whatever its reference count is, or users may
/// not write to it. See [`PageRef`].
#[derive(Copy, Clone, PartialEq, Eq)]
pub enum PfnOnly {}

/// A borrowed, non-null `struct page` pointer.
///
/// # Invariants
///
/// The pointer is to a `struct page` of memory that the CPU can address. It stays allocated, and no
/// other page takes its place, for `'a`: somebody holds a reference or a pin on it, or owns it.
///
/// If `Of` is [`Counted`], user space may see the page, and write to it where the driver doesn't
/// map it read-only. The owner gives it back by its reference count alone: references that others
/// take keep it beyond `'a`.
#[derive(Copy, Clone, PartialEq, Eq)]
#[repr(transparent)]
pub struct PageRef<'a, Of = Counted>(
    NonNull<bindings::page>,
    PhantomData<(&'a bindings::page, Of)>,
);

// SAFETY: A `PageRef` only says that a page exists. All that is done through it is done by kernel
// functions that may be called from any thread.
unsafe impl<Of> Send for PageRef<'_, Of> {}
// SAFETY: A shared `PageRef` can only be copied, and the copy may be used by any thread.
unsafe impl<Of> Sync for PageRef<'_, Of> {}

impl<'a> PageRef<'a> {
    /// Borrows an array of pages that a driver has already, and gives back by reference count: with
    /// `put_page()`, say. No references are taken.
    ///
    /// Pools that hand out pages again without a look at their counts lend them with
    /// [`PageRef::pfns_from_raw`].
    ///
    /// # Safety
    ///
    /// `pages` must be `len` pointers, each of which is what the invariants of [`PageRef`] ask for
    /// of [`Counted`] pages. Nobody may change them during `'a`.
    ///
    /// # Examples
    ///
    /// ```
    /// # let array = PageArray::alloc(3, AllocFlags::empty())?;
    /// # let mut raw: KVec<*mut bindings::page> = KVec::new();
    /// # for page in array.pages() { raw.push(page.as_ptr(), GFP_KERNEL)?; }
    /// # let (gem_pages, num_pages) = (core::ptr::NonNull::new(raw.as_mut_ptr()).unwrap(), 3);
    /// // SAFETY: They are from `drm_gem_get_pages()`. `drm_gem_put_pages()` drops references.
    /// let pages = unsafe { PageRef::slice_from_raw(gem_pages, num_pages) };
    /// # assert!(pages == array.pages());
    /// ```
    #[inline]
    pub const unsafe fn slice_from_raw(
        pages: NonNull<*mut bindings::page>,
        len: usize,
    ) -> &'a [Self] {
        // SAFETY: The caller promises `len` valid pointers that nobody changes; the type is
        // transparent.
        // INVARIANT: The caller promises that each is to a page that stays, and is counted.
        unsafe { core::slice::from_raw_parts(pages.as_ptr().cast(), len) }
    }
}

impl<'a> PageRef<'a, PfnOnly> {
    /// Borrows an array of pages that a driver has already, and takes back as it likes: TTM's
    /// `ttm->pages`, say, which go into a pool. They need not be compound where they are of one
    /// allocation. Only what maps PFNs takes the slice.
    ///
    /// # Safety
    ///
    /// `pages` must be `len` pointers, each of which is what the invariants of [`PageRef`] ask for.
    /// Nobody may change them during `'a`.
    ///
    /// # Examples
    ///
    /// ```
    /// # let array = PageArray::alloc(3, AllocFlags::empty())?;
    /// # let mut raw: KVec<*mut bindings::page> = KVec::new();
    /// # for page in array.pages() { raw.push(page.as_ptr(), GFP_KERNEL)?; }
    /// # let (ttm_pages, num_pages) = (core::ptr::NonNull::new(raw.as_mut_ptr()).unwrap(), 3);
    /// // SAFETY: The driver keeps the array and its pages until the object goes.
    /// let pages = unsafe { PageRef::pfns_from_raw(ttm_pages, num_pages) };
    /// # assert!(pages == PageRef::pfns(array.pages()));
    /// ```
    #[inline]
    pub const unsafe fn pfns_from_raw(
        pages: NonNull<*mut bindings::page>,
        len: usize,
    ) -> &'a [Self] {
        // SAFETY: The caller promises `len` valid pointers that nobody changes; the type is
        // transparent.
        // INVARIANT: The caller promises that each is to a page that stays.
        unsafe { core::slice::from_raw_parts(pages.as_ptr().cast(), len) }
    }

    /// Forgets whether `pages` are counted.
    #[inline]
    pub const fn pfns<'p, Of>(pages: &'p [PageRef<'a, Of>]) -> &'p [Self] {
        // SAFETY: Both types are transparent over the same pointer.
        // INVARIANT: All pages are what the first invariant says, whatever `Of` is.
        unsafe { core::slice::from_raw_parts(pages.as_ptr().cast(), pages.len()) }
    }
}

impl<Of> PageRef<'_, Of> {
    /// Fills `n` entries from `slots` on with `first` and the pages after it.
    ///
    /// # Safety
    ///
    /// There must be room for `n` entries, and all of the pages must be what the invariants of
    /// [`PageRef`] ask for, if `Of` is [`Counted`] also of those.
    #[doc(hidden)]
    #[inline]
    pub unsafe fn fill(slots: *mut Self, first: NonNull<bindings::page>, n: usize) {
        // For large folios there is little else to do, and compilers make the better loop of it
        // backwards.
        for i in (0..n).rev() {
            // SAFETY: The caller promises as many pages as there is room for.
            // INVARIANT: The caller promises that they stay, and are counted if `Of` says so.
            unsafe { slots.add(i).write(Self(first.add(i), PhantomData)) };
        }
    }

    /// Returns the `struct page` pointer.
    #[inline]
    pub const fn as_ptr(self) -> *mut bindings::page {
        self.0.as_ptr()
    }
}

/// What the page cache is told about pages before their array gives them back.
///
/// C: the `dirty` and `accessed` arguments of
/// [`drm_gem_put_pages()`](srctree/drivers/gpu/drm/drm_gem.c).
// Written by hand: some functions of `bitflags` can't be inlined, and this crate has no object.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct Marks(c_uint);

impl Marks {
    /// The pages were written to: they must not be dropped without being saved.
    pub const DIRTY: Self = Self(32);
    /// The pages were used: reclaim should look elsewhere first.
    pub const ACCESSED: Self = Self(64);

    /// No mark.
    #[inline]
    pub const fn empty() -> Self {
        Self(0)
    }

    /// What C says, with values of `pagekit.h`.
    #[doc(hidden)]
    #[inline]
    pub const fn from_bits_retain(bits: c_uint) -> Self {
        Self(bits)
    }

    /// Whether these are all marks of `other`, and maybe more.
    #[inline]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Marks {
    type Output = Self;

    #[inline]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// An array of pages that is filled from its start: what the helpers' owners keep theirs in.
///
/// It has none of the checks that a [`KVVec`] makes each time, and isn't freed on drop: that is
/// part of its owner's own drop, so that it is in a helper and not in each driver.
#[doc(hidden)]
pub struct PageVec<Of: 'static = Counted>(ManuallyDrop<KVVec<PageRef<'static, Of>>>);

impl<Of> PageVec<Of> {
    /// Makes room for `count` pages, with `how` beside `GFP_KERNEL_ACCOUNT`. The kernel crate has
    /// no flags for how hard to try.
    #[inline]
    pub fn with_capacity(count: usize, how: bindings::gfp_t) -> Result<Self> {
        // SAFETY: Whoever makes an array may sleep. Sizes that are too large are refused.
        let pages = unsafe { pagekit_array(count, how) };
        if pages.is_null() {
            return Err(ENOMEM);
        }
        // SAFETY: It is memory of `kvmalloc()`, with room for `count` pointers, and ours.
        Ok(unsafe { Self::from_raw_parts(pages.cast(), 0, count) })
    }

    /// Takes over an array that C has, [`KVVec::from_raw_parts`].
    ///
    /// # Safety
    ///
    /// `pages` must be memory that `kvfree()` may free, with `len` entries that are what the
    /// invariants of [`PageRef`] ask for, and with room for `capacity` in all. Nobody else may use
    /// it while this is in use.
    #[inline]
    pub unsafe fn from_raw_parts(
        pages: *mut *mut bindings::page,
        len: usize,
        capacity: usize,
    ) -> Self {
        // SAFETY: The caller promises memory of `kvmalloc()` that nobody else uses, with room for
        // `capacity` entries of which `len` are pages. A `PageRef` is a pointer.
        Self(ManuallyDrop::new(unsafe {
            KVVec::from_raw_parts(pages.cast(), len, capacity)
        }))
    }

    /// The pages that are there.
    #[inline]
    pub fn pages(&self) -> &[PageRef<'_, Of>] {
        &self.0
    }

    /// For how many more there is room.
    #[inline]
    pub fn room(&self) -> usize {
        self.0.capacity().wrapping_sub(self.0.len())
    }

    /// Where the next page goes, if there is room.
    #[inline]
    pub fn spare(&mut self) -> *mut PageRef<'static, Of> {
        let len = self.0.len();
        self.0.as_mut_ptr().wrapping_add(len)
    }

    /// Adds `n` pages that were put at [`Self::spare`].
    ///
    /// # Safety
    ///
    /// There must be room for them, and they must be what the invariants of [`PageRef`] ask for as
    /// long as they are in the array.
    #[inline]
    pub unsafe fn add(&mut self, n: usize) {
        // SAFETY: No array is larger than `isize::MAX` bytes. The caller promises that there is
        // room for `n` pages, which were put there.
        unsafe {
            assert_unchecked(self.0.len() <= isize::MAX as usize && n <= isize::MAX as usize);
            self.0.inc_len(n);
        }
    }

    /// Forgets all pages from entry `len` on.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }

    /// Frees the array.
    ///
    /// # Safety
    ///
    /// It must not be used any more.
    #[inline]
    pub unsafe fn free(&mut self) {
        // SAFETY: The caller promises not to use it any more.
        unsafe { ManuallyDrop::drop(&mut self.0) };
    }
}

/// Cuts `pages` where they are not physically contiguous: all the pages of a run make up one block
/// of memory.
///
/// Context: any. Takes no lock and doesn't sleep.
///
/// # Examples
///
/// ```
/// # let array = PageArray::alloc(700, AllocFlags::LARGE)?;
/// # let pages = array.pages();
/// let mut count = 0;
/// for run in runs(pages) {
///     // `run[0]` begins a block of `run.len()` pages: one entry of a scatter-gather table.
///     count += run.len();
/// }
/// assert_eq!(count, pages.len());
/// ```
#[inline]
pub fn runs<'p, 'a, Of: Copy>(
    pages: &'p [PageRef<'a, Of>],
) -> impl Iterator<Item = &'p [PageRef<'a, Of>]> {
    // Where pages are contiguous their `struct page`s are, too: see above.
    pages.chunk_by(|a, b| a.as_ptr().wrapping_add(1) == b.as_ptr())
}
