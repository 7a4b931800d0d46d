// SPDX-License-Identifier: GPL-2.0

//! What the test modules share: a real shmem file, and looks behind its pages.

#![allow(dead_code, reason = "Each test module uses its part.")]

use core::ptr::{
    null_mut,
    NonNull, //
};
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    fs::LocalFile,
    page::PAGE_SIZE,
    prelude::*, //
};

#[allow(
    improper_ctypes,
    reason = "Some configurations have fields of size zero in structs that are only pointed to."
)]
extern "C" {
    fn fixture_skip(why: *const c_char);
    fn fixture_has_swap() -> bool;
    fn fixture_has_movable() -> bool;
    fn fixture_shmem(size: bindings::loff_t, options: *mut c_char) -> *mut bindings::file;
    fn fixture_hugetlb(size: bindings::loff_t) -> *mut bindings::file;
    fn fixture_disk() -> *mut bindings::file;
    fn fixture_churn(file: *mut bindings::file) -> *mut bindings::task_struct;
    fn fixture_rival(rival: *mut Rival) -> *mut bindings::task_struct;
    fn fixture_set_movable(file: *mut bindings::file, movable: bool);
    fn fixture_reclaim(file: *mut bindings::file, index: c_ulong);
    fn fixture_drain();
    fn fixture_kill(kill: bool);
    fn fixture_take_memory() -> *mut c_void;
    fn fixture_give_memory(hoard: *mut c_void, kills: *mut c_uint, reclaims: *mut c_uint);
    fn fixture_keep(file: *mut bindings::file);
    #[cfg(CONFIG_NUMA)]
    fn fixture_set_policy(own: bool) -> c_uint;
    fn fixture_free_pages() -> c_ulong;
    fn fixture_movable(page: *mut bindings::page) -> bool;
    fn fixture_movable_page() -> *mut bindings::page;
    fn fixture_pin_for_long(addr: c_ulong) -> c_int;
    fn fixture_index(page: *mut bindings::page) -> usize;
    fn fixture_refs(page: *mut bindings::page) -> c_int;
    fn fixture_maybe_pinned(page: *mut bindings::page) -> bool;
    fn fixture_pincount(page: *mut bindings::page) -> c_int;
    fn fixture_poison(page: *mut bindings::page, bad: bool);
    fn fixture_add_refs(page: *mut bindings::page, refs: c_int);
    fn fixture_dirty(page: *mut bindings::page) -> bool;
    fn fixture_clear_dirty(page: *mut bindings::page);
    fn fixture_has_dirty(file: *mut bindings::file) -> bool;
    fn fixture_lock(page: *mut bindings::page);
    fn fixture_unlock(page: *mut bindings::page);
    fn fixture_uptodate(page: *mut bindings::page) -> bool;
    fn fixture_clear_referenced(page: *mut bindings::page);
    fn fixture_referenced(page: *mut bindings::page) -> bool;
    fn fixture_nr(page: *mut bindings::page) -> usize;
    fn fixture_address(page: *mut bindings::page) -> *mut u8;
    fn fixture_find(file: *mut bindings::file, index: c_ulong) -> *mut bindings::page;
    fn fixture_put(page: *mut bindings::page);
    fn fixture_stay() -> c_int;
    fn fixture_is_huge(addr: c_ulong) -> bool;
    fn fixture_cache_mode(addr: c_ulong) -> c_ulong;
    fn fixture_set_wc(pages: *mut *mut bindings::page, n: c_int, wc: bool) -> c_int;
    fn fixture_pfn(page: *mut bindings::page) -> c_ulong;
    fn fixture_set_mapping(page: *mut bindings::page, file: *mut bindings::file);
    fn fixture_clean(pages: *const *mut bindings::page, n: c_ulong) -> c_int;
    fn fixture_noncached(prot: bindings::pgprot_t) -> bindings::pgprot_t;
    fn fixture_writecombine(prot: bindings::pgprot_t) -> bindings::pgprot_t;
    fn fixture_advise_huge(addr: c_ulong) -> c_int;
    fn anon_inode_getfile(
        name: *const c_char,
        fops: *const bindings::file_operations,
        data: *mut c_void,
        flags: c_int,
    ) -> *mut bindings::file;
    fn kernel_read(
        file: *mut bindings::file,
        buf: *mut c_void,
        count: usize,
        pos: *mut bindings::loff_t,
    ) -> isize;
    fn kernel_write(
        file: *mut bindings::file,
        buf: *const c_void,
        count: usize,
        pos: *mut bindings::loff_t,
    ) -> isize;
}

/// Pages of a huge page.
pub(crate) const HUGE: usize = 1 << pagekit_view::PMD_ORDER;

/// Pages of files that [`TestFile::mixed`] has filled.
pub(crate) const MIXED: usize = HUGE + 88;

/// Ends the test: this machine lacks what it needs. It does not return, but objtool does not know
/// that of functions in C.
fn skip(why: &CStr) -> Error {
    // SAFETY: This runs in a test.
    unsafe { fixture_skip(why.as_char_ptr()) };
    ENODEV
}

/// For tests of huge pages that are folios of [`HUGE`] pages.
pub(crate) fn needs_huge_folios() -> Result {
    // Neither `PageArray::alloc()` nor shmem has such folios where pages have 64 KiB, and
    // `alloc_pages()` seldom finds as much.
    if HUGE * PAGE_SIZE > 32 << 20 {
        return Err(skip(c"huge pages are larger than 32 MiB"));
    }
    Ok(())
}

/// For tests whose pages are swapped out.
pub(crate) fn needs_swap() {
    // SAFETY: It needs nothing but a context that may sleep.
    if !unsafe { fixture_has_swap() } {
        skip(c"no swap");
    }
}

/// For tests whose pages are in movable memory first.
pub(crate) fn needs_movable() {
    // SAFETY: It needs nothing but a context that may sleep.
    if !unsafe { fixture_has_movable() } {
        skip(c"no movable memory: boot with movablecore=");
    }
}

/// For tests of what memory errors do.
pub(crate) fn needs_memory_failure() {
    if !cfg!(CONFIG_MEMORY_FAILURE) {
        skip(c"no CONFIG_MEMORY_FAILURE");
    }
}

/// An open file that is put on drop.
pub(crate) struct TestFile(*mut bindings::file);

impl Drop for TestFile {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { bindings::fput(self.0) };
    }
}

impl TestFile {
    /// A shmem file of `pages` pages, all holes. None will be in movable memory, so that tests may
    /// hold pages while they pin them.
    pub(crate) fn shmem(pages: usize) -> Result<Self> {
        Self::shmem_on(pages, null_mut())
    }

    /// As [`Self::shmem`], on a file system that has room for 4 pages.
    pub(crate) fn cramped(pages: usize) -> Result<Self> {
        let mut options = *b"nr_blocks=4\0";
        Self::shmem_on(pages, options.as_mut_ptr().cast())
    }

    fn shmem_on(pages: usize, options: *mut c_char) -> Result<Self> {
        // SAFETY: It keeps this thread, which is the test's, on its CPU: see `drain`.
        to_result(unsafe { fixture_stay() })?;
        // SAFETY: The options are null or a string, and may be written to.
        let file = from_err_ptr(unsafe { fixture_shmem((pages * PAGE_SIZE) as i64, options) });
        let file = Self(file?);
        // SAFETY: The file is open.
        unsafe { fixture_set_movable(file.0, false) };
        Ok(file)
    }

    /// A hugetlb file of `pages` pages, all holes. Skips the test if the administrator has not made
    /// two huge pages.
    pub(crate) fn hugetlb(pages: usize) -> Result<Self> {
        // SAFETY: It needs nothing but a context that may sleep.
        let file = from_err_ptr(unsafe { fixture_hugetlb((pages * PAGE_SIZE) as i64) }).map(Self);
        file.and_then(|file| {
            file.fallocate(0, pages.min(2 * HUGE))?;
            file.punch_hole(0, pages)?;
            Ok(file)
        })
        .map_err(|_| skip(c"no huge pages: boot with hugepages="))
    }

    /// A disk: a file whose dirty pages must be written back. Skips the test if the administrator
    /// has made none.
    pub(crate) fn disk() -> Result<Self> {
        // SAFETY: It needs nothing but a context that may sleep.
        from_err_ptr(unsafe { fixture_disk() })
            .map(Self)
            .map_err(|_| skip(c"no disk that nobody uses"))
    }

    /// As [`Self::hugetlb`], page i full of bytes `pattern(i)`. Skips the test if there are fewer.
    pub(crate) fn hugetlb_pattern(pages: usize) -> Result<Self> {
        let file = Self::hugetlb(pages)?;
        if file.fallocate(0, pages).is_err() {
            drop(file);
            return Err(skip(c"too few huge pages: boot with hugepages="));
        }
        for i in 0..pages {
            file.find(i).ok_or(ENOENT)?.fill(pattern(i));
        }
        Ok(file)
    }

    /// A shmem file of `pages` pages, page i full of bytes `pattern(i)`.
    pub(crate) fn pattern(pages: usize) -> Result<Self> {
        Self::shmem(pages)?.filled(pages)
    }

    /// As [`Self::pattern`], in folios of [`HUGE`] pages. Attaches the test to an mm.
    pub(crate) fn huge_pattern(pages: usize) -> Result<Self> {
        Self::shmem(pages)?
            .with_folios((0..pages).step_by(HUGE).map(|first| (first, HUGE)))?
            .filled(pages)
    }

    /// As [`Self::pattern`], of [`MIXED`] pages in folios of [`HUGE`], 16 and 1. Attaches the test
    /// to an mm.
    pub(crate) fn mixed(self) -> Result<Self> {
        self.with_folios([(0, HUGE), (HUGE, 16), (HUGE + 32, 16)])?
            .filled(MIXED)
    }

    /// Pages of it are not reclaimed.
    pub(crate) fn kept(self) -> Self {
        // SAFETY: The file is open.
        unsafe { fixture_keep(self.0) };
        self
    }

    /// From now on, pages come from movable memory while there is some: boot with movablecore=.
    pub(crate) fn movable(self) -> Self {
        // SAFETY: The file is open.
        unsafe { fixture_set_movable(self.0, true) };
        self
    }

    /// Makes holes folios: first page and count of each. Attaches the test to an mm.
    ///
    /// Skips it unless the administrator lets shmem use folios of that size.
    pub(crate) fn with_folios(
        self,
        folios: impl IntoIterator<Item = (usize, usize)>,
    ) -> Result<Self> {
        for (first, nr) in folios {
            if !self.add_folio(first, nr)? {
                drop(self);
                return Err(skip(c"no such folios of shmem: boot with thp_shmem="));
            }
        }
        Ok(self)
    }

    fn add_folio(&self, first: usize, nr: usize) -> Result<bool> {
        // A larger one doesn't fit into the VMA.
        let addr = map_user(AT, Some(self), first, nr, RW, SHARED | FIXED)?;
        advise_huge(addr)?;
        put_user(addr, 0)?;
        unmap_user(addr, nr);
        Ok(self
            .find(first)
            .is_some_and(|page| page.first() == first && page.nr() == nr))
    }

    /// Makes page i full of bytes `pattern(i)`.
    pub(crate) fn filled(self, pages: usize) -> Result<Self> {
        for i in 0..pages {
            self.write(i, pattern(i))?;
        }
        Ok(self)
    }

    /// A file that is not shmem, with these operations.
    pub(crate) fn anon(
        fops: &'static bindings::file_operations,
        data: *mut c_void,
    ) -> Result<Self> {
        // SAFETY: All that is passed lives long enough: `data` is the caller's business.
        from_err_ptr(unsafe {
            anon_inode_getfile(
                c"pagekit".as_char_ptr(),
                fops,
                data,
                bindings::O_RDWR as c_int,
            )
        })
        .map(Self)
    }

    /// A file that is not shmem.
    pub(crate) fn other() -> Result<Self> {
        const NONE: &bindings::file_operations = &pin_init::zeroed();
        Self::anon(NONE, null_mut())
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::file {
        self.0
    }

    pub(crate) fn file(&self) -> &LocalFile {
        // SAFETY: The file is open while `self` is.
        unsafe { LocalFile::from_raw_file(self.0) }
    }

    /// Fills page `index` with `byte`.
    pub(crate) fn write(&self, index: usize, byte: u8) -> Result {
        let data = KVec::from_elem(byte, PAGE_SIZE, GFP_KERNEL)?;
        let mut pos = (index * PAGE_SIZE) as i64;
        // SAFETY: The file is open, and the buffer has as many bytes.
        let n = unsafe { kernel_write(self.0, data.as_ptr().cast(), PAGE_SIZE, &mut pos) };
        to_result(n as c_int)
    }

    /// Whether reading page `index` gives bytes `byte`.
    pub(crate) fn reads(&self, index: usize, byte: u8) -> Result<bool> {
        let mut data = KVec::from_elem(!byte, PAGE_SIZE, GFP_KERNEL)?;
        let mut pos = (index * PAGE_SIZE) as i64;
        // SAFETY: The file is open, and the buffer has as many bytes.
        let n = unsafe { kernel_read(self.0, data.as_mut_ptr().cast(), PAGE_SIZE, &mut pos) };
        to_result(n as c_int)?;
        Ok(data.iter().all(|b| *b == byte))
    }

    /// Allocates `count` pages from `index` on, without writing to them.
    pub(crate) fn fallocate(&self, index: usize, count: usize) -> Result {
        self.fallocate_mode(0, index, count)
    }

    /// Takes `count` pages from `index` on out of the file.
    pub(crate) fn punch_hole(&self, index: usize, count: usize) -> Result {
        const KEEP_SIZE: c_int = 1; // FALLOC_FL_KEEP_SIZE
        const PUNCH_HOLE: c_int = 2; // FALLOC_FL_PUNCH_HOLE
        self.fallocate_mode(PUNCH_HOLE | KEEP_SIZE, index, count)
    }

    fn fallocate_mode(&self, mode: c_int, index: usize, count: usize) -> Result {
        // SAFETY: The file is open.
        to_result(unsafe {
            bindings::vfs_fallocate(
                self.0,
                mode,
                (index * PAGE_SIZE) as i64,
                (count * PAGE_SIZE) as i64,
            )
        })
    }

    /// Runs `f` while somebody else takes all pages out of the file and allocates new ones that
    /// are not zeroed, over and over.
    pub(crate) fn churned<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        // SAFETY: The file is open until the thread has ended.
        let thread = from_err_ptr(unsafe { fixture_churn(self.0) })?;
        let result = f();
        // SAFETY: It has not been stopped yet.
        unsafe { bindings::kthread_stop(thread) };
        Ok(result)
    }

    /// Runs `f` while somebody else pins and unpins all pages of the file, over and over.
    pub(crate) fn contested<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        let mut rival = Rival {
            file: self.0,
            ready: false,
            go: false,
        };
        // SAFETY: The file is open and the structure stays until the thread has ended.
        let thread = from_err_ptr(unsafe { fixture_rival(&mut rival) })?;
        let result = f();
        // SAFETY: It has not been stopped yet.
        unsafe { bindings::kthread_stop(thread) };
        Ok(result)
    }

    /// What the page cache has at `index`, with a reference that is given back.
    pub(crate) fn find(&self, index: usize) -> Option<Found> {
        // SAFETY: The file is open.
        let page = unsafe { fixture_find(self.0, index) };
        (!page.is_null()).then(|| Found(page))
    }

    /// References on the folio at `index`, but for ours.
    pub(crate) fn refs(&self, index: usize) -> c_int {
        drain();
        self.find(index).map_or(0, |page| page.refs() - 1)
    }

    /// The folios that the file has among its first `pages` pages, with what is held of each.
    pub(crate) fn folios(&self, pages: usize) -> Result<KVec<Folio>> {
        drain();
        let mut folios = KVec::new();
        let mut i = 0;
        while i < pages {
            i += 1;
            if let Some(page) = self.find(i - 1) {
                folios.push(page.folio(), GFP_KERNEL)?;
                i = page.first() + page.nr();
            }
        }
        Ok(folios)
    }

    /// Whether nobody but the page cache holds any of the first `pages` pages.
    pub(crate) fn is_unused(&self, pages: usize) -> Result<bool> {
        Ok(self
            .folios(pages)?
            .iter()
            .all(|folio| (folio.refs as usize, folio.pins) == (folio.nr, 0)))
    }

    /// Whether the file knows that it has dirty pages, to be written back.
    pub(crate) fn has_dirty(&self) -> bool {
        // SAFETY: The file is open.
        unsafe { fixture_has_dirty(self.0) }
    }

    /// Makes the folio at `index` leave memory, as reclaim would, if nobody uses it. Tests of that
    /// call [`needs_swap`] first.
    pub(crate) fn reclaim(&self, index: usize) {
        drain();
        // SAFETY: The file is open.
        unsafe { fixture_reclaim(self.0, index) };
    }
}

#[repr(C)]
struct Rival {
    file: *mut bindings::file,
    ready: bool,
    go: bool,
}

/// What a test leaves as it was, of a folio of a file.
#[derive(Copy, Clone, PartialEq)]
pub(crate) struct Folio {
    pub(crate) first: usize,
    pub(crate) nr: usize,
    pub(crate) refs: c_int,
    /// Of a large folio, which counts them apart.
    pub(crate) pins: c_int,
}

impl Folio {
    /// How many entries it has in arrays of these ranges of the file: first page and count of each.
    pub(crate) fn entries(&self, ranges: &[(usize, usize)]) -> c_int {
        let end = self.first + self.nr;
        ranges
            .iter()
            .map(|&(pgoff, n)| end.min(pgoff + n).saturating_sub(self.first.max(pgoff)) as c_int)
            .sum()
    }
}

/// A page.
///
/// # Invariants
///
/// The page has a reference of the test's own.
pub(crate) struct Found(*mut bindings::page);

impl Found {
    pub(crate) fn as_ptr(&self) -> *mut bindings::page {
        self.0
    }
    fn refs(&self) -> c_int {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_refs(self.0) }
    }
    /// Where the folio begins in its file.
    fn first(&self) -> usize {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_index(self.0) }
    }
    /// The folio, without our reference.
    fn folio(&self) -> Folio {
        Folio {
            first: self.first(),
            nr: self.nr(),
            refs: self.refs() - 1,
            pins: self.pincount(),
        }
    }
    pub(crate) fn is_movable(&self) -> bool {
        is_movable(self.0)
    }
    pub(crate) fn maybe_pinned(&self) -> bool {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_maybe_pinned(self.0) }
    }
    /// Pins of a large folio, which it counts apart.
    pub(crate) fn pincount(&self) -> c_int {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_pincount(self.0) }
    }
    /// Says that the memory has an error while `f` runs.
    pub(crate) fn poisoned<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_poison(self.0, true) };
        let result = f();
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_poison(self.0, false) };
        result
    }
    /// Has half of all the references that a folio can have while `f` runs.
    pub(crate) fn crowded<T>(&self, f: impl FnOnce() -> T) -> T {
        const HALF: c_int = c_int::MAX / 2;
        // SAFETY: By the type invariants, there is a reference on the page. It has room for so
        // many.
        unsafe { fixture_add_refs(self.0, HALF) };
        let result = f();
        // SAFETY: These are our own.
        unsafe { fixture_add_refs(self.0, -HALF) };
        result
    }
    /// Has the folio locked while `f` runs, as whoever allocates may have it.
    pub(crate) fn locked<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: We hold a reference, and no lock.
        unsafe { fixture_lock(self.0) };
        let result = f();
        // SAFETY: It was locked just now.
        unsafe { fixture_unlock(self.0) };
        result
    }
    pub(crate) fn is_dirty(&self) -> bool {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_dirty(self.0) }
    }
    pub(crate) fn clear_dirty(&self) {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_clear_dirty(self.0) }
    }
    pub(crate) fn is_uptodate(&self) -> bool {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_uptodate(self.0) }
    }
    pub(crate) fn is_referenced(&self) -> bool {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_referenced(self.0) }
    }
    pub(crate) fn clear_referenced(&self) {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_clear_referenced(self.0) }
    }
    pub(crate) fn nr(&self) -> usize {
        // SAFETY: By the type invariants, there is a reference on the page.
        unsafe { fixture_nr(self.0) }
    }
    /// Where the kernel has the page.
    pub(crate) fn address(&self) -> usize {
        // SAFETY: By the type invariants, there is a reference on the page. 64-bit kernels have all
        // pages mapped.
        unsafe { fixture_address(self.0) as usize }
    }
    /// Makes the page hold what somebody else has left there.
    pub(crate) fn fill(&self, byte: u8) {
        // SAFETY: By the type invariants, there is a reference on the page. 64-bit kernels have all
        // pages mapped.
        unsafe { fixture_address(self.0).write_bytes(byte, PAGE_SIZE) }
    }
    /// Whether all bytes are `byte`.
    pub(crate) fn all(&self, byte: u8) -> bool {
        all(self.0, byte)
    }
}

impl Drop for Found {
    fn drop(&mut self) {
        // SAFETY: The reference is ours.
        unsafe { fixture_put(self.0) };
    }
}

/// Whether all bytes of a page that the caller keeps are `byte`.
pub(crate) fn all(page: *mut bindings::page, byte: u8) -> bool {
    // SAFETY: The page is valid and mapped; nobody writes to it meanwhile in these tests.
    unsafe { core::slice::from_raw_parts(fixture_address(page), PAGE_SIZE) }
        .iter()
        .all(|b| *b == byte)
}

/// A byte for page `i`, never 0.
pub(crate) fn pattern(i: usize) -> u8 {
    (i % 251) as u8 + 1
}

/// Fills a page that the caller keeps.
pub(crate) fn fill(page: *mut bindings::page, byte: u8) {
    // SAFETY: The page is valid and mapped, and is the test's.
    unsafe { fixture_address(page).write_bytes(byte, PAGE_SIZE) }
}

/// References on the folio of a page that the caller keeps.
pub(crate) fn refs(page: *mut bindings::page) -> c_int {
    // SAFETY: The page is valid.
    unsafe { fixture_refs(page) }
}

/// Pages of the folio of a page that the caller keeps.
pub(crate) fn nr(page: *mut bindings::page) -> usize {
    // SAFETY: The page is valid.
    unsafe { fixture_nr(page) }
}

/// Whether a page that the caller keeps is in movable memory.
pub(crate) fn is_movable(page: *mut bindings::page) -> bool {
    // SAFETY: The page is valid.
    unsafe { fixture_movable(page) }
}

/// A page of movable memory that is on no LRU list, freed on drop.
pub(crate) struct MovablePage(NonNull<bindings::page>);

impl MovablePage {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: It needs nothing but a context that may sleep.
        let page = NonNull::new(unsafe { fixture_movable_page() }).ok_or(ENOMEM)?;
        assert!(is_movable(page.as_ptr()));
        Ok(Self(page))
    }

    pub(crate) fn as_ptr(&self) -> *mut bindings::page {
        self.0.as_ptr()
    }
}

impl Drop for MovablePage {
    fn drop(&mut self) {
        // SAFETY: The reference that a new page has is ours.
        unsafe { bindings::__free_pages(self.0.as_ptr(), 0) };
    }
}

/// Pins the page at an address of this test's process, as `io_uring` does. Killed, if that does not
/// end.
pub(crate) fn pin_for_long(addr: usize) -> c_int {
    // SAFETY: It needs nothing but the thread of a test.
    unsafe { fixture_pin_for_long(addr) }
}

/// Sends new pages on their way to the LRU lists: they wait for it in a batch of this CPU, with a
/// reference.
pub(crate) fn drain() {
    // SAFETY: It needs nothing but a context that may sleep.
    unsafe { fixture_drain() };
}

/// How many pages nobody uses.
pub(crate) fn free_pages() -> usize {
    // SAFETY: It needs nothing but a context that may sleep.
    unsafe { fixture_free_pages() as usize }
}

/// Runs `f` with a fatal signal pending.
pub(crate) fn dying<T>(f: impl FnOnce() -> T) -> T {
    set_dying(true);
    let result = f();
    set_dying(false);
    result
}

pub(crate) fn set_dying(dying: bool) {
    // SAFETY: This thread is the test's.
    unsafe { fixture_kill(dying) };
}

/// Runs `f` while no memory is free, but for movable memory.
pub(crate) fn starved<T>(f: impl FnOnce() -> T) -> Result<Starved<T>> {
    // SAFETY: It needs nothing but a context that may sleep.
    let hoard = unsafe { fixture_take_memory() };
    if hoard.is_null() {
        return Err(ENOMEM);
    }
    let result = f();
    let (mut kills, mut reclaims) = (0, 0);
    // SAFETY: It was taken just now.
    unsafe { fixture_give_memory(hoard, &mut kills, &mut reclaims) };
    Ok(Starved {
        result,
        kills,
        reclaims,
    })
}

/// What was done while no memory was free.
pub(crate) struct Starved<T> {
    pub(crate) result: T,
    /// How often the OOM killer was called: instead of that, all memory became free again.
    pub(crate) kills: c_uint,
    /// How often this thread reclaimed memory.
    pub(crate) reclaims: c_uint,
}

/// Runs `f` with a memory policy of this thread's own. Also returns how often it was asked where to
/// allocate: 255 times at most. Kernels without such policies say that each time.
pub(crate) fn policed<T>(f: impl FnOnce() -> T) -> (T, c_uint) {
    #[cfg(CONFIG_NUMA)]
    {
        // SAFETY: This thread is the test's.
        unsafe { fixture_set_policy(true) };
        let result = f();
        // SAFETY: The policy goes before the thread may end.
        (result, unsafe { fixture_set_policy(false) })
    }
    #[cfg(not(CONFIG_NUMA))]
    (f(), 255)
}

pub(crate) const READ: usize = 1; // PROT_READ
pub(crate) const RW: usize = 1 | 2; // PROT_READ | PROT_WRITE
pub(crate) const SHARED: usize = 1; // MAP_SHARED
pub(crate) const PRIVATE: usize = 2; // MAP_PRIVATE
pub(crate) const FIXED: usize = 0x10; // MAP_FIXED
const ANON: usize = 0x20; // MAP_ANONYMOUS

/// An address that suits huge pages.
pub(crate) const AT: usize = 512 << 20;

/// Attaches the test to an mm and maps `pages` pages of memory there.
pub(crate) fn user_memory(file: Option<&TestFile>, pages: usize, prot: usize) -> Result<usize> {
    let flags = if file.is_some() { SHARED } else { PRIVATE };
    map_user(0, file, 0, pages, prot, flags)
}

/// Attaches the test to an mm and maps `pages` pages of memory or of a file from `pgoff` on.
pub(crate) fn map_user(
    addr: usize,
    file: Option<&TestFile>,
    pgoff: usize,
    pages: usize,
    prot: usize,
    flags: usize,
) -> Result<usize> {
    // SAFETY: It keeps this thread, which is the test's, on its CPU: see `drain`.
    to_result(unsafe { fixture_stay() })?;
    // SAFETY: This runs in a test.
    to_result(unsafe { bindings::kunit_attach_mm() })?;
    let (file, flags) = match file {
        Some(file) => (file.as_ptr(), flags),
        None => (null_mut(), flags | ANON),
    };
    let (len, offset) = (pages * PAGE_SIZE, pgoff * PAGE_SIZE);
    // SAFETY: We are attached to an mm.
    let start = unsafe { bindings::vm_mmap(file, addr, len, prot, flags, offset) };
    from_err_ptr(start as *mut u8)?;
    Ok(start)
}

/// Unmaps what the test has mapped.
pub(crate) fn unmap_user(addr: usize, pages: usize) {
    // SAFETY: The test is attached to an mm that nobody else uses.
    unsafe { bindings::vm_munmap(addr, pages * PAGE_SIZE) };
}

/// Lets the mapping at `addr` use large folios.
pub(crate) fn advise_huge(addr: usize) -> Result {
    // SAFETY: The test is attached to an mm that nobody else uses.
    to_result(unsafe { fixture_advise_huge(addr) })
}

/// The page behind a user address, with a reference that is given back.
pub(crate) fn user_page(addr: usize) -> Result<Found> {
    let mut page = null_mut();
    // SAFETY: There is room for one page.
    match unsafe { bindings::get_user_pages_fast(addr, 1, 0, &mut page) } {
        1 => Ok(Found(page)),
        _ => Err(EFAULT),
    }
}

/// What a test leaves as it was, of the folio behind each of `pages` pages of user memory.
pub(crate) fn user_folios(addr: usize, pages: usize) -> Result<KVec<Folio>> {
    drain();
    let mut folios = KVec::new();
    for i in 0..pages {
        folios.push(user_page(addr + i * PAGE_SIZE)?.folio(), GFP_KERNEL)?;
    }
    Ok(folios)
}

/// Writes a byte to user memory.
pub(crate) fn put_user(addr: usize, byte: u8) -> Result {
    // SAFETY: The buffer has one byte.
    match unsafe { bindings::_copy_to_user(addr as *mut c_void, (&raw const byte).cast(), 1) } {
        0 => Ok(()),
        _ => Err(EFAULT),
    }
}

/// Reads a byte of user memory.
pub(crate) fn get_user(addr: usize) -> Result<u8> {
    let mut byte = 0u8;
    // SAFETY: The buffer has one byte.
    match unsafe { bindings::_copy_from_user((&raw mut byte).cast(), addr as *const c_void, 1) } {
        0 => Ok(byte),
        _ => Err(EFAULT),
    }
}

/// The first byte of a page that the caller keeps.
pub(crate) fn first(page: *mut bindings::page) -> u8 {
    // SAFETY: The page is valid and mapped.
    unsafe { fixture_address(page).read_volatile() }
}

/// Maps memory in another way than by default.
#[derive(Copy, Clone, PartialEq)]
pub(crate) enum Cache {
    Default,
    Uncached,
    WriteCombined,
}

impl Cache {
    /// `prot`, for such a mapping.
    pub(crate) fn prot(self, prot: bindings::pgprot_t) -> bindings::pgprot_t {
        match self {
            Self::Default => prot,
            // SAFETY: It only computes.
            Self::Uncached => unsafe { fixture_noncached(prot) },
            // SAFETY: It only computes.
            Self::WriteCombined => unsafe { fixture_writecombine(prot) },
        }
    }
}

/// Has memory hold what was written to pages, as drivers do before they map them past the caches.
pub(crate) fn clean(pages: &[pagekit_view::PageRef<'_>]) -> Result {
    // SAFETY: A slice of `PageRef` is an array of pointers to pages that exist.
    to_result(unsafe { fixture_clean(pages.as_ptr().cast(), pages.len() as c_ulong) })
}

/// The cache mode that the test's mm has for a page that it has mapped at `addr`.
pub(crate) fn cache_mode(addr: usize) -> usize {
    // SAFETY: The test is attached to an mm that nobody else uses.
    unsafe { fixture_cache_mode(addr) as usize }
}

/// Has the kernel map pages for write-combining while `f` runs, where it can.
pub(crate) fn write_combined<T>(
    pages: &mut [*mut bindings::page],
    f: impl FnOnce() -> T,
) -> Result<T> {
    let (first, n) = (pages.as_mut_ptr(), pages.len() as c_int);
    // SAFETY: These are as many pages, which are the test's.
    to_result(unsafe { fixture_set_wc(first, n, true) })?;
    let result = f();
    // SAFETY: These are as many pages, which are the test's.
    to_result(unsafe { fixture_set_wc(first, n, false) })?;
    Ok(result)
}

/// The page frame number of a page that the caller keeps.
pub(crate) fn pfn(page: *mut bindings::page) -> usize {
    // SAFETY: The page is valid.
    unsafe { fixture_pfn(page) as usize }
}

/// Has the folio of a page look as if it were in a file, or in none if that is null.
///
/// # Safety
///
/// The folio must be the caller's, and nobody else may look at it.
pub(crate) unsafe fn set_mapping(page: *mut bindings::page, file: *mut bindings::file) {
    // SAFETY: The page is valid, and the caller promises the rest.
    unsafe { fixture_set_mapping(page, file) }
}

/// Whether the test's mm has a huge page at `addr`.
pub(crate) fn is_huge(addr: usize) -> bool {
    // SAFETY: The test is attached to an mm that nobody else uses.
    unsafe { fixture_is_huge(addr) }
}
