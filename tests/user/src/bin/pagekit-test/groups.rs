// SPDX-License-Identifier: GPL-2.0
//! What is run: cases, and rows of bad input, in groups.

use anyhow::{bail, ensure, Result};
use rustix::io::{self, Errno};

use crate::env::{Env, Fill};

pub struct Case {
    pub name: &'static str,
    /// Quick and basic enough for a kernel with debugging under emulation.
    pub smoke: bool,
    pub body: fn(&Env) -> Result<()>,
}

impl Case {
    pub const fn new(name: &'static str, body: fn(&Env) -> Result<()>) -> Self {
        Self {
            name,
            smoke: false,
            body,
        }
    }

    pub const fn smoke(mut self) -> Self {
        self.smoke = true;
        self
    }
}

/// What came of the call that must fail.
pub type Outcome = Result<io::Result<()>>;

pub struct Row {
    pub name: &'static str,
    /// What is called.
    pub entry: &'static str,
    /// What is wrong.
    pub input: &'static str,
    pub errno: Errno,
    pub errno_name: &'static str,
    /// The function and the condition in it that answers. Where no file is named, it is one of the
    /// driver; "core" is the kernel's own, before or instead of the driver.
    pub check: &'static str,
    pub call: fn(&Env) -> Outcome,
}

impl Row {
    pub fn run(&self, env: &Env) -> Result<()> {
        match (self.call)(env)? {
            Ok(()) => bail!("{} with {} succeeds", self.entry, self.input),
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

/// Cases for one kind of device.
pub struct Group {
    pub name: &'static str,
    pub fill: Fill,
    pub tables: &'static [&'static [Case]],
    /// What it must refuse.
    pub inputs: &'static [&'static [&'static [Row]]],
}
