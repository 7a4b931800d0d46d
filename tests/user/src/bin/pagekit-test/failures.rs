// SPDX-License-Identifier: GPL-2.0
//! What can fail in the entry points of drivers and helpers fails in turn: a case for each entry.
//!
//! Helpers are called by `/dev/pagekit-bench` and the nodes, as directly as user space can.

pub mod inject;

use std::cell::Cell;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{self, BenchMake, HeapAllocation, UdmabufCreate};
use pagekit_user::abi::{SYNC_END, SYNC_RW, SYNC_START};
use pagekit_user::drm::{same_buffer, Card, FenceAttach};
use pagekit_user::kernel::{self, Setting, ZramSwap};
use pagekit_user::mapping::Mapping;
use pagekit_user::style::{
    Create, Object, CREATE_SHMEM_MMAP, CREATE_USERPTR, MAP_READ, MAP_WRITE, SHRINK_REVOKE,
};
use pagekit_user::test_importer::{Attachment, Dir, Importer, Kind, Through};
use pagekit_user::PAGE;
use rustix::fs::{Mode, OFlags};
use rustix::io::{self, Errno};

use crate::env::{check_file, check_pages, item, written, Content, Env};
use crate::gem;
use crate::groups::Case;
use crate::memory::{evict, huge_memfd, HUGE_PAGES, THP};
use crate::style::{self, check, fill, foreign};
use inject::{each, without_pages, Unshared};

/// For any exporter.
pub const EXPORTER: &[Case] = &[
    Case::new("attach", attach),
    Case::new("detach", detach),
    Case::new("map", map).smoke(),
    Case::new("unmap", unmap),
    Case::new("sync", sync),
    Case::new("mmap", mmap).smoke(),
    Case::new("release", release),
];

/// For those that map a buffer for the kernel each time.
pub const VMAP: &[Case] = &[Case::new("vmap", vmap).smoke()];

/// For those that have what can be mapped in faults from the start.
pub const FAULT: &[Case] = &[
    Case::new("fault", fault).smoke(),
    Case::new("huge_fault", huge_fault),
];

pub const UDMABUF: &[Case] = &[
    Case::new("create", create_of_holes).smoke(),
    Case::new("create_many", create_of_many),
    Case::new("create_hugetlb", create_of_hugetlb),
    Case::new("create_swapped_out", create_of_swapped_out),
    Case::new("create_list", create_list),
];

pub const HEAP: &[Case] = &[Case::new("alloc", alloc).smoke()];

pub const GEM: &[Case] = &[
    Case::new("open", open),
    Case::new("create", create_dumb).smoke(),
    Case::new("import_foreign", import_into_gem).smoke(),
    Case::new("fault", fault),
    Case::new("fault_evicted", fault_evicted).smoke(),
    Case::new("fault_write_combined", fault_write_combined),
    Case::new("fence", fence),
];

/// For the drivers of `pagekit_style.h`.
pub const STYLE: &[Case] = &[
    Case::new("open", open),
    Case::new("create", |env| create_object(env, 0, no_memory)).smoke(),
    Case::new("export", export),
    Case::new("import", import_own),
    Case::new("import_foreign", import_foreign).smoke(),
    Case::new("map_foreign", map_foreign),
    Case::new("unmap_foreign", unmap_foreign),
    Case::new("access", access).smoke(),
    Case::new("access_foreign", access_foreign),
    Case::new("info", info),
];

pub const I915: &[Case] = &[
    Case::new("create_file_mmap", |env| {
        create_object(env, CREATE_SHMEM_MMAP, no_memory)
    }),
    Case::new("fault", fault_of_object).smoke(),
    Case::new("file_mmap", file_mmap),
    Case::new("file_fault", file_fault),
    Case::new("wedge", wedge),
    Case::new("shrink", shrink),
];

pub const RADEON: &[Case] = &[Case::new("create_userptr", create_userptr).smoke()];

/// For `/dev/pagekit-bench`, which calls the helper that the case is named after.
pub const HELPERS: &[Case] = &[
    Case::new("from_shmem", |env| of_memfd(env, OURS_PAGES, FEW, holes)).smoke(),
    Case::new("from_shmem_many", |env| {
        of_memfd(env, OURS_PAGES, MANY, many)
    }),
    Case::new("alloc", |env| of_nothing(env, OURS_MAP_PAGES)).smoke(),
    Case::new("alloc_large", |env| of_nothing(env, OURS_MAP_PAGES_LARGE)),
    Case::new("alloc_none", alloc_none).smoke(),
    Case::new("pin_user", pin_user).smoke(),
    Case::new("pin_memfd", |env| of_memfd(env, OURS_PIN_MEMFD, FEW, holes)).smoke(),
    Case::new("pin_memfd_many", |env| {
        of_memfd(env, OURS_PIN_MEMFD, MANY, many)
    }),
    Case::new("pin_memfd_hugetlb", pin_hugetlb),
    Case::new("map_pfns", |env| mmap_of(env, OURS_MAP_PFNS)).smoke(),
    Case::new("setup_pfns", |env| mmap_of(env, OURS_FAULT_PFNS)),
    Case::new("map_pages", |env| mmap_of(env, OURS_MAP_PAGES)).smoke(),
    Case::new("fault_pfns", fault_pfns),
];

/// C's.
const OURS_PAGES: u32 = 0;
pub const OURS_MAP_PFNS: u32 = 1;
const OURS_FAULT_PFNS: u32 = 2;
pub const OURS_MAP_PAGES: u32 = 3;
const OURS_MAP_PAGES_LARGE: u32 = 4;
const OURS_PIN_USER: u32 = 5;
const OURS_PIN_MEMFD: u32 = 6;

/// Where nothing else is mapped: page tables are yet to be made, and huge ones fit.
const NOWHERE: usize = 1 << 44;
/// Pages of a buffer.
const FEW: usize = 16;
/// So many that the array of them takes pages of its own, and a kernel mapping isn't kept ready.
const MANY: usize = 600;

/// For calls whose success shows later, or that can't fail.
fn done<S, T>(_: &S, _: T) -> Result<()> {
    Ok(())
}

/// What makes `state` go.
pub fn each_drop<S>(prepare: impl Fn() -> Result<S>) -> Result<()> {
    each(
        || Ok(Cell::new(Some(prepare()?))),
        |state| {
            drop(state.take());
            Ok(())
        },
        done,
    )
}

/// A file, mapped where page tables are yet to be made.
pub fn map_nowhere(file: impl AsFd, pages: usize) -> io::Result<Mapping> {
    Mapping::shared_at(NOWHERE, file, pages * PAGE)
}

/// The first access to a mapping: it takes as long as there is no memory.
fn touch(map: &Mapping) -> io::Result<()> {
    // SAFETY: in bounds; volatile so that it happens.
    unsafe { map.at(0).read_volatile() };
    Ok(())
}

fn shows_file(map: &Mapping) -> Result<()> {
    check_file(map, 1, 0)
}

fn shows_zeros(buf: impl AsFd) -> Result<()> {
    let map = Mapping::shared(&buf, 0, FEW * PAGE)?;
    check_pages(&map, |_| Content::Zero)
}

// --- Any exporter -----------------------------------------------------------------

/// Who can't and who can cope with moves: exporters pin for the first.
const IMPORTERS: [Kind; 2] = [Kind::Static, Kind::Dynamic];

fn shows_device(attachment: &Attachment<'_>) -> Result<()> {
    let mut page = [0; PAGE];
    attachment.read(Through::Dma, 5 * PAGE, &mut page)?;
    Content::Page(1, 5).check(&page)
}

/// With a buffer and an importer, of each kind.
fn import(env: &Env, test: impl Fn(&OwnedFd, &Importer, Kind) -> Result<()>) -> Result<()> {
    let (buf, importer) = (env.filled(1, FEW)?, Importer::open()?);
    IMPORTERS
        .into_iter()
        .try_for_each(|kind| test(&buf, &importer, kind).with_context(|| format!("{kind:?}")))
}

fn attach(env: &Env) -> Result<()> {
    import(env, |buf, importer, kind| {
        each(
            || Ok(()),
            |()| importer.attach(buf, kind),
            |(), attachment| {
                attachment.map(Dir::Both)?;
                shows_device(&attachment)
            },
        )
    })
}

fn detach(env: &Env) -> Result<()> {
    import(env, |buf, importer, kind| {
        each_drop(|| Ok(importer.attach(buf, kind)?))
    })
}

fn map(env: &Env) -> Result<()> {
    import(env, |buf, importer, kind| {
        each(
            || Ok(importer.attach(buf, kind)?),
            |attachment| attachment.map(Dir::Both),
            |attachment, ()| shows_device(attachment),
        )
    })
}

fn unmap(env: &Env) -> Result<()> {
    import(env, |buf, importer, kind| {
        let mapped = || -> Result<_> {
            let attachment = importer.attach(buf, kind)?;
            attachment.map(Dir::Both)?;
            Ok(attachment)
        };
        each(mapped, |attachment| attachment.unmap(), done)
    })
}

fn sync(env: &Env) -> Result<()> {
    let buf = env.filled(1, FEW)?;
    let begin = || Ok(abi::sync(&buf, SYNC_START | SYNC_RW)?);
    each(
        || Ok(()),
        |()| abi::sync(&buf, SYNC_START | SYNC_RW),
        |(), ()| Ok(abi::sync(&buf, SYNC_END | SYNC_RW)?),
    )?;
    each(begin, |()| abi::sync(&buf, SYNC_END | SYNC_RW), done)
}

fn mmap(env: &Env) -> Result<()> {
    let buf = env.filled(1, FEW)?;
    each(
        || Ok(()),
        |()| map_nowhere(&buf, FEW),
        |(), map| shows_file(&map),
    )
}

fn fault(env: &Env) -> Result<()> {
    let buf = env.filled(1, FEW)?;
    each(
        || Ok(map_nowhere(&buf, FEW)?),
        touch,
        |map, ()| shows_file(map),
    )
}

/// For those that get their pages from shmem.
fn huge_fault(env: &Env) -> Result<()> {
    let _huge = Setting::set(format!("{THP}/shmem_enabled"), "force")?;
    kernel::write("/proc/sys/vm/compact_memory", "1")?;
    let buf = env.filled(1, HUGE_PAGES)?;
    let tables = kernel::page_tables()?;
    let map = || Ok(map_nowhere(&buf, HUGE_PAGES)?);
    each(map, touch, |map, ()| shows_file(map))?;
    let map = map()?;
    touch(&map)?;
    let more = kernel::page_tables()? - tables;
    ensure!(more < 3 * PAGE, "{more} bytes of page tables: no huge page");
    Ok(())
}

fn release(env: &Env) -> Result<()> {
    each_drop(|| env.filled(1, FEW))
}

fn vmap(env: &Env) -> Result<()> {
    for pages in [FEW, MANY] {
        let (buf, importer) = (env.filled(1, pages)?, Importer::open()?);
        each(
            || Ok(importer.attach(&buf, Kind::Static)?),
            |attachment| {
                let mut page = [0; PAGE];
                attachment.read(Through::Vmap, 5 * PAGE, &mut page)?;
                Ok(page)
            },
            |_, page| Content::Page(1, 5).check(&page),
        )?;
    }
    Ok(())
}

// --- udmabuf and the heap ----------------------------------------------------------

/// Creates a buffer of `pages` of what `memfd` makes.
fn create(
    env: &Env,
    pages: usize,
    memfd: impl Fn() -> Result<File>,
    content: fn(usize) -> Content,
) -> Result<()> {
    let device = env.open()?;
    each(
        || memfd().map(Unshared),
        |Unshared(memfd)| {
            abi::create(
                &device,
                &UdmabufCreate {
                    memfd: memfd.as_raw_fd() as u32,
                    flags: abi::UDMABUF_FLAGS_CLOEXEC,
                    offset: 0,
                    size: (pages * PAGE) as u64,
                },
            )
        },
        |_, buf| check_pages(&Mapping::shared(&buf, 0, pages * PAGE)?, content),
    )
}

fn create_of_holes(env: &Env) -> Result<()> {
    create(env, FEW, holes, |_| Content::Zero)
}

fn create_of_many(env: &Env) -> Result<()> {
    create(env, MANY, many, |page| Content::Page(1, page))
}

fn create_of_hugetlb(env: &Env) -> Result<()> {
    let _hugepages = Setting::hugepages(1)?;
    create(env, FEW, || huge_memfd(HUGE_PAGES), |_| Content::Zero)
}

fn create_of_swapped_out(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(8 << 20)?;
    let memfd = || {
        let memfd = written(1, 2)?;
        evict(&memfd, 2)?;
        Ok(memfd)
    };
    create(env, 2, memfd, |page| Content::Page(1, page))
}

fn create_list(env: &Env) -> Result<()> {
    let (device, memfds) = (env.open()?, [written(1, 4)?, written(1, 8)?]);
    let items = [item(&memfds[0], 0, 4), item(&memfds[1], 4, 4)];
    each(
        || Ok(()),
        |()| abi::create_list(&device, abi::UDMABUF_FLAGS_CLOEXEC, &items),
        |(), buf| shows_file(&Mapping::shared(&buf, 0, 8 * PAGE)?),
    )
}

fn alloc(env: &Env) -> Result<()> {
    let heap = env.open()?;
    for pages in [FEW, MANY] {
        each(
            || Ok(()),
            |()| {
                abi::heap_alloc(
                    &heap,
                    &mut HeapAllocation {
                        len: (pages * PAGE) as u64,
                        fd: 0,
                        fd_flags: (OFlags::RDWR | OFlags::CLOEXEC).bits(),
                        heap_flags: 0,
                    },
                )
            },
            |(), buf| shows_zeros(&buf),
        )?;
    }
    Ok(())
}

// --- GEM -----------------------------------------------------------------------------

// Not PRIME_HANDLE_TO_FD: DRM has given the file descriptor away when user space can't be told
// which.

fn create_dumb(env: &Env) -> Result<()> {
    for pages in [FEW, MANY] {
        each(
            || Card::open(&env.device),
            |card| Ok(card.create_dumb(pages)?.keep()),
            |card, handle| shows_zeros(card.export(handle)?),
        )?;
    }
    Ok(())
}

fn import_into_gem(env: &Env) -> Result<()> {
    let (_memfd, buf) = foreign(1, FEW)?;
    each(
        || Card::open(&env.device),
        |card| Ok(card.import(buf.as_fd())?.keep()),
        |card, handle| {
            let again = card.export(handle)?;
            ensure!(same_buffer(&buf, again)?, "exported as another");
            Ok(())
        },
    )
}

/// A fault that has to get the pages first.
fn fault_evicted(env: &Env) -> Result<()> {
    let buf = env.filled(1, FEW)?;
    each(
        || {
            gem::shrink()?;
            Ok(map_nowhere(&buf, FEW)?)
        },
        touch,
        |map, ()| shows_file(map),
    )
}

/// The same, where caches are cleaned of the pages.
fn fault_write_combined(env: &Env) -> Result<()> {
    let _setting = gem::set_write_combine()?;
    fault_evicted(env)
}

/// A fence whose number user space isn't told goes with its file. One of a reader is not in the way
/// of others until then.
fn fence(env: &Env) -> Result<()> {
    each(
        || {
            let card = Card::open(&env.device)?;
            let handle = card.create_dumb(1)?.keep();
            Ok((card, handle))
        },
        |(card, handle)| {
            card.attach_fence(FenceAttach {
                handle: *handle,
                flags: 0,
                out_fence: 0,
                pad: 0,
            })
        },
        |(card, _), fence| Ok(card.signal(fence)?),
    )
}

// --- The drivers in the style of others ----------------------------------------------

pub fn open(env: &Env) -> Result<()> {
    each(
        || Ok(CString::new(env.device.as_os_str().as_bytes())?),
        |path| {
            rustix::fs::open(
                path.as_c_str(),
                OFlags::RDWR | OFlags::CLOEXEC,
                Mode::empty(),
            )
        },
        done,
    )
}

/// Of user memory, if there is some.
fn create_object(env: &Env, flags: u32, memory: fn() -> Result<Option<Mapping>>) -> Result<()> {
    each(
        || Ok((Object::open(&env.device)?, memory()?)),
        |(object, memory)| {
            object.create(&Create {
                size: (FEW * PAGE) as u64,
                address: memory.as_ref().map_or(0, |memory| memory.at(0) as u64),
                flags,
                reserved: 0,
            })
        },
        |(object, _), ()| {
            fill(object, 1, FEW)?;
            check(object, 1, FEW)
        },
    )
}

fn export(env: &Env) -> Result<()> {
    let object = style::written(env, 1, FEW)?;
    each(
        || Ok(()),
        |()| object.export(),
        |(), buf| shows_file(&Mapping::shared(&buf, 0, FEW * PAGE)?),
    )
}

/// Of a buffer of the driver itself.
fn import_own(env: &Env) -> Result<()> {
    let buf = env.filled(1, FEW)?;
    each(
        || Object::open(&env.device),
        |object| object.import(&buf),
        |object, ()| check(object, 1, FEW),
    )
}

fn import_foreign(env: &Env) -> Result<()> {
    let (_memfd, buf) = foreign(1, FEW)?;
    each(
        || Object::open(&env.device),
        |object| object.import(&buf),
        |object, ()| check(object, 1, FEW),
    )
}

fn map_foreign(env: &Env) -> Result<()> {
    let (_memfd, buf) = foreign(1, FEW)?;
    each(
        || Object::of(&env.device, &buf),
        |object| object.map(MAP_READ | MAP_WRITE),
        |object, ()| check(object, 1, FEW),
    )
}

fn unmap_foreign(env: &Env) -> Result<()> {
    let (_memfd, buf) = foreign(1, FEW)?;
    let mapped = || -> Result<_> {
        let object = Object::of(&env.device, &buf)?;
        object.map(MAP_READ)?;
        Ok(object)
    };
    each(mapped, Object::unmap, done)
}

/// Both ways, with an object whose pages may be anywhere.
fn access(env: &Env) -> Result<()> {
    for pages in [FEW, MANY] {
        access_both_ways(|| Object::new(&env.device, pages))?;
    }
    Ok(())
}

/// Mapped or not is the same to it.
fn access_foreign(env: &Env) -> Result<()> {
    let (_memfd, buf) = foreign(1, FEW)?;
    access_both_ways(|| Object::of(&env.device, &buf))
}

/// Its pages may be anywhere, and its kernel mapping yet to be made.
fn access_both_ways(object: impl Fn() -> Result<Object>) -> Result<()> {
    let bytes = Content::Page(1, 0).bytes();
    each(
        &object,
        |object| object.write(0, &bytes),
        |object, ()| check(object, 1, 1),
    )?;
    each(
        || {
            let object = object()?;
            object.write(0, &bytes)?;
            Ok(object)
        },
        |object| {
            let mut page = [0; PAGE];
            object.read(0, &mut page)?;
            Ok(page)
        },
        |_, page| Content::Page(1, 0).check(&page),
    )
}

fn info(env: &Env) -> Result<()> {
    let object = Object::new(&env.device, FEW)?;
    each(
        || Ok(()),
        |()| object.info(),
        |(), info| Ok(ensure!(info.size == (FEW * PAGE) as u64, "{info:?}")),
    )
}

/// The first, which gets the pages.
fn fault_of_object(env: &Env) -> Result<()> {
    each(
        || Ok(map_nowhere(Object::new(&env.device, FEW)?.export()?, FEW)?),
        touch,
        |map, ()| check_pages(map, |_| Content::Zero),
    )
}

/// Of an object whose mappings are those of its file.
fn of_file(env: &Env) -> Result<OwnedFd> {
    let object = Object::with(&env.device, FEW, CREATE_SHMEM_MMAP, 0)?;
    fill(&object, 1, FEW)?;
    Ok(object.export()?)
}

fn file_mmap(env: &Env) -> Result<()> {
    let buf = of_file(env)?;
    each(
        || Ok(()),
        |()| map_nowhere(&buf, FEW),
        |(), map| check_file(&map, 1, 0),
    )
}

fn file_fault(env: &Env) -> Result<()> {
    let buf = of_file(env)?;
    each(
        || Ok(map_nowhere(&buf, FEW)?),
        touch,
        |map, ()| check_file(map, 1, 0),
    )
}

fn wedge(env: &Env) -> Result<()> {
    let object = Object::new(&env.device, FEW)?;
    each(
        || Ok(()),
        |()| object.wedge(0),
        |(), ()| Ok(object.reset()?),
    )?;
    each(|| Ok(object.wedge(0)?), |()| object.reset(), done)
}

/// What is held, and what a device has mapped.
fn shrink(env: &Env) -> Result<()> {
    let held = || -> Result<_> {
        let object = Object::new(&env.device, FEW)?;
        touch(&map_nowhere(object.export()?, FEW)?)?;
        Ok(object)
    };
    each(held, |object| object.shrink(0), gone)?;
    let mapped = || -> Result<_> {
        let object = Object::new(&env.device, FEW)?;
        let importer = Object::of("/dev/pagekit-nouveau", object.export()?)?;
        importer.map(MAP_READ)?;
        Ok((object, importer))
    };
    each(mapped, |(object, _)| object.shrink(SHRINK_REVOKE), gone)
}

fn gone<S>(_: &S, pages: usize) -> Result<()> {
    ensure!(pages == FEW, "{pages} pages");
    Ok(())
}

fn no_memory() -> Result<Option<Mapping>> {
    Ok(None)
}

fn create_userptr(env: &Env) -> Result<()> {
    create_object(env, CREATE_USERPTR, || {
        Ok(Some(Mapping::anonymous(FEW * PAGE)?))
    })
}

// --- The helpers -----------------------------------------------------------------

fn holes() -> Result<File> {
    abi::memfd((FEW * PAGE) as u64)
}

fn many() -> Result<File> {
    written(1, MANY)
}

/// `BENCH_MAKE`.
pub fn make(file: &File, how: u32, memfd: RawFd, start: usize, pages: usize) -> io::Result<()> {
    abi::bench_make(
        file,
        &BenchMake {
            how,
            fd: memfd,
            start: start as u64,
            count: pages as u64,
        },
    )
}

fn of_memfd(env: &Env, how: u32, pages: usize, memfd: fn() -> Result<File>) -> Result<()> {
    each(
        || Ok((env.open()?, Unshared(memfd()?))),
        |(file, Unshared(memfd))| make(file, how, memfd.as_raw_fd(), 0, pages),
        done,
    )
}

fn of_nothing(env: &Env, how: u32) -> Result<()> {
    each(
        || env.open(),
        |file| make(file, how, -1, 0, MANY),
        |file, ()| {
            let map = Mapping::shared(file, 0, MANY * PAGE)?;
            check_pages(&map, |_| Content::Zero)
        },
    )
}

/// As long as there are no pages, it isn't tried again.
fn alloc_none(env: &Env) -> Result<()> {
    for how in [OURS_MAP_PAGES, OURS_MAP_PAGES_LARGE] {
        let (file, result) = without_pages(|| env.open(), |file| make(file, how, -1, 0, FEW))?;
        ensure!(result == Err(Errno::NOMEM), "{result:?}");
        make(&file, how, -1, 0, FEW).context("once more")?;
    }
    Ok(())
}

fn pin_user(env: &Env) -> Result<()> {
    each(
        || Ok((env.open()?, Mapping::anonymous(FEW * PAGE)?)),
        |(file, memory)| make(file, OURS_PIN_USER, -1, memory.at(0) as usize, FEW),
        done,
    )
}

fn pin_hugetlb(env: &Env) -> Result<()> {
    let _hugepages = Setting::hugepages(1)?;
    of_memfd(env, OURS_PIN_MEMFD, FEW, || huge_memfd(HUGE_PAGES))
}

/// A file with pages, of a memfd if the kind takes one.
fn made(env: &Env, how: u32) -> Result<File> {
    let (file, memfd) = (env.open()?, holes()?);
    make(&file, how, memfd.as_raw_fd(), 0, FEW)?;
    Ok(file)
}

fn mmap_of(env: &Env, how: u32) -> Result<()> {
    let file = made(env, how)?;
    each(
        || Ok(()),
        |()| map_nowhere(&file, FEW),
        |(), map| check_pages(&map, |_| Content::Zero),
    )
}

fn fault_pfns(env: &Env) -> Result<()> {
    let file = made(env, OURS_FAULT_PFNS)?;
    each(
        || Ok(map_nowhere(&file, FEW)?),
        touch,
        |map, ()| check_pages(map, |_| Content::Zero),
    )
}
