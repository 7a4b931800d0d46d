// SPDX-License-Identifier: GPL-2.0
//! Measures life cycles of buffers: those that the helpers make, and those that they
//! are compared with. The clock is the kernel's, which counts instructions where the
//! virtual machine makes it do so. Writes a line of JSON for each to rows.json.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::Barrier;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use lexopt::prelude::*;
use pagekit_user::abi::{self, BenchMake, UdmabufCreate, UdmabufCreateItem};
use pagekit_user::drm::Card;
use pagekit_user::kernel;
use pagekit_user::mapping::Mapping;
use pagekit_user::{HUGE_PAGES, PAGE};
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::Advice;

const MIB: usize = 1 << 20;
const HUGE: usize = HUGE_PAGES * PAGE;
const THP: &str = "/sys/kernel/mm/transparent_hugepage";
/// Where nothing else is mapped but a neighbour, as at addresses that the kernel chooses: of page
/// tables only the lowest are yet to be made.
const NEIGHBOUR: usize = 1 << 44;
const ADDR: usize = NEIGHBOUR + HUGE;
/// Where in the neighbour a store tells what looks at memory traffic that a phase begins, and that
/// the phase of that number has ended.
const BEGIN: usize = 64;
const END: usize = 128;

/// The sizes of objects, in MiB.
const SIZES: [usize; 6] = [1, 8, 64, 512, 4096, 16384];
/// For larger ones than this there is no memory: they have the pages of a file of that size again
/// and again.
const MOST_MIB: usize = 4096;
const REPEATED_MIB: usize = 1024;
/// The size for the memory that buffers take: their fixed parts vanish in it.
const MEMORY_MIB: usize = 512;
/// Runs after which we no longer hope that two agree.
const MAX_RUNS: usize = 12;
/// How often all runs are made again then: a single one that was too quick agrees with no other.
const MAX_TRIES: usize = 3;

/// C: `struct dma_heap_allocation_data`.
#[repr(C)]
struct HeapAlloc {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}
const HEAP_ALLOC: Opcode = opcode::read_write::<HeapAlloc>(b'H', 0);

/// What makes a buffer.
#[derive(Clone, Copy)]
enum Maker {
    Udmabuf(&'static str),
    Heap(&'static str),
    /// A dumb buffer of the DRM driver with that name, by its dma-buf.
    Dumb(&'static str),
    /// A module of the benchmark: `how` of `bench.h`, for small pages and huge ones.
    Ours(u32, u32),
    Peer(u32, u32),
}
use Maker::*;

/// Not for pages of this size.
const NONE: u32 = u32::MAX;

/// What buffers are made of.
#[derive(Clone, Copy, PartialEq)]
enum Of {
    Memfd,
    UserMemory,
    New,
    /// New ones in a shmem file of the driver.
    Shmem,
}

/// Whether and where buffers are mapped. The kernel chooses an aligned address for one
/// in 512 dma-bufs.
#[derive(Clone, Copy, PartialEq)]
enum Map {
    No,
    Aligned,
    Unaligned,
}

const PHASES: [&str; 5] = ["create", "mmap", "touch", "munmap", "close"];

/// How long each phase took, and where its memory traffic is among all that was recorded.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Phases([(u64, usize); PHASES.len()]);

struct Case {
    name: &'static str,
    of: Of,
    map: Map,
    /// The phases that count.
    counts: &'static [&'static str],
    /// The largest object, where memory and time don't allow more.
    max_mib: usize,
    makers: &'static [(&'static str, Maker)],
}

const UDMABUF: [(&str, Maker); 4] = [
    ("pagekit", Udmabuf("/dev/pagekit-udmabuf")),
    ("udmabuf", Udmabuf("/dev/udmabuf")),
    // Mainline's, converted to pagekit.h.
    ("converted", Udmabuf("/dev/udmabuf-converted")),
    ("floor", Peer(12, 12)),
];

/// Ours comes first in each.
const CASES: &[Case] = &[
    Case {
        name: "udmabuf",
        of: Of::Memfd,
        map: Map::Aligned,
        counts: &PHASES,
        max_mib: 16384,
        makers: &UDMABUF,
    },
    Case {
        name: "udmabuf-unaligned",
        of: Of::Memfd,
        map: Map::Unaligned,
        counts: &PHASES,
        max_mib: 64,
        makers: &UDMABUF,
    },
    Case {
        name: "pages",
        of: Of::Memfd,
        map: Map::No,
        counts: &["create"],
        max_mib: 4096,
        makers: &[
            ("pagekit", Ours(0, 0)),
            ("drm_gem", Peer(0, 0)),
            ("floor", Peer(9, 9)),
        ],
    },
    Case {
        name: "release",
        of: Of::Memfd,
        map: Map::No,
        counts: &["close"],
        max_mib: 4096,
        makers: &[
            ("pagekit", Ours(0, 0)),
            ("put_page", Peer(1, 1)),
            ("release_pages", Peer(2, 2)),
            ("drm_gem", Peer(0, 0)),
            ("floor", Peer(9, 9)),
        ],
    },
    Case {
        name: "map-pfns",
        of: Of::Memfd,
        map: Map::Aligned,
        counts: &["mmap", "touch", "munmap"],
        max_mib: 4096,
        makers: &[
            ("pagekit", Ours(1, 1)),
            ("i915", Peer(3, 3)),
            ("floor", Peer(10, 10)),
        ],
    },
    Case {
        name: "map-pages",
        of: Of::New,
        map: Map::Aligned,
        counts: &["mmap", "touch", "munmap"],
        max_mib: 512,
        makers: &[
            ("pagekit", Ours(3, 4)),
            ("amdxdna", Peer(5, 6)),
            ("floor", Peer(5, 6)),
        ],
    },
    Case {
        name: "fault",
        of: Of::Memfd,
        map: Map::Aligned,
        counts: &["touch"],
        max_mib: 4096,
        makers: &[
            ("pagekit", Ours(2, 2)),
            ("udmabuf", Udmabuf("/dev/udmabuf")),
            ("etnaviv", Peer(4, 4)),
            ("floor", Peer(11, 11)),
        ],
    },
    Case {
        name: "fault-pages",
        of: Of::New,
        map: Map::Aligned,
        counts: &["touch"],
        max_mib: 512,
        makers: &[("pagekit", Ours(7, 8)), ("fb_defio", Peer(13, 14))],
    },
    Case {
        name: "pin-user",
        of: Of::UserMemory,
        map: Map::No,
        counts: &["create", "close"],
        max_mib: 4096,
        makers: &[("pagekit", Ours(5, 5)), ("amdxdna", Peer(7, 7))],
    },
    Case {
        name: "pin-memfd",
        of: Of::Memfd,
        map: Map::No,
        counts: &["create", "close"],
        max_mib: 4096,
        makers: &[
            ("pagekit", Ours(6, 6)),
            ("udmabuf", Peer(8, 8)),
            ("floor", Peer(12, 12)),
        ],
    },
    Case {
        name: "heap",
        of: Of::New,
        map: Map::Aligned,
        counts: &PHASES,
        max_mib: 512,
        makers: &[
            ("pagekit", Heap("/dev/dma_heap/pagekit")),
            ("system", Heap("/dev/dma_heap/system")),
        ],
    },
    Case {
        name: "gem",
        of: Of::Shmem,
        map: Map::Aligned,
        counts: &PHASES,
        max_mib: 512,
        makers: &[("pagekit", Dumb("pagekit-gem")), ("vgem", Dumb("vgem"))],
    },
];
const MEMORY: &str = "memory";

/// Memory to make buffers of, resident and written to. No neighbours among small pages
/// are neighbours in memory, as on a machine that has run for a while.
struct Backing {
    huge: bool,
    /// Of a buffer, which has the whole file so many times.
    len: usize,
    times: usize,
    memfd: Option<File>,
    memory: Option<Mapping>,
    shmem: Option<kernel::Setting>,
}

impl Backing {
    fn new(of: Of, huge: bool, mib: usize) -> Result<Self> {
        let len = mib * MIB;
        let times = if mib > MOST_MIB {
            mib / REPEATED_MIB
        } else {
            1
        };
        let mut this = Self {
            huge,
            len,
            times,
            memfd: None,
            memory: None,
            shmem: None,
        };
        // An object smaller than a huge page is a part of one.
        let whole = (len / times).next_multiple_of(if huge { HUGE } else { PAGE });
        kernel::write("/proc/sys/vm/compact_memory", "1")?;
        let map = match of {
            Of::New => return Ok(this),
            Of::Shmem => {
                // Whatever the driver has asked for.
                let enabled = if huge { "force" } else { "deny" };
                let setting = kernel::Setting::set(format!("{THP}/shmem_enabled"), enabled);
                this.shmem = Some(setting?);
                return Ok(this);
            }
            Of::UserMemory => Mapping::anonymous(whole)?,
            Of::Memfd => {
                let memfd = this.memfd.insert(abi::memfd(whole as u64)?);
                Mapping::shared_at(ADDR, memfd, whole)?
            }
        };
        map.advise(if huge {
            Advice::LinuxHugepage
        } else {
            Advice::LinuxNoHugepage
        })?;
        let before = huge_kib()?;
        let pages = whole / PAGE;
        for page in 0..pages {
            // In another order, in which each has its turn: sizes are powers of two.
            let page = if huge { page } else { page * 173 % pages };
            map.write(page * PAGE, &[1]);
        }
        let (got, want) = (huge_kib()? - before, if huge { whole >> 10 } else { 0 });
        ensure!(got == want as i64, "{got} KiB in huge pages, not {want}");
        if of == Of::UserMemory {
            this.memory = Some(map);
        }
        Ok(this)
    }
}

/// How much is mapped by huge pages, of files and of processes.
fn huge_kib() -> Result<i64> {
    let meminfo = kernel::read("/proc/meminfo")?;
    sum(&meminfo, &["AnonHugePages", "ShmemPmdMapped"])
}

fn sum(text: &str, names: &[&str]) -> Result<i64> {
    names
        .iter()
        .map(|name| kernel::field(text, name).with_context(|| format!("no {name}")))
        .sum()
}

/// With as little besides as can be: this is measured along.
fn write_each_page(map: &Mapping) {
    const AT_ONCE: usize = 32;
    let start = map.at(0);
    for offset in (0..map.len()).step_by(AT_ONCE * PAGE) {
        for page in 0..AT_ONCE {
            // SAFETY: in bounds, as sizes are multiples of that; volatile so that it happens.
            unsafe { start.add(offset + page * PAGE).write_volatile(1) };
        }
    }
}

impl Maker {
    fn device(self) -> &'static str {
        match self {
            Udmabuf(device) | Heap(device) | Dumb(device) => device,
            Ours(..) => "/dev/pagekit-bench",
            Peer(..) => "/dev/pagekit-bench-peer",
        }
    }

    fn open(self) -> Result<File> {
        if let Dumb(driver) = self {
            return Ok(Card::find(driver)?.into());
        }
        let mut options = File::options();
        let device = options.read(true).write(true).open(self.device());
        device.with_context(|| format!("opening {}", self.device()))
    }

    /// Whether it makes buffers of such pages. Heaps choose themselves.
    fn takes(self, backing: &Backing) -> bool {
        match self {
            Udmabuf(_) | Dumb(_) => true,
            Heap(_) => !backing.huge,
            Ours(small, large) | Peer(small, large) => {
                [small, large][backing.huge as usize] != NONE
            }
        }
    }

    /// Makes a buffer, or a buffer of the device itself.
    fn make(self, device: &File, backing: &Backing) -> Result<Option<OwnedFd>> {
        let memfd = backing.memfd.as_ref().map_or(-1, |memfd| memfd.as_raw_fd());
        match self {
            Udmabuf(_) if backing.times > 1 => {
                let item = UdmabufCreateItem {
                    memfd: memfd as u32,
                    pad: 0,
                    offset: 0,
                    size: (backing.len / backing.times) as u64,
                };
                let items = vec![item; backing.times];
                Ok(Some(abi::create_list(
                    device,
                    abi::UDMABUF_FLAGS_CLOEXEC,
                    &items,
                )?))
            }
            Udmabuf(_) => {
                let arg = UdmabufCreate {
                    memfd: memfd as u32,
                    flags: abi::UDMABUF_FLAGS_CLOEXEC,
                    offset: 0,
                    size: backing.len as u64,
                };
                Ok(Some(abi::create(device, &arg)?))
            }
            Dumb(_) => {
                let card = Card::from(device.try_clone()?);
                let handle = card.create_dumb(backing.len / PAGE)?;
                Ok(Some(handle.export()?))
            }
            Heap(_) => {
                let mut arg = HeapAlloc {
                    len: backing.len as u64,
                    fd: 0,
                    fd_flags: (libc::O_RDWR | libc::O_CLOEXEC) as u32,
                    heap_flags: 0,
                };
                // SAFETY: the kernel writes to nothing but `arg`, and makes a file
                // descriptor for us.
                unsafe {
                    abi::ioctl(device, HEAP_ALLOC, (&raw mut arg).cast())?;
                    Ok(Some(OwnedFd::from_raw_fd(arg.fd as i32)))
                }
            }
            Ours(small, large) | Peer(small, large) => {
                let arg = BenchMake {
                    how: [small, large][backing.huge as usize],
                    fd: memfd,
                    start: backing.memory.as_ref().map_or(0, |map| map.at(0) as u64),
                    count: (backing.len / PAGE) as u64,
                };
                abi::bench_make(device, &arg)?;
                Ok(None)
            }
        }
    }

    /// The life of a buffer: how long each phase of it takes.
    fn live(self, backing: &Backing, map: Map) -> Result<Phases> {
        let mut phases = Phases::default();
        let device = self.open()?;
        let buffer = phases.measure(0, || self.make(&device, backing))?;
        // The device takes no part in the life of its buffers, unless it is the buffer.
        let (buffer, _device) = match buffer {
            Some(buffer) => (buffer, Some(device)),
            None => (device.into(), None),
        };
        if map != Map::No {
            let addr = ADDR + usize::from(map == Map::Unaligned) * PAGE;
            let map = phases
                .measure(1, || Mapping::shared_at(addr, &buffer, backing.len))
                .context("mmap")?;
            phases.measure(2, || write_each_page(&map));
            phases.measure(3, || drop(map));
        }
        phases.measure(4, || drop(buffer));
        Ok(phases)
    }
}

impl Phases {
    fn measure<T>(&mut self, phase: usize, work: impl FnOnce() -> T) -> T {
        static RECORDS: AtomicUsize = AtomicUsize::new(0);
        // SAFETY: the neighbour is mapped before anything is measured, and stays.
        let mark = |at| unsafe { (NEIGHBOUR as *mut u8).add(at).write_volatile(1) };
        let start = Instant::now();
        mark(BEGIN);
        let result = work();
        mark(END + phase);
        let took = start.elapsed().as_nanos() as u64;
        self.0[phase] = (took, RECORDS.fetch_add(1, Ordering::Relaxed));
        result
    }

    /// As members of an object in JSON.
    fn json(&self, value: impl Fn(&(u64, usize)) -> u64) -> String {
        let took_place = PHASES
            .iter()
            .zip(&self.0)
            .filter(|(_, (took, _))| *took > 0);
        let members: Vec<_> = took_place
            .map(|(name, phase)| format!("{name:?}: {}", value(phase)))
            .collect();
        members.join(", ")
    }
}

impl Case {
    fn total(&self, phases: &Phases) -> u64 {
        let counted = PHASES.iter().zip(&phases.0);
        counted
            .filter(|(name, _)| self.counts.contains(name))
            .map(|(_, (took, _))| took)
            .sum()
    }

    /// Runs until the two quickest runs agree to 1 %: what the kernel does now and then
    /// besides is in neither of them. Small objects, of which it is a larger part, have more
    /// runs to choose from. If they never agree, says by how much they don't.
    fn measure(&self, maker: Maker, backing: &Backing) -> Result<String> {
        let least = if backing.len <= 64 * MIB { 5 } else { 2 };
        let mut found = String::new();
        for _ in 0..MAX_TRIES {
            let mut runs: Vec<(u64, Phases)> = Vec::new();
            let mut spread = u64::MAX;
            while runs.len() < MAX_RUNS && (runs.len() < least || spread > runs[0].0 / 100) {
                let phases = maker.live(backing, self.map)?;
                runs.push((self.total(&phases), phases));
                runs.sort_unstable();
                spread = runs.get(1).map_or(u64::MAX, |next| next.0 - runs[0].0);
            }
            let (total, phases) = runs[0];
            found = format!(
                "\"counts\": {:?}, \"phases\": {{{}}}, \"records\": {{{}}}, \"total\": {total}",
                self.counts,
                phases.json(|(took, _)| *took),
                phases.json(|(_, record)| *record as u64)
            );
            if spread <= total / 100 {
                return Ok(found);
            }
            found += &format!(", \"spread\": {:.4}", spread as f64 / total as f64);
        }
        Ok(found)
    }
}

/// What the kernel has allocated for itself, in bytes: objects, arrays, page tables.
fn kernel_memory() -> Result<i64> {
    // The counters drift per CPU until this is written.
    kernel::write("/proc/sys/vm/stat_refresh", "1")?;
    let meminfo = kernel::read("/proc/meminfo")?;
    let kib = sum(&meminfo, &["VmallocUsed", "SUnreclaim", "PageTables"])?;
    Ok(kib << 10)
}

/// The same when nothing changes any more: page tables that are gone are freed later.
fn settled() -> Result<i64> {
    let mut memory = kernel_memory()?;
    loop {
        sleep(Duration::from_millis(100));
        match kernel_memory()? {
            now if now == memory => return Ok(memory),
            now => memory = now,
        }
    }
}

/// What a buffer takes besides its pages, and what making it takes at the most: another
/// thread looks now and then.
fn memory(maker: Maker, backing: &Backing) -> Result<String> {
    let device = maker.open()?;
    let before = settled()?;
    let (ready, done) = (Barrier::new(2), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| -> Result<_> {
            let mut peak = before;
            ready.wait();
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(kernel_memory()?);
            }
            Ok(peak)
        });
        ready.wait();
        let buffer = maker.make(&device, backing);
        let held = kernel_memory()?;
        done.store(true, Ordering::Relaxed);
        buffer?;
        let peak = watcher.join().expect("no panic")?;
        let (held, peak) = (held - before, peak.max(held) - before);
        Ok(format!("\"held\": {held}, \"peak\": {peak}"))
    })
}

struct Args {
    output: File,
    sizes: Vec<usize>,
    ours: bool,
    cases: Vec<String>,
}

impl Args {
    fn wants(&self, case: &str) -> bool {
        self.cases.is_empty() || self.cases.iter().any(|name| name == case)
    }

    /// Measures all that makes buffers of this, and prints what comes of it.
    fn each(
        &self,
        case: &str,
        makers: &[(&str, Maker)],
        backing: &Backing,
        measure: impl Fn(Maker) -> Result<String>,
    ) -> Result<()> {
        let (mib, pages) = (backing.len / MIB, backing.len / PAGE);
        let size = if backing.huge {
            format!("{}m", HUGE / MIB)
        } else {
            format!("{}k", PAGE >> 10)
        };
        // Peers have shown by then how they grow.
        let only_ours = self.ours || backing.times > 1;
        let wanted = if only_ours { 1 } else { makers.len() };
        for &(name, maker) in &makers[..wanted] {
            if !maker.takes(backing) {
                continue;
            }
            println!("{case}: {mib} MiB of {size} pages, {name}");
            let result = measure(maker)
                .unwrap_or_else(|error| format!("\"error\": {:?}", format!("{error:#}")));
            writeln!(
                &self.output,
                "{{\"case\": {case:?}, \"backing\": {size:?}, \"mib\": {mib}, \"pages\": {pages}, \
                 \"impl\": {name:?}, {result}}}"
            )?;
        }
        Ok(())
    }
}

fn run(args: &Args) -> Result<()> {
    kernel::write(format!("{THP}/shmem_enabled"), "advise")?;
    // Older kernels have no GEM driver.
    let there = |case: &Case| case.name != "gem" || Card::find("pagekit-gem").is_ok();
    let neighbour = Mapping::shared_at(NEIGHBOUR, abi::memfd(PAGE as u64)?, PAGE)?;
    neighbour.write(0, &[1]);
    for &mib in &args.sizes {
        for of in [Of::Memfd, Of::UserMemory, Of::New, Of::Shmem] {
            let cases: Vec<_> = CASES
                .iter()
                .filter(|case| case.of == of && mib <= case.max_mib && args.wants(case.name))
                .filter(|case| there(case))
                .collect();
            if cases.is_empty() {
                continue;
            }
            for huge in [false, true] {
                let backing = Backing::new(of, huge, mib)?;
                for case in &cases {
                    args.each(case.name, case.makers, &backing, |maker| {
                        case.measure(maker, &backing)
                    })?;
                }
            }
        }
    }
    if args.wants(MEMORY) {
        for huge in [false, true] {
            let backing = Backing::new(Of::Memfd, huge, MEMORY_MIB)?;
            args.each(MEMORY, &UDMABUF[..3], &backing, |maker| {
                memory(maker, &backing)
            })?;
        }
    }
    Ok(())
}

fn parse_args() -> Result<Args> {
    let mut args = Args {
        output: File::create("rows.json").context("creating rows.json")?,
        sizes: Vec::new(),
        ours: false,
        cases: Vec::new(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("ours") => args.ours = true,
            Long("mib") => args.sizes.push(parser.value()?.parse()?),
            Value(case) => {
                let case = case.string()?;
                let mut known = CASES.iter().map(|case| case.name).chain([MEMORY]);
                ensure!(known.any(|name| name == case), "there is no case {case}");
                args.cases.push(case);
            }
            _ => return Err(arg.unexpected().into()),
        }
    }
    if args.sizes.is_empty() {
        args.sizes = SIZES.to_vec();
    }
    Ok(args)
}

fn main() -> ExitCode {
    match parse_args().and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pagekit-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
