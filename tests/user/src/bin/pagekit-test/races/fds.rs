// SPDX-License-Identifier: GPL-2.0
//! File descriptors and mappings go while they are used.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, RwLock};

use anyhow::{ensure, Context, Result};
use pagekit_user::mapping::Mapping;
use pagekit_user::style::Object;
use pagekit_user::test_importer::{Importer, Through};
use pagekit_user::{fds, kernel, PAGE};
use rustix::io::Errno;
use rustix::process::{waitpid, Pid, WaitOptions};

use super::{
    allow, each_exporter, race, see, see_map, see_object, side, Side, DYNAMIC, PAGES, STATIC,
};
use crate::env::{Content, Env};
use crate::groups::Case;

pub const CASES: &[Case] = &[
    Case::new("mmap_close", |env| each_exporter(env, mmap_close)),
    Case::new("import_close", |env| each_exporter(env, import_close)),
    Case::new("close_mapped", |env| each_exporter(env, close_mapped)),
    Case::new("pass_close", |env| each_exporter(env, pass_close)),
    Case::new("fork_exit", |env| each_exporter(env, fork_exit)),
];

/// A number of a file descriptor that no other file gets by chance.
struct Slot;

impl Slot {
    const FD: RawFd = 900;

    fn borrow(&self) -> BorrowedFd<'_> {
        // SAFETY: that it is closed and reused at any time is what cases are about. It is a buffer
        // of theirs, or none.
        unsafe { BorrowedFd::borrow_raw(Self::FD) }
    }

    /// From now on it is `buf`, and what it was before is closed.
    fn put(&self, buf: &OwnedFd) -> Result<()> {
        // SAFETY: `FD` is for nothing else.
        let ret = unsafe { libc::dup3(buf.as_raw_fd(), Self::FD, libc::O_CLOEXEC) };
        ensure!(ret == Self::FD, "dup3");
        Ok(())
    }

    fn close(&self) {
        // SAFETY: as above. It may be closed already.
        unsafe { libc::close(Self::FD) };
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.close();
    }
}

/// A side that puts one new buffer after another there, and leaves it open for a while.
fn closes<'a>(env: &'a Env, slot: &'a Slot) -> Side<'a> {
    let mut round = 0;
    side("close", move || {
        round += 1;
        slot.put(&env.filled(1, PAGES)?)?;
        std::thread::yield_now();
        // Else the next one replaces it.
        if round % 2 == 0 {
            slot.close();
        }
        Ok(true)
    })
}

fn mmap_close(exporter: &Env) -> Result<()> {
    let slot = Slot;
    let mmap = || {
        let map = Mapping::shared(slot.borrow(), 0, PAGES * PAGE);
        let Some(map) = allow(map, &[Errno::BADF])? else {
            return Ok(false);
        };
        see_map(&map, 0, false)?;
        Ok(true)
    };
    let sides = vec![side("mmap", mmap), closes(exporter, &slot)];
    race(exporter.time, sides)
}

fn import_close(exporter: &Env) -> Result<()> {
    let (importer, slot) = (Importer::open()?, Slot);
    let importers = [STATIC, DYNAMIC, "/dev/pagekit-i915"];
    let mut round = 0;
    let import = || {
        round += 1;
        let object = Object::open(importers[round % importers.len()])?;
        let Some(()) = allow(object.import(slot.borrow()), &[Errno::BADF])? else {
            return Ok(false);
        };
        see_object(&object)?;
        Ok(true)
    };
    let device = || {
        let mut bytes = vec![0; PAGES * PAGE];
        let done = importer.read(slot.borrow(), Through::Dma, 0, &mut bytes);
        let Some(()) = allow(done, &[Errno::BADF])? else {
            return Ok(false);
        };
        see(&bytes, 0, false)?;
        Ok(true)
    };
    let sides = vec![
        side("import", import),
        closes(exporter, &slot),
        side("attach", device),
    ];
    race(exporter.time, sides)
}

/// A mapping is all that is left of a buffer, and goes with whoever looks at it last.
fn close_mapped(exporter: &Env) -> Result<()> {
    let mapped = || -> Result<Mapping> {
        let buf = exporter.filled(1, PAGES)?;
        Ok(Mapping::shared(&buf, 0, PAGES * PAGE)?)
    };
    let current = RwLock::new(Arc::new(mapped()?));
    let close = || {
        let new = Arc::new(mapped()?);
        let old = current
            .write()
            .map(|mut current| std::mem::replace(&mut *current, new));
        drop(old.ok().context("poisoned")?);
        Ok(true)
    };
    let touch = || {
        let map = current.read().ok().context("poisoned")?.clone();
        see_map(&map, 0, false)?;
        Ok(true)
    };
    let sides = vec![
        side("touch", touch),
        side("close", close),
        side("touch", touch),
    ];
    race(exporter.time, sides)
}

/// Buffers that are on their way, and of which nobody else has a file, are received or go down with
/// the socket.
fn pass_close(exporter: &Env) -> Result<()> {
    let (ours, theirs) = UnixStream::pair()?;
    let send = move || {
        let buf = exporter.filled(1, PAGES)?;
        let sent = fds::send(&ours, buf, &[1]);
        // At the end, with and without some left in the socket.
        Ok(allow(sent, &[Errno::PIPE, Errno::CONNRESET])?.is_some())
    };
    let receive = move || {
        let (_, buf) = fds::receive(&theirs, &mut [0])?;
        let Some(buf) = buf else { return Ok(false) };
        let map = Mapping::shared(&buf, 0, PAGES * PAGE)?;
        drop(buf);
        see_map(&map, 0, false)?;
        Ok(true)
    };
    // Looks at all buffers, also at those that are about to go.
    let list = || Ok(kernel::buffers()? >= 0);
    let sides = vec![
        side("send", send),
        side("receive", receive),
        side("list", list),
    ];
    race(exporter.time, sides)
}

/// A child sees what its parent has mapped, whatever becomes of that meanwhile.
fn fork_exit(exporter: &Env) -> Result<()> {
    let buf = exporter.filled(1, PAGES)?;
    let i915 = Object::open("/dev/pagekit-i915")?;
    let map = Mapping::shared(&buf, 0, PAGES * PAGE)?;
    let fork = || {
        // SAFETY: the child only looks at memory, and ends.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let ok = (0..PAGES).all(|page| {
                let want = Content::Page(1, page).word();
                // SAFETY: in bounds and aligned.
                want == unsafe { map.at(page * PAGE).cast::<u64>().read_volatile() }
            });
            // SAFETY: ends the process; exit handlers are the parent's.
            unsafe { libc::_exit(i32::from(!ok)) };
        }
        let pid = Pid::from_raw(pid).filter(|_| pid > 0).context("fork")?;
        let (_, status) = waitpid(Some(pid), WaitOptions::empty())?.context("waitpid")?;
        ensure!(status.exit_status() == Some(0), "child: {status:?}");
        Ok(true)
    };
    let fault = || {
        let map = Mapping::shared(&buf, PAGE, (PAGES - 1) * PAGE)?;
        see_map(&map, 1, false)?;
        Ok(true)
    };
    // What the drivers of other buffers don't do.
    let shrink = || -> Result<bool> {
        i915.shrink(0)?;
        see_map(&map, 0, false)?;
        Ok(true)
    };
    let sides = vec![
        side("fork", fork),
        side("fault", fault),
        side("shrink", shrink),
    ];
    race(exporter.time, sides)
}
