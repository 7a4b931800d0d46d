// SPDX-License-Identifier: GPL-2.0
//! The test importer of `tests/drivers/test_importer.c`, which gets at a dma-buf as a device would.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;

use anyhow::{Context, Result};
use rustix::io;
use rustix::ioctl::{opcode, Opcode};

use crate::{abi, PAGE};

pub const DEVICE: &str = "/dev/pagekit-importer";

/// C: `IMPORTER_DYNAMIC`.
pub const DYNAMIC: u32 = 1;
/// C: `IMPORTER_WRITE`, `IMPORTER_VMAP`.
pub const WRITE: u32 = 1;
pub const VMAP: u32 = 2;

/// C: `IMPORTER_ATTACH`, and so on.
pub const ATTACH: Opcode = opcode::write::<Attach>(b'P', 1);
pub const DETACH: Opcode = opcode::none(b'P', 2);
pub const MAP: Opcode = opcode::write::<u32>(b'P', 3);
pub const UNMAP: Opcode = opcode::none(b'P', 4);
pub const ACCESS: Opcode = opcode::write::<Access>(b'P', 5);
pub const MOVES: Opcode = opcode::none(b'P', 6);
pub const TWICE: Opcode = opcode::none(b'P', 7);
pub const MOVE: Opcode = opcode::none(b'P', 8);
pub const LATER: Opcode = opcode::write::<Later>(b'P', 9);
pub const ENTRY: Opcode = opcode::none(b'P', 10);
pub const GUEST: Opcode = opcode::write::<Guest>(b'P', 11);

/// All of them.
pub const COMMANDS: &[Opcode] = &[
    ATTACH, DETACH, MAP, UNMAP, ACCESS, MOVES, TWICE, MOVE, LATER, ENTRY, GUEST,
];

/// C: `IMPORTER_IS_WC`, `IMPORTER_IS_HUGE`.
const IS_WC: u32 = 1;
const IS_HUGE: u32 = 2;

/// How page tables have an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// On x86 memory is cached, whatever the driver asks for.
    pub write_combined: bool,
    pub huge: bool,
}

/// C: `struct importer_attach`.
#[repr(C)]
pub struct Attach {
    pub fd: i32,
    pub flags: u32,
}

/// C: `struct importer_access`.
#[repr(C)]
pub struct Access {
    pub flags: u32,
    pub reserved: u32,
    pub offset: u64,
    pub len: u64,
    pub user: u64,
}

/// C: `struct importer_later`.
#[repr(C)]
pub struct Later {
    pub offset: u64,
    pub value: u32,
    pub ms: u32,
}

/// C: `struct importer_guest`.
#[repr(C)]
pub struct Guest {
    pub addr: u64,
    pub write: u32,
    pub reserved: u32,
}

/// Which way the importer goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    Dma,
    Vmap,
}

/// C: `enum dma_data_direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dir {
    Both = 0,
    ToDevice = 1,
    FromDevice = 2,
}

/// Whether the exporter may move the buffer while it is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Static,
    Dynamic,
}

pub struct Importer(File);

impl Importer {
    pub fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open(DEVICE);
        file.context(DEVICE).map(Self)
    }

    /// How the page tables have what is mapped at an address, which must be a PFN.
    pub fn entry(&self, address: *const u8) -> io::Result<Entry> {
        // SAFETY: the kernel only looks at page tables.
        let entry = unsafe { abi::ioctl(&self.0, ENTRY, address.cast()) }? as u32;
        Ok(Entry {
            write_combined: entry & IS_WC != 0,
            huge: entry & IS_HUGE != 0,
        })
    }

    /// Whether a guest may write to what is mapped at an address, after a fault of its.
    pub fn guest(&self, arg: &Guest) -> io::Result<bool> {
        // SAFETY: the kernel reads a `Guest`, and touches page tables only.
        unsafe { abi::ioctl(&self.0, GUEST, ptr::from_ref(arg).cast()) }.map(|ret| ret == 1)
    }

    /// Attaches to a dma-buf. An importer has one attachment at a time.
    pub fn attach(&self, buf: impl AsFd, kind: Kind) -> io::Result<Attachment<'_>> {
        self.call_attach(buf, kind)?;
        Ok(Attachment(Owner::Borrowed(self)))
    }

    /// As `attach`, for an attachment that is all there is of the importer.
    pub fn into_attachment(self, buf: impl AsFd, kind: Kind) -> io::Result<Attachment<'static>> {
        self.call_attach(buf, kind)?;
        Ok(Attachment(Owner::Owned(self)))
    }

    fn call_attach(&self, buf: impl AsFd, kind: Kind) -> io::Result<()> {
        let arg = Attach {
            fd: buf.as_fd().as_raw_fd(),
            flags: if kind == Kind::Dynamic { DYNAMIC } else { 0 },
        };
        // SAFETY: the kernel reads an `Attach`.
        unsafe { abi::ioctl(&self.0, ATTACH, (&raw const arg).cast()) }.map(drop)
    }

    /// Reads what the device, or the kernel, sees at `offset`, through a mapping made for it.
    pub fn read(
        &self,
        buf: impl AsFd,
        way: Through,
        offset: usize,
        to: &mut [u8],
    ) -> io::Result<()> {
        let attachment = self.attach(buf, Kind::Static)?;
        if way == Through::Dma {
            attachment.map(Dir::ToDevice)?;
        }
        attachment.read(way, offset, to)
    }

    /// Writes to the buffer at `offset`, through a mapping made for it.
    pub fn write(
        &self,
        buf: impl AsFd,
        way: Through,
        offset: usize,
        from: &[u8],
    ) -> io::Result<()> {
        let attachment = self.attach(buf, Kind::Static)?;
        if way == Through::Dma {
            attachment.map(Dir::FromDevice)?;
        }
        attachment.write(way, offset, from)
    }
}

impl AsFd for Importer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A buffer attached to an importer. Detached on drop.
pub struct Attachment<'a>(Owner<'a>);

enum Owner<'a> {
    Borrowed(&'a Importer),
    Owned(Importer),
}

impl Attachment<'_> {
    fn file(&self) -> &File {
        match &self.0 {
            Owner::Borrowed(importer) => &importer.0,
            Owner::Owned(importer) => &importer.0,
        }
    }

    pub fn map(&self, dir: Dir) -> io::Result<()> {
        let dir = dir as u32;
        // SAFETY: the kernel reads an int.
        unsafe { abi::ioctl(self.file(), MAP, (&raw const dir).cast()) }.map(drop)
    }

    pub fn unmap(&self) -> io::Result<()> {
        self.call(UNMAP).map(drop)
    }

    pub fn read(&self, way: Through, offset: usize, to: &mut [u8]) -> io::Result<()> {
        self.access(way, 0, offset, to.as_mut_ptr(), to.len())
    }

    pub fn write(&self, way: Through, offset: usize, from: &[u8]) -> io::Result<()> {
        let user = from.as_ptr().cast_mut(); // The importer only reads it.
        self.access(way, WRITE, offset, user, from.len())
    }

    /// How often the exporter has told that it moves the buffer.
    pub fn moves(&self) -> io::Result<usize> {
        self.call(MOVES)
    }

    /// Maps the buffer twice through the attachment. Returns the segments of the mapping.
    pub fn map_twice(&self) -> io::Result<usize> {
        self.call(TWICE)
    }

    /// Tells all importers of the buffer that it moves, as its exporter would.
    pub fn pretend_move(&self) -> io::Result<()> {
        self.call(MOVE).map(drop)
    }

    /// Has the device fill a page with that byte, so many milliseconds later.
    pub fn fill_later(&self, page: usize, value: u8, ms: u32) -> io::Result<()> {
        let arg = Later {
            offset: (page * PAGE) as u64,
            value: value.into(),
            ms,
        };
        // SAFETY: the kernel reads a `Later`.
        unsafe { abi::ioctl(self.file(), LATER, (&raw const arg).cast()) }.map(drop)
    }

    fn access(
        &self,
        way: Through,
        flags: u32,
        offset: usize,
        user: *mut u8,
        len: usize,
    ) -> io::Result<()> {
        let arg = Access {
            flags: flags | if way == Through::Vmap { VMAP } else { 0 },
            reserved: 0,
            offset: offset as u64,
            len: len as u64,
            user: user as u64,
        };
        // SAFETY: the kernel reads `arg`, and accesses `len` bytes at `user`, which `read` has
        // borrowed mutably and `write` is only read from.
        unsafe { abi::ioctl(self.file(), ACCESS, (&raw const arg).cast()) }.map(drop)
    }

    fn call(&self, opcode: Opcode) -> io::Result<usize> {
        // SAFETY: these have no argument.
        unsafe { abi::ioctl(self.file(), opcode, ptr::null()) }.map(|n| n as usize)
    }
}

impl Drop for Attachment<'_> {
    fn drop(&mut self) {
        let _ = self.call(DETACH);
    }
}
