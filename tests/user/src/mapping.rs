// SPDX-License-Identifier: GPL-2.0
//! Shared memory mappings. Other processes write to them, so they are never lent
//! out as slices: data is copied in and out.

use std::ffi::c_void;
use std::os::fd::AsFd;
use std::ptr;

use rustix::io;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags};

use crate::{kernel, PAGE};

pub const RW: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A mapping that is unmapped on drop.
#[derive(Debug)]
pub struct Mapping {
    addr: *mut u8,
    len: usize,
}

// SAFETY: it is an address range; every access is a copy of plain bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above; the kernel's side is not ordered by Rust's rules anyway.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// `len` bytes of `fd` from `offset`, shared and writable.
    pub fn shared(fd: impl AsFd, offset: usize, len: usize) -> io::Result<Self> {
        Self::new(fd, offset, len, RW, MapFlags::SHARED)
    }

    pub fn new(
        fd: impl AsFd,
        offset: usize,
        len: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice.
        let addr = unsafe { mm::mmap(ptr::null_mut(), len, prot, flags, fd, offset as u64) }?;
        Ok(Self::from_raw(addr, len))
    }

    /// As `shared`, at an address where nothing is mapped.
    pub fn shared_at(addr: usize, fd: impl AsFd, len: usize) -> io::Result<Self> {
        let flags = MapFlags::SHARED | MapFlags::FIXED_NOREPLACE;
        // SAFETY: a new mapping that replaces none.
        let addr = unsafe { mm::mmap(addr as *mut c_void, len, RW, flags, fd, 0) }?;
        Ok(Self::from_raw(addr, len))
    }

    /// Private zeroed memory.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        Self::anonymous_with(len, MapFlags::PRIVATE)
    }

    pub fn anonymous_with(len: usize, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: as in `new`.
        let addr = unsafe { mm::mmap_anonymous(ptr::null_mut(), len, RW, flags) }?;
        Ok(Self::from_raw(addr, len))
    }

    /// Address space of `len` bytes to map over, `skew` bytes after a multiple of `align`, which is
    /// a power of two.
    pub fn reserve(len: usize, align: usize, skew: usize) -> io::Result<Self> {
        let (prot, flags) = (ProtFlags::empty(), MapFlags::PRIVATE);
        // SAFETY: as in `new`.
        let addr = unsafe { mm::mmap_anonymous(ptr::null_mut(), len + align, prot, flags) }?;
        let head = skew.wrapping_sub(addr as usize) & (align - 1);
        let part = |at, len| Self::from_raw(addr.wrapping_byte_add(at), len);
        drop((part(0, head), part(head + len, align - head)));
        Ok(part(head, len))
    }

    /// As `new`, where `place` was and as long.
    pub fn over(
        place: Self,
        fd: impl AsFd,
        offset: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Self> {
        let (addr, flags) = (place.addr.cast(), flags | MapFlags::FIXED);
        // SAFETY: over a mapping of ours, to which nobody has references.
        unsafe { mm::mmap(addr, place.len, prot, flags, fd, offset as u64) }?;
        Ok(place)
    }

    fn from_raw(addr: *mut c_void, len: usize) -> Self {
        Self {
            addr: addr.cast(),
            len,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of `offset`, for system calls and for accesses that must fault.
    pub fn at(&self, offset: usize) -> *mut u8 {
        self.range(offset, 0)
    }

    fn range(&self, offset: usize, len: usize) -> *mut u8 {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{offset}+{len} is outside a mapping of {}",
            self.len
        );
        self.addr.wrapping_add(offset)
    }

    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.range(offset, into.len());
        // SAFETY: in bounds, mapped for as long as `self`; `into` is ours alone.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    pub fn write(&self, offset: usize, from: &[u8]) {
        let to = self.range(offset, from.len());
        // SAFETY: in bounds, mapped for as long as `self`, and nobody has a
        // reference into it.
        unsafe { ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) }
    }

    pub fn page(&self, page: usize) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        self.read(page * PAGE, &mut bytes);
        bytes
    }

    /// Reads one byte of each page, so that all of them are mapped.
    pub fn touch(&self) {
        for offset in (0..self.len).step_by(PAGE) {
            // SAFETY: in bounds; volatile so that it happens.
            unsafe { self.at(offset).read_volatile() };
        }
    }

    pub fn protect(&self, offset: usize, len: usize, prot: MprotectFlags) -> io::Result<()> {
        // SAFETY: within our mapping. An access that is no longer allowed is a
        // signal, not undefined behaviour.
        unsafe { mm::mprotect(self.range(offset, len).cast(), len, prot) }
    }

    pub fn advise(&self, advice: Advice) -> io::Result<()> {
        self.advise_part(0, self.len, advice)
    }

    pub fn advise_part(&self, offset: usize, len: usize, advice: Advice) -> io::Result<()> {
        // SAFETY: within our mapping, to which nobody has references.
        unsafe { mm::madvise(self.range(offset, len).cast(), len, advice) }
    }

    /// Two mappings, of the first `offset` bytes and the rest. The kernel is not told.
    pub fn split(self, offset: usize) -> (Self, Self) {
        let rest = Self::from_raw(self.at(offset).cast(), self.len - offset);
        let first = Self::from_raw(self.addr.cast(), offset);
        std::mem::forget(self);
        (first, rest)
    }

    /// Unmaps `len` bytes at `offset` and returns what is left on both sides.
    pub fn cut_out(self, offset: usize, len: usize) -> io::Result<(Self, Self)> {
        // SAFETY: within our mapping; the rest gets new owners below.
        unsafe { mm::munmap(self.range(offset, len).cast(), len) }?;
        let (head, rest) = self.split(offset);
        let (gone, tail) = rest.split(len);
        std::mem::forget(gone);
        Ok((head, tail))
    }

    /// Shrinks or grows with mremap, moving if the kernel wants to.
    pub fn resize(&mut self, len: usize) -> io::Result<()> {
        // SAFETY: our mapping, to which nobody has references.
        let addr = unsafe { mm::mremap(self.addr.cast(), self.len, len, MremapFlags::MAYMOVE) }?;
        (self.addr, self.len) = (addr.cast(), len);
        Ok(())
    }

    /// Moves to where `place` was, which must be as long.
    pub fn move_to(&mut self, place: Self) -> io::Result<()> {
        assert_eq!(self.len, place.len);
        // SAFETY: both mappings are ours, and `place` goes away.
        let addr = unsafe {
            mm::mremap_fixed(
                self.addr.cast(),
                self.len,
                self.len,
                MremapFlags::MAYMOVE,
                place.addr.cast(),
            )
        }?;
        std::mem::forget(place);
        self.addr = addr.cast();
        Ok(())
    }

    /// How many of the pages are in memory: mapped here or in the page cache.
    pub fn resident(&self) -> io::Result<usize> {
        let mut pages = vec![0; self.len.div_ceil(PAGE)];
        // SAFETY: our mapping, and one byte for each of its pages.
        let ret = unsafe { libc::mincore(self.addr.cast(), self.len, pages.as_mut_ptr()) };
        if ret != 0 {
            return Err(last_errno());
        }
        Ok(pages.iter().filter(|&&state| state & 1 == 1).count())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.len != 0 {
            // SAFETY: our mapping; nobody has references into it.
            let _ = unsafe { mm::munmap(self.addr.cast(), self.len) };
        }
    }
}

/// Whether a page of a mapping was in the page tables: looking at it doesn't fault.
pub fn is_mapped(map: &Mapping, page: usize) -> bool {
    let faults = || {
        let usage = kernel::usage(libc::RUSAGE_SELF);
        usage.ru_minflt + usage.ru_majflt
    };
    let before = faults();
    // SAFETY: in bounds; volatile so that it happens.
    unsafe { map.at(page * PAGE).read_volatile() };
    faults() == before
}

/// The error of a libc call that just failed.
pub fn last_errno() -> io::Errno {
    let error = std::io::Error::last_os_error();
    io::Errno::from_io_error(&error).unwrap_or(io::Errno::IO)
}
