// SPDX-License-Identifier: GPL-2.0
//! The kinds of mappings, at the test nodes of `tests/mapper.rs`: the same cases for all, with what
//! each kind allows.

use std::ffi::c_void;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{ensure, Context, Result};
use pagekit_user::kernel::{self, ZramSwap};
use pagekit_user::map::{last_errno, Mapping, RW};
use pagekit_user::process::{signal_of, Child};
use pagekit_user::{abi, PAGE};
use rustix::fs::{fallocate, FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::{self, Errno};
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};

use crate::env::{fill, read_page, written, Case, Content, Env};
use crate::mapping::{direct, direct_disk, process_vm};
use crate::memory::{allocate, evict, HUGE_PAGES};

/// For all kinds.
pub const CASES: &[Case] = &[
    Case::new("offsets", offsets).smoke(),
    Case::new("faults", faults).smoke(),
    Case::new("past_end", past_end).smoke(),
    Case::new("private", private).smoke(),
    Case::new("read_only", read_only).smoke(),
    Case::new("split_mprotect", split_mprotect).smoke(),
    Case::new("split_munmap", split_munmap),
    Case::new("mremap_shrink", mremap_shrink),
    Case::new("mremap_move", mremap_move),
    Case::new("mremap_grow", mremap_grow),
    Case::new("fork", fork).smoke(),
    Case::new("dontneed", dontneed).smoke(),
    Case::new("populate", populate),
    Case::new("outlives_file", outlives_file),
    Case::new("o_direct", o_direct),
    Case::new("process_vm", other_process),
    Case::new("ptrace", ptrace),
    Case::new("splice", splice).smoke(),
    Case::new("charged", charged),
    Case::new("file_pages", file_pages).smoke(),
    Case::new("ioctl_errors", ioctl_errors),
];

/// For those that map PFNs: what becomes of the pages of a file.
pub const FILE: &[Case] = &[
    Case::new("truncate_4k", |env| truncate(env, 4, 32)).smoke(),
    Case::new("truncate_2m", |env| truncate(env, 2048, 2 * HUGE_PAGES)),
    Case::new("punch_hole_4k", |env| punch_hole(env, 4, 32)),
    Case::new("punch_hole_2m", |env| punch_hole(env, 2048, 2 * HUGE_PAGES)),
    Case::new("punch_hole_part", punch_part),
    Case::new("swap", swap),
    Case::new("swap_after_write", swap_after_write),
];

/// For those that map huge pages.
pub const HUGE: &[Case] = &[
    Case::new("huge", huge).smoke(),
    Case::new("huge_unaligned", huge_unaligned),
    Case::new("huge_file", huge_file),
    Case::new("huge_fork", huge_fork),
    Case::new("huge_split", huge_split).smoke(),
    Case::new("huge_write_after_read", huge_write_after_read),
    Case::new("huge_moved", huge_moved),
    Case::new("huge_advised_not", huge_advised_not),
    Case::new("huge_disabled", huge_disabled),
];

/// What the kinds allow.
struct Kind {
    node: &'static str,
    /// References to the pages can be had through the mapping. If not, these are PFNs.
    gup: bool,
    /// All is mapped at once, and nothing later.
    eager: bool,
}

const fn kind(node: &'static str, gup: bool, eager: bool) -> Kind {
    Kind { node, gup, eager }
}

const KINDS: [Kind; 6] = [
    kind("pagekit-map-pfns", false, false),
    kind("pagekit-map-huge-pfns", false, false),
    kind("pagekit-map-eager-pfns", false, true),
    kind("pagekit-map-pages", true, false),
    kind("pagekit-map-huge-pages", true, false),
    kind("pagekit-map-eager-pages", true, true),
];

/// How many pages the nodes have: two huge ones, and a rest that is no power of two.
const PAGES: usize = 2 * HUGE_PAGES + 37;
/// What splits cut out: beginning and end are in different huge pages, in the middle of them.
const PART: (usize, usize) = (100, 700);
const HUGE_SIZE: usize = HUGE_PAGES * PAGE;
/// What one upper page table reaches on x86-64.
const UPPER_SIZE: usize = 1 << 30;

/// C: `SHOW_FILE` of `tests/mapper.rs`.
const SHOW_FILE: Opcode = opcode::write::<FileRange>(b'P', 3);

/// Its argument.
#[repr(C)]
struct FileRange {
    memfd: u32,
    count: u32,
    pgoff: u64,
}

/// An open file of a node.
struct Node {
    kind: &'static Kind,
    file: File,
}

impl Node {
    /// With fresh pages.
    fn open(env: &Env) -> Result<Self> {
        let name = env.device.file_name();
        let kind = KINDS.iter().find(|kind| name == Some(kind.node.as_ref()));
        Ok(Self {
            kind: kind.with_context(|| format!("{} is no such node", env.device.display()))?,
            file: env.open()?,
        })
    }

    /// With pages of a memfd.
    fn of_file(env: &Env, memfd: &File, pgoff: usize, count: usize) -> Result<Self> {
        let node = Self::open(env)?;
        node.show_file(memfd, pgoff, count).context("SHOW_FILE")?;
        Ok(node)
    }

    fn show_file(&self, memfd: impl AsFd, pgoff: usize, count: usize) -> io::Result<()> {
        let range = FileRange {
            memfd: memfd.as_fd().as_raw_fd() as u32,
            count: count as u32,
            pgoff: pgoff as u64,
        };
        // SAFETY: the kernel only reads `range`.
        unsafe { abi::ioctl(&self.file, SHOW_FILE, (&raw const range).cast()) }.map(drop)
    }

    /// What a page holds after a write through a reference, if there is one to be had.
    fn after_gup(&self, page: usize) -> Content {
        match self.kind.gup {
            true => new(page),
            false => old(page),
        }
    }

    /// Pages from `first` on, shared and writable.
    fn map(&self, first: usize, count: usize) -> io::Result<Mapping> {
        self.map_with(first, count, RW, MapFlags::SHARED)
    }

    /// Where huge pages fit.
    fn map_with(
        &self,
        first: usize,
        count: usize,
        prot: ProtFlags,
        flags: MapFlags,
    ) -> io::Result<Mapping> {
        let place = Self::place(first, count)?;
        Mapping::over(place, &self.file, first * PAGE, prot, flags)
    }

    /// An address as aligned as pages from `first` on are, for `count` of them, and within reach of
    /// one upper page table.
    fn place(first: usize, count: usize) -> io::Result<Mapping> {
        let skew = first.wrapping_mul(PAGE) % HUGE_SIZE;
        Mapping::reserve(count * PAGE, UPPER_SIZE, skew)
    }
}

/// The pages of the mapping begin as they should.
fn see(map: &Mapping, want: impl Fn(usize) -> Content) -> Result<()> {
    for page in 0..map.len() / PAGE {
        let mut word = [0; 8];
        map.read(page * PAGE, &mut word);
        if u64::from_ne_bytes(word) != want(page).word() {
            want(page)
                .check(&map.page(page))
                .with_context(|| format!("page {page} of the mapping"))?;
        }
    }
    Ok(())
}

/// What page `page` of a node, or of a memfd, holds from the start.
fn old(page: usize) -> Content {
    Content::Page(1, page)
}

/// What cases write to it.
fn new(page: usize) -> Content {
    Content::Page(2, page)
}

/// The mapping shows the pages from `first` on, as they were from the start.
fn see_all(map: &Mapping, first: usize) -> Result<()> {
    see(map, |page| old(first + page))
}

fn put(map: &Mapping, page: usize, content: Content) {
    map.write(page * PAGE, &content.word().to_ne_bytes());
}

fn touch(map: &Mapping, page: usize) {
    // SAFETY: in bounds; a signal is what cases wait for.
    unsafe { map.at(page * PAGE).read_volatile() };
}

fn ends_with(signal: i32, access: impl FnOnce()) -> Result<()> {
    let got = signal_of(access)?;
    ensure!(got == Some(signal), "ended with {got:?}, not {signal}");
    Ok(())
}

// --- All kinds ----------------------------------------------------------------------

fn offsets(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for (first, count) in [
        (0, PAGES),
        (1, 1),
        (37, PAGES - 37),
        (HUGE_PAGES - 1, 3),
        (PAGES - 1, 1),
    ] {
        let map = node.map(first, count)?;
        see_all(&map, first).with_context(|| format!("mapped at page {first}"))?;
        // Where the kernel likes it.
        let map = Mapping::shared(&node.file, first * PAGE, count * PAGE)?;
        see_all(&map, first).with_context(|| format!("mapped at page {first}, anywhere"))?;
    }
    Ok(())
}

/// One fault for what a page table reaches, or a huge page, and none for writing after reading.
fn faults(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let map = node.map(0, PAGES)?;
    let reading = kernel::faults(|| {
        // Not from the start on: what lies before is mapped, too.
        for page in [5, HUGE_PAGES + 5, PAGES - 5] {
            touch(&map, page);
        }
        map.touch();
    });
    let writing = kernel::faults(|| (0..PAGES).for_each(|page| put(&map, page, new(page))));
    let want = if node.kind.eager { 0 } else { 3 };
    ensure!(
        (reading, writing) == (want, 0),
        "{reading} faults for reading, {writing} for writing"
    );
    see(&node.map(0, PAGES)?, new)
}

fn past_end(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for (first, count) in [
        (0, PAGES + 1),
        (PAGES - 1, 2),
        (PAGES, 1),
        (1 << 20, 1),
        (1 << 50, 1),
    ] {
        let result = Mapping::shared(&node.file, first * PAGE, count * PAGE);
        ensure!(
            matches!(result, Err(Errno::INVAL | Errno::OVERFLOW)),
            "page {first}+{count}: {result:?}"
        );
    }
    Ok(())
}

fn private(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for prot in [ProtFlags::READ, RW] {
        let result = node.map_with(0, PAGES, prot, MapFlags::PRIVATE);
        ensure!(matches!(result, Err(Errno::INVAL)), "{prot:?}: {result:?}");
    }
    Ok(())
}

fn read_only(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let map = node.map_with(0, PAGES, ProtFlags::READ, MapFlags::SHARED)?;
    let page = new(5);
    for _touched in [false, true] {
        ends_with(libc::SIGSEGV, || put(&map, 5, page))?;
        see_all(&map, 0)?;
    }
    // Made writable, it is.
    map.protect(0, map.len(), MprotectFlags::READ | MprotectFlags::WRITE)?;
    put(&map, 5, page);
    see(&node.map(5, 1)?, |_| page)
}

/// Of untouched pages, and of pages that were mapped before the split.
fn split_mprotect(env: &Env) -> Result<()> {
    const RW: MprotectFlags = MprotectFlags::READ.union(MprotectFlags::WRITE);
    let node = Node::open(env)?;
    let (first, count) = PART;
    for touched in [false, true] {
        let map = node.map(0, PAGES)?;
        if touched {
            map.touch();
        }
        map.protect(first * PAGE, count * PAGE, MprotectFlags::READ)?;
        see_all(&map, 0).with_context(|| format!("touched before: {touched}"))?;
        ends_with(libc::SIGSEGV, || put(&map, first, Content::Zero))?;
        map.protect(first * PAGE, count * PAGE, MprotectFlags::empty())?;
        ends_with(libc::SIGSEGV, || touch(&map, first))?;
        map.protect(first * PAGE, count * PAGE, RW)?;
        see_all(&map, 0)?;
        for page in [first - 1, first, first + count] {
            put(&map, page, old(page));
        }
        see_all(&map, 0)?;
    }
    Ok(())
}

fn split_munmap(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let (first, count) = PART;
    for touched in [false, true] {
        let map = node.map(0, PAGES)?;
        if touched {
            map.touch();
        }
        let hole = map.at(first * PAGE);
        let (head, tail) = map.cut_out(first * PAGE, count * PAGE)?;
        see_all(&head, 0).with_context(|| format!("touched before: {touched}"))?;
        see_all(&tail, first + count)?;
        ends_with(libc::SIGSEGV, || {
            // SAFETY: runs in a child that must not survive it.
            unsafe { hole.read_volatile() };
        })?;
    }
    Ok(())
}

fn mremap_shrink(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for touched in [false, true] {
        let mut map = node.map(8, PAGES - 8)?;
        if touched {
            map.touch();
        }
        map.resize(PART.1 * PAGE)?;
        see_all(&map, 8).with_context(|| format!("touched before: {touched}"))?;
    }
    Ok(())
}

fn mremap_move(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for touched in [false, true] {
        let mut map = node.map(8, PAGES - 8)?;
        if touched {
            map.touch();
        }
        // Where huge pages fit, and where they don't.
        for place in [8, 9] {
            map.move_to(Node::place(place, PAGES - 8)?)?;
            see_all(&map, 8).with_context(|| format!("touched before: {touched}, {place}"))?;
        }
    }
    Ok(())
}

fn mremap_grow(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for (count, grown) in [(PAGES, PAGES + 1), (8, 64)] {
        let mut map = node.map(0, count)?;
        map.touch();
        let result = map.resize(grown * PAGE);
        ensure!(
            matches!(result, Err(Errno::FAULT)),
            "from {count} to {grown} pages: {result:?}"
        );
        see_all(&map, 0)?;
    }
    Ok(())
}

/// A child sees and writes the same memory through the mapping it inherits.
fn fork(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for touched in [false, true] {
        let map = node.map(0, PAGES)?;
        if touched {
            map.touch();
        }
        let pages = [3, HUGE_PAGES + 3, PAGES - 1];
        Child::spawn(|| {
            see_all(&map, 0)?;
            pages.iter().for_each(|&page| put(&map, page, new(page)));
            Ok(())
        })?
        .join("child")?;
        for page in pages {
            see(&node.map(page, 1)?, |_| new(page))?;
            put(&map, page, old(page));
        }
        see_all(&map, 0)?;
    }
    Ok(())
}

fn dontneed(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let map = node.map(0, PAGES)?;
    map.touch();
    let result = map.advise(Advice::LinuxDontNeed);
    if !node.kind.gup {
        ensure!(result == Err(Errno::INVAL), "{result:?}");
    } else {
        result?;
        if node.kind.eager {
            // Nobody brings them back.
            ends_with(libc::SIGBUS, || touch(&map, 0))?;
            return ends_with(libc::SIGBUS, || put(&map, PAGES - 1, Content::Zero));
        }
    }
    see_all(&map, 0)
}

fn populate(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let at_once = node.map_with(0, PAGES, RW, MapFlags::SHARED | MapFlags::POPULATE)?;
    let later = node.map(0, PAGES)?;
    let result = later.advise(Advice::LinuxPopulateWrite);
    if node.kind.gup {
        result.context("MADV_POPULATE_WRITE")?;
        for map in [&at_once, &later] {
            let resident = map.resident()?;
            ensure!(resident == PAGES, "{resident} pages are mapped");
        }
    } else {
        // Both ask for references, and mmap doesn't say so.
        ensure!(
            result == Err(Errno::INVAL),
            "MADV_POPULATE_WRITE: {result:?}"
        );
    }
    see_all(&at_once, 0)?;
    see_all(&later, 0)
}

/// A mapping keeps what it shows, touched or not.
fn outlives_file(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let (early, late) = (node.map(0, PAGES)?, node.map(8, PAGES - 8)?);
    early.touch();
    drop(node);
    see_all(&early, 0)?;
    see_all(&late, 8)
}

// --- References to the pages ------------------------------------------------------

/// A call that looks for the page behind an address: works, or doesn't find any.
fn gup(node: &Node, what: &str, result: io::Result<usize>) -> Result<()> {
    let want = match node.kind.gup {
        true => Ok(PAGE),
        false => Err(Errno::FAULT),
    };
    ensure!(result == want, "{what}: {result:?}, not {want:?}");
    Ok(())
}

fn o_direct(env: &Env) -> Result<()> {
    let (_zram, disk) = direct_disk()?;
    let own = Mapping::anonymous(PAGE)?;
    let node = Node::open(env)?;
    let map = node.map(HUGE_PAGES, HUGE_PAGES)?;
    let (old, new) = (old(HUGE_PAGES), new(HUGE_PAGES));

    own.write(0, b"control");
    ensure!(
        direct(&disk, &own, true) == Ok(PAGE),
        "O_DIRECT doesn't work"
    );
    map.write(0, &old.bytes());
    gup(&node, "write", direct(&disk, &map, true))?;
    if node.kind.gup {
        ensure!(direct(&disk, &own, false) == Ok(PAGE));
        old.check(&own.page(0)).context("what was written")?;
    }

    own.write(0, &new.bytes());
    ensure!(direct(&disk, &own, true) == Ok(PAGE));
    gup(&node, "read", direct(&disk, &map, false))?;
    let want = node.after_gup(HUGE_PAGES);
    want.check(&map.page(0)).context("what was read")?;
    want.check(&node.map(HUGE_PAGES, 1)?.page(0))
}

/// Runs `access` while a child has the mapping, too.
fn with_child(access: impl FnOnce(i32) -> Result<()>) -> Result<()> {
    let child = Child::spawn(|| loop {
        std::thread::park();
    })?;
    access(child.id())
}

fn other_process(env: &Env) -> Result<()> {
    let (node, own) = (Node::open(env)?, Mapping::anonymous(PAGE)?);
    let page = HUGE_PAGES;
    for touched in [false, true] {
        let map = node.map(page, HUGE_PAGES)?;
        if touched {
            map.touch();
        }
        with_child(|pid| {
            gup(&node, "readv", process_vm(pid, &own, &map, false))?;
            if node.kind.gup {
                see(&own, |_| old(page))?;
            }
            put(&own, 0, new(page));
            gup(&node, "writev", process_vm(pid, &own, &map, true))
        })?;
        see(&node.map(page, 1)?, |_| node.after_gup(page))?;
        put(&map, 0, old(page));
    }
    Ok(())
}

fn ptrace(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let map = node.map(0, PAGES)?;
    let addr = map.at(7 * PAGE).cast::<c_void>();
    with_child(|pid| {
        let request = |what: u32, addr: *mut c_void, data: usize| {
            // SAFETY: of a child that nothing else depends on; PTRACE_PEEKDATA writes a word that
            // `data` points to.
            match unsafe { libc::syscall(libc::SYS_ptrace, what, pid, addr, data) } {
                0 => Ok(()),
                _ => Err(last_errno()),
            }
        };
        request(libc::PTRACE_SEIZE, std::ptr::null_mut(), 0).context("PTRACE_SEIZE")?;
        request(libc::PTRACE_INTERRUPT, std::ptr::null_mut(), 0).context("PTRACE_INTERRUPT")?;
        // SAFETY: plain call.
        ensure!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) } == pid);
        // ptrace has a code of its own for this.
        let want = match node.kind.gup {
            true => Ok(()),
            false => Err(Errno::IO),
        };
        let mut word = 0u64;
        let result = request(libc::PTRACE_PEEKDATA, addr, (&raw mut word) as usize);
        ensure!(result == want, "PTRACE_PEEKDATA: {result:?}, not {want:?}");
        ensure!(!node.kind.gup || word == old(7).word(), "{word:x}");
        let word = new(7).word();
        let result = request(libc::PTRACE_POKEDATA, addr, word as usize);
        ensure!(result == want, "PTRACE_POKEDATA: {result:?}, not {want:?}");
        Ok(())
    })?;
    see(&node.map(7, 1)?, |_| node.after_gup(7))
}

/// A pipe that has a reference to a page keeps it when mapping and file are gone.
fn splice(env: &Env) -> Result<()> {
    let (from, to) = rustix::pipe::pipe()?;
    let node = Node::open(env)?;
    let map = node.map(7, 1)?;
    map.write(0, &new(7).bytes());
    let iovec = libc::iovec {
        iov_base: map.at(0).cast(),
        iov_len: PAGE,
    };
    // SAFETY: a page that nobody has references to.
    let len = unsafe { libc::vmsplice(to.as_raw_fd(), &iovec, 1, 0) };
    gup(
        &node,
        "vmsplice",
        usize::try_from(len).map_err(|_| last_errno()),
    )?;
    if node.kind.gup {
        drop((map, node));
        // What was free would be zeroed now.
        let _others = [Node::open(env)?, Node::open(env)?];
        let mut bytes = [0; PAGE];
        File::from(from).read_exact(&mut bytes)?;
        new(7).check(&bytes)?;
    }
    Ok(())
}

// --- The pages --------------------------------------------------------------------

/// Fresh pages are charged to who opens the node, until they are released.
fn charged(env: &Env) -> Result<()> {
    const GROUP: &str = "/sys/fs/cgroup/pagekit-test";
    // Each CPU charges ahead, and keeps what is given back, in batches.
    const SLACK: i64 = 1 << 20;
    kernel::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory")?;
    std::fs::create_dir(GROUP).context(GROUP)?;
    let result = Child::spawn(|| {
        let charged =
            || -> Result<i64> { Ok(kernel::read(format!("{GROUP}/memory.current"))?.parse()?) };
        kernel::write(format!("{GROUP}/cgroup.procs"), "0")?;
        let before = charged()?;
        let node = Node::open(env)?;
        let size = (PAGES * PAGE) as i64;
        let held = charged()? - before;
        ensure!((held - size).abs() < SLACK, "{held} bytes for {size}");
        drop(node);
        let left = charged()? - before;
        ensure!(left < SLACK, "{left} bytes after release");
        Ok(())
    })?
    .join("child");
    std::fs::remove_dir(GROUP).context(GROUP)?;
    result
}

/// Pages of a file can be mapped as PFNs only.
fn file_pages(env: &Env) -> Result<()> {
    let memfd = written(1, 16)?;
    let node = Node::of_file(env, &memfd, 3, 8)?;
    match (node.kind.gup, node.kind.eager) {
        (false, _) => {
            let map = node.map(0, 8)?;
            see_all(&map, 3)?;
            map.write(2 * PAGE, &new(5).bytes());
            new(5).check(&read_page(&memfd, 5)?)?;
            let result = node.map(0, 9);
            ensure!(
                matches!(result, Err(Errno::INVAL)),
                "past the end: {result:?}"
            );
        }
        (true, false) => {
            let map = node.map(0, 8)?;
            ends_with(libc::SIGBUS, || touch(&map, 0))?;
        }
        (true, true) => {
            let result = node.map(0, 8);
            ensure!(matches!(result, Err(Errno::INVAL)), "{result:?}");
        }
    }
    Ok(())
}

fn ioctl_errors(env: &Env) -> Result<()> {
    let (memfd, node) = (written(1, 16)?, Node::open(env)?);
    let is = |what: &str, result: io::Result<()>, want: Errno| {
        ensure!(result == Err(want), "{what}: {result:?}, not {want:?}");
        Ok(())
    };
    for (code, want) in [
        (SHOW_FILE, Errno::FAULT),
        (opcode::write::<FileRange>(b'P', 4), Errno::NOTTY),
        (opcode::write::<u32>(b'P', 3), Errno::NOTTY),
    ] {
        // SAFETY: the kernel reads at null.
        let result = unsafe { abi::ioctl(&node.file, code, std::ptr::null()) };
        is("null", result.map(drop), want)?;
    }
    let closed: OwnedFd = memfd.try_clone()?.into();
    let range = FileRange {
        memfd: closed.as_raw_fd() as u32,
        count: 1,
        pgoff: 0,
    };
    drop(closed);
    // SAFETY: the kernel reads `range`.
    let result = unsafe { abi::ioctl(&node.file, SHOW_FILE, (&raw const range).cast()) };
    is("closed", result.map(drop), Errno::BADF)?;
    is("a node", node.show_file(&node.file, 0, 1), Errno::INVAL)?;
    for (pgoff, count) in [(0, 0), (0, 17), (16, 1), (1 << 60, 1)] {
        is("range", node.show_file(&memfd, pgoff, count), Errno::INVAL)?;
    }
    // None of these counted.
    node.show_file(&memfd, 0, 16)?;
    is("again", node.show_file(&memfd, 0, 16), Errno::BUSY)?;
    let node = Node::open(env)?;
    let map = node.map(0, 1)?;
    is("mapped", node.show_file(&memfd, 0, 16), Errno::BUSY)?;
    see_all(&map, 0)
}

// --- Pages of a file --------------------------------------------------------------

fn punch(memfd: &File, first: usize, count: usize) -> Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(
        memfd,
        flags,
        (first * PAGE) as u64,
        (count * PAGE) as u64,
    )?)
}

/// A memfd of `pages` pages, in folios of `kib`, that may be truncated.
fn memfd(kib: usize, pages: usize) -> Result<File> {
    let memfd = abi::memfd_with(0, MemfdFlags::empty(), SealFlags::empty())?;
    allocate(&memfd, kib, pages * PAGE)?;
    fill(&memfd, 1, pages)?;
    Ok(memfd)
}

fn truncate(env: &Env, kib: usize, pages: usize) -> Result<()> {
    keeps_pages(env, &memfd(kib, pages)?, pages, |memfd| {
        Ok(memfd.set_len(0)?)
    })
}

fn punch_hole(env: &Env, kib: usize, pages: usize) -> Result<()> {
    keeps_pages(env, &memfd(kib, pages)?, pages, |memfd| {
        punch(memfd, 0, pages)
    })
}

/// A hole in a large folio is zeroed in place.
fn punch_part(env: &Env) -> Result<()> {
    let memfd = memfd(2048, HUGE_PAGES)?;
    let node = Node::of_file(env, &memfd, 0, HUGE_PAGES)?;
    let map = node.map(0, HUGE_PAGES)?;
    map.touch();
    punch(&memfd, 8, 16)?;
    see(&map, |page| match page {
        8..24 => Content::Zero,
        _ => old(page),
    })
}

/// The mapping stays as it is when the file loses its pages: touched or not.
fn keeps_pages(
    env: &Env,
    memfd: &File,
    pages: usize,
    lose: impl FnOnce(&File) -> Result<()>,
) -> Result<()> {
    let node = Node::of_file(env, memfd, 0, pages)?;
    let (early, late) = (node.map(0, pages)?, node.map(0, pages)?);
    early.touch();
    lose(memfd)?;
    memfd.set_len((pages * PAGE) as u64)?;
    Content::Zero.check(&read_page(memfd, 5)?)?;
    see_all(&early, 0)?;
    see_all(&late, 0)?;
    // The file has another page there now.
    put(&early, 5, new(5));
    see(&node.map(5, 1)?, |_| new(5))?;
    Content::Zero.check(&read_page(memfd, 5)?)
}

/// Held pages don't leave memory, however hard they are pushed.
fn swap(env: &Env) -> Result<()> {
    const COUNT: usize = 256;
    let _swap = ZramSwap::new(32 << 20)?;
    let (memfd, other) = (written(1, COUNT)?, written(2, COUNT)?);
    let node = Node::of_file(env, &memfd, 0, COUNT)?;
    let map = node.map(0, COUNT)?;
    map.touch();
    // As hard as pages that do.
    evict(&other, COUNT)?;
    let _ = evict(&memfd, COUNT);
    let resident = Mapping::shared(&memfd, 0, COUNT * PAGE)?.resident()?;
    ensure!(resident == COUNT, "only {resident} of {COUNT} pages stay");
    see_all(&map, 0)?;
    drop((map, node));
    evict(&memfd, COUNT).context("after release")
}

/// What was written to the pages of holes, which nobody else marks dirty, survives swapping.
fn swap_after_write(env: &Env) -> Result<()> {
    const COUNT: usize = 256;
    let _swap = ZramSwap::new(32 << 20)?;
    let memfd = abi::memfd((COUNT * PAGE) as u64)?;
    let node = Node::of_file(env, &memfd, 0, COUNT)?;
    let map = node.map(0, COUNT)?;
    for page in 0..COUNT {
        map.write(page * PAGE, &new(page).bytes());
    }
    drop((map, node));
    evict(&memfd, COUNT)?;
    (0..COUNT).try_for_each(|page| new(page).check(&read_page(&memfd, page)?))
}

// --- Huge pages -------------------------------------------------------------------
//
// What looks at page tables from user space leaves out mappings of PFNs. But a huge page takes no page
// table, and splits are counted.

/// A node whose fresh pages are huge.
fn huge_node(env: &Env) -> Result<Node> {
    kernel::write("/proc/sys/vm/compact_memory", "1")?;
    Node::open(env)
}

/// How many page tables `access` makes or frees.
fn tables(access: impl FnOnce() -> Result<()>) -> Result<usize> {
    let before = kernel::page_tables()?;
    access()?;
    Ok(kernel::page_tables()?.abs_diff(before) / PAGE)
}

/// How many page tables the huge pages of the mapping take when they are touched.
fn tables_for_blocks(map: &Mapping) -> Result<usize> {
    touch(map, PAGES - 1); // The upper ones.
    tables(|| see_all(map, 0))
}

fn huge(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    let n = tables_for_blocks(&map)?;
    ensure!(n == 0, "{n} page tables");
    // The first access is a write, in the middle.
    let map = node.map(0, PAGES)?;
    touch(&map, PAGES - 1);
    let n = tables(|| {
        for page in [100, HUGE_PAGES + 100] {
            put(&map, page, old(page));
        }
        see_all(&map, 0)
    })?;
    ensure!(n == 0, "{n} page tables after writing");
    Ok(())
}

fn huge_unaligned(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let place = Node::place(1, PAGES)?;
    let map = Mapping::over(place, &node.file, 0, RW, MapFlags::SHARED)?;
    let n = tables_for_blocks(&map)?;
    ensure!(n == 2, "{n} page tables");
    Ok(())
}

/// Folios of a memfd, which may be mapped as PFNs only.
fn huge_file(env: &Env) -> Result<()> {
    let memfd = memfd(2048, 3 * HUGE_PAGES)?;
    let node = Node::of_file(env, &memfd, 0, 3 * HUGE_PAGES)?;
    let map = node.map(0, 3 * HUGE_PAGES)?;
    if node.kind.gup {
        return ends_with(libc::SIGBUS, || touch(&map, 0));
    }
    touch(&map, 0); // The upper page tables.
    let n = tables(|| see_all(&map, 0))?;
    ensure!(n == 0, "{n} page tables");
    Ok(())
}

fn huge_fork(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    map.touch();
    Child::spawn(|| {
        see_all(&map, 0)?;
        // What is huge has no page table that could go.
        let before = kernel::page_tables()?;
        let _rest = map.cut_out(HUGE_SIZE, HUGE_SIZE)?;
        ensure!(
            kernel::page_tables()? == before,
            "a page table in the child"
        );
        Ok(())
    })?
    .join("child")
}

/// Runs `access`, and returns how many huge pages were split meanwhile.
fn splits(access: impl FnOnce() -> Result<()>) -> Result<i64> {
    let before = kernel::event("thp_split_pmd")?;
    access()?;
    Ok(kernel::event("thp_split_pmd")? - before)
}

/// Protected in the middle, one stays right and writable.
fn huge_split(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    map.touch();
    let n = splits(|| Ok(map.protect(100 * PAGE, 10 * PAGE, MprotectFlags::READ)?))?;
    ensure!(n == 1, "{n} were split");
    see_all(&map, 0)?;
    ends_with(libc::SIGSEGV, || put(&map, 100, new(100)))?;
    for page in [99, 110] {
        put(&map, page, new(page));
        see(&node.map(page, 1)?, |_| new(page))?;
    }
    // In the other one, too, by unmapping.
    let n = splits(|| {
        map.cut_out(HUGE_SIZE + PAGE, PAGE)?;
        Ok(())
    })?;
    ensure!(n == 1, "{n} were split by munmap");
    Ok(())
}

fn huge_write_after_read(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map_with(0, PAGES, ProtFlags::READ, MapFlags::SHARED)?;
    let (pages, mut n) = ([5, HUGE_PAGES + 5], tables_for_blocks(&map)?);
    ensure!(n == 0, "{n} page tables before");
    let split = splits(|| {
        n = tables(|| {
            map.protect(0, map.len(), MprotectFlags::READ | MprotectFlags::WRITE)?;
            pages.iter().for_each(|&page| put(&map, page, new(page)));
            Ok(())
        })?;
        Ok(())
    })?;
    ensure!((split, n) == (0, 0), "{split} were split, {n} page tables");
    let want = |page| match page {
        _ if pages.contains(&page) => new(page),
        _ => old(page),
    };
    see(&map, want)?;
    see(&node.map(0, PAGES)?, want)
}

/// By mremap, to where they fit and then to where they don't.
fn huge_moved(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let mut map = node.map(0, PAGES)?;
    map.touch();
    for (skew, want) in [(0, 0), (1, 2)] {
        let place = Node::place(skew, PAGES)?;
        let n = splits(|| {
            map.move_to(place)?;
            see_all(&map, 0)
        })?;
        ensure!(n == want, "{n} were split, not {want}");
    }
    Ok(())
}

fn huge_advised_not(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    map.advise(Advice::LinuxNoHugepage)?;
    small(&map)
}

fn huge_disabled(env: &Env) -> Result<()> {
    let node = huge_node(env)?;
    let map = node.map(0, PAGES)?;
    // SAFETY: plain call, for this process only.
    ensure!(unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) } == 0);
    small(&map)
}

/// The mapping is not of huge pages, and right.
fn small(map: &Mapping) -> Result<()> {
    let n = tables_for_blocks(map)?;
    ensure!(n == 2, "{n} page tables");
    put(map, 5, new(5));
    see(map, |page| match page {
        5 => new(page),
        _ => old(page),
    })
}
