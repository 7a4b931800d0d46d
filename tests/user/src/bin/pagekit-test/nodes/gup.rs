// SPDX-License-Identifier: GPL-2.0
//! References to the pages, through a mapping. There are none to be had where PFNs are mapped.

use std::ffi::c_void;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

use anyhow::{ensure, Context, Result};
use pagekit_user::mapping::{last_errno, Mapping};
use pagekit_user::process::Child;
use pagekit_user::PAGE;
use rustix::io::{self, Errno};

use super::{new, old, put, see, Node, PAGES};
use crate::env::Env;
use crate::groups::Case;
use crate::mappings::{direct, direct_disk, process_vm};
use crate::memory::HUGE_PAGES;

pub const CASES: &[Case] = &[
    Case::new("o_direct", o_direct),
    Case::new("process_vm", other_process),
    Case::new("ptrace", ptrace),
    Case::new("splice", splice).smoke(),
];

/// A call that looks for the page behind an address: works, or doesn't find any.
fn gup(node: &Node, what: &str, result: io::Result<usize>) -> Result<()> {
    let want = match node.kind.gup {
        true => Ok(PAGE),
        false => Err(Errno::FAULT),
    };
    ensure!(result == want, "{what}: {result:?}, not {want:?}");
    Ok(())
}

fn o_direct(env: &Env) -> Result<()> {
    let (_zram, disk) = direct_disk()?;
    let own = Mapping::anonymous(PAGE)?;
    let node = Node::open(env)?;
    let map = node.map(HUGE_PAGES, HUGE_PAGES)?;
    let (old, new) = (old(HUGE_PAGES), new(HUGE_PAGES));

    own.write(0, b"control");
    ensure!(
        direct(&disk, &own, true) == Ok(PAGE),
        "O_DIRECT doesn't work"
    );
    map.write(0, &old.bytes());
    gup(&node, "write", direct(&disk, &map, true))?;
    if node.kind.gup {
        ensure!(direct(&disk, &own, false) == Ok(PAGE));
        old.check(&own.page(0)).context("what was written")?;
    }

    own.write(0, &new.bytes());
    ensure!(direct(&disk, &own, true) == Ok(PAGE));
    gup(&node, "read", direct(&disk, &map, false))?;
    let want = node.after_gup(HUGE_PAGES);
    want.check(&map.page(0)).context("what was read")?;
    want.check(&node.map(HUGE_PAGES, 1)?.page(0))
}

/// Runs `access` while a child has the mapping, too.
fn with_child(access: impl FnOnce(i32) -> Result<()>) -> Result<()> {
    let child = Child::spawn(|| loop {
        std::thread::park();
    })?;
    access(child.id())
}

fn other_process(env: &Env) -> Result<()> {
    let (node, own) = (Node::open(env)?, Mapping::anonymous(PAGE)?);
    let page = HUGE_PAGES;
    for touched in [false, true] {
        let map = node.map(page, HUGE_PAGES)?;
        if touched {
            map.touch();
        }
        with_child(|pid| {
            gup(&node, "readv", process_vm(pid, &own, &map, false))?;
            if node.kind.gup {
                see(&own, |_| old(page))?;
            }
            put(&own, 0, new(page));
            gup(&node, "writev", process_vm(pid, &own, &map, true))
        })?;
        see(&node.map(page, 1)?, |_| node.after_gup(page))?;
        put(&map, 0, old(page));
    }
    Ok(())
}

fn ptrace(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    let map = node.map(0, PAGES)?;
    let addr = map.at(7 * PAGE).cast::<c_void>();
    with_child(|pid| {
        let request = |what: u32, addr: *mut c_void, data: usize| {
            // SAFETY: of a child that nothing else depends on; PTRACE_PEEKDATA writes a word that
            // `data` points to.
            match unsafe { libc::syscall(libc::SYS_ptrace, what, pid, addr, data) } {
                0 => Ok(()),
                _ => Err(last_errno()),
            }
        };
        request(libc::PTRACE_SEIZE, std::ptr::null_mut(), 0).context("PTRACE_SEIZE")?;
        request(libc::PTRACE_INTERRUPT, std::ptr::null_mut(), 0).context("PTRACE_INTERRUPT")?;
        // SAFETY: plain call.
        ensure!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::__WALL) } == pid);
        // ptrace has a code of its own for this.
        let want = match node.kind.gup {
            true => Ok(()),
            false => Err(Errno::IO),
        };
        let mut word = 0u64;
        let result = request(libc::PTRACE_PEEKDATA, addr, (&raw mut word) as usize);
        ensure!(result == want, "PTRACE_PEEKDATA: {result:?}, not {want:?}");
        ensure!(!node.kind.gup || word == old(7).word(), "{word:x}");
        let word = new(7).word();
        let result = request(libc::PTRACE_POKEDATA, addr, word as usize);
        ensure!(result == want, "PTRACE_POKEDATA: {result:?}, not {want:?}");
        Ok(())
    })?;
    see(&node.map(7, 1)?, |_| node.after_gup(7))
}

/// A pipe that has a reference to a page keeps it when mapping and file are gone.
fn splice(env: &Env) -> Result<()> {
    let (from, to) = rustix::pipe::pipe()?;
    let node = Node::open(env)?;
    let map = node.map(7, 1)?;
    map.write(0, &new(7).bytes());
    let iovec = libc::iovec {
        iov_base: map.at(0).cast(),
        iov_len: PAGE,
    };
    // SAFETY: a page that nobody has references to.
    let len = unsafe { libc::vmsplice(to.as_raw_fd(), &iovec, 1, 0) };
    gup(
        &node,
        "vmsplice",
        usize::try_from(len).map_err(|_| last_errno()),
    )?;
    if node.kind.gup {
        drop((map, node));
        // What was free would be zeroed now.
        let _others = [Node::open(env)?, Node::open(env)?];
        let mut bytes = [0; PAGE];
        File::from(from).read_exact(&mut bytes)?;
        new(7).check(&bytes)?;
    }
    Ok(())
}
