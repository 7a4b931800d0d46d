// SPDX-License-Identifier: GPL-2.0
//! The table of bad inputs: what each entry must refuse, with which error, and which check says so.
//!
//! After a row, nothing is left (the runner sees to that), the kernel has nothing to say, and the same
//! call with good input works.

pub mod buffer;
pub mod heap;
pub mod node;
pub mod parameters;
pub mod style;
pub mod test_importer;
pub mod udmabuf;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use rustix::io::{self, Errno};
use rustix::process::{getrlimit, setrlimit, Resource, Rlimit};

use crate::env::Env;

/// What came of the call that must fail.
pub type Outcome = Result<io::Result<()>>;

pub struct Row {
    pub name: &'static str,
    /// What is called.
    pub entry: &'static str,
    /// What is wrong.
    pub input: &'static str,
    errno: Errno,
    errno_name: &'static str,
    /// The function and the condition in it that answers. Where no file is named, it is one of the
    /// driver; "core" is the kernel's own, before or instead of the driver.
    check: &'static str,
    call: fn(&Env) -> Outcome,
}

/// Rows of one entry, `name: input => error, check, |good input| what makes it bad;`. `$call` makes
/// the call, with input that the closure has changed.
macro_rules! rows {
    ($entry:literal, $call:path; $(
        $name:ident: $input:literal => $errno:ident, $check:literal, |$good:pat_param| $change:expr;
    )*) => {
        &[$($crate::inputs::Row {
            name: stringify!($name),
            entry: $entry,
            input: $input,
            errno: rustix::io::Errno::$errno,
            errno_name: concat!("E", stringify!($errno)),
            check: $check,
            call: |env| $call(env, |$good| {
                $change;
                Ok(())
            }),
        }),*]
    };
}
pub(crate) use rows;

/// However large a number is, it must not be a long loop. This allows for slow machines.
const AT_ONCE: Duration = Duration::from_secs(5);

/// Makes a call that must fail, and then a good one, which must not.
pub fn tried(
    bad: impl FnOnce() -> io::Result<()>,
    good: impl FnOnce() -> io::Result<()>,
) -> Outcome {
    let start = Instant::now();
    let result = bad();
    let took = start.elapsed();
    ensure!(took < AT_ONCE, "takes {took:?}");
    good().context("the same with good input")?;
    Ok(result)
}

impl Row {
    pub fn run(&self, env: &Env) -> Result<()> {
        match (self.call)(env)? {
            Ok(()) => anyhow::bail!("{} with {} succeeds", self.entry, self.input),
            Err(error) => ensure!(error == self.errno, "{error:?}, not {}", self.errno_name),
        }
        Ok(())
    }

    /// A line of JSON. All texts are ours and need no other escapes than Rust has.
    pub fn json(&self, device: &str, ok: bool) -> String {
        let Self {
            name,
            entry,
            input,
            errno_name,
            check,
            ..
        } = self;
        format!(
            "{{\"device\": {device:?}, \"name\": {name:?}, \"entry\": {entry:?}, \"input\": {input:?}, \
             \"errno\": {errno_name:?}, \"check\": {check:?}, \"ok\": {ok}}}\n"
        )
    }
}

/// All file descriptors that the process may have, until dropped.
pub struct AllFds {
    _files: Vec<OwnedFd>,
    before: Rlimit,
}

impl AllFds {
    pub fn take(file: impl AsFd) -> Result<Self> {
        let (before, mut files) = (getrlimit(Resource::Nofile), Vec::new());
        let limit = Rlimit {
            current: Some(64),
            ..before
        };
        setrlimit(Resource::Nofile, limit)?;
        let error = loop {
            match io::fcntl_dupfd_cloexec(&file, 0) {
                Ok(file) => files.push(file),
                Err(error) => break error,
            }
        };
        ensure!(error == Errno::MFILE, "filling the table: {error}");
        Ok(Self {
            _files: files,
            before,
        })
    }
}

impl Drop for AllFds {
    fn drop(&mut self) {
        let _ = setrlimit(Resource::Nofile, self.before);
    }
}
