// SPDX-License-Identifier: GPL-2.0
//! The user interface of `samples/pagekit_style.h`, defined here so that a change
//! of the drivers' idea of it shows.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};
use rustix::io;
use rustix::ioctl::{opcode, Opcode};

use crate::abi::{ioctl, ioctl_for_fd};
use crate::PAGE;

/// C: `PAGEKIT_CREATE_*`.
pub const CREATE_SHMEM_MMAP: u32 = 1;
pub const CREATE_USERPTR: u32 = 2;
/// C: `PAGEKIT_EXPORT_CLOEXEC`.
pub const EXPORT_CLOEXEC: u32 = 1;
/// C: `PAGEKIT_MAP_*`.
pub const MAP_READ: u32 = 1;
pub const MAP_WRITE: u32 = 2;
/// C: `PAGEKIT_ACCESS_*`.
pub const ACCESS_WRITE: u32 = 1;
pub const ACCESS_NOWAIT: u32 = 2;
/// C: `PAGEKIT_INFO_*`.
pub const INFO_IMPORTED: u32 = 1;
pub const INFO_WEDGED: u32 = 2;
/// C: `PAGEKIT_SHRINK_REVOKE`.
pub const SHRINK_REVOKE: u32 = 1;

/// C: `struct pagekit_create`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Create {
    pub size: u64,
    pub address: u64,
    pub flags: u32,
    pub reserved: u32,
}

/// C: `struct pagekit_access`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Access {
    pub offset: u64,
    pub length: u64,
    pub address: u64,
    pub flags: u32,
    pub reserved: u32,
}

/// C: `struct pagekit_info`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Info {
    pub size: u64,
    pub pinned: u64,
    pub held: u64,
    pub resident: u64,
    pub attachments: u32,
    pub mappings: u32,
    pub sharers: u32,
    pub flags: u32,
}

/// C: `PAGEKIT_CREATE` and so on.
pub const CREATE: Opcode = opcode::write::<Create>(b'K', 0);
pub const IMPORT: Opcode = opcode::write::<i32>(b'K', 1);
pub const EXPORT: Opcode = opcode::write::<u32>(b'K', 2);
pub const MAP: Opcode = opcode::write::<u32>(b'K', 3);
pub const UNMAP: Opcode = opcode::none(b'K', 4);
pub const ACCESS: Opcode = opcode::write::<Access>(b'K', 5);
pub const INFO: Opcode = opcode::read::<Info>(b'K', 6);
pub const WEDGE: Opcode = opcode::write::<u32>(b'K', 7);
pub const RESET: Opcode = opcode::none(b'K', 8);
pub const SHRINK: Opcode = opcode::write::<u32>(b'K', 9);

/// An open file of a device, and the object that it is.
#[derive(Debug)]
pub struct Object(File);

impl Object {
    /// No object yet.
    pub fn open(device: impl AsRef<Path>) -> Result<Self> {
        let path = device.as_ref();
        let file = File::options().read(true).write(true).open(path);
        file.with_context(|| format!("opening {}", path.display()))
            .map(Self)
    }

    /// A new object of `pages`.
    pub fn new(device: impl AsRef<Path>, pages: usize) -> Result<Self> {
        Self::with(device, pages, 0, 0)
    }

    pub fn with(
        device: impl AsRef<Path>,
        pages: usize,
        flags: u32,
        address: usize,
    ) -> Result<Self> {
        let object = Self::open(device)?;
        object
            .create(&Create {
                size: (pages * PAGE) as u64,
                address: address as u64,
                flags,
                reserved: 0,
            })
            .context("CREATE")?;
        Ok(object)
    }

    /// The object of a dma-buf.
    pub fn of(device: impl AsRef<Path>, buf: impl AsFd) -> Result<Self> {
        let object = Self::open(device)?;
        object.import(buf).context("IMPORT")?;
        Ok(object)
    }

    pub fn create(&self, create: &Create) -> io::Result<()> {
        self.call(CREATE, create).map(drop)
    }

    pub fn import(&self, buf: impl AsFd) -> io::Result<()> {
        self.call(IMPORT, &buf.as_fd().as_raw_fd()).map(drop)
    }

    pub fn export(&self) -> io::Result<OwnedFd> {
        let flags = EXPORT_CLOEXEC;
        // SAFETY: the kernel reads the flags, and returns a new file descriptor.
        unsafe { ioctl_for_fd(&self.0, EXPORT, (&raw const flags).cast()) }
    }

    pub fn map(&self, flags: u32) -> io::Result<()> {
        self.call(MAP, &flags).map(drop)
    }

    pub fn unmap(&self) -> io::Result<()> {
        self.call(UNMAP, &()).map(drop)
    }

    pub fn read(&self, offset: usize, to: &mut [u8]) -> io::Result<()> {
        self.access(offset, to.as_mut_ptr(), to.len(), 0)
    }

    pub fn write(&self, offset: usize, from: &[u8]) -> io::Result<()> {
        // The kernel only reads it.
        let address = from.as_ptr().cast_mut();
        self.access(offset, address, from.len(), ACCESS_WRITE)
    }

    /// `ACCESS` with any flags.
    pub fn access(
        &self,
        offset: usize,
        address: *mut u8,
        len: usize,
        flags: u32,
    ) -> io::Result<()> {
        let access = Access {
            offset: offset as u64,
            length: len as u64,
            address: address as u64,
            flags,
            reserved: 0,
        };
        self.call(ACCESS, &access).map(drop)
    }

    pub fn info(&self) -> io::Result<Info> {
        let mut info = Info::default();
        // SAFETY: the kernel fills it in.
        unsafe { ioctl(&self.0, INFO, (&raw mut info).cast()) }?;
        Ok(info)
    }

    pub fn wedge(&self, milliseconds: u32) -> io::Result<()> {
        self.call(WEDGE, &milliseconds).map(drop)
    }

    pub fn reset(&self) -> io::Result<()> {
        self.call(RESET, &()).map(drop)
    }

    /// How many pages were given back.
    pub fn shrink(&self, flags: u32) -> io::Result<usize> {
        Ok(self.call(SHRINK, &flags)? as usize)
    }

    /// A command with an argument that the kernel reads.
    fn call<T>(&self, opcode: Opcode, arg: &T) -> io::Result<i32> {
        let arg: *const c_void = (&raw const *arg).cast();
        // SAFETY: the kernel reads `arg`. Of `ACCESS`, `read` has borrowed what is
        // written to mutably; others pass addresses that are theirs.
        unsafe { ioctl(&self.0, opcode, arg) }
    }
}

impl AsFd for Object {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Object> for OwnedFd {
    fn from(object: Object) -> Self {
        object.0.into()
    }
}
