// SPDX-License-Identifier: GPL-2.0
//! References to the pages, through a mapping. There are none to be had where PFNs are mapped.

use std::ffi::c_void;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsRawFd;

use anyhow::{ensure, Context, Result};
use pagekit_user::mapping::{last_errno, Mapping};
use pagekit_user::process::Child;
use pagekit_user::uring::Ring;
use pagekit_user::PAGE;
use rustix::event::Timespec;
use rustix::io::{self, Errno};

use super::{new, old, put, see, Node, PAGES};
use crate::env::{Content, Env};
use crate::groups::Case;
use crate::mappings::{direct, direct_disk, process_vm};
use crate::memory::HUGE_PAGES;

pub const CASES: &[Case] = &[
    Case::new("o_direct", o_direct),
    Case::new("process_vm", other_process),
    Case::new("ptrace", ptrace),
    Case::new("splice", splice).smoke(),
    Case::new("io_uring", io_uring).smoke(),
    Case::new("futex", futex).smoke(),
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

/// Buffers that were registered stay when mapping and file are gone. Those of PFNs can't be.
fn io_uring(env: &Env) -> Result<()> {
    let (ring, node) = (Ring::new()?, Node::open(env)?);
    let map = node.map(HUGE_PAGES, 16)?;
    let place = map.at(7 * PAGE);
    map.write(7 * PAGE, &new(7).bytes());
    let result = ring.register(&map).map(|()| PAGE);
    gup(&node, "IORING_REGISTER_BUFFERS", result)?;
    if node.kind.gup {
        drop((map, node));
        // What was free would be zeroed now.
        let _others = [Node::open(env)?, Node::open(env)?];
        let (from, to) = rustix::pipe::pipe()?;
        let see = |want: Content| -> Result<()> {
            ensure!(ring.write(&to, place) == Ok(PAGE), "write");
            let mut bytes = [0; PAGE];
            File::from(from.try_clone()?).read_exact(&mut bytes)?;
            want.check(&bytes)
        };
        see(new(7))?;
        io::write(&to, &new(8).bytes())?;
        ensure!(ring.read(&from, place) == Ok(PAGE), "read");
        see(new(8))?;
        ring.unregister()?;
    }
    Ok(())
}

/// Words of a mapping are futexes between threads, touched before or not. Between processes they
/// would be those of a file, which has no such page.
fn futex(env: &Env) -> Result<()> {
    /// C: `FUTEX_OP(FUTEX_OP_ADD, 5, FUTEX_OP_CMP_EQ, 0)`.
    const ADD: u32 = 1 << 28 | 5 << 12;
    const PRIVATE: i32 = libc::FUTEX_PRIVATE_FLAG;
    let wake_op = |place: *mut u8, how: i32| -> io::Result<i64> {
        let (op, one) = (libc::FUTEX_WAKE_OP | how, 1usize);
        // SAFETY: words of a mapping that nobody has references to.
        match unsafe { libc::syscall(libc::SYS_futex, place, op, 1, one, place, ADD) } {
            n @ 0.. => Ok(n),
            _ => Err(last_errno()),
        }
    };
    let wait = |place: *mut u8, how: i32, value: u32| -> Errno {
        let (op, now) = (libc::FUTEX_WAIT | how, Timespec::default());
        // SAFETY: the kernel only reads the word and the time.
        match unsafe { libc::syscall(libc::SYS_futex, place, op, value, &raw const now) } {
            0 => Errno::from_raw_os_error(0),
            _ => last_errno(),
        }
    };
    let node = Node::open(env)?;
    for touched in [false, true] {
        let map = node.map(0, PAGES)?;
        if touched {
            map.touch();
        }
        // In two blocks, so that both are the first access.
        for (page, wakes) in [(5, true), (HUGE_PAGES + 5, false)] {
            let (place, word) = (map.at(page * PAGE), old(page).word());
            for how in [0, PRIVATE] {
                let want = match how {
                    0 => (Err(Errno::FAULT), [Errno::FAULT; 2]),
                    _ => (Ok(0), [Errno::TIMEDOUT, Errno::AGAIN]),
                };
                if wakes {
                    let result = wake_op(place, how);
                    ensure!(result == want.0, "FUTEX_WAKE_OP, {how}: {result:?}");
                } else {
                    let results = [word, !word].map(|word| wait(place, how, word as u32));
                    ensure!(results == want.1, "FUTEX_WAIT, {how}: {results:?}");
                }
            }
            let word = word + if wakes { 5 } else { 0 };
            let mut bytes = [0; 8];
            node.map(page, 1)?.read(0, &mut bytes);
            ensure!(u64::from_ne_bytes(bytes) == word, "{bytes:x?}");
            put(&map, page, old(page));
        }
    }
    Ok(())
}
