// SPDX-License-Identifier: GPL-2.0

//! Pin and unpin.
//!
//! The kernel moves pages: into swap, out of the way of larger allocations, between NUMA nodes. A
//! device that was given a physical address can't follow. A *pin* says that a page stays where it
//! is, for as long as it takes (`FOLL_LONGTERM`). Pins belong to the kernel's get-user-pages code
//! (GUP), which counts them apart from references.
//!
//! A [`PinArray`] pins ranges of memfds (shmem or hugetlb), or memory of the calling process, and
//! lends the pages as `&[PageRef<'_, PfnOnly>]`, with one pin for each entry. A page that can't
//! stay is moved first, out of CMA and movable memory; that fails if somebody else holds on to it
//! there, after a few tries.
//!
//! A pin does not keep a page in its file. Truncation and hole punching take it out, and the array
//! keeps it; a part of a large folio that is pinned stays, and is zeroed. `F_SEAL_SHRINK` keeps
//! truncation away. No seal keeps holes from being punched in a file that stays writable.
//!
//! Accounting (`RLIMIT_MEMLOCK`) is the driver's. No lock is held on return.
//!
//! C headers: [`include/linux/mm.h`](srctree/include/linux/mm.h),
//! [`include/linux/memfd.h`](srctree/include/linux/memfd.h)
//!
//! Reference: <https://docs.kernel.org/core-api/pin_user_pages.html>

use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::LocalFile,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};
use pagekit_view::{
    range,
    runs,
    yield_or_eintr,
    PageRef,
    PageVec,
    PfnOnly, //
};

pub use pagekit_view::Marks;

#[cfg(CONFIG_PAGEKIT_PIN_C)]
mod pin_c;

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    // mm/shmem.c exports these, `bindings` does not have them.
    fn shmem_mapping(mapping: *mut bindings::address_space) -> bool;
    fn shmem_read_folio_gfp(
        mapping: *mut bindings::address_space,
        index: c_ulong,
        gfp: bindings::gfp_t,
    ) -> *mut bindings::folio;

    // Static inlines, see pin_shim.c.
    fn pagekit_pin_has_mm() -> bool;
    fn pagekit_pin_file_size(file: *mut bindings::file) -> bindings::loff_t;
    fn pagekit_pin_index(folio: *mut bindings::folio) -> usize;
    fn pagekit_pin_usable(folio: *mut bindings::folio, index: usize) -> c_long;
    fn pagekit_pin_rest(page: *mut bindings::page) -> usize;
    fn pagekit_pin_take_small_prefix(folios: *const *mut bindings::folio, n: usize) -> usize;
    fn pagekit_pin_put_small_prefix(
        pages: *const PageRef<'_, PfnOnly>,
        n: usize,
        dirty: bool,
    ) -> usize;
    fn pagekit_pin_put(folio: *mut bindings::folio);
    fn pagekit_pin_dirty_without_lock(page: *mut bindings::page) -> bool;

    // Only where there are debug assertions.
    fn pagekit_pin_is_pinned(page: *mut bindings::page) -> bool;
}

/// How pages are pinned.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct PinFlags(u32);

// The values are those of pagekit.h.
bitflags::bitflags! {
    impl PinFlags: u32 {
        /// The pages may be written through the array, by a device or a mapping, C's `FOLL_WRITE`:
        /// they are marked [`Marks::DIRTY`] when the array is dropped, so that what was written
        /// survives reclaim.
        const WRITE = 16;
        /// Reclaim as hard as may be for the array itself, C's `__GFP_RETRY_MAYFAIL`, but have
        /// nobody killed for it: `ENOMEM` comes instead. Pages are got as ever: a driver that wants
        /// nobody killed for those of a file fills it first, with `pagekit_pages`.
        const RETRY_MAYFAIL = 8;
    }
}

/// Pages pinned or unpinned at once. This bounds the time between two looks at signals and at
/// others who want to run.
const CHUNK: usize = 1 << 12;

/// How often pages that could not be moved out of movable memory are tried again.
const TRIES: u32 = 5;

/// Pinned pages.
///
/// Unpinned on drop, or by [`PinArray::put`]. Both may sleep. A shrinker may call them for arrays
/// of memfds. Not for arrays of user memory: if that is of a file on a disk, marking it dirty takes
/// folio locks, which the code that allocates may hold.
///
/// # Invariants
///
/// This owns one pin (`FOLL_PIN`) for every entry of `pages`. If `ordered`, the entry after a page
/// is the next page of the same folio, unless the page is its folio's last.
pub struct PinArray {
    pages: PageVec<PfnOnly>,
    ordered: bool,
    flags: PinFlags,
}

impl PinArray {
    /// Makes room for `count` pages to be pinned as `flags` say. Nothing is pinned yet.
    ///
    /// Context: process context, may sleep. Takes no lock but those of the allocator. A fault
    /// operation may call it. Not for shrinkers. The memory, 8 bytes a page, is charged to the
    /// caller's memory cgroup.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[export_name = "pagekit_pin_array_with_capacity"]
    pub fn with_capacity(count: usize, flags: PinFlags) -> Result<Self> {
        let effort = if flags.contains(PinFlags::RETRY_MAYFAIL) {
            1 << bindings::___GFP_RETRY_MAYFAIL_BIT
        } else {
            0
        };
        Ok(Self {
            // INVARIANT: There are no entries yet.
            pages: PageVec::with_capacity(count, effort)?,
            ordered: true,
            flags,
        })
    }

    /// Lends the pages, in the order in which they were pinned. They are a file's or a process's:
    /// only their PFNs can be mapped, and the driver promises who may write to them.
    #[inline]
    pub fn pages(&self) -> &[PageRef<'_, PfnOnly>] {
        self.pages.pages()
    }

    /// Pins the `count` pages at page offset `pgoff` of the memfd `file`, behind those that the
    /// array has already.
    ///
    /// Holes and swapped-out pages are filled, pages that were never written are zeroed. Ranges may
    /// overlap, within one array and across arrays.
    ///
    /// This doesn't ask whether the file was opened for writing, or whether its seals forbid that,
    /// not even for [`PinFlags::WRITE`]. A driver asks before it lets users write to the pages.
    ///
    /// If somebody else holds pages in movable memory, or pins them at the same time, this tries
    /// again a few times, with some milliseconds in between.
    ///
    /// Context: process context, may sleep. Takes folio locks, and what filling the file takes. The
    /// caller may hold the inode lock shared, to keep seals as they are. Not for shrinkers.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: neither a shmem nor a hugetlbfs file, `count` is 0, the range reaches past the
    ///   end of the file, or there is no room for it in the array.
    /// * `EIO`: a page of the range, or of a large folio that reaches into it, has a hardware
    ///   memory error, or can't be read from swap.
    /// * `EINTR`: a fatal signal is pending.
    /// * `ENOMEM`: also if a page is pinned too many times already, or can't be moved out of CMA or
    ///   movable memory because somebody else holds it.
    /// * Others, as from `memfd_pin_folios()`.
    ///
    /// On any error the array is as it was.
    ///
    /// C: [`memfd_pin_folios()`](srctree/mm/gup.c);
    /// [`udmabuf_pin_folios()`](srctree/drivers/dma-buf/udmabuf.c).
    ///
    /// # Examples
    ///
    /// ```
    /// # let (a, b) = (TestFile::pattern(4)?, TestFile::pattern(4)?);
    /// # let (memfd, other) = (a.file(), b.file());
    /// let mut pins = PinArray::with_capacity(5, PinFlags::WRITE)?;
    /// pins.pin_memfd(memfd, 1, 3)?;
    /// pins.pin_memfd(other, 0, 2)?;
    /// assert_eq!(pins.pages().len(), 5);
    /// drop(pins); // Unpins.
    /// ```
    #[export_name = "pagekit_pin_array_pin_memfd"]
    pub fn pin_memfd(&mut self, file: &LocalFile, pgoff: usize, count: usize) -> Result {
        let (_, end) = range::file_bytes(pgoff, count, PAGE_SHIFT as u32).ok_or(EINVAL)?;
        let before = self.pages().len();
        // SAFETY: The file is open, and so has an inode.
        let size = unsafe { pagekit_pin_file_size(file.as_ptr()) };
        // The end of the file is checked before the first page of it is filled.
        if count > self.pages.room() || end > size {
            return Err(EINVAL);
        }
        let mut tries = TRIES;
        // SAFETY: There is room for `count` more entries.
        while let Err(error) = unsafe { self.pin_chunks(file, pgoff, count) } {
            self.undo(before, error, &mut tries)?;
        }
        Ok(())
    }

    /// Pins `count` pages of the memory of the current process from `addr` on, behind those that
    /// the array has already.
    ///
    /// With [`PinFlags::WRITE`] the process must be allowed to write to the memory. Private pages
    /// are copied first, so that what is pinned is what the process sees, and memory of files on
    /// disk is refused. Pages that somebody else holds in movable memory are tried again as by
    /// [`Self::pin_memfd`].
    ///
    /// Context: process context, may sleep; takes the mmap lock for reading. Not for shrinkers.
    /// `RLIMIT_MEMLOCK` is the driver's to respect: it also bounds how often a page is pinned.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: `addr` is not page aligned, `count` is 0, the range wraps around, or there is no
    ///   room for it in the array.
    /// * `EFAULT`: not user memory, not mapped, not writable but [`PinFlags::WRITE`], with a
    ///   hardware memory error, or there is no process: this is a kernel thread.
    /// * `EINTR`: a fatal signal is pending.
    /// * `ENOMEM` and others, as from `pin_user_pages_fast()`.
    ///
    /// On any error the array is as it was.
    ///
    /// C: [`pin_user_pages_fast()`](srctree/mm/gup.c);
    /// [`amdxdna_get_ubuf()`](srctree/drivers/accel/amdxdna/amdxdna_ubuf.c).
    ///
    /// # Examples
    ///
    /// ```
    /// # let addr = user_memory(None, 4, 3)?;
    /// let mut pins = PinArray::with_capacity(4, PinFlags::WRITE)?;
    /// pins.pin_user(addr, 4)?;
    /// # put_user(addr, 7)?;
    /// # assert_eq!(first(pins.pages()[0].as_ptr()), 7);
    /// ```
    #[export_name = "pagekit_pin_array_pin_user"]
    pub fn pin_user(&mut self, addr: usize, count: usize) -> Result {
        let before = self.pages().len();
        let wraps = count
            .checked_mul(PAGE_SIZE)
            .and_then(|len| addr.checked_add(len))
            .is_none();
        // SAFETY: It has no requirements: it looks at the current task.
        if !unsafe { pagekit_pin_has_mm() } {
            return Err(EFAULT);
        }
        if count == 0 || wraps || addr % PAGE_SIZE != 0 || count > self.pages.room() {
            return Err(EINVAL);
        }
        let mut tries = TRIES;
        // SAFETY: There is room for `count` more entries.
        while let Err(error) = unsafe { self.pin_user_chunks(addr, count) } {
            self.undo(before, error, &mut tries)?;
        }
        Ok(())
    }

    /// Unpins what was pinned from entry `before` on, until `error` came. Returns that, unless it
    /// is to be tried again.
    ///
    /// Two that pin a movable page at once both hold it, and so each keeps the other from moving
    /// it. The kernel drains batches of new pages then, and waits for that with all pins held: who
    /// tries again at once meets the other one time after time. Without pins for a tick, one of
    /// them gets on.
    #[inline(never)]
    fn undo(&mut self, before: usize, error: Error, tries: &mut u32) -> Result {
        // Nobody was lent these, so nothing was written to them through this array.
        self.unpin_from(before, Marks::empty());
        if error != ENOMEM || *tries == 0 {
            return Err(error);
        }
        *tries = tries.wrapping_sub(1);
        // SAFETY: Whoever pins may sleep. A fatal signal ends it.
        unsafe { bindings::schedule_timeout_killable(1) };
        yield_or_eintr()
    }

    /// As [`Self::pin_user`], but leaves what it has pinned on error.
    ///
    /// # Safety
    ///
    /// There must be room for `count` more entries.
    unsafe fn pin_user_chunks(&mut self, addr: usize, count: usize) -> Result {
        let mut flags = bindings::FOLL_LONGTERM;
        if self.flags.contains(PinFlags::WRITE) {
            flags |= bindings::FOLL_WRITE;
        }
        let mut done = 0;
        while done < count {
            // Nothing wraps: the range has been checked.
            let n = CHUNK.min(count.wrapping_sub(done));
            // SAFETY: There is room for `n` pointers, which fits a `c_int`: it is at most `CHUNK`.
            let got = unsafe {
                bindings::pin_user_pages_fast(
                    addr.wrapping_add(done << PAGE_SHIFT),
                    n as c_int,
                    flags,
                    self.pages.spare().cast(),
                )
            };
            if got <= 0 {
                // Some ways to be killed in there look like other errors.
                yield_or_eintr()?;
                to_result(got)?;
                return Err(EFAULT);
            }
            // SAFETY: The kernel has filled in this many, of the `n` that there is room for.
            // INVARIANT: It has pinned each once. Processes order their memory as they like.
            unsafe { self.pages.add(got as usize) };
            self.ordered = false;
            // It may have stopped early. The next call says why, if there is a reason.
            done = done.wrapping_add(got as usize);
            yield_or_eintr()?;
        }
        Ok(())
    }

    /// As [`Self::pin_memfd`], but leaves what it has pinned on error.
    ///
    /// # Safety
    ///
    /// There must be room for `count` more entries.
    unsafe fn pin_chunks(&mut self, file: &LocalFile, pgoff: usize, count: usize) -> Result {
        let mut done = 0;
        while done < count {
            // Nothing wraps: the range is one that a file may have.
            let n = CHUNK.min(count.wrapping_sub(done));
            // SAFETY: There is room for the pages that are left, and these are at most `CHUNK`.
            match unsafe { self.pin_chunk(file, pgoff.wrapping_add(done), n) } {
                Ok(()) => done = done.wrapping_add(n),
                // The file changed under us: look again.
                Err(e) if e == EAGAIN => (),
                Err(e) => return Err(e),
            }
            yield_or_eintr()?;
        }
        Ok(())
    }

    /// Pins `count` pages, all or none.
    ///
    /// # Safety
    ///
    /// There must be room for `count` more entries, and it must be at most [`CHUNK`].
    unsafe fn pin_chunk(&mut self, file: &LocalFile, pgoff: usize, count: usize) -> Result {
        // The folios are pinned straight into the page array, and expanded in it below: the pointer
        // to an order-0 folio is the pointer to its page.
        let slots = self.pages.spare();
        let mut offset = 0;
        // SAFETY: The file is open. There is room for `count` pointers, which fits a `c_uint`
        // because it is at most `CHUNK`.
        let nr = unsafe {
            bindings::memfd_pin_folios(
                file.as_ptr(),
                (pgoff << PAGE_SHIFT) as bindings::loff_t,
                // The last byte of the last page.
                (pgoff.wrapping_add(count) << PAGE_SHIFT).wrapping_sub(1) as bindings::loff_t,
                slots.cast(),
                count as c_uint,
                &mut offset,
            )
        };
        to_result(nr as c_int)?;
        // SAFETY: There is room for `count` pointers from `slots` on. The kernel filled in `nr`
        // folios there and pinned each once for this call.
        unsafe { expand(file, pgoff, count, slots, nr as usize) }?;

        if let Some(last) = self.pages().last() {
            let last = last.as_ptr();
            // INVARIANT: What came before may have ended within a folio that goes on elsewhere.
            // SAFETY: The last page is pinned. `expand` has filled in the entry behind it.
            self.ordered &=
                unsafe { pagekit_pin_rest(last) == 1 || (*slots).as_ptr() == last.wrapping_add(1) };
        }
        // SAFETY: `expand` filled in the next `count` entries, for which there was room.
        // INVARIANT: It made sure of one pin for each, and of their order.
        unsafe { self.pages.add(count) };
        Ok(())
    }

    /// Whether the entries are as the type invariants say, as far as pages tell.
    fn is_sound(&self) -> bool {
        let mut pairs = self.pages().windows(2);
        // SAFETY: By the type invariants there is a pin on each page, which keeps it and its folio.
        let pinned = |page: &PageRef<'_, PfnOnly>| unsafe { pagekit_pin_is_pinned(page.as_ptr()) };
        // SAFETY: By the type invariants there is a pin on each page, which keeps it and its folio.
        let rest = |page: &PageRef<'_, PfnOnly>| unsafe { pagekit_pin_rest(page.as_ptr()) };
        self.pages().iter().all(pinned)
            && (!self.ordered || pairs.all(|pair| rest(&pair[0]) == 1 || runs(pair).count() == 1))
    }

    /// Unpins the pages, and marks them first as `marks` says and not as they would be on drop.
    ///
    /// Context: process context, may sleep. A shrinker may call it for arrays of memfds.
    ///
    /// C: [`unpin_user_pages_dirty_lock()`](srctree/mm/gup.c).
    ///
    /// # Examples
    ///
    /// ```
    /// # let shmem = TestFile::pattern(4)?;
    /// # let memfd = shmem.file();
    /// let mut pins = PinArray::with_capacity(4, PinFlags::WRITE)?;
    /// pins.pin_memfd(memfd, 0, 4)?;
    /// // They could have been written to, but no device was ever told to.
    /// pins.put(Marks::empty());
    /// ```
    #[inline]
    pub fn put(mut self, marks: Marks) {
        self.unpin_from(0, marks);
    }

    /// Unpins and forgets the entries from `start` on.
    #[export_name = "pagekit_pin_array_unpin_from"]
    #[inline(never)]
    fn unpin_from(&mut self, start: usize, marks: Marks) {
        debug_assert!(self.is_sound());
        let (dirty, accessed) = (
            marks.contains(Marks::DIRTY),
            marks.contains(Marks::ACCESSED),
        );
        let mut rest = self.pages().get(start..).unwrap_or_default();
        while let Some(first) = rest.first() {
            let mut n = 0;
            if !accessed {
                let most = rest.len().min(CHUNK);
                // SAFETY: By the type invariants we own a pin for each entry. `truncate` below
                // forgets those that end here.
                n = unsafe { pagekit_pin_put_small_prefix(rest.as_ptr(), most, dirty) };
            }
            if n == 0 {
                let page = first.as_ptr();
                // SAFETY: By the type invariants we own a pin on the page, which keeps its folio.
                n = unsafe { pagekit_pin_rest(page) }.min(rest.len());
                if !self.ordered {
                    let mut run = 1;
                    while run < n
                        && rest
                            .get(run)
                            .is_some_and(|p| p.as_ptr() == page.wrapping_add(run))
                    {
                        run = run.wrapping_add(1);
                    }
                    n = run;
                }
                // SAFETY: The next `n` entries are contiguous pages of one folio: that was looked
                // at, or the type invariants say so. We own a pin for each. `truncate` below
                // forgets them.
                unsafe {
                    let lock = dirty && !pagekit_pin_dirty_without_lock(page);
                    if accessed {
                        bindings::mark_page_accessed(page);
                    }
                    bindings::unpin_user_page_range_dirty_lock(page, n, lock);
                }
            }
            // Releasing goes on whoever is killed.
            let _ = yield_or_eintr();
            rest = rest.get(n..).unwrap_or_default();
        }
        // INVARIANT: No entry is left without its pin.
        self.pages.truncate(start);
    }
}

impl Drop for PinArray {
    #[export_name = "pagekit_pin_array_drop"]
    #[inline(never)]
    fn drop(&mut self) {
        self.unpin_from(
            0,
            if self.flags.contains(PinFlags::WRITE) {
                Marks::DIRTY
            } else {
                Marks::empty()
            },
        );
        // Here, so that it isn't in each driver.
        // SAFETY: The array is being dropped: nobody uses it afterwards.
        unsafe { self.pages.free() };
    }
}

/// How many users need pages pinned: a plain nested count.
///
/// The first user pins the pages, and the last one unpins them: users that come when a buffer is
/// made, when a device maps, or when the CPU does.
///
/// Context: any, under the driver's lock, for which `&mut self` asks. Doesn't sleep.
///
/// C: a counter like `pages_pin_count` of
/// [`drm_gem_shmem`](srctree/include/drm/drm_gem_shmem_helper.h).
///
/// # Examples
///
/// ```
/// # let shmem = TestFile::pattern(4)?;
/// # let file = shmem.file();
/// // What the driver's lock protects:
/// let (mut count, mut pins) = (PinCount::default(), None);
///
/// // A device maps. If pinning fails, `count.unpin()` takes this user back.
/// if count.pin() {
///     let mut array = PinArray::with_capacity(4, PinFlags::WRITE)?;
///     array.pin_memfd(file, 0, 4)?;
///     pins = Some(array);
/// }
///
/// // It unmaps.
/// if count.unpin() {
///     pins = None;
/// }
/// # assert!(pins.is_none());
/// ```
#[derive(Default)]
pub struct PinCount(usize);

impl PinCount {
    /// Counts one user more. Returns whether it is the first.
    #[inline]
    pub fn pin(&mut self) -> bool {
        self.0 = self.0.saturating_add(1);
        self.0 == 1
    }

    /// Counts one user less, of those that [`Self::pin`] has counted. Returns whether it was the
    /// last.
    ///
    /// When no user is left, a call panics with `CONFIG_RUST_DEBUG_ASSERTIONS`. Without, it changes
    /// nothing and returns `false`.
    #[inline]
    pub fn unpin(&mut self) -> bool {
        let users = self.0;
        debug_assert!(users > 0);
        self.0 = users.saturating_sub(1);
        users == 1
    }
}

/// Turns `nr` freshly pinned folios at the start of `slots` into the `count` pages at `pgoff` of
/// `file`, each with a pin, up to date, and in the order that [`PinArray`] asks for.
///
/// On error all pins are gone.
///
/// # Safety
///
/// `slots` must have room for `count` pointers; its first `nr` must be what `memfd_pin_folios()`
/// has pinned for this range.
unsafe fn expand(
    file: &LocalFile,
    pgoff: usize,
    count: usize,
    slots: *mut PageRef<'static, PfnOnly>,
    nr: usize,
) -> Result {
    // A small folio is its only page. Larger ones are expanded.
    let folios = slots.cast();
    // SAFETY: The first `nr` slots are pinned folios: this function asks for that.
    if nr == count && unsafe { pagekit_pin_take_small_prefix(folios, nr) } == nr {
        // As many as there are pages are all.
        return Ok(());
    }
    let (mut left, mut end) = (nr, count);
    // SAFETY: There is room for `count` pages, and the first `nr` slots are folios that were pinned
    // for this range: this function asks for both.
    let result = unsafe { expand_backwards(file, pgoff, folios, &mut left, &mut end) };
    if result.is_err() {
        // SAFETY: `expand_backwards` has left one pin on each page from `end` on, and on each of
        // the folios that are left.
        unsafe {
            bindings::unpin_user_pages(slots.add(end).cast(), count.wrapping_sub(end));
            bindings::unpin_folios(folios, left);
        }
    }
    result
}

/// Expands the last of `left` folios into the slots before `end`, and so on until none is left.
///
/// # Safety
///
/// `slots` must have room for `end` pointers; its first `left` must be what `memfd_pin_folios()`
/// has pinned for these pages. On error there is a pin for each of the folios that are left, and
/// for each slot between `end` as it is then and as it was.
unsafe fn expand_backwards(
    file: &LocalFile,
    pgoff: usize,
    slots: *mut *mut bindings::folio,
    left: &mut usize,
    end: &mut usize,
) -> Result {
    let all = *end;
    // Backwards: a folio has at least one page, so that none is overwritten before its turn.
    while *left > 0 {
        // SAFETY: This slot has not been overwritten: there are at least `left` before `end`. The
        // folio is pinned, which keeps its place in the file and its size.
        let (folio, first) = unsafe {
            let folio = *slots.add(*left - 1);
            (folio, pagekit_pin_index(folio))
        };
        let start = first.max(pgoff);
        // SAFETY: The folio is pinned.
        let mut usable = unsafe { pagekit_pin_usable(folio, start) };
        if usable == 0 {
            // SAFETY: The folio is pinned.
            usable = unsafe {
                make_uptodate(file, start, folio)?;
                pagekit_pin_usable(folio, start)
            };
        }
        to_result(usable as c_int)?;
        let (usable, n) = (
            usable as usize,
            pgoff.wrapping_add(*end).saturating_sub(start),
        );
        // Folios may have been replaced by larger or smaller ones between two lookups. Only the
        // last may have more pages than are wanted.
        let cut = n < usable && *end < all;
        if n == 0 || n > usable || cut || n > end.saturating_sub(*left - 1) {
            return Err(EAGAIN);
        }
        // SAFETY: The folio is pinned, and has `n` pages from that one on. These slots lie behind
        // those of the folios that are left.
        unsafe {
            if n > 1 {
                to_result(bindings::folio_add_pins(folio, (n - 1) as c_uint))?;
            }
            // Neither wraps: rustc 1.85 doesn't see that the conditions above say so.
            (*left, *end) = (left.wrapping_sub(1), end.wrapping_sub(n));
            let page = folio.cast::<bindings::page>().add(start - first);
            write_run(slots.add(*end).cast(), NonNull::new_unchecked(page), n);
        }
    }
    if *end == 0 {
        Ok(())
    } else {
        Err(EAGAIN)
    }
}

/// [`PageRef::fill`], compiled by itself: in a larger function it gets much larger.
///
/// # Safety
///
/// There must be room for `n` entries from `slots` on, and a pin on each of the `n` pages from
/// `first` on.
#[inline(never)]
unsafe fn write_run(slots: *mut PageRef<'_, PfnOnly>, first: NonNull<bindings::page>, n: usize) {
    // SAFETY: There is room for the entries, and the pages are pinned, which makes each what a
    // `PageRef` asks for: this function asks for both.
    unsafe { PageRef::fill(slots, first, n) }
}

/// Has shmem zero the pinned `folio`, which was allocated at file page `index` but never written.
///
/// # Safety
///
/// `folio` must be pinned.
unsafe fn make_uptodate(file: &LocalFile, index: usize, folio: *mut bindings::folio) -> Result {
    // SAFETY: An open file has a mapping, and keeps it.
    let mapping = unsafe { (*file.as_ptr()).f_mapping };
    // SAFETY: It is the mapping of an open file.
    if !unsafe { shmem_mapping(mapping) } {
        // hugetlbfs has no such folios.
        return Err(EIO);
    }
    // SAFETY: It is the shmem mapping of an open file.
    let found = from_err_ptr(unsafe { shmem_read_folio_gfp(mapping, index, (*mapping).gfp_mask) })?;
    // SAFETY: We own the reference that shmem returned. The pin keeps `folio`.
    unsafe { pagekit_pin_put(found) };
    // If a hole was punched since, ours is no longer the file's and nobody will zero it.
    if found == folio {
        Ok(())
    } else {
        Err(EAGAIN)
    }
}
