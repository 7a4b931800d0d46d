// SPDX-License-Identifier: GPL-2.0
//! The table of bad inputs: what each entry must refuse, with which error, and which check says so.
//!
//! After a row, nothing is left (the runner sees to that), the kernel has nothing to say, and the
//! same call with good input works.

pub mod buffer;
pub mod gem;
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

use crate::groups::Outcome;

/// Rows of one entry, `name: input => error, check, |good input| what makes it bad;`. `$call` makes
/// the call, with input that the closure has changed.
macro_rules! rows {
    ($entry:literal, $call:path; $(
        $name:ident: $input:literal => $errno:ident, $check:literal, |$good:pat_param| $change:expr;
    )*) => {
        &[$($crate::groups::Row {
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
