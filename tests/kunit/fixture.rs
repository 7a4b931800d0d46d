// SPDX-License-Identifier: GPL-2.0

//! What the test modules share: a real shmem file, and looks behind its pages.

#![allow(dead_code, reason = "Each test module uses its part.")]

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
    reason = "Some configurations have fields of size zero deep in structs that are only pointed to."
)]
extern "C" {
    fn fixture_shmem(size: bindings::loff_t) -> *mut bindings::file;
    fn fixture_refs(page: *mut bindings::page) -> c_int;
    fn fixture_maybe_pinned(page: *mut bindings::page) -> bool;
    fn fixture_pincount(page: *mut bindings::page) -> c_int;
    fn fixture_poison(page: *mut bindings::page);
    fn fixture_unpoison(page: *mut bindings::page);
    fn fixture_dirty(page: *mut bindings::page) -> bool;
    fn fixture_clear_dirty(page: *mut bindings::page);
    fn fixture_uptodate(page: *mut bindings::page) -> bool;
    fn fixture_referenced(page: *mut bindings::page) -> bool;
    fn fixture_nr(page: *mut bindings::page) -> usize;
    fn fixture_address(page: *mut bindings::page) -> *mut u8;
    fn fixture_find(file: *mut bindings::file, index: c_ulong) -> *mut bindings::page;
    fn fixture_put(page: *mut bindings::page);
    fn fixture_stay() -> c_int;
    fn fixture_is_huge(addr: c_ulong) -> bool;
    fn fixture_advise_huge(addr: c_ulong) -> c_int;
    fn anon_inode_getfile(
        name: *const c_char,
        fops: *const bindings::file_operations,
        data: *mut c_void,
        flags: c_int,
    ) -> *mut bindings::file;
    fn kernel_write(
        file: *mut bindings::file,
        buf: *const c_void,
        count: usize,
        pos: *mut bindings::loff_t,
    ) -> isize;
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
    /// A shmem file of `pages` pages, all holes.
    pub(crate) fn shmem(pages: usize) -> Result<Self> {
        // SAFETY: It keeps this thread, which is the test's, on its CPU: see `refs`.
        to_result(unsafe { fixture_stay() })?;
        // SAFETY: Plain call.
        from_err_ptr(unsafe { fixture_shmem((pages * PAGE_SIZE) as i64) }).map(Self)
    }

    /// A shmem file of `pages` pages, page i full of bytes `pattern(i)`.
    pub(crate) fn pattern(pages: usize) -> Result<Self> {
        let file = Self::shmem(pages)?;
        for i in 0..pages {
            file.write(i, pattern(i))?;
        }
        Ok(file)
    }

    /// As [`Self::pattern`], in folios of 512 pages. Attaches the test to an mm.
    ///
    /// The administrator must let shmem use them (shmem_enabled: advise).
    pub(crate) fn huge_pattern(pages: usize) -> Result<Self> {
        let file = Self::shmem(pages)?;
        // SAFETY: This runs in a test.
        to_result(unsafe { bindings::kunit_attach_mm() })?;
        let len = pages * PAGE_SIZE;
        // SAFETY: We are attached to an mm.
        let start = unsafe { bindings::vm_mmap(file.0, 0, len, 3, 1, 0) }; // RW, MAP_SHARED
        from_err_ptr(start as *mut u8)?;
        advise_huge(start)?;
        for i in 0..pages {
            let data = KVec::from_elem(pattern(i), PAGE_SIZE, GFP_KERNEL)?;
            let to = (start + i * PAGE_SIZE) as *mut c_void;
            // SAFETY: The buffer has as many bytes.
            if unsafe { bindings::_copy_to_user(to, data.as_ptr().cast(), PAGE_SIZE) } != 0 {
                return Err(EFAULT);
            }
        }
        // SAFETY: As above.
        unsafe { bindings::vm_munmap(start, len) };
        match file.find(0).map(|page| page.nr()) {
            Some(512) => Ok(file),
            _ => Err(ENOSYS),
        }
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
        Self::anon(NONE, core::ptr::null_mut())
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

    /// What the page cache has at `index`, with a reference that is given back.
    pub(crate) fn find(&self, index: usize) -> Option<Found> {
        // SAFETY: The file is open.
        let page = unsafe { fixture_find(self.0, index) };
        (!page.is_null()).then(|| Found(page))
    }

    /// References on the folio at `index`, but for ours.
    pub(crate) fn refs(&self, index: usize) -> c_int {
        // New pages sit in a batch of this CPU, with a reference, until there are enough of them to
        // go to the LRU lists. So make enough of them.
        let _ = Self::pattern(32);
        self.find(index).map_or(0, |page| page.refs() - 1)
    }
}

/// A page with a reference of the test's own.
pub(crate) struct Found(*mut bindings::page);

impl Found {
    pub(crate) fn as_ptr(&self) -> *mut bindings::page {
        self.0
    }
    fn refs(&self) -> c_int {
        // SAFETY: We hold a reference, here and below.
        unsafe { fixture_refs(self.0) }
    }
    pub(crate) fn maybe_pinned(&self) -> bool {
        // SAFETY: As above.
        unsafe { fixture_maybe_pinned(self.0) }
    }
    /// Pins of a large folio, which it counts apart.
    pub(crate) fn pincount(&self) -> c_int {
        // SAFETY: As above.
        unsafe { fixture_pincount(self.0) }
    }
    /// Says that the memory has an error while `f` runs.
    pub(crate) fn poisoned<T>(&self, f: impl FnOnce() -> T) -> T {
        // SAFETY: As above.
        unsafe { fixture_poison(self.0) };
        let result = f();
        // SAFETY: As above.
        unsafe { fixture_unpoison(self.0) };
        result
    }
    pub(crate) fn is_dirty(&self) -> bool {
        // SAFETY: As above.
        unsafe { fixture_dirty(self.0) }
    }
    pub(crate) fn clear_dirty(&self) {
        // SAFETY: As above.
        unsafe { fixture_clear_dirty(self.0) }
    }
    pub(crate) fn is_uptodate(&self) -> bool {
        // SAFETY: As above.
        unsafe { fixture_uptodate(self.0) }
    }
    pub(crate) fn is_referenced(&self) -> bool {
        // SAFETY: As above.
        unsafe { fixture_referenced(self.0) }
    }
    pub(crate) fn nr(&self) -> usize {
        // SAFETY: As above.
        unsafe { fixture_nr(self.0) }
    }
    /// Makes the page hold what somebody else has left there.
    pub(crate) fn fill(&self, byte: u8) {
        // SAFETY: As above; 64-bit kernels have all pages mapped.
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

/// Attaches the test to an mm and maps `pages` pages of memory there.
pub(crate) fn user_memory(file: Option<&TestFile>, pages: usize, prot: usize) -> Result<usize> {
    // SAFETY: This runs in a test.
    to_result(unsafe { bindings::kunit_attach_mm() })?;
    let file = file.map_or(core::ptr::null_mut(), TestFile::as_ptr);
    // MAP_SHARED, or MAP_PRIVATE | MAP_ANONYMOUS
    let flags = if file.is_null() { 0x22 } else { 1 };
    // SAFETY: We are attached to an mm.
    let start = unsafe { bindings::vm_mmap(file, 0, pages * PAGE_SIZE, prot, flags, 0) };
    from_err_ptr(start as *mut u8)?;
    Ok(start)
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

/// Whether the test's mm has a huge page at `addr`.
pub(crate) fn is_huge(addr: usize) -> bool {
    // SAFETY: The test is attached to an mm that nobody else uses.
    unsafe { fixture_is_huge(addr) }
}

/// Lets the VMA at `addr` have huge pages, as after `MADV_HUGEPAGE`.
pub(crate) fn advise_huge(addr: usize) -> Result {
    // SAFETY: The test is attached to an mm.
    to_result(unsafe { fixture_advise_huge(addr) })
}
