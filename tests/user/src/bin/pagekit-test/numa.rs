// SPDX-License-Identifier: GPL-2.0
//! Which node memory comes from, on a machine with two: what cpusets and memory policies say holds
//! for buffers, too, with large folios and single pages. Mainline's heap is held to the same.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::abi;
use pagekit_user::kernel::{self, stay_on_this_cpu, Cgroup, Setting};
use pagekit_user::mapping::last_errno;
use pagekit_user::process::{Child, End};
use pagekit_user::PAGE;

use crate::env::Env;
use crate::groups::Case;
use crate::heap;

pub const CASES: &[Case] = &[
    Case::new("cpuset", |env| each_maker(env, cpuset)),
    Case::new("bind", |env| each_maker(env, bind)),
    Case::new("interleave", |env| each_maker(env, interleave)),
];

const SIZE: i64 = 64 << 20;
/// What others take and give back meanwhile.
const SLACK: i64 = SIZE / 8;

/// Makes a buffer of that many bytes.
type Make<'a> = &'a dyn Fn(i64) -> Result<OwnedFd>;

fn each_maker(env: &Env, case: impl Fn(Make<'_>) -> Result<()>) -> Result<()> {
    let mut system = Env::new(env.fill);
    system.device = "/dev/dma_heap/system".into();
    let pages = |size: i64| size as usize / PAGE;
    let template = |size| -> Result<_> {
        let device = std::fs::File::open("/dev/pagekit-template")?;
        Ok(abi::template_create(device, pages(size))?)
    };
    // Free memory that a CPU keeps for itself doesn't count as free.
    let _pcp = Setting::set("/proc/sys/vm/percpu_pagelist_high_fraction", "1000000")?;
    case(&|size| heap::pages_of(&system, pages(size))).context("mainline's heap")?;
    case(&|size| heap::pages_of(env, pages(size))).context("large folios")?;
    case(&template).context("single pages")
}

/// How many bytes of a node are free.
fn free(node: usize) -> Result<i64> {
    let info = kernel::read(format!("/sys/devices/system/node/node{node}/meminfo"))?;
    let info = info.replace(&format!("Node {node} "), "");
    Ok(kernel::field(&info, "MemFree").context("no MemFree")? * 1024)
}

/// Who may have memory of node 0 only, and asks for more than is free there, gets none of node 1.
fn cpuset(make: Make<'_>) -> Result<()> {
    // Else the kernel may choose another process.
    let _oom = Setting::set("/proc/sys/vm/oom_kill_allocating_task", "1")?;
    let cgroup = Cgroup::new("pagekit-cpuset")?;
    cgroup.set_nodes("0")?;
    let before = free(1)?;
    ensure!(before > 2 * SIZE, "{before} bytes of node 1 are too few");
    let child = Child::spawn(|| {
        cgroup.enter()?;
        let _buf = make(free(0)? + SIZE)?;
        bail!(
            "it has more than node 0, and {} of node 1",
            before - free(1)?
        )
    })?;
    let mut least = before;
    while !child.ends_within(Duration::from_millis(1))? {
        least = least.min(free(1)?);
    }
    let end = child.wait()?;
    ensure!(end == End::Killed(libc::SIGKILL), "{end:?}");
    ensure!(before - least < SLACK, "{} bytes of node 1", before - least);
    Ok(())
}

/// From now on, this process wants its memory from the nodes of the mask, as `mode` says.
fn set_policy(mode: i32, nodes: u64) -> Result<()> {
    // SAFETY: the kernel only reads the mask.
    let ret = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, &raw const nodes, 64) };
    ensure!(ret == 0, "set_mempolicy: {:?}", last_errno());
    Ok(())
}

/// A buffer takes that many bytes of each node.
fn takes(make: Make<'_>, want: [i64; 2]) -> Result<()> {
    stay_on_this_cpu()?;
    let before = [free(0)?, free(1)?];
    let _buf = make(SIZE)?;
    let taken = [before[0] - free(0)?, before[1] - free(1)?];
    ensure!(
        (0..2).all(|node| (taken[node] - want[node]).abs() < SLACK),
        "{taken:?} bytes of the nodes, not {want:?}"
    );
    Ok(())
}

/// All CPUs are on node 0.
fn bind(make: Make<'_>) -> Result<()> {
    set_policy(libc::MPOL_BIND, 1)?;
    takes(make, [SIZE, 0])?;
    set_policy(libc::MPOL_BIND, 2)?;
    takes(make, [0, SIZE])
}

fn interleave(make: Make<'_>) -> Result<()> {
    set_policy(libc::MPOL_INTERLEAVE, 3)?;
    takes(make, [SIZE / 2, SIZE / 2])
}
