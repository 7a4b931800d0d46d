// SPDX-License-Identifier: GPL-2.0
//! Random operations on all devices, checked against a model of what must be visible in which page,
//! and garbage at all ioctls. Runs as root in a VM.
//!
//! A sequence is made from a number, and runs in a child. Those that follow are made from the
//! numbers that follow: with the one that fails as the seed, it is the first.

mod model;
mod op;
mod raw;
mod trace;
mod world;

use std::cell::{Cell, RefCell};
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use lexopt::prelude::*;
use pagekit_user::kernel::{self, open_files, Held, RootGroup, ZramSwap};
use pagekit_user::process::{Child, End};
use pagekit_user::style::Object;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use rustix::thread::{sched_getaffinity, sched_setaffinity};

use model::Driver;
use op::{ops, Op};
use raw::{calls, Call};
use trace::{join, Trace};
use world::World;

const USAGE: &str = "\
usage: pagekit-fuzz [options]

  --seed N        the first sequence (default: drawn)
  --ops N         until there were as many operations
  --seconds N     or for as long
  --json FILE     where to write how much was done
  --verbose       say what is done";

/// For a sequence, and for the search for a shorter one.
const LIMIT: Duration = Duration::from_secs(60);
const SHRINK_LIMIT: Duration = Duration::from_secs(180);
/// How often it is looked again whether something was left.
const RETRIES: usize = 5;
const SWAP: usize = 64 << 20;

/// What a sequence consists of.
#[derive(Clone, Debug)]
enum Plan {
    Alone(Vec<Op>),
    Threads(Vec<Vec<Op>>),
    Raw(Vec<Call>, usize),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alone,
    Threads,
    Raw,
}

impl Plan {
    fn kind(&self) -> Kind {
        match self {
            Self::Alone(_) => Kind::Alone,
            Self::Threads(_) => Kind::Threads,
            Self::Raw(..) => Kind::Raw,
        }
    }

    /// How often it must pass before it is taken to pass.
    fn tries(&self) -> usize {
        match self {
            Self::Alone(_) | Self::Raw(_, 1) => 1,
            Self::Threads(_) | Self::Raw(..) => 3,
        }
    }
}

/// How much was done.
#[derive(Clone, Copy, Default)]
struct Counts {
    alone: usize,
    threads: usize,
    raw: usize,
}

impl Counts {
    fn of(&mut self, kind: Kind) -> &mut usize {
        match kind {
            Kind::Alone => &mut self.alone,
            Kind::Threads => &mut self.threads,
            Kind::Raw => &mut self.raw,
        }
    }

    fn ops(&self) -> usize {
        self.alone + self.threads
    }
}

fn plan() -> impl Strategy<Value = Plan> {
    prop_oneof![
        4 => ops(1..120).prop_map(Plan::Alone),
        2 => vec(ops(1..60), 2..4).prop_map(Plan::Threads),
        2 => (calls(1..200), 1usize..3).prop_map(|(calls, threads)| Plan::Raw(calls, threads)),
    ]
}

struct Fuzzer {
    trace: Trace,
    group: RootGroup,
    log: RefCell<kernel::Log>,
    verbose: bool,
}

/// A sequence that fails, as short as it gets.
struct Failure {
    kind: Kind,
    /// What it does, and what is wrong then.
    text: String,
}

impl Fuzzer {
    /// Runs a sequence in a child. Returns what it did, and why it failed, if it did.
    fn run(&self, plan: Plan) -> Result<(String, Option<String>)> {
        // One that was killed may have left it so.
        Object::open(Driver::I915.device())?.reset()?;
        // Warnings that come once come again.
        fs::write("/sys/kernel/debug/clear_warn_once", "1")?;
        let before = Held::now()?;
        let (trace, group) = (&self.trace, &self.group);
        let end = Child::spawn_group(|| {
            let open = open_files()?;
            match plan {
                Plan::Alone(ops) => World::new(0, &[], group, trace)?.run(ops)?,
                Plan::Threads(all) => threads(all, group, trace)?,
                Plan::Raw(calls, threads) => raw::run(&calls, threads, trace)?,
            }
            let now = open_files()?;
            ensure!(now == open, "{open} files were open before, {now} after");
            Ok(())
        })?
        .wait_for(LIMIT)?;
        let done = trace.take()?;
        // Others pin pages, too, for a moment: to read a file from the host, for one.
        let mut now = Held::now()?;
        for _ in 0..RETRIES {
            if now != before {
                std::thread::sleep(Duration::from_millis(100));
                now = Held::now()?;
            }
        }
        let reason = match (end, self.log.borrow_mut().complaint()?) {
            (_, Some(complaint)) => Some(format!("the kernel says: {complaint}")),
            (End::Failed(reason), _) => Some(reason),
            (End::Killed(signal), _) => Some(format!("killed by signal {signal}")),
            (End::TimedOut, _) => Some(format!("not done after {LIMIT:?}")),
            (End::Done, _) if now != before => Some(format!("{before:?} before, {now:?} after")),
            (End::Done, _) => None,
        };
        Ok((done, reason))
    }

    /// Makes the sequence of a number and runs it. Counts what it does.
    fn sequence(&self, number: u64, counts: &mut Counts) -> Result<Option<Failure>> {
        // Also to the console, which is all that is left if the kernel dies.
        fs::write("/dev/kmsg", format!("pagekit-fuzz: sequence {number}\n"))?;
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&number.to_le_bytes());
        let config = Config {
            cases: 1,
            failure_persistence: None,
            max_shrink_iters: 10_000,
            max_shrink_time: SHRINK_LIMIT.as_millis() as u32,
            ..Config::default()
        };
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let (counts, text) = (Cell::from_mut(counts), RefCell::new(String::new()));
        let result = TestRunner::new_with_rng(config, rng).run(&plan(), |plan| {
            let shorter = !text.borrow().is_empty();
            for _ in 0..if shorter { plan.tries() } else { 1 } {
                let (done, reason) = match self.run(plan.clone()) {
                    Ok(end) => end,
                    Err(error) => (String::new(), Some(format!("{error:#}"))),
                };
                if let Some(reason) = reason {
                    *text.borrow_mut() = format!("{done}{reason}");
                    return Err(TestCaseError::fail(reason));
                }
                if self.verbose {
                    done.lines().for_each(|line| println!("# {line}"));
                }
                if !shorter {
                    let mut sum = counts.get();
                    *sum.of(plan.kind()) += done.lines().count();
                    counts.set(sum);
                }
            }
            Ok(())
        });
        Ok(match result {
            Err(TestError::Fail(_, plan)) => Some(Failure {
                kind: plan.kind(),
                text: text.take(),
            }),
            _ => None,
        })
    }
}

fn threads(all: Vec<Vec<Op>>, group: &RootGroup, trace: &Trace) -> Result<()> {
    let shared = world::shared()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (1..)
            .zip(all)
            .map(|(thread, ops)| {
                let shared = &shared;
                scope.spawn(move || {
                    let result = World::new(thread, shared, group, trace)?.run(ops);
                    result.with_context(|| format!("thread {thread}"))
                })
            })
            .collect();
        threads.into_iter().try_for_each(join)
    })
}

struct Args {
    seed: u64,
    ops: usize,
    limit: Duration,
    json: Option<PathBuf>,
    verbose: bool,
}

fn parse_args() -> Result<Args> {
    let mut args = Args {
        // Short enough to be typed.
        seed: RandomState::new().build_hasher().finish() % 1_000_000_000,
        ops: usize::MAX,
        limit: Duration::MAX,
        json: None,
        verbose: false,
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("seed") => args.seed = parser.value()?.parse()?,
            Long("ops") => args.ops = parser.value()?.parse()?,
            Long("seconds") => args.limit = Duration::from_secs(parser.value()?.parse()?),
            Long("verbose") => args.verbose = true,
            Long("json") => args.json = Some(PathBuf::from(parser.value()?)),
            _ => return Err(arg.unexpected().into()),
        }
    }
    Ok(args)
}

fn run(args: &Args) -> Result<bool> {
    // Of all CPUs: swap on a disk of memory takes us to one.
    let cpus = sched_getaffinity(None)?;
    let _swap = ZramSwap::new(SWAP)?;
    sched_setaffinity(None, &cpus)?;
    let fuzzer = Fuzzer {
        trace: Trace::new()?,
        group: RootGroup::mount()?,
        log: RefCell::new(kernel::Log::follow(None)?),
        verbose: args.verbose,
    };
    println!("# fuzz: seed {}", args.seed);
    let start = Instant::now();
    let mut counts = Counts::default();
    let (mut number, mut failure) = (args.seed, None);
    while failure.is_none() && counts.ops() < args.ops && start.elapsed() < args.limit {
        failure = fuzzer.sequence(number, &mut counts)?;
        number += 1;
    }
    let seconds = start.elapsed().as_secs();
    for (kind, name) in [
        (Kind::Alone, "alone"),
        (Kind::Threads, "threads"),
        (Kind::Raw, "raw"),
    ] {
        match &failure {
            Some(failure) if failure.kind == kind => {
                failure.text.lines().for_each(|line| println!("# {line}"));
                println!(
                    "not ok - fuzz.{name} # replay: make fuzz SEED={}",
                    number - 1
                );
            }
            _ => println!("ok - fuzz.{name}"),
        }
    }
    let (ops, raw, seed) = (counts.ops(), counts.raw, args.seed);
    println!("# fuzz: {ops} operations, {raw} raw ioctls, {seconds} s, seed {seed}");
    if let Some(path) = &args.json {
        let failed = failure
            .as_ref()
            .map_or("null".to_owned(), |_| (number - 1).to_string());
        let json = format!(
            "{{\"ops\": {ops}, \"raw_ioctls\": {raw}, \"seconds\": {seconds}, \
             \"seed\": {seed}, \"failed\": {failed}}}\n"
        );
        fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(failure.is_none())
}

fn main() -> ExitCode {
    match parse_args().and_then(|args| run(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pagekit-fuzz: {error:#}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}
