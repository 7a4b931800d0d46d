// SPDX-License-Identifier: GPL-2.0
//! What the drivers of `samples/pagekit_style.h` refuse.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use anyhow::{ensure, Result};
use pagekit_user::abi::{self, SYNC_END, SYNC_READ};
use pagekit_user::kernel::Setting;
use pagekit_user::mapping::Mapping;
use pagekit_user::style::{self, Access, Create, Object, ACCESS_NOWAIT, ACCESS_WRITE};
use pagekit_user::style::{CREATE_SHMEM_MMAP, CREATE_USERPTR, MAP_READ, SHRINK_REVOKE};
use pagekit_user::test_importer::{Dir, Importer, Kind};
use pagekit_user::{kernel, PAGE};
use rustix::io::{self, Errno};
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::MprotectFlags;
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

use super::{rows, tried, AllFds};
use crate::env::Env;
use crate::groups::{Outcome, Row};
use crate::style::{foreign, size_limit, written};

const P: u64 = PAGE as u64;
const PAGES: usize = 4;
const END: u64 = (PAGES * PAGE) as u64;
const KERNEL: u64 = 0xffff_8880_0000_0000;

/// For all of them.
pub const ROWS: &[&[Row]] = &[
    rows! { "CREATE", create;
    create_null: "null" => FAULT, "style.rs read(): CREATE", |c| c.null = true;
    create_reserved: "reserved 1" => INVAL, "style.rs Command::read(): reserved", |c| c.arg.reserved = 1;
    create_flag: "flag 4" => INVAL, "style.rs Create::pages(): flags & !known", |c| c.arg.flags = 4;
    create_flag_high: "flag 2^31" => INVAL, "style.rs Create::pages(): flags & !known", |c| c.arg.flags = 1 << 31;
    create_address: "an address, not USERPTR" => INVAL, "style.rs Create::pages(): address", |c| c.arg.address = P;
    create_size_zero: "size 0" => INVAL, "style.rs Create::pages(): pages == 0", |c| c.arg.size = 0;
    create_size_one: "size 1" => INVAL, "style.rs Create::pages(): size % PAGE_SIZE", |c| c.arg.size = 1;
    create_size_odd: "size 4097" => INVAL, "style.rs Create::pages(): size % PAGE_SIZE", |c| c.arg.size = P + 1;
    create_size_sign: "size 2^63" => INVAL, "style.rs Create::pages(): loff_t", |c| c.arg.size = 1 << 63;
    create_size_max: "size 2^64 - 1" => INVAL, "style.rs Create::pages(): loff_t", |c| c.arg.size = !0;
    create_size_largest: "size 2^63 but a page" => INVAL, "style.rs Create::pages(): size_limit_mb",
        |c| c.arg.size = (1 << 63) - P;
    create_size_huge: "size 2^50" => NOMEM, "style.rs Create::pages(): ram_pages", |c| c.arg.size = 1 << 50;
    create_more_than_memory: "a page more than memory" => NOMEM, "style.rs Create::pages(): ram_pages",
        |c| c.arg.size = kernel::memory("MemTotal")? + P;
    create_size_limit: "a page more than size_limit_mb" => INVAL, "style.rs Create::pages(): size_limit_mb",
        |c| { c.limit = Some(Setting::set(size_limit(c.env)?, "1")?); c.arg.size = (1 << 20) + P };
    create_unlimited: "size 2^63 but a page, size_limit_mb -1" => NOMEM, "style.rs Create::pages(): a negative limit",
        |c| { c.limit = Some(Setting::set(size_limit(c.env)?, "-1")?); c.arg.size = (1 << 63) - P };
    },
    rows! { "IMPORT", import;
    import_null: "null" => FAULT, "style.rs read(): IMPORT", |i| i.null = true;
    import_no_fd: "file descriptor -1" => BADF, "import.rs Buf::get()", |i| i.fd = -1;
    import_memfd: "a memfd" => INVAL, "import.rs Buf::get(), no dma-buf", |i| i.file(abi::memfd(P)?.into());
    import_device: "the device" => INVAL, "import.rs Buf::get(), no dma-buf", |i| i.file(i.env.open()?.into());
    },
    rows! { "command for an object", empty;
    empty_export: "EXPORT, no object" => NOENT, "style.rs Context::object(): EXPORT", |c| *c = style::EXPORT;
    empty_map: "MAP, no object" => NOENT, "style.rs Context::object(): MAP", |c| *c = style::MAP;
    empty_unmap: "UNMAP, no object" => NOENT, "style.rs Context::object(): UNMAP", |c| *c = style::UNMAP;
    empty_access: "ACCESS, no object" => NOENT, "style.rs Context::object(): ACCESS", |c| *c = style::ACCESS;
    empty_info: "INFO, no object" => NOENT, "style.rs Context::object(): INFO", |c| *c = style::INFO;
    },
    rows! { "CREATE", object;
    object_create: "with an object" => EXIST, "style.rs Context::fill(): CREATE",
        |o| o.call = |o, _| o.create(&page());
    import_create: "with an import" => EXIST, "style.rs Context::fill(): CREATE, foreign",
        |o| { o.import()?; o.call = |o, _| o.create(&page()) };
    },
    rows! { "IMPORT", object;
    object_import: "with an object" => EXIST, "style.rs Context::fill(): IMPORT",
        |o| o.call = |o, buf| o.import(buf);
    import_import: "with an import" => EXIST, "style.rs Context::fill(): IMPORT, foreign",
        |o| { o.import()?; o.call = |o, buf| o.import(buf) };
    },
    rows! { "EXPORT", word;
    export_flag: "flag 2" => INVAL, "style.rs flags(): EXPORT", |w| w.is(style::EXPORT, 2);
    export_flag_high: "flag 2^31" => INVAL, "style.rs flags(): EXPORT", |w| w.is(style::EXPORT, 1 << 31);
    export_null: "null" => FAULT, "style.rs read(): EXPORT", |w| w.cmd = style::EXPORT;
    export_no_fds_left: "no file descriptor is left" => MFILE, "dmabuf.rs into_fd(): dma_buf_fd()",
        |w| { w.is(style::EXPORT, 0); w.fds = Some(AllFds::take(&w.object)?) };
    },
    rows! { "MAP", word;
    map_none: "no direction" => INVAL, "style.rs Command::read(): MAP 0", |w| { w.import()?; w.is(style::MAP, 0) };
    map_flag: "flag 4" => INVAL, "style.rs flags(): MAP", |w| { w.import()?; w.is(style::MAP, 4) };
    map_null: "null" => FAULT, "style.rs read(): MAP", |w| { w.import()?; w.cmd = style::MAP };
    map_own: "an object of the device" => INVAL, "style.rs Object::foreign(): MAP", |w| w.is(style::MAP, MAP_READ);
    map_mapped: "what is mapped" => BUSY, "Import::map(): mapped",
        |w| { w.import()?; w.object.map(MAP_READ)?; w.is(style::MAP, MAP_READ) };
    },
    rows! { "UNMAP", word;
    unmap_own: "an object of the device" => INVAL, "style.rs Object::foreign(): UNMAP", |w| w.cmd = style::UNMAP;
    unmap_unmapped: "what is not mapped" => INVAL, "Import::unmap(): mapped",
        |w| { w.import()?; w.cmd = style::UNMAP };
    unmap_twice: "what was unmapped" => INVAL, "Import::unmap(): after one",
        |w| { w.import()?; w.object.map(MAP_READ)?; w.object.unmap()?; w.cmd = style::UNMAP };
    },
    rows! { "ACCESS", access;
    access_null: "null" => FAULT, "style.rs read(): ACCESS", |a| a.null = true;
    access_flag: "flag 4" => INVAL, "style.rs Command::read(): ACCESS flags", |a| a.arg.flags = 4;
    access_reserved: "reserved 1" => INVAL, "style.rs Command::read(): ACCESS reserved", |a| a.arg.reserved = 1;
    access_past_end: "a byte past the end" => INVAL, "style.rs Access::begin(): len", |a| a.arg.offset = END;
    access_crosses_end: "a byte more than there is" => INVAL, "style.rs Access::begin(): len",
        |a| a.arg.length = END + 1;
    access_offset_max: "offset 2^64 - 1" => INVAL, "style.rs Access::begin(): offset", |a| a.arg.offset = !0;
    access_length_max: "length 2^64 - 1" => INVAL, "style.rs Access::begin(): len", |a| a.arg.length = !0;
    access_sum_wraps: "offset + length 2^64" => INVAL, "style.rs Access::begin(): size - offset",
        |a| (a.arg.offset, a.arg.length) = (1, !0);
    access_user: "user memory at null" => FAULT, "style.rs Copy::finish(): write_slice()", |a| a.arg.address = 0;
    access_user_write: "user memory at null, to write" => FAULT, "style.rs Access::begin(): read_all()",
        |a| (a.arg.address, a.arg.flags) = (0, ACCESS_WRITE);
    access_kernel: "kernel memory" => FAULT, "core: access_ok()", |a| a.arg.address = KERNEL;
    access_kernel_write: "kernel memory, to write" => FAULT, "core: access_ok()",
        |a| (a.arg.address, a.arg.flags) = (KERNEL, ACCESS_WRITE);
    access_import: "a byte past the end of an import" => INVAL, "style.rs Access::begin(): len, foreign",
        |a| { a.object = of_foreign(a.env)?; a.arg.offset = END };
    },
    rows! { "INFO", info;
    info_null: "null" => FAULT, "style.rs Info::reply(): write()", |i| *i = 0;
    info_kernel: "kernel memory" => FAULT, "core: access_ok()", |i| *i = KERNEL;
    info_read_only: "memory that can't be written to" => FAULT, "style.rs Info::reply(): write(), read only",
        |i| *i = 1;
    },
    rows! { "unknown command", word;
    unknown: "an unknown number" => NOTTY, "style.rs Command::read(): match cmd",
        |w| w.cmd = opcode::none(b'K', 0x7f);
    unknown_type: "another device's" => NOTTY, "style.rs Command::read(): match cmd, its type",
        |w| w.cmd = opcode::none(b'u', 0x42);
    unknown_size: "CREATE of 8 bytes" => NOTTY, "style.rs Command::read(): match cmd, its size",
        |w| w.cmd = opcode::write::<u64>(b'K', 0);
    unknown_direction: "INFO that writes" => NOTTY, "style.rs Command::read(): match cmd, its direction",
        |w| w.cmd = opcode::write::<style::Info>(b'K', 6);
    unknown_zero: "0" => NOTTY, "style.rs Command::read(): match cmd", |w| w.cmd = 0;
    },
];

pub const I915: &[&[Row]] = &[
    rows! { "CREATE", create;
    create_userptr: "USERPTR" => INVAL, "Handle::create(): known flags", |c| c.arg.flags = CREATE_USERPTR;
    },
    rows! { "ACCESS", access;
    access_nowait: "NOWAIT" => INVAL, "Object::access(): nowait()", |a| a.arg.flags = ACCESS_NOWAIT;
    },
    rows! { "WEDGE", word;
    wedge_null: "null" => FAULT, "style.rs read(): WEDGE", |w| w.cmd = style::WEDGE;
    wedge_long: "100001 ms" => INVAL, "style.rs Command::read(): WEDGE_MAX", |w| w.is(style::WEDGE, 100_001);
    wedge_max: "2^32 - 1 ms" => INVAL, "style.rs Command::read(): WEDGE_MAX", |w| w.is(style::WEDGE, !0);
    },
    rows! { "SHRINK", word;
    shrink_null: "null" => FAULT, "style.rs read(): SHRINK", |w| w.cmd = style::SHRINK;
    shrink_flag: "flag 2" => INVAL, "style.rs flags(): SHRINK", |w| w.is(style::SHRINK, 2);
    shrink_empty: "REVOKE, no object" => NOENT, "style.rs Context::object(): SHRINK",
        |w| { w.object = Object::open(&w.env.device)?; w.is(style::SHRINK, SHRINK_REVOKE) };
    shrink_import: "REVOKE, of an import" => INVAL, "style.rs Object::own(): SHRINK",
        |w| { w.import()?; w.is(style::SHRINK, SHRINK_REVOKE) };
    shrink_fixed: "REVOKE, mapped by who can't do without" => BUSY, "Handle::revoke(): fixed",
        |w| { w.fix()?; w.is(style::SHRINK, SHRINK_REVOKE) };
    },
    rows! { "device that hangs", wedged;
    wedged_access: "ACCESS" => IO, "Pinned::new(): lock_interruptible()",
        |w| w.call = |w| w.object.read(0, &mut [0]);
    wedged_access_import: "ACCESS, of an import" => IO, "Object::access(): lock_interruptible()",
        |w| w.call = |w| w.import.read(0, &mut [0]);
    wedged_map: "MAP" => IO, "Import::map(): wait_for_error()",
        |w| w.call = |w| { w.import.map(MAP_READ)?; w.import.unmap() };
    wedged_sync: "DMA_BUF_IOCTL_SYNC" => IO, "begin_cpu_access(): wait_for_error()",
        |w| w.call = |w| { abi::sync(&w.buf, SYNC_READ)?; abi::sync(&w.buf, SYNC_READ | SYNC_END) };
    wedged_pin: "another device that pins" => IO, "pin(): lock_interruptible()",
        |w| w.call = |w| w.map(Kind::Static);
    wedged_importer: "another device that maps" => IO, "map_dma_buf(): lock_interruptible()",
        |w| w.call = |w| w.map(Kind::Dynamic);
    },
    rows! { "mmap of a dma-buf that is a file's", file_mmap;
    file_past_end: "5 of 4 pages" => INVAL, "core: dma_buf_mmap_internal(): size", |pages| *pages += 1;
    },
];

pub const NOUVEAU: &[&[Row]] = &[
    rows! { "CREATE", create;
    create_userptr: "USERPTR" => INVAL, "ioctl(): known flags", |c| c.arg.flags = CREATE_USERPTR;
    create_shmem_mmap: "SHMEM_MMAP" => INVAL, "ioctl(): known flags", |c| c.arg.flags = CREATE_SHMEM_MMAP;
    },
    rows! { "ACCESS", access;
    access_nowait: "NOWAIT" => INVAL, "Object::access(): nowait()", |a| a.arg.flags = ACCESS_NOWAIT;
    },
    rows! { "command that it doesn't have", word;
    wedge: "WEDGE" => NOTTY, "ioctl(): WEDGE", |w| w.is(style::WEDGE, 0);
    wedge_long: "WEDGE, 100001 ms" => INVAL, "style.rs Command::read(): before ioctl()",
        |w| w.is(style::WEDGE, 100_001);
    reset: "RESET" => NOTTY, "ioctl(): RESET", |w| w.cmd = style::RESET;
    shrink: "SHRINK" => NOTTY, "ioctl(): SHRINK", |w| w.is(style::SHRINK, 0);
    },
];

pub const RADEON: &[&[Row]] = &[
    rows! { "CREATE", create;
    create_shmem_mmap: "SHMEM_MMAP" => INVAL, "Bo::new(): known flags", |c| c.arg.flags = CREATE_SHMEM_MMAP;
    },
    rows! { "CREATE of user memory", userptr;
    user_odd: "an address 1 off" => INVAL, "pin.rs pin_user(): addr % PAGE_SIZE", |u| u.arg.address += 1;
    user_wraps: "2 pages at 2^64 but a page" => INVAL, "pin.rs pin_user(): wraps",
        |u| (u.arg.address, u.arg.size) = (P.wrapping_neg(), 2 * P);
    user_null: "null" => FAULT, "pin.rs pin_user_chunks(): pin_user_pages_fast()", |u| u.arg.address = 0;
    user_kernel: "kernel memory" => FAULT, "core: gup_fast_fallback(): access_ok()", |u| u.arg.address = KERNEL;
    user_hole: "memory with a hole" => FAULT, "pin.rs pin_user(): unpin_from()",
        |u| u.arg.size = (PAGES as u64 + 1) * P;
    user_read_only: "memory that can't be written to" => FAULT, "pin.rs pin_user_chunks(): FOLL_WRITE",
        |u| u.memory.protect(0, PAGE, MprotectFlags::READ)?;
    user_dma_buf: "a mapping of a dma-buf" => FAULT, "vma.rs setup(): PFNMAP, to pin_user_pages_fast()",
        |u| u.map(u.env.filled(1, PAGES)?)?;
    user_memlock: "more than RLIMIT_MEMLOCK" => NOMEM, "Account::new(): RLIMIT_MEMLOCK", |u| u.memlock(PAGES - 1)?;
    },
    rows! { "EXPORT", word;
    export_user: "user memory" => PERM, "Object::export(): account", |w| { w.user()?; w.is(style::EXPORT, 0) };
    },
    rows! { "command that it doesn't have", word;
    wedge: "WEDGE" => NOTTY, "ioctl(): WEDGE", |w| w.is(style::WEDGE, 0);
    wedge_long: "WEDGE, 100001 ms" => INVAL, "style.rs Command::read(): before ioctl()",
        |w| w.is(style::WEDGE, 100_001);
    reset: "RESET" => NOTTY, "ioctl(): RESET", |w| w.cmd = style::RESET;
    shrink: "SHRINK" => NOTTY, "ioctl(): SHRINK", |w| w.is(style::SHRINK, 0);
    },
];

/// A call with an argument that the kernel reads, if it gets that far.
fn call<T>(object: &Object, cmd: Opcode, arg: Option<&T>) -> io::Result<()> {
    let arg: *const c_void = arg.map_or(ptr::null(), |arg| (&raw const *arg).cast());
    // SAFETY: all commands that are called with this read `arg`, which is large enough. `ACCESS`
    // gets addresses that are ours or nobody's.
    unsafe { abi::ioctl(object, cmd, arg) }.map(drop)
}

fn page() -> Create {
    Create {
        size: P,
        ..Create::default()
    }
}

fn of_foreign(env: &Env) -> Result<Object> {
    Object::of(&env.device, foreign(1, PAGES)?.1)
}

struct Creating<'a> {
    env: &'a Env,
    arg: Create,
    null: bool,
    limit: Option<Setting>,
}

/// A failure leaves it empty: the good call is for the same file.
fn create(env: &Env, change: impl FnOnce(&mut Creating<'_>) -> Result<()>) -> Outcome {
    let object = Object::open(&env.device)?;
    let mut bad = Creating {
        env,
        arg: page(),
        null: false,
        limit: None,
    };
    change(&mut bad)?;
    tried(
        || {
            let bad = bad;
            call(&object, style::CREATE, Some(&bad.arg).filter(|_| !bad.null))
        },
        || object.create(&page()),
    )
}

struct Importing<'a> {
    env: &'a Env,
    fd: i32,
    file: Option<OwnedFd>,
    null: bool,
}

impl Importing<'_> {
    fn file(&mut self, file: OwnedFd) {
        self.fd = file.as_raw_fd();
        self.file = Some(file);
    }
}

fn import(env: &Env, change: impl FnOnce(&mut Importing<'_>) -> Result<()>) -> Outcome {
    let (object, (_memfd, buf)) = (Object::open(&env.device)?, foreign(1, PAGES)?);
    let mut bad = Importing {
        env,
        fd: -1,
        file: None,
        null: false,
    };
    change(&mut bad)?;
    tried(
        || {
            let bad = bad;
            call(&object, style::IMPORT, Some(&bad.fd).filter(|_| !bad.null))
        },
        || object.import(&buf),
    )
}

fn empty(env: &Env, change: impl FnOnce(&mut Opcode) -> Result<()>) -> Outcome {
    let object = Object::open(&env.device)?;
    let mut bad = 0;
    change(&mut bad)?;
    // Right for each of them.
    let mut words = [u64::from(MAP_READ), 0, 0, 0, 0, 0];
    tried(
        // SAFETY: the kernel reads or writes no more than there is.
        || unsafe { abi::ioctl(&object, bad, words.as_mut_ptr().cast()) }.map(drop),
        || {
            object.create(&page())?;
            object.info().map(drop)
        },
    )
}

/// A file that is an object, and a call for it.
struct Having<'a> {
    env: &'a Env,
    object: Object,
    call: fn(&Object, &OwnedFd) -> io::Result<()>,
}

impl Having<'_> {
    fn import(&mut self) -> Result<()> {
        self.object = of_foreign(self.env)?;
        Ok(())
    }
}

fn object(env: &Env, change: impl FnOnce(&mut Having<'_>) -> Result<()>) -> Outcome {
    let (_memfd, buf) = foreign(1, PAGES)?;
    let mut bad = Having {
        env,
        object: written(env, 1, PAGES)?,
        call: |object, _| object.info().map(drop),
    };
    change(&mut bad)?;
    tried(
        || (bad.call)(&bad.object, &buf),
        || {
            // It still is what it was, and another file can be.
            bad.object.read(0, &mut [0])?;
            let other = Object::open(&env.device).map_err(|_| Errno::IO)?;
            match (bad.call)(&other, &buf) {
                Err(Errno::NOENT) => Err(Errno::IO),
                result => result,
            }
        },
    )
}

/// A command with one word, or none, for an object.
struct Word<'a> {
    env: &'a Env,
    object: Object,
    cmd: Opcode,
    word: Option<u32>,
    fds: Option<AllFds>,
    /// What else must stay.
    memory: Option<Mapping>,
    other: Option<Object>,
}

impl Word<'_> {
    fn is(&mut self, cmd: Opcode, word: u32) {
        (self.cmd, self.word) = (cmd, Some(word));
    }

    fn import(&mut self) -> Result<()> {
        self.object = of_foreign(self.env)?;
        Ok(())
    }

    /// Has a driver map the object that can't stop to.
    fn fix(&mut self) -> Result<()> {
        let other = Object::of("/dev/pagekit-radeon", self.object.export()?)?;
        other.map(MAP_READ)?;
        self.other = Some(other);
        Ok(())
    }

    fn user(&mut self) -> Result<()> {
        let memory = Mapping::anonymous(PAGES * PAGE)?;
        let address = memory.at(0) as usize;
        self.object = Object::with(&self.env.device, PAGES, CREATE_USERPTR, address)?;
        self.memory = Some(memory);
        Ok(())
    }
}

fn word(env: &Env, change: impl FnOnce(&mut Word<'_>) -> Result<()>) -> Outcome {
    let mut bad = Word {
        env,
        object: written(env, 1, PAGES)?,
        cmd: 0,
        word: None,
        fds: None,
        memory: None,
        other: None,
    };
    change(&mut bad)?;
    tried(
        || {
            let bad = bad;
            call(&bad.object, bad.cmd, bad.word.as_ref())
        },
        || usable(env),
    )
}

/// Does the commands that any object has, for one that the device itself has made and for another.
fn usable(env: &Env) -> io::Result<()> {
    let io = |_| Errno::IO;
    written(env, 1, PAGES).map_err(io)?.export()?;
    let import = of_foreign(env).map_err(io)?;
    import.map(MAP_READ)?;
    import.unmap()
}

struct Accessing<'a> {
    env: &'a Env,
    object: Object,
    arg: Access,
    null: bool,
}

fn access(env: &Env, change: impl FnOnce(&mut Accessing<'_>) -> Result<()>) -> Outcome {
    let mut bytes = [0; 8];
    let mut bad = Accessing {
        env,
        object: written(env, 1, PAGES)?,
        arg: Access {
            length: 1,
            address: bytes.as_mut_ptr() as u64,
            ..Access::default()
        },
        null: false,
    };
    change(&mut bad)?;
    tried(
        || {
            call(
                &bad.object,
                style::ACCESS,
                Some(&bad.arg).filter(|_| !bad.null),
            )
        },
        || {
            bad.object.write(0, &[1])?;
            bad.object.read(0, &mut [0])
        },
    )
}

fn info(env: &Env, change: impl FnOnce(&mut u64) -> Result<()>) -> Outcome {
    let (object, memory) = (written(env, 1, PAGES)?, Mapping::anonymous(PAGE)?);
    memory.protect(0, PAGE, MprotectFlags::READ)?;
    let mut bad = 0;
    change(&mut bad)?;
    let at = match bad {
        1 => memory.at(0) as u64,
        at => at,
    };
    tried(
        // SAFETY: the kernel can't write there.
        || unsafe { abi::ioctl(&object, style::INFO, at as *const c_void) }.map(drop),
        || object.info().map(drop),
    )
}

/// A device that hangs, and what can be tried.
struct Wedged {
    object: Object,
    import: Object,
    buf: OwnedFd,
    call: fn(&Self) -> io::Result<()>,
}

impl Wedged {
    fn map(&self, kind: Kind) -> io::Result<()> {
        let importer = Importer::open().map_err(|_| Errno::NODEV)?;
        let attachment = importer.attach(&self.buf, kind)?;
        attachment.map(Dir::Both)
    }
}

fn wedged(env: &Env, change: impl FnOnce(&mut Wedged) -> Result<()>) -> Outcome {
    let object = written(env, 1, PAGES)?;
    let mut bad = Wedged {
        buf: object.export()?,
        import: of_foreign(env)?,
        object,
        call: |_| Ok(()),
    };
    change(&mut bad)?;
    bad.object.wedge(1)?;
    tried(
        || (bad.call)(&bad),
        || {
            bad.object.reset()?;
            (bad.call)(&bad)
        },
    )
}

fn file_mmap(env: &Env, change: impl FnOnce(&mut usize) -> Result<()>) -> Outcome {
    let object = Object::with(&env.device, PAGES, CREATE_SHMEM_MMAP, 0)?;
    let (buf, mut bad) = (object.export()?, PAGES);
    change(&mut bad)?;
    let map = |pages| Mapping::shared(&buf, 0, pages * PAGE).map(drop);
    tried(|| map(bad), || map(PAGES))
}

/// User memory with nothing behind it.
struct User<'a> {
    env: &'a Env,
    memory: Mapping,
    arg: Create,
    limit: Option<Memlock>,
}

impl User<'_> {
    fn map(&mut self, buf: OwnedFd) -> Result<()> {
        self.memory = Mapping::shared(buf, 0, PAGES * PAGE)?;
        self.arg.address = self.memory.at(0) as u64;
        Ok(())
    }

    fn memlock(&mut self, pages: usize) -> Result<()> {
        self.limit = Some(Memlock::set(pages)?);
        Ok(())
    }
}

/// A limit for this process, which has no privileges until this is dropped.
struct Memlock(Rlimit);

impl Memlock {
    fn set(pages: usize) -> Result<Self> {
        let before = getrlimit(Resource::Memlock);
        let limit = Rlimit {
            current: Some((pages * PAGE) as u64),
            ..before
        };
        setrlimit(Resource::Memlock, limit)?;
        // SAFETY: a plain call.
        ensure!(unsafe { libc::seteuid(65534) } == 0, "seteuid");
        Ok(Self(before))
    }
}

impl Drop for Memlock {
    fn drop(&mut self) {
        // SAFETY: a plain call.
        unsafe { libc::seteuid(0) };
        let _ = setrlimit(Resource::Memlock, self.0);
    }
}

fn userptr(env: &Env, change: impl FnOnce(&mut User<'_>) -> Result<()>) -> Outcome {
    let object = Object::open(&env.device)?;
    let own = Mapping::anonymous(PAGE)?;
    let (memory, end) = Mapping::anonymous((PAGES + 1) * PAGE)?.cut_out(PAGES * PAGE, PAGE)?;
    ensure!(end.is_empty());
    let mut bad = User {
        env,
        limit: None,
        arg: Create {
            size: (PAGES * PAGE) as u64,
            address: memory.at(0) as u64,
            flags: CREATE_USERPTR,
            reserved: 0,
        },
        memory,
    };
    let good = Create {
        size: P,
        address: own.at(0) as u64,
        ..bad.arg
    };
    change(&mut bad)?;
    tried(
        || {
            let bad = bad;
            object.create(&bad.arg)
        },
        || object.create(&good),
    )
}
