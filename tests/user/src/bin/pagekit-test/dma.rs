// SPDX-License-Identifier: GPL-2.0
//! What exporters have done for devices that don't snoop, as the kernel traces calls of its DMA
//! API: whether caches are cleaned and invalidated for all of a buffer, when it is due, and not
//! otherwise. An emulator has no caches, and would show right data without.
//!
//! Where devices snoop, the calls do nothing, and where the kernel can tell beforehand, they aren't
//! traced. It doesn't try with `CONFIG_DMA_API_DEBUG`.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{self, SYNC_END, SYNC_READ, SYNC_RW, SYNC_START, SYNC_WRITE};
use pagekit_user::kernel;
use pagekit_user::mapping::Mapping;
use pagekit_user::test_importer::{Attachment, Dir, Importer, Kind, Through};
use pagekit_user::PAGE;

use crate::env::Env;
use crate::gem;
use crate::groups::Case;
use crate::heap;

pub const CASES: &[Case] = &[
    Case::new("mapped", mapped),
    Case::new("cpu_access", cpu_access),
    Case::new("two_devices", two_devices),
    Case::new("kernel_access", kernel_access),
];
pub const HEAP: &[Case] = &[Case::new("cleaned", cleaned)];
pub const GEM: &[Case] = &[Case::new("cleaned", gem_cleaned)];

const IMPORTER: &str = "pagekit-importer";
const PAGES: usize = 16;
const ACCESSES: [(u64, Dir); 3] = [
    (SYNC_READ, Dir::FromDevice),
    (SYNC_WRITE, Dir::ToDevice),
    (SYNC_RW, Dir::Both),
];

/// A call for a device.
#[derive(Debug)]
struct Call {
    name: String,
    dir: String,
    /// In the device's view: addresses and lengths.
    ranges: Vec<(u64, u64)>,
    physical: Vec<u64>,
    attrs: String,
}

impl Call {
    /// A line of the trace: who, when, and behind that the call, the device and the rest.
    fn parse(line: &str, device: &str) -> Option<Self> {
        let (head, rest) = line.split_once(&format!(": {device} dir="))?;
        let list = |name: &str| -> Vec<u64> {
            let text = rest.split_once(&format!(" {name}={{"));
            let text = text.and_then(|(_, text)| text.split_once('}'));
            text.map_or("", |(list, _)| list)
                .split(',')
                .filter_map(|word| u64::from_str_radix(word.strip_prefix("0x")?, 16).ok())
                .collect()
        };
        Some(Self {
            name: head.rsplit(' ').next()?.to_owned(),
            dir: rest.split(' ').next()?.to_owned(),
            ranges: list("dma_addrs").into_iter().zip(list("sizes")).collect(),
            physical: list("phys_addrs"),
            attrs: rest.split_once(" attrs=").map_or("", |(_, a)| a).to_owned(),
        })
    }

    fn len(&self) -> u64 {
        self.ranges.iter().map(|(_, len)| len).sum()
    }

    /// Is it this call, for all that `map` has mapped?
    fn check(&self, name: &str, dir: Dir, map: &Call) -> Result<()> {
        ensure!(
            self.name == name && self.dir == word(dir) && self.ranges == map.ranges,
            "{self:?} where {name} {dir:?} is due, for {:?}",
            map.ranges
        );
        Ok(())
    }
}

fn word(dir: Dir) -> &'static str {
    match dir {
        Dir::Both => "BIDIRECTIONAL",
        Dir::ToDevice => "TO_DEVICE",
        Dir::FromDevice => "FROM_DEVICE",
    }
}

/// A trace of one's own, for as long as this is there: to switch it on and off takes long.
struct Trace {
    device: &'static str,
}

impl Trace {
    const PLACE: &str = "/sys/kernel/tracing/instances/pagekit-test";

    fn new(device: &'static str) -> Result<Self> {
        fs::create_dir(Self::PLACE).context(Self::PLACE)?;
        let this = Self { device };
        kernel::write(Self::file("events/dma/enable"), "1")?;
        Ok(this)
    }

    fn file(name: &str) -> PathBuf {
        Path::new(Self::PLACE).join(name)
    }

    /// The calls for the device meanwhile.
    fn during(&self, f: impl FnOnce() -> Result<()>) -> Result<Vec<Call>> {
        kernel::write(Self::file("trace"), "")?;
        f()?;
        let trace = kernel::read(Self::file("trace"))?;
        let calls = trace
            .lines()
            .filter_map(|line| Call::parse(line, self.device));
        Ok(calls.collect())
    }

    /// Maps, and says how.
    fn map(&self, attachment: &Attachment<'_>, dir: Dir) -> Result<Call> {
        let call = one(self.during(|| Ok(attachment.map(dir)?))?)?;
        ensure!(
            call.name == "dma_map_sg" && call.dir == word(dir),
            "{call:?}"
        );
        ensure!(call.len() == (PAGES * PAGE) as u64, "not all: {call:?}");
        ensure!(!call.attrs.contains("SKIP_CPU_SYNC"), "{call:?}");
        Ok(call)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = kernel::write(Self::file("events/dma/enable"), "0");
        let _ = fs::remove_dir(Self::PLACE);
    }
}

fn one(mut calls: Vec<Call>) -> Result<Call> {
    ensure!(calls.len() == 1, "{calls:?} where one is due");
    calls.pop().context("none")
}

/// What a buffer is mapped for, it is unmapped for, and all of it.
fn mapped(env: &Env) -> Result<()> {
    let buf = env.filled(1, PAGES)?;
    let (importer, trace) = (Importer::open()?, Trace::new(IMPORTER)?);
    let attachment = importer.attach(&buf, Kind::Static)?;
    for dir in [Dir::Both, Dir::ToDevice, Dir::FromDevice] {
        let map = trace.map(&attachment, dir)?;
        let unmap = one(trace.during(|| Ok(attachment.unmap()?))?)?;
        ensure!(
            unmap.name == "dma_unmap_sg"
                && unmap.dir == word(dir)
                && unmap.physical == map.physical,
            "{unmap:?} of {map:?}"
        );
        ensure!(!unmap.attrs.contains("SKIP_CPU_SYNC"), "{unmap:?}");
    }
    Ok(())
}

/// What is due at the begin of CPU access to what is mapped so.
fn at_begin(mapped: Dir, access: Dir) -> Option<Dir> {
    match (mapped, access) {
        (Dir::ToDevice, Dir::FromDevice) | (Dir::FromDevice, Dir::ToDevice) => None,
        _ => Some(mapped),
    }
}

/// The same at the end: nothing is due where the CPU has changed nothing.
fn at_end(mapped: Dir, access: Dir) -> Option<Dir> {
    match access {
        Dir::FromDevice => None,
        _ => at_begin(mapped, access),
    }
}

fn check(calls: Vec<Call>, name: &str, due: Option<Dir>, map: &Call) -> Result<()> {
    match due {
        Some(dir) => one(calls)?.check(name, dir, map),
        None => {
            ensure!(calls.is_empty(), "{calls:?} where nothing is due");
            Ok(())
        }
    }
}

fn cpu_access(env: &Env) -> Result<()> {
    let buf = env.filled(1, PAGES)?;
    let (importer, trace) = (Importer::open()?, Trace::new(IMPORTER)?);
    let attachment = importer.attach(&buf, Kind::Static)?;
    let sync = |flags| trace.during(|| Ok(abi::sync(&buf, flags)?));
    for dir in [Dir::Both, Dir::ToDevice, Dir::FromDevice] {
        let map = trace.map(&attachment, dir)?;
        for (flags, access) in ACCESSES {
            let begin = sync(SYNC_START | flags)?;
            check(begin, "dma_sync_sg_for_cpu", at_begin(dir, access), &map)
                .with_context(|| format!("mapped {dir:?}, begin {access:?}"))?;
            let end = sync(SYNC_END | flags)?;
            check(end, "dma_sync_sg_for_device", at_end(dir, access), &map)
                .with_context(|| format!("mapped {dir:?}, end {access:?}"))?;
        }
        attachment.unmap()?;
        // No device has it, so that nothing is due.
        let calls = [sync(SYNC_START | SYNC_RW)?, sync(SYNC_END | SYNC_RW)?];
        ensure!(calls.iter().all(Vec::is_empty), "{calls:?} when unmapped");
    }
    Ok(())
}

/// Each device has its own due.
fn two_devices(env: &Env) -> Result<()> {
    let buf = env.filled(1, PAGES)?;
    let importers = [Importer::open()?, Importer::open()?];
    let trace = Trace::new(IMPORTER)?;
    let dirs = [Dir::ToDevice, Dir::FromDevice];
    let mut maps = Vec::new();
    let attachments = [
        importers[0].attach(&buf, Kind::Static)?,
        importers[1].attach(&buf, Kind::Dynamic)?,
    ];
    for (attachment, dir) in attachments.iter().zip(dirs) {
        maps.push(trace.map(attachment, dir)?);
    }
    for (step, name) in [
        (SYNC_START, "dma_sync_sg_for_cpu"),
        (SYNC_END, "dma_sync_sg_for_device"),
    ] {
        let mut calls = trace.during(|| Ok(abi::sync(&buf, step | SYNC_RW)?))?;
        ensure!(calls.len() == 2, "{calls:?} where two are due");
        // In any order.
        calls.sort_by_key(|call| call.dir == word(dirs[1]));
        for ((call, dir), map) in calls.iter().zip(dirs).zip(&maps) {
            call.check(name, dir, map)?;
        }
    }
    Ok(())
}

/// The kernel's own access, through a mapping of its own.
fn kernel_access(env: &Env) -> Result<()> {
    let buf = env.filled(1, PAGES)?;
    let (importer, trace) = (Importer::open()?, Trace::new(IMPORTER)?);
    let attachment = importer.attach(&buf, Kind::Static)?;
    let map = trace.map(&attachment, Dir::Both)?;
    let mut bytes = [0; 8];
    let reads = trace.during(|| Ok(attachment.read(Through::Vmap, PAGE, &mut bytes)?))?;
    one(reads)?.check("dma_sync_sg_for_cpu", Dir::Both, &map)?;
    let writes = trace.during(|| Ok(attachment.write(Through::Vmap, PAGE, &bytes)?))?;
    let [begin, end] = &writes[..] else {
        anyhow::bail!("{writes:?} where two are due");
    };
    begin.check("dma_sync_sg_for_cpu", Dir::Both, &map)?;
    end.check("dma_sync_sg_for_device", Dir::Both, &map)
}

/// Caches are cleaned of a buffer that the CPU doesn't cache, before anybody gets it.
fn cleaned(env: &Env) -> Result<()> {
    let trace = Trace::new("pagekit-heap")?;
    let allocate = || trace.during(|| heap::pages_of(env, PAGES).map(drop));
    let calls = allocate()?;
    ensure!(calls.is_empty(), "{calls:?} for a buffer that is cached");
    let parameter = "/sys/module/pagekit_heap/parameters/write_combine";
    let _setting = kernel::Setting::set(parameter, "Y")?;
    is_clean(&allocate()?, Dir::ToDevice)
}

/// Mapped for a device and unmapped: that cleans caches.
fn is_clean(calls: &[Call], dir: Dir) -> Result<()> {
    let [map, unmap] = calls else {
        anyhow::bail!("{calls:?} where two are due");
    };
    ensure!(
        map.name == "dma_map_sg"
            && map.len() == (PAGES * PAGE) as u64
            && [map, unmap].iter().all(|call| call.dir == word(dir))
            && [map, unmap]
                .iter()
                .all(|call| !call.attrs.contains("SKIP_CPU_SYNC"))
            && unmap.name == "dma_unmap_sg",
        "{calls:?} for {dir:?}"
    );
    Ok(())
}

/// Caches are cleaned of an object that the CPU doesn't cache when its pages come, each time, and
/// have nothing of them when they go.
fn gem_cleaned(env: &Env) -> Result<()> {
    let trace = Trace::new("pagekit-gem")?;
    let touch = |map: &Mapping| {
        trace.during(|| {
            map.touch();
            Ok(())
        })
    };
    let map = |buf: OwnedFd| Mapping::shared(buf, 0, PAGES * PAGE);
    let cached = map(gem::pages_of(env, PAGES)?)?;
    let mut calls = touch(&cached)?;
    calls.extend(trace.during(gem::shrink)?);
    ensure!(calls.is_empty(), "{calls:?} for an object that is cached");
    let _setting = gem::set_write_combine()?;
    let buf = gem::pages_of(env, PAGES)?;
    let importer = Importer::open()?;
    let map = map(buf.try_clone()?)?;
    for _ in 0..2 {
        is_clean(&touch(&map)?, Dir::ToDevice)?;
        // What is there is clean.
        importer.read(&buf, Through::Vmap, 0, &mut [0; PAGE])?;
        let calls = touch(&map)?;
        ensure!(calls.is_empty(), "{calls:?} for pages that were there");
        is_clean(&trace.during(gem::shrink)?, Dir::Both)?;
    }
    Ok(())
}
