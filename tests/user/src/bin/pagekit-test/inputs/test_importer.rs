// SPDX-License-Identifier: GPL-2.0
//! What the test importer refuses: `tests/drivers/test_importer.c`.

use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Result;
use pagekit_user::abi;
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::test_importer::{
    self as imp, Access, Attach, Dir, Guest, Importer, Kind, Later, Through, DYNAMIC, VMAP, WRITE,
};
use pagekit_user::PAGE;
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::MapFlags;

use super::{rows, tried};
use crate::env::Env;
use crate::groups::{Outcome, Row};
use crate::style::foreign;

const P: u64 = PAGE as u64;
const PAGES: usize = 8;
const END: u64 = (PAGES * PAGE) as u64;

pub const ROWS: &[&[Row]] = &[
    rows! { "IMPORTER_ATTACH", attach;
    attach_flags: "flag 2" => INVAL, "attach(): flags", |a| a.arg.flags = DYNAMIC << 1;
    attach_no_fd: "file descriptor -1" => BADF, "attach(): dma_buf_get()", |a| a.arg.fd = -1;
    attach_memfd: "a memfd" => INVAL, "attach(): dma_buf_get(), no dma-buf",
        |a| { a.file = Some(abi::memfd(P)?.into()); a.arg.fd = a.file.as_ref().map_or(-1, |f| f.as_raw_fd()) };
    attach_null: "null" => FAULT, "importer_ioctl(): copy_from_user()", |a| a.null = true;
    },
    rows! { "ioctl of the importer", detached;
    detached_detach: "DETACH, not attached" => NOTCONN, "importer_ioctl(): imp->at", |c| *c = imp::DETACH;
    detached_map: "MAP, not attached" => NOTCONN, "importer_ioctl(): imp->at", |c| *c = imp::MAP;
    detached_access: "ACCESS, not attached" => NOTCONN, "importer_ioctl(): imp->at", |c| *c = imp::ACCESS;
    },
    rows! { "IMPORTER_ENTRY", entry;
    entry_null: "null" => INVAL, "entry(): vma_lookup()", |e| e.null = true;
    entry_private: "private memory" => INVAL, "entry(): follow_pfnmap_start()", |e| e.private = true;
    entry_untouched: "what no fault has mapped" => INVAL, "entry(): follow_pfnmap_start()", |e| e.touched = false;
    },
    rows! { "IMPORTER_GUEST", guest;
    guest_write: "write 2" => INVAL, "guest_fault(): write", |g| g.write = 2;
    guest_reserved: "reserved 1" => INVAL, "guest_fault(): reserved", |g| g.reserved = 1;
    guest_null: "address 0" => FAULT, "guest_fault(): vma_lookup()", |g| g.addr = 0;
    },
    rows! { "mmap of the importer", mmap;
    mmap_detached: "not attached" => NOTCONN, "importer_mmap(): imp->at", |m| m.attached = false;
    mmap_past_end: "9 of 8 pages" => INVAL, "core: dma_buf_mmap(): size", |m| m.pages += 1;
    mmap_private: "MAP_PRIVATE" => INVAL, "vma.rs is_cow(): MAYWRITE", |m| m.flags = MapFlags::PRIVATE;
    },
    rows! { "ioctl of the importer", attached;
    twice: "ATTACH, attached" => BUSY, "attach(): imp->at", |c| c.cmd = imp::ATTACH;
    map_null: "MAP at null" => FAULT, "attached_ioctl(): get_user()", |c| c.cmd = imp::MAP;
    access_null: "ACCESS at null" => FAULT, "attached_ioctl(): copy_from_user()", |c| c.cmd = imp::ACCESS;
    map_direction: "MAP for direction 3" => INVAL, "map_for(): dir", |c| (c.cmd, c.word) = (imp::MAP, Some(3));
    map_direction_max: "MAP for direction 2^32 - 1" => INVAL, "map_for(): dir",
        |c| (c.cmd, c.word) = (imp::MAP, Some(!0));
    map_mapped: "MAP, mapped" => BUSY, "map_for(): imp->table",
        |c| (c.cmd, c.word, c.mapped) = (imp::MAP, Some(0), true);
    unmap_unmapped: "UNMAP, not mapped" => NXIO, "unmap_now(): imp->table", |c| c.cmd = imp::UNMAP;
    unknown: "an unknown number" => NOTTY, "attached_ioctl(): switch", |c| c.cmd = opcode::none(b'P', 99);
    },
    rows! { "IMPORTER_ACCESS", access;
    access_flags: "flag 4" => INVAL, "access(): flags", |a| a.flags = 4;
    access_reserved: "reserved 1" => INVAL, "access(): reserved", |a| a.reserved = 1;
    access_len_max: "len 2^64 - 1" => NOMEM, "access(): kvzalloc()", |a| a.len = !0;
    access_len_sign: "len 2^63" => NOMEM, "access(): kvzalloc()", |a| a.len = 1 << 63;
    access_user: "user memory at null" => FAULT, "access(): copy_to_user()", |a| a.user = 0;
    access_user_write: "user memory at null, to write" => FAULT, "access(): copy_from_user()",
        |a| (a.user, a.flags) = (0, WRITE);
    access_direction: "to write what is mapped to be read" => ACCESS, "access_dma(): imp->dir", |a| a.flags = WRITE;
    access_past_end: "a byte past the end" => RANGE, "access_dma(): after the last segment", |a| a.offset = END;
    access_crosses_end: "2 bytes at the last" => RANGE, "access_dma(): left", |a| (a.offset, a.len) = (END - 1, 2);
    access_offset_max: "offset 2^64 - 1" => RANGE, "access_dma(): after the last segment", |a| a.offset = !0;
    vmap_past_end: "a byte past the end, by the kernel" => RANGE, "access_vmap(): len > size - offset",
        |a| (a.offset, a.flags) = (END, VMAP);
    vmap_offset_max: "offset 2^64 - 1, by the kernel" => RANGE, "access_vmap(): offset > size",
        |a| (a.offset, a.flags) = (!0, VMAP);
    },
    rows! { "IMPORTER_LATER", later;
    later_offset: "a byte of a page" => INVAL, "begin_later(): offset", |l| l.arg.offset = 1;
    later_value: "value 256" => INVAL, "begin_later(): value", |l| l.arg.value = 256;
    later_ms: "2001 ms" => INVAL, "begin_later(): ms", |l| l.arg.ms = 2001;
    later_past_end: "a page past the end" => RANGE, "find_place(): after the last segment",
        |l| l.arg.offset = END;
    later_unmapped: "not mapped" => NXIO, "find_place(): imp->table", |l| l.dir = None;
    later_direction: "mapped to be read" => ACCESS, "find_place(): imp->dir",
        |l| l.dir = Some(Dir::ToDevice);
    later_twice: "while there is a fence" => BUSY, "begin_later(): imp->fence", |l| l.again = true;
    },
    rows! { "IMPORTER_ACCESS", unmapped_access;
    access_unmapped: "not mapped" => NXIO, "access_dma(): imp->table", |_| ();
    },
];

struct Attaching {
    arg: Attach,
    file: Option<OwnedFd>,
    null: bool,
}

fn attach(_env: &Env, change: impl FnOnce(&mut Attaching) -> Result<()>) -> Outcome {
    let (importer, (_memfd, buf)) = (Importer::open()?, foreign(1, PAGES)?);
    let mut bad = Attaching {
        arg: Attach {
            fd: buf.as_raw_fd(),
            flags: 0,
        },
        file: None,
        null: false,
    };
    change(&mut bad)?;
    tried(
        || {
            let bad = bad;
            let arg = &raw const bad.arg;
            let arg = if bad.null { std::ptr::null() } else { arg };
            // SAFETY: the kernel reads an `Attach`, or nothing.
            unsafe { abi::ioctl(&importer, imp::ATTACH, arg.cast()) }.map(drop)
        },
        || importer.attach(&buf, Kind::Static).map(drop),
    )
}

fn detached(_env: &Env, change: impl FnOnce(&mut Opcode) -> Result<()>) -> Outcome {
    let (importer, (_memfd, buf)) = (Importer::open()?, foreign(1, PAGES)?);
    let (mut bad, zeros) = (imp::MOVES, [0u64; 4]);
    change(&mut bad)?;
    tried(
        // SAFETY: the kernel reads an argument of zeros.
        || unsafe { abi::ioctl(&importer, bad, zeros.as_ptr().cast()) }.map(drop),
        || importer.attach(&buf, Kind::Static)?.moves().map(drop),
    )
}

struct Entry {
    null: bool,
    private: bool,
    touched: bool,
}

fn entry(_env: &Env, change: impl FnOnce(&mut Entry) -> Result<()>) -> Outcome {
    let (importer, (_memfd, buf)) = (Importer::open()?, foreign(1, 1)?);
    let (shown, private) = (Mapping::shared(&buf, 0, PAGE)?, Mapping::anonymous(PAGE)?);
    private.touch();
    let mut bad = Entry {
        null: false,
        private: false,
        touched: true,
    };
    change(&mut bad)?;
    let at = match bad {
        Entry { null: true, .. } => std::ptr::null_mut(),
        Entry { private: true, .. } => private.at(0),
        _ => shown.at(0),
    };
    if bad.touched {
        shown.touch();
    }
    tried(
        || importer.entry(at).map(drop),
        || {
            shown.touch();
            importer.entry(shown.at(0)).map(drop)
        },
    )
}

fn guest(_env: &Env, change: impl FnOnce(&mut Guest) -> Result<()>) -> Outcome {
    let (importer, (_memfd, buf)) = (Importer::open()?, foreign(1, 1)?);
    let shown = Mapping::shared(&buf, 0, PAGE)?;
    let good = Guest {
        addr: shown.at(0) as u64,
        write: 1,
        reserved: 0,
    };
    let mut bad = Guest { ..good };
    change(&mut bad)?;
    tried(
        || importer.guest(&bad).map(drop),
        || importer.guest(&good).map(drop),
    )
}

struct Mmap {
    attached: bool,
    pages: usize,
    flags: MapFlags,
}

fn mmap(_env: &Env, change: impl FnOnce(&mut Mmap) -> Result<()>) -> Outcome {
    let (importer, none, (_memfd, buf)) =
        (Importer::open()?, Importer::open()?, foreign(1, PAGES)?);
    let mut bad = Mmap {
        attached: true,
        pages: PAGES,
        flags: MapFlags::SHARED,
    };
    change(&mut bad)?;
    let _attachment = importer.attach(&buf, Kind::Static)?;
    let file = if bad.attached { &importer } else { &none };
    tried(
        || Mapping::new(file, 0, bad.pages * PAGE, RW, bad.flags).map(drop),
        || Mapping::shared(&importer, 0, PAGES * PAGE).map(drop),
    )
}

struct Command {
    cmd: Opcode,
    /// The argument. Null, if there is none.
    word: Option<u32>,
    mapped: bool,
}

fn attached(_env: &Env, change: impl FnOnce(&mut Command) -> Result<()>) -> Outcome {
    let (importer, (_memfd, buf)) = (Importer::open()?, foreign(1, PAGES)?);
    let attachment = importer.attach(&buf, Kind::Static)?;
    let mut bad = Command {
        cmd: imp::MOVES,
        word: None,
        mapped: false,
    };
    change(&mut bad)?;
    if bad.mapped {
        attachment.map(Dir::Both)?;
    }
    // The whole of the largest argument that there is.
    let words = [
        bad.word.unwrap_or(buf.as_raw_fd() as u32),
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    let arg = match bad.word.is_some() || bad.cmd == imp::ATTACH {
        true => words.as_ptr(),
        false => std::ptr::null(),
    };
    tried(
        // SAFETY: the kernel reads that argument, or nothing.
        || unsafe { abi::ioctl(&importer, bad.cmd, arg.cast()) }.map(drop),
        || {
            if !bad.mapped {
                attachment.map(Dir::Both)?;
            }
            attachment.unmap()
        },
    )
}

struct Late {
    arg: Later,
    dir: Option<Dir>,
    again: bool,
}

fn later(_env: &Env, change: impl FnOnce(&mut Late) -> Result<()>) -> Outcome {
    let (importer, (_memfd, buf)) = (Importer::open()?, foreign(1, PAGES)?);
    let attachment = importer.attach(&buf, Kind::Static)?;
    let mut bad = Late {
        arg: Later {
            offset: 0,
            value: 1,
            ms: 0,
        },
        dir: Some(Dir::Both),
        again: false,
    };
    change(&mut bad)?;
    if let Some(dir) = bad.dir {
        attachment.map(dir)?;
    }
    if bad.again {
        attachment.fill_later(0, 1, 100)?;
    }
    tried(
        // SAFETY: the kernel reads a `Later`.
        || unsafe { abi::ioctl(&importer, imp::LATER, (&raw const bad.arg).cast()) }.map(drop),
        || {
            // This waits for what it does later.
            drop(attachment);
            let attachment = importer.attach(&buf, Kind::Static)?;
            attachment.map(Dir::FromDevice)?;
            attachment.fill_later(0, 1, 0)
        },
    )
}

fn access(_env: &Env, change: impl FnOnce(&mut Access) -> Result<()>) -> Outcome {
    accessed(true, change)
}

fn unmapped_access(_env: &Env, change: impl FnOnce(&mut Access) -> Result<()>) -> Outcome {
    accessed(false, change)
}

fn accessed(mapped: bool, change: impl FnOnce(&mut Access) -> Result<()>) -> Outcome {
    let (importer, (_memfd, buf)) = (Importer::open()?, foreign(1, PAGES)?);
    let attachment = importer.attach(&buf, Kind::Static)?;
    let mut bytes = [0; 8];
    let mut bad = Access {
        flags: 0,
        reserved: 0,
        offset: 0,
        len: 1,
        user: bytes.as_mut_ptr() as u64,
    };
    change(&mut bad)?;
    if mapped {
        attachment.map(Dir::ToDevice)?;
    }
    tried(
        // SAFETY: the kernel reads `bad`, and writes no more than it has room for.
        || unsafe { abi::ioctl(&importer, imp::ACCESS, (&raw const bad).cast()) }.map(drop),
        || {
            if !mapped {
                attachment.map(Dir::ToDevice)?;
            }
            attachment.read(Through::Dma, 0, &mut [0])
        },
    )
}
