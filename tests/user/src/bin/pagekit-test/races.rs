// SPDX-License-Identifier: GPL-2.0
//! What happens at the same time: threads, each on a CPU of its own if there are as many, that do
//! things to the same objects which get into each other's way.
//!
//! Whoever comes first, data must be right, errors those that are allowed, and nothing may be left.

pub mod fds;
pub mod memory;
pub mod modules;
pub mod nodes;
pub mod revoke;
pub mod signals;

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::mapping::Mapping;
use pagekit_user::style::Object;
use pagekit_user::test_importer::{Dir, Importer, Kind, Through};
use pagekit_user::{abi, PAGE};
use rustix::io::{self, Errno};
use rustix::thread::{sched_setaffinity, CpuSet};

use crate::env::{of_memfd, Content, Env, Fill};
use crate::groups::Case;
use crate::{gem, heap, style};

pub const CASES: &[Case] = &[Case::new("sync_map", |env| each_exporter(env, sync_map))];

/// Of most buffers here: few, because it's the beginning and the end of things that race.
pub const PAGES: usize = 16;
/// An importer that can't have buffers moved, and one that can.
const STATIC: &str = "/dev/pagekit-radeon";
const DYNAMIC: &str = "/dev/pagekit-nouveau";

/// What one thread does again and again.
pub struct Side<'a> {
    name: &'static str,
    round: Box<dyn FnMut() -> Result<bool> + Send + 'a>,
}

/// `round` says whether it counts: whether it did what the race is about.
pub fn side<'a>(name: &'static str, round: impl FnMut() -> Result<bool> + Send + 'a) -> Side<'a> {
    Side {
        name,
        round: Box::new(round),
    }
}

/// Lets the sides race for that long, or for longer until each has had a round that counts. That
/// none may be without one is the first thing that a race asserts.
pub fn race(time: Duration, sides: Vec<Side<'_>>) -> Result<()> {
    const GRACE: Duration = Duration::from_secs(60);
    let names: Vec<_> = sides.iter().map(|side| side.name).collect();
    let rounds: Vec<_> = sides.iter().map(|_| AtomicU64::new(0)).collect();
    let missing = || {
        let mut rounds = names.iter().zip(&rounds);
        rounds.find(|(_, n)| n.load(Ordering::Relaxed) == 0)
    };
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let run = |cpu, mut side: Side<'_>, rounds: &AtomicU64| -> Result<()> {
        stay_on(cpu)?;
        while !stop.load(Ordering::Relaxed) {
            let counts = (side.round)().with_context(|| side.name);
            if counts.inspect_err(|_| stop.store(true, Ordering::Relaxed))? {
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    };
    let run = &run;
    let result = thread::scope(|scope| {
        let threads: Vec<_> = (sides.into_iter().zip(&rounds).enumerate())
            .map(|(cpu, (side, rounds))| scope.spawn(move || run(cpu, side, rounds)))
            .collect();
        while !stop.load(Ordering::Relaxed)
            && (start.elapsed() < time || missing().is_some() && start.elapsed() < time + GRACE)
        {
            thread::sleep(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Relaxed);
        // All of them, before the first error is passed on.
        let results = threads.into_iter().map(|thread| thread.join());
        let results: Vec<_> = results.collect();
        (results.into_iter()).try_for_each(|result| result.unwrap_or_else(|_| bail!("panic")))
    });
    let counted = names.iter().zip(&rounds);
    let counted = counted.map(|(name, rounds)| (*name, rounds.load(Ordering::Relaxed)));
    report(start, &counted.collect::<Vec<_>>());
    result?;
    match missing() {
        Some((name, _)) => bail!("{name}: no round that counts"),
        None => Ok(()),
    }
}

/// Says how it went, for people and for tools/test.py.
fn report(start: Instant, rounds: &[(&str, u64)]) {
    let rounds: Vec<_> = rounds
        .iter()
        .map(|(name, n)| format!("{name}={n}"))
        .collect();
    let seconds = start.elapsed().as_secs_f64();
    println!("# raced {seconds:.1} s: {}", rounds.join(" "));
}

fn stay_on(cpu: usize) -> Result<()> {
    let count = thread::available_parallelism()?.get();
    ensure!(count > 1, "there is just one CPU");
    let mut cpus = CpuSet::new();
    cpus.set(cpu % count);
    sched_setaffinity(None, &cpus).context("sched_setaffinity")
}

/// The value; nothing for an error that may be; other errors.
pub fn allow<T>(result: io::Result<T>, errors: &[Errno]) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if errors.contains(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The device of that name, for the cases of its group.
pub fn at(name: &str) -> Env {
    let (device, fill): (_, Fill) = match name {
        "heap" => ("dma_heap/pagekit".to_owned(), heap::filled),
        "gem" => (gem::card().unwrap_or_default(), gem::filled),
        "i915" | "nouveau" | "radeon" => (format!("pagekit-{name}"), style::filled),
        _ => (format!("pagekit-{name}"), of_memfd),
    };
    let mut env = Env::new(fill);
    env.device = Path::new("/dev").join(device);
    env
}

/// Runs `race` with the devices of all drivers that export buffers, one after the other.
fn each_exporter(env: &Env, race: impl Fn(&Env) -> Result<()>) -> Result<()> {
    const NAMES: [&str; 6] = ["udmabuf", "heap", "i915", "nouveau", "radeon", "gem"];
    // Older kernels have no GEM driver.
    let there = |name: &&&str| **name != "gem" || gem::card().is_some();
    NAMES.iter().filter(there).try_for_each(|name| {
        let mut exporter = at(name);
        exporter.time = env.time / NAMES.len() as u32;
        race(&exporter).context(*name)
    })
}

/// The pages are those of file 1 from page `first` on. `zeros`: or parts of them are zeros.
pub fn see(bytes: &[u8], first: usize, zeros: bool) -> Result<()> {
    for (page, bytes) in bytes.chunks_exact(PAGE).enumerate() {
        let content = Content::Page(1, first + page);
        let bytes: &[u8; PAGE] = bytes.try_into()?;
        let want = content.bytes();
        // Whoever fills them does so byte by byte.
        let mut both = bytes.iter().zip(&want);
        if *bytes != want && !(zeros && both.all(|(is, want)| is == want || *is == 0)) {
            (content.check(bytes)).with_context(|| format!("page {}", first + page))?;
        }
    }
    Ok(())
}

/// All of the mapping, which shows pages from `first` on.
pub fn see_map(map: &Mapping, first: usize, zeros: bool) -> Result<()> {
    let mut bytes = vec![0; map.len()];
    map.read(0, &mut bytes);
    see(&bytes, first, zeros)
}

/// All of an object of `PAGES`.
fn see_object(object: &Object) -> Result<()> {
    let mut bytes = vec![0; PAGES * PAGE];
    object.read(0, &mut bytes)?;
    see(&bytes, 0, false)
}

/// CPU access begins and ends, while devices attach, map, write, unmap and detach, and while the
/// kernel has it mapped.
fn sync_map(exporter: &Env) -> Result<()> {
    let buf = exporter.filled(1, PAGES)?;
    let map = Mapping::shared(&buf, 0, PAGES * PAGE)?;
    let importers = [(); 2].map(|()| Importer::open());
    let [device, kernel] = importers;
    let (device, kernel, mut round) = (device?, kernel?, 0u8);
    let cpu = || {
        abi::with_cpu_access(&buf, abi::SYNC_RW, || {
            see_map(&map, 0, false)?;
            map.write(PAGE, &Content::Page(1, 1).bytes());
            Ok(true)
        })
    };
    let device = || {
        round = round.wrapping_add(1);
        let kind = [Kind::Static, Kind::Dynamic][usize::from(round % 2)];
        let attachment = device.attach(&buf, kind)?;
        attachment.map(Dir::Both)?;
        attachment.write(Through::Dma, 0, &Content::Page(1, 0).bytes())?;
        let mut bytes = vec![0; PAGES * PAGE];
        attachment.read(Through::Dma, 0, &mut bytes)?;
        attachment.unmap()?;
        see(&bytes, 0, false)?;
        Ok(true)
    };
    let kernel = || {
        let mut bytes = vec![0; PAGES * PAGE];
        kernel.read(&buf, Through::Vmap, 0, &mut bytes)?;
        see(&bytes, 0, false)?;
        Ok(true)
    };
    race(
        exporter.time,
        vec![side("sync", cpu), side("map", device), side("vmap", kernel)],
    )
}
