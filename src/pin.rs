// SPDX-License-Identifier: GPL-2.0

//! Pin and unpin.
//!
//! A [`PinArray`] pins ranges of memfds (shmem or hugetlb) or user memory and
//! lends their pages as `&[PageRef<'_>]`, one pin per entry. Pinned means: the page stays where it
//! is, for as long as it takes (`FOLL_LONGTERM`), so that a device may use it. It
//! was moved out of CMA and movable memory first; that fails if somebody else
//! holds on to it there.
//!
//! A pin does not keep a page in its file. Truncation and hole punching take it
//! out, and the array keeps it; a part of a large folio that is pinned stays, and
//! is zeroed. `F_SEAL_SHRINK` keeps truncation away; hole punching must be lived
//! with by whoever wants the file to stay writable.
//!
//! Accounting (`RLIMIT_MEMLOCK`) is the driver's. No lock is held on return.

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
    PageRef, //
};

module! {
    type: Module,
    name: "pagekit_pin",
    authors: ["The pagekit authors"],
    description: "Pinned pages for dma-buf drivers",
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
    fn pagekit_pin_nr(folio: *mut bindings::folio) -> usize;
    fn pagekit_pin_index(folio: *mut bindings::folio) -> usize;
    fn pagekit_pin_refs(folio: *mut bindings::folio) -> c_int;
    fn pagekit_pin_uptodate(folio: *mut bindings::folio) -> bool;
    fn pagekit_pin_poisoned(folio: *mut bindings::folio) -> bool;
    fn pagekit_pin_put(folio: *mut bindings::folio);
    fn pagekit_pin_cond_resched();
    fn pagekit_pin_fatal_signal() -> bool;
}

/// How pages are pinned.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct PinFlags(u8);

bitflags::bitflags! {
    impl PinFlags: u8 {
        /// The pages may be written through the array, by a device or a mapping, C's
        /// `FOLL_WRITE`: they are marked dirty when they are unpinned, so that what was
        /// written survives reclaim.
        const WRITE = 1;
    }
}

/// Pages pinned or unpinned at once: bounds the time between two looks at signals and others.
const CHUNK: usize = 1 << 12;

/// References on a folio beyond which there are no further pins of it: the kernel warns when they
/// overflow, and an order-0 folio has 1024 of them for each pin.
const MAX_REFS: c_int = c_int::MAX / 2;

/// Gives way to others, and looks whether it's any use to go on.
fn yield_or_eintr() -> Result {
    // SAFETY: This runs in process context and may sleep.
    unsafe { pagekit_pin_cond_resched() };
    // SAFETY: It reads the flags of the current task.
    if unsafe { pagekit_pin_fatal_signal() } {
        Err(EINTR)
    } else {
        Ok(())
    }
}

/// Pinned pages.
///
/// Unpinned on drop, which may sleep: it takes folio locks where pages are marked dirty.
///
/// # Invariants
///
/// This owns one pin (`FOLL_PIN`) for every entry of `pages`.
pub struct PinArray {
    pages: KVVec<PageRef<'static>>,
    flags: PinFlags,
}

impl PinArray {
    /// Makes room for `count` pages to be pinned as `flags` say. Nothing is pinned yet.
    ///
    /// Context: may sleep. The memory, 8 bytes a page, is charged to the caller's memory cgroup.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    #[inline(never)]
    pub fn with_capacity(count: usize, flags: PinFlags) -> Result<Self> {
        Ok(Self {
            // INVARIANT: There are no entries yet.
            pages: KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT | __GFP_NOWARN)?,
            flags,
        })
    }

    /// Lends the pages, in the order in which they were pinned.
    #[inline]
    pub fn pages(&self) -> &[PageRef<'_>] {
        &self.pages
    }

    /// Pins the `count` pages at page offset `pgoff` of the memfd `file`, behind those that the
    /// array has already.
    ///
    /// Holes and swapped-out pages are filled, pages that were never written are zeroed. Ranges
    /// may overlap, within one array and across arrays.
    ///
    /// Context: process context, may sleep. Takes folio locks, and what filling the file takes.
    /// The caller may hold the inode lock shared, to keep seals as they are.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: neither a shmem nor a hugetlbfs file, `count` is 0, the range reaches past the
    ///   end of the file, or there is no room for it in the array.
    /// * `EIO`: a page of the range, or of a large folio that reaches into it, has a hardware
    ///   memory error.
    /// * `EINTR`: a fatal signal is pending.
    /// * `ENOMEM`: also if a page is pinned too many times already.
    /// * Others, as from `memfd_pin_folios()`.
    ///
    /// On any error the array is as it was.
    ///
    /// C: `memfd_pin_folios()` in `mm/gup.c`; `udmabuf_pin_folios()` in
    /// `drivers/dma-buf/udmabuf.c`.
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
    #[inline(never)]
    pub fn pin_memfd(&mut self, file: &LocalFile, pgoff: usize, count: usize) -> Result {
        let (_, end) = range::file_bytes(pgoff, count, PAGE_SHIFT as u32).ok_or(EINVAL)?;
        let before = self.pages.len();
        // SAFETY: The file is open.
        let size = unsafe { pagekit_pin_file_size(file.as_ptr()) };
        // The end of the file is checked before the first page of it is filled.
        if count > self.pages.capacity() - before || end > size {
            return Err(EINVAL);
        }
        let result = self.pin_chunks(file, pgoff, count);
        if result.is_err() {
            // Nobody was lent these, so nothing was written to them through this array.
            self.unpin_from(before, false);
        }
        result
    }

    /// Pins `count` pages of the memory of the current process from `addr` on, behind those that
    /// the array has already.
    ///
    /// With [`PinFlags::WRITE`] private pages are copied first, so that what is pinned is what the
    /// process sees, and memory of files on disk is refused.
    ///
    /// Context: process context, may sleep; takes the mmap lock for reading. `RLIMIT_MEMLOCK` is
    /// the driver's to respect: it also bounds how often a page is pinned.
    ///
    /// # Errors
    ///
    /// * `EINVAL`: `addr` is not page aligned, `count` is 0, the range wraps around, or there is no
    ///   room for it in the array.
    /// * `EFAULT`: not user memory, not mapped, not writable but [`PinFlags::WRITE`], or there is no
    ///   process: this is a kernel thread.
    /// * `EINTR`: a fatal signal is pending.
    /// * `ENOMEM` and others, as from `pin_user_pages_fast()`.
    ///
    /// On any error the array is as it was.
    ///
    /// C: `pin_user_pages_fast()` in `mm/gup.c`; `amdxdna_get_ubuf()` in
    /// `drivers/accel/amdxdna/amdxdna_ubuf.c`.
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
    #[inline(never)]
    pub fn pin_user(&mut self, addr: usize, count: usize) -> Result {
        let before = self.pages.len();
        let wraps = count
            .checked_mul(PAGE_SIZE)
            .and_then(|len| addr.checked_add(len))
            .is_none();
        // SAFETY: It looks at the current task.
        if !unsafe { pagekit_pin_has_mm() } {
            return Err(EFAULT);
        }
        if count == 0 || wraps || addr % PAGE_SIZE != 0 || count > self.pages.capacity() - before {
            return Err(EINVAL);
        }
        let result = self.pin_user_chunks(addr, count);
        if result.is_err() {
            self.unpin_from(before, false);
        }
        result
    }

    /// As [`Self::pin_user`], but leaves what it has pinned on error.
    fn pin_user_chunks(&mut self, addr: usize, count: usize) -> Result {
        let mut flags = bindings::FOLL_LONGTERM;
        if self.flags.contains(PinFlags::WRITE) {
            flags |= bindings::FOLL_WRITE;
        }
        let mut done = 0;
        while done < count {
            let n = CHUNK.min(count - done);
            // SAFETY: There is room for `n` pointers, which fits a `c_int`.
            let got = unsafe {
                bindings::pin_user_pages_fast(
                    addr + done * PAGE_SIZE,
                    n as c_int,
                    flags,
                    self.pages.spare_capacity_mut().as_mut_ptr().cast(),
                )
            };
            if got <= 0 {
                // Some ways to be killed in there look like other errors.
                yield_or_eintr()?;
                to_result(got)?;
                return Err(EFAULT);
            }
            // SAFETY: The kernel has filled in this many.
            // INVARIANT: It has pinned each once.
            unsafe { self.pages.inc_len(got as usize) };
            // It may have stopped early. The next call says why, if there is a reason.
            done += got as usize;
            yield_or_eintr()?;
        }
        Ok(())
    }

    /// As [`Self::pin_memfd`], but leaves what it has pinned on error.
    fn pin_chunks(&mut self, file: &LocalFile, pgoff: usize, count: usize) -> Result {
        let mut done = 0;
        while done < count {
            let n = CHUNK.min(count - done);
            match self.pin_chunk(file, pgoff + done, n) {
                Ok(()) => done += n,
                // The file changed under us: look again.
                Err(e) if e == EAGAIN => (),
                Err(e) => return Err(e),
            }
            yield_or_eintr()?;
        }
        Ok(())
    }

    /// Pins `count` pages, for which there must be room, all or none.
    fn pin_chunk(&mut self, file: &LocalFile, pgoff: usize, count: usize) -> Result {
        let (start, end) = range::file_bytes(pgoff, count, PAGE_SHIFT as u32).ok_or(EINVAL)?;
        let spare = &mut self.pages.spare_capacity_mut()[..count];
        // The folios are pinned straight into the page array, and spread out in it below: the
        // pointer to an order-0 folio is the pointer to its page.
        let slots = spare.as_mut_ptr().cast::<*mut bindings::folio>();
        let mut offset = 0;
        // SAFETY: The file is open. There is room for `count` pointers, which fits a `c_uint`
        // because it is at most `CHUNK`.
        let nr = unsafe {
            bindings::memfd_pin_folios(
                file.as_ptr(),
                start,
                end - 1,
                slots,
                count as c_uint,
                &mut offset,
            )
        };
        to_result(nr as c_int)?;
        let nr = nr as usize;
        let skip = offset >> PAGE_SHIFT;

        // SAFETY: The kernel filled in `nr` folios and pinned each once for this call.
        let folios = unsafe { core::slice::from_raw_parts(slots, nr) };
        // SAFETY: As above.
        match unsafe { check(file, pgoff, count, folios, skip) } {
            // SAFETY: As above, and `check` has looked at the sizes.
            Ok(last) => unsafe { spread(slots, nr, count, skip, last) }?,
            Err(e) => {
                // SAFETY: As above. Each pin ends here.
                unsafe { bindings::unpin_folios(slots, nr as c_ulong) };
                return Err(e);
            }
        }
        // SAFETY: `spread` initialised the next `count` entries.
        // INVARIANT: It made sure of one pin for each.
        unsafe { self.pages.inc_len(count) };
        Ok(())
    }

    /// Unpins and forgets the entries from `start` on.
    fn unpin_from(&mut self, start: usize, dirty: bool) {
        for chunk in self.pages[start..].chunks(CHUNK) {
            // SAFETY: By the type invariants we own a pin for each of these entries; `truncate`
            // below forgets them. `PageRef` is a transparent `struct page` pointer. This runs in
            // process context and may sleep.
            unsafe {
                bindings::unpin_user_pages_dirty_lock(
                    chunk.as_ptr().cast_mut().cast::<*mut bindings::page>(),
                    chunk.len() as c_ulong,
                    dirty,
                );
                pagekit_pin_cond_resched();
            }
        }
        // INVARIANT: No entry is left without its pin.
        self.pages.truncate(start);
    }
}

impl Drop for PinArray {
    fn drop(&mut self) {
        self.unpin_from(0, self.flags.contains(PinFlags::WRITE));
    }
}

/// How many users need pages pinned: a plain nested count.
///
/// Whoever counts first pins the pages, and whoever leaves last unpins them, whether they pin when
/// a buffer is made, a device maps or the CPU does. The driver brings the lock: `&mut self` asks
/// for it.
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

    /// Counts one user less. Returns whether it was the last; where there is none, it is not.
    #[inline]
    pub fn unpin(&mut self) -> bool {
        let users = self.0;
        self.0 = users.saturating_sub(1);
        users == 1
    }
}

/// Looks at freshly pinned folios: makes each up to date, refuses hardware memory errors, and
/// returns how many pages of the last one belong to the `count` wanted at `pgoff`, of which the
/// first is page `skip` of the first folio.
///
/// # Safety
///
/// `folios` must be pinned, and what `memfd_pin_folios()` returned for this range of `file`.
unsafe fn check(
    file: &LocalFile,
    pgoff: usize,
    count: usize,
    folios: &[*mut bindings::folio],
    skip: usize,
) -> Result<usize> {
    let mut skip = skip;
    let mut left = count;
    let mut share = 0;
    for &folio in folios {
        let index = pgoff + count - left;
        // SAFETY: The folio is pinned, so it exists and keeps its place and size, in all of these.
        let (first, nr, refs, poisoned, uptodate) = unsafe {
            (
                pagekit_pin_index(folio),
                pagekit_pin_nr(folio),
                pagekit_pin_refs(folio),
                pagekit_pin_poisoned(folio),
                pagekit_pin_uptodate(folio),
            )
        };
        // Folios may have been replaced by larger or smaller ones between two lookups.
        share = nr.saturating_sub(skip).min(left);
        if first + skip != index || share == 0 {
            return Err(EAGAIN);
        }
        if poisoned {
            return Err(EIO);
        }
        if !(0..MAX_REFS).contains(&refs) {
            return Err(ENOMEM);
        }
        if !uptodate {
            // SAFETY: As above.
            unsafe { make_uptodate(file, index, folio) }?;
        }
        left -= share;
        skip = 0;
    }
    if left == 0 {
        Ok(share)
    } else {
        Err(EAGAIN)
    }
}

/// Has shmem zero the pinned `folio`, which was allocated at file page `index` but never written.
///
/// # Safety
///
/// `folio` must be pinned.
unsafe fn make_uptodate(file: &LocalFile, index: usize, folio: *mut bindings::folio) -> Result {
    // SAFETY: An open file has a mapping, and keeps it.
    let mapping = unsafe { (*file.as_ptr()).f_mapping };
    // SAFETY: As above.
    if !unsafe { shmem_mapping(mapping) } {
        // hugetlbfs has no such folios.
        return Err(EIO);
    }
    // SAFETY: As above; it is a shmem mapping.
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

/// Turns `nr` folios with one pin each, at the start of `slots`, into `count` pages with one pin
/// each. `skip` pages of the first folio are left out and `last` of the last one taken.
///
/// On error all pins are gone.
///
/// # Safety
///
/// `slots` must have room for `count` pointers; its first `nr` must be folios for which the caller
/// owns a pin each, and which have these pages. `nr` and `last` must not be 0.
unsafe fn spread(
    slots: *mut *mut bindings::folio,
    nr: usize,
    count: usize,
    skip: usize,
    last: usize,
) -> Result {
    let pages = slots.cast::<*mut bindings::page>();
    // Backwards: a folio has at least one page, so that no folio is overwritten before its turn.
    let mut end = count;
    for i in (0..nr).rev() {
        // SAFETY: This slot has not been overwritten, as `end` is greater than `i`.
        let folio = unsafe { *slots.add(i) };
        let first = if i == 0 { skip } else { 0 };
        let n = if i == nr - 1 {
            last
        } else if i == 0 {
            end
        } else {
            // SAFETY: The folio is pinned.
            unsafe { pagekit_pin_nr(folio) }
        };
        if n > 1 {
            // SAFETY: The folio is pinned.
            let result = to_result(unsafe { bindings::folio_add_pins(folio, n as c_uint - 1) });
            if result.is_err() {
                // SAFETY: The entries from `end` on have one pin each, the folios up to `i` too.
                unsafe {
                    bindings::unpin_user_pages(pages.add(end), (count - end) as c_ulong);
                    bindings::unpin_folios(slots, i as c_ulong + 1);
                }
                return result;
            }
        }
        end -= n;
        for k in 0..n {
            // SAFETY: `first + k` is a page of the folio, and `end + k` is less than `count`.
            unsafe { *pages.add(end + k) = folio.cast::<bindings::page>().add(first + k) };
        }
    }
    Ok(())
}
