// SPDX-License-Identifier: GPL-2.0
//! Tests of a device from user space, as TAP. Runs as root in a VM: cases change
//! kernel settings (and restore them).

mod create;
mod device;
mod dma;
mod env;
mod failures;
mod gem;
mod groups;
mod heap;
mod hostile;
mod i915;
mod inputs;
mod isolation;
mod mappings;
mod memory;
mod nodes;
mod nouveau;
mod numa;
mod peer;
mod qemu;
mod races;
mod radeon;
mod sharing;
mod shown;
mod style;
mod table;

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::slice;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use lexopt::prelude::*;
use pagekit_user::kernel::{self, open_files, Held};
use pagekit_user::process::{Child, End};

use env::Env;
use groups::{Case, Group, Row};
use table::GROUPS;

const USAGE: &str = "\
usage: pagekit-test --device DEV [options] [FILTER...]

Runs the cases that a FILTER names (default: all): in full, or by how the name
begins, or by any part of it that has no dot.

  --group NAME        the kind of device (default: udmabuf)
  --smoke             only a few quick cases
  --inputs FILE       what DEV must refuse instead, and append to FILE what was seen
  --list              print the names of the cases and exit; without --group those of all
  --peer              DEV is mainline's: what it is known to fail must fail
  --list-limit N      list_limit DEV's module was loaded with, unless in sysfs
  --size-limit-mb N   size_limit_mb, likewise
  --seconds N         how long a race lasts, at least (default: 1)
  --timeout SECONDS   for each case (default: 240)";

struct Args {
    env: Env,
    group: Option<&'static Group>,
    smoke: bool,
    inputs: Option<PathBuf>,
    list: bool,
    peer: bool,
    timeout: Duration,
    filters: Vec<String>,
}

impl Args {
    fn group(&self) -> &'static Group {
        self.group.unwrap_or(&GROUPS[0])
    }
}

fn parse_args() -> Result<Args> {
    let mut args = Args {
        env: Env::new(GROUPS[0].fill),
        group: None,
        smoke: false,
        inputs: None,
        list: false,
        peer: false,
        timeout: Duration::from_secs(240),
        filters: Vec::new(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("device") => args.env.device = PathBuf::from(parser.value()?),
            Long("group") => {
                let name = parser.value()?.string()?;
                let group = GROUPS.iter().find(|group| group.name == name);
                let group = group.with_context(|| format!("no group {name}"))?;
                args.env.fill = group.fill;
                args.group = Some(group);
            }
            Long("smoke") => args.smoke = true,
            Long("inputs") => args.inputs = Some(PathBuf::from(parser.value()?)),
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
        args.list || args.group().name == "races" || !args.env.device.as_os_str().is_empty(),
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

/// What is run.
enum Test {
    Case(&'static Case),
    Row(&'static Row),
}

impl Test {
    fn run(&self, env: &Env) -> Result<()> {
        match self {
            Self::Case(case) => (case.body)(env),
            Self::Row(row) => row.run(env),
        }
    }
}

fn tests(args: &Args, group: &Group) -> Result<Vec<(String, Test)>> {
    let Group {
        name,
        tables,
        inputs,
        ..
    } = group;
    let mut tests: Vec<_> = match args.inputs {
        Some(_) => inputs
            .iter()
            .flat_map(|tables| tables.iter())
            .flat_map(|rows| rows.iter())
            .map(|row| (format!("inputs.{name}.{}", row.name), Test::Row(row)))
            .collect(),
        None => tables
            .iter()
            .flat_map(|table| table.iter())
            .filter(|case| case.smoke || !args.smoke)
            .map(|case| (format!("{name}.{}", case.name), Test::Case(case)))
            .collect(),
    };
    let mut names = HashSet::new();
    for (name, _) in &tests {
        ensure!(names.insert(name.clone()), "two cases are called {name}");
    }
    let names_it = |filter: &String, name: &String| match names.contains(filter) {
        true => name == filter,
        false => name.starts_with(filter) || !filter.contains('.') && name.contains(filter),
    };
    let filters = &args.filters;
    tests.retain(|(name, _)| filters.is_empty() || filters.iter().any(|f| names_it(f, name)));
    Ok(tests)
}

fn run(args: &Args) -> Result<bool> {
    if args.list {
        let groups = args.group.map_or(GROUPS, slice::from_ref);
        for group in groups {
            tests(args, group)?
                .iter()
                .for_each(|(name, _)| println!("{name}"));
        }
        return Ok(true);
    }
    let group = args.group();
    let tests = tests(args, group)?;
    ensure!(!tests.is_empty(), "no case matches {:?}", args.filters);
    // The core of dma-bufs warns whenever a buffer can't be mapped for the kernel.
    let expected = group
        .name
        .starts_with("failures.")
        .then_some(" dma_buf_vmap");
    let mut log = kernel::Log::follow(expected)?;
    let (mut failed, mut seen) = (0, String::new());
    println!("1..{}", tests.len());
    for (number, (name, test)) in (1..).zip(&tests) {
        let known = match args.peer {
            true => peer::known_failure(name),
            false => None,
        };
        let outcome = run_test(test, &args.env, args.timeout + args.env.time, &mut log)?;
        if let Test::Row(row) = test {
            seen += &row.json(group.name, outcome.is_none());
        }
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
    println!("# {} passed, {failed} failed", tests.len() as i32 - failed);
    if let Some(path) = &args.inputs {
        // At the end: the file system may pin what it writes.
        let mut file = File::options().create(true).append(true).open(path)?;
        file.write_all(seen.as_bytes())?;
    }
    Ok(failed == 0)
}

/// Runs it in a child. Returns why it failed, if it did.
fn run_test(
    test: &Test,
    env: &Env,
    timeout: Duration,
    log: &mut kernel::Log,
) -> Result<Option<String>> {
    let before = Held::now()?;
    let end = Child::spawn_group(|| {
        let open = open_files()?;
        test.run(env)?;
        let (open, now) = (open, open_files()?);
        ensure!(now == open, "{open} files were open before, {now} after");
        let now = Held::now()?;
        ensure!(now == before, "{before:?} before, {now:?} after");
        Ok(())
    })?
    .wait_for(timeout)?;
    let now = Held::now()?;
    Ok(match (end, log.complaint()?) {
        (_, Some(complaint)) => Some(format!("the kernel says: {complaint}")),
        (End::Failed(reason), _) => Some(reason),
        (End::Killed(signal), _) => Some(format!("killed by signal {signal}")),
        (End::TimedOut, _) => Some(format!("not done after {timeout:?}")),
        (End::Done, _) if now != before => Some(format!("{before:?} before, {now:?} after exit")),
        (End::Done, _) => None,
    })
}
