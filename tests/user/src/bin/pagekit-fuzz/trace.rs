// SPDX-License-Identifier: GPL-2.0
//! What the threads of a sequence say, and come to.

use std::fmt::Display;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::thread::ScopedJoinHandle;

use anyhow::{anyhow, Result};
use rustix::fs::{fcntl_setfl, memfd_create, MemfdFlags, OFlags};

/// What was done, a line each, also by those who are dead.
pub struct Trace(File);

impl Trace {
    pub fn new() -> Result<Self> {
        let file = memfd_create("trace", MemfdFlags::CLOEXEC)?;
        fcntl_setfl(&file, OFlags::APPEND)?;
        Ok(Self(file.into()))
    }

    pub fn note(&self, thread: usize, what: impl Display) {
        let line = match thread {
            0 => format!("{what}\n"),
            _ => format!("thread {thread}: {what}\n"),
        };
        // Who can't note does nothing wrong.
        let _ = (&self.0).write_all(line.as_bytes());
    }

    pub fn take(&self) -> Result<String> {
        let mut text = String::new();
        (&self.0).rewind()?;
        (&self.0).read_to_string(&mut text)?;
        self.0.set_len(0)?;
        Ok(text)
    }
}

pub fn join<T>(thread: ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| Err(anyhow!("panic")))
}
