// SPDX-License-Identifier: GPL-2.0
//! Tests of a device from user space, as TAP. Runs as root in a VM: cases change
//! kernel settings (and restore them).

mod create;
mod device;
mod env;
mod errors;
mod heap;
mod i915;
mod mapping;
mod memory;
mod nodes;
mod nouveau;
mod peer;
mod races;
mod radeon;
mod sharing;
mod style;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use lexopt::prelude::*;
use pagekit_user::kernel;
use pagekit_user::process::{Child, End};

use env::{Body, Case, Env, Group};

/// A new sample adds itself here.
const GROUPS: &[Group] = &[
    udmabuf("udmabuf"),
    udmabuf("cdmabuf"),
    Group {
        name: "heap",
        fill: heap::filled,
        tables: &[heap::CASES, mapping::CASES, device::CASES, sharing::CASES],
    },
    style(
        "i915",
        &[
            style::CASES,
            mapping::CASES,
            device::CASES,
            sharing::CASES,
            i915::CASES,
        ],
    ),
    style(
        "nouveau",
        &[
            style::CASES,
            mapping::CASES,
            device::CASES,
            sharing::CASES,
            nouveau::CASES,
        ],
    ),
    style(
        "radeon",
        &[
            style::CASES,
            mapping::CASES,
            device::CASES,
            sharing::CASES,
            radeon::CASES,
        ],
    ),
    node("map-pfns", nodes::PFNS),
    node("map-huge-pfns", nodes::HUGE_PFNS),
    node("map-eager-pfns", nodes::PFNS),
    node("map-pages", nodes::REFERENCED),
    node("map-huge-pages", nodes::HUGE_REFERENCED),
    node("map-eager-pages", nodes::REFERENCED),
    Group {
        name: "races",
        fill: |_, _, _| bail!("races are between all kinds"),
        tables: races::TABLES,
    },
];

/// A driver with the interface of mainline's udmabuf.
const fn udmabuf(name: &'static str) -> Group {
    Group {
        name,
        fill: |env, id, pages| Ok(env.buffer(id, pages)?.1),
        tables: &[
            create::CASES,
            mapping::CASES,
            memory::CASES,
            device::CASES,
            sharing::CASES,
            sharing::OF_MEMFDS,
            errors::CASES,
        ],
    }
}

/// A driver of `pagekit_style.h`.
const fn style(name: &'static str, tables: &'static [&'static [Case]]) -> Group {
    Group {
        name,
        fill: |env, id, pages| Ok(style::written(env, id, pages)?.export()?),
        tables,
    }
}

/// A test node: its files come with pages.
const fn node(name: &'static str, tables: &'static [&'static [Case]]) -> Group {
    Group {
        name,
        fill: |_, _, _| bail!("a node makes no buffers"),
        tables,
    }
}

const USAGE: &str = "\
usage: pagekit-test --device DEV [options] [FILTER...]

Runs the cases whose name contains a FILTER (default: all).

  --group NAME        the kind of device (default: udmabuf)
  --smoke             only a few quick cases
  --list              print the names of the cases and exit
  --peer              DEV is mainline's: what it is known to fail must fail
  --list-limit N      list_limit DEV's module was loaded with, unless in sysfs
  --size-limit-mb N   size_limit_mb, likewise
  --seconds N         how long a race lasts, at least (default: 1)
  --timeout SECONDS   for each case (default: 120)";

struct Args {
    env: Env,
    group: &'static Group,
    smoke: bool,
    list: bool,
    peer: bool,
    timeout: Duration,
    filters: Vec<String>,
}

fn parse_args() -> Result<Args> {
    let mut args = Args {
        env: Env::new(GROUPS[0].fill),
        group: &GROUPS[0],
        smoke: false,
        list: false,
        peer: false,
        timeout: Duration::from_secs(120),
        filters: Vec::new(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("device") => args.env.device = PathBuf::from(parser.value()?),
            Long("group") => {
                let name = parser.value()?.string()?;
                let group = GROUPS.iter().find(|group| group.name == name);
                args.group = group.with_context(|| format!("no group {name}"))?;
                args.env.fill = args.group.fill;
            }
            Long("smoke") => args.smoke = true,
            Long("list") => args.list = true,
            Long("peer") => args.peer = true,
            Long("list-limit") => args.env.list_limit = parser.value()?.parse()?,
            Long("size-limit-mb") => args.env.size_limit_mb = parser.value()?.parse()?,
            Long("seconds") => {
                args.env.time = Duration::try_from_secs_f64(parser.value()?.parse()?)?;
            }
            Long("timeout") => args.timeout = Duration::from_secs(parser.value()?.parse()?),
            Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            Value(filter) => args.filters.push(filter.string()?),
            _ => return Err(arg.unexpected().into()),
        }
    }
    ensure!(
        args.list || args.group.name == "races" || !args.env.device.as_os_str().is_empty(),
        "no --device given"
    );
    Ok(args)
}

fn main() -> ExitCode {
    match parse_args().and_then(|args| run(&args)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("pagekit-test: {error:#}\n\n{USAGE}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<bool> {
    let cases: Vec<(String, &Case)> = args
        .group
        .tables
        .iter()
        .flat_map(|table| table.iter())
        .filter(|case| case.smoke || !args.smoke)
        .map(|case| (format!("{}.{}", args.group.name, case.name), case))
        .filter(|(name, _)| {
            let mut filters = args.filters.iter();
            args.filters.is_empty() || filters.any(|filter| name.contains(filter))
        })
        .collect();
    ensure!(!cases.is_empty(), "no case matches {:?}", args.filters);
    if args.list {
        cases.iter().for_each(|(name, _)| println!("{name}"));
        return Ok(true);
    }

    let mut log = kernel::Log::follow()?;
    let mut failed = 0;
    println!("1..{}", cases.len());
    for (number, (name, case)) in (1..).zip(&cases) {
        let known = match args.peer {
            true => peer::known_failure(name),
            false => None,
        };
        let outcome = run_case(case, &args.env, args.timeout + args.env.time, &mut log)?;
        let (ok, reason) = match (outcome, known) {
            (None, None) => (true, String::new()),
            (None, Some(_)) => (false, "passes: take it off the peer's list".to_owned()),
            (Some(reason), None) => (false, reason),
            (Some(reason), Some(why)) => (true, format!("mainline fails: {why}: {reason}")),
        };
        failed += i32::from(!ok);
        println!(
            "{}ok {number} - {name}{}{}",
            if ok { "" } else { "not " },
            if reason.is_empty() { "" } else { " # " },
            reason.replace('\n', " ")
        );
    }
    println!("# {} passed, {failed} failed", cases.len() as i32 - failed);
    Ok(failed == 0)
}

/// Runs one case in a child. Returns why it failed, if it did.
fn run_case(
    case: &Case,
    env: &Env,
    timeout: Duration,
    log: &mut kernel::Log,
) -> Result<Option<String>> {
    let before = held()?;
    let end = Child::spawn_group(|| {
        let open = open_files()?;
        match case.body {
            Body::Works(body) => body(env)?,
            Body::Fails(errno, body) => match body(env)? {
                Ok(_) => bail!("succeeds, should be {errno:?}"),
                Err(error) => ensure!(error == errno, "is {error:?}, should be {errno:?}"),
            },
        }
        let (open, now) = (open, open_files()?);
        ensure!(now == open, "{open} files were open before, {now} after");
        let now = held()?;
        ensure!(now == before, "{before:?} before, {now:?} after");
        Ok(())
    })?
    .wait_for(timeout)?;
    let now = held()?;
    Ok(match (end, log.complaint()?) {
        (_, Some(complaint)) => Some(format!("the kernel says: {complaint}")),
        (End::Failed(reason), _) => Some(reason),
        (End::Killed(signal), _) => Some(format!("killed by signal {signal}")),
        (End::TimedOut, _) => Some(format!("not done after {timeout:?}")),
        (End::Done, _) if now != before => Some(format!("{before:?} before, {now:?} after exit")),
        (End::Done, _) => None,
    })
}

/// What a case must not leave behind.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    pins: i64,
    buffers: i64,
    bounce_slots: i64,
}

fn held() -> Result<Held> {
    Ok(Held {
        pins: kernel::pins()?,
        buffers: kernel::buffers()?,
        bounce_slots: kernel::bounce_slots()?,
    })
}

fn open_files() -> Result<usize> {
    let files = std::fs::read_dir("/proc/self/fd").context("/proc/self/fd")?;
    Ok(files.count())
}
