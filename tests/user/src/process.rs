// SPDX-License-Identifier: GPL-2.0
//! Child processes made by fork: they share mappings and files with the parent,
//! and what kills them does not kill the tests.

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Duration;

use anyhow::{bail, Context, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{
    kill_process, kill_process_group, pidfd_open, set_parent_process_death_signal, setpgid,
    waitpid, Pid, PidfdFlags, Signal, WaitOptions, WaitStatus,
};

/// A child running a function. Killed and reaped on drop.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    /// Where it writes what went wrong.
    report: File,
    reaped: bool,
}

/// How a child ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    Done,
    Failed(String),
    Killed(i32),
    TimedOut,
}

impl Child {
    /// Forks a child that runs `body` and exits.
    pub fn spawn(body: impl FnOnce() -> Result<()>) -> Result<Self> {
        Self::fork(false, body)
    }

    /// As `spawn`, in a process group of its own, so that a time-out ends its
    /// children too.
    pub fn spawn_group(body: impl FnOnce() -> Result<()>) -> Result<Self> {
        Self::fork(true, body)
    }

    fn fork(group: bool, body: impl FnOnce() -> Result<()>) -> Result<Self> {
        let report = rustix::fs::memfd_create("report", rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut report = File::from(report);
        std::io::stdout().flush()?;
        // SAFETY: the callers have no other thread running, so nothing that the child
        // uses is locked.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // Nothing stays behind, whatever happens to the parent.
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            if group {
                let _ = setpgid(None, None);
            }
            let ok = match run(body) {
                Ok(()) => true,
                Err(text) => {
                    let _ = report.write_all(text.as_bytes());
                    false
                }
            };
            let _ = std::io::stdout().flush();
            // SAFETY: ends the process; exit handlers are the parent's.
            unsafe { libc::_exit(i32::from(!ok)) };
        }
        let pid = Pid::from_raw(pid)
            .filter(|_| pid > 0)
            .ok_or_else(std::io::Error::last_os_error)
            .context("fork")?;
        Ok(Self {
            pid,
            report,
            reaped: false,
        })
    }

    pub fn id(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    pub fn kill(&self) -> Result<()> {
        Ok(kill_process(self.pid, Signal::KILL)?)
    }

    /// Whether it ends within that time.
    pub fn ends_within(&self, limit: Duration) -> Result<bool> {
        let pidfd = pidfd_open(self.pid, PidfdFlags::empty()).context("pidfd_open")?;
        let limit = Timespec {
            tv_sec: limit.as_secs() as i64,
            tv_nsec: i64::from(limit.subsec_nanos()),
        };
        Ok(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit))? == 1)
    }

    /// Waits until it ended; `End::TimedOut` kills it and its group.
    pub fn wait_for(mut self, limit: Duration) -> Result<End> {
        let ended = self.ends_within(limit)?;
        if !ended {
            let _ = kill_process_group(self.pid, Signal::KILL);
            self.kill()?;
        }
        let status = self.reap()?;
        // Children it left behind may hold pins.
        let _ = kill_process_group(self.pid, Signal::KILL);
        Ok(match (ended, status.exit_status()) {
            (false, _) => End::TimedOut,
            (true, Some(0)) => End::Done,
            (true, Some(_)) => End::Failed(self.text()?),
            (true, None) => End::Killed(status.terminating_signal().unwrap_or(0)),
        })
    }

    pub fn wait(self) -> Result<End> {
        self.wait_for(Duration::from_secs(600))
    }

    /// Waits and passes on its failure.
    pub fn join(self, who: &str) -> Result<()> {
        match self.wait()? {
            End::Done => Ok(()),
            End::Failed(text) => bail!("{who}: {text}"),
            End::Killed(signal) => bail!("{who}: killed by signal {signal}"),
            End::TimedOut => bail!("{who}: timed out"),
        }
    }

    fn text(&mut self) -> Result<String> {
        let mut text = String::new();
        self.report.rewind()?;
        self.report.read_to_string(&mut text)?;
        Ok(text)
    }

    fn reap(&mut self) -> Result<WaitStatus> {
        let (_, status) = waitpid(Some(self.pid), WaitOptions::empty())?.context("waitpid")?;
        self.reaped = true;
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.kill();
            let _ = self.reap();
        }
    }
}

/// Runs `body`; an error or a panic becomes its text.
fn run(body: impl FnOnce() -> Result<()>) -> Result<(), String> {
    std::panic::set_hook(Box::new(|_| ()));
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(format!("{error:#}")),
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&s| s.to_owned()))
            .unwrap_or_else(|| "panic".to_owned())),
    }
}

/// The signal that an access ends a child with, if any.
pub fn signal_of(access: impl FnOnce()) -> Result<Option<i32>> {
    let child = Child::spawn(|| {
        access();
        Ok(())
    })?;
    match child.wait()? {
        End::Done => Ok(None),
        End::Killed(signal) => Ok(Some(signal)),
        other => bail!("child: {other:?}"),
    }
}
