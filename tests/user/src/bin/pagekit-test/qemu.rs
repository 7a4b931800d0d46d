// SPDX-License-Identifier: GPL-2.0
//! QEMU as a user of the device: the guest's virtio GPU makes a dma-buf of pages that lie anywhere
//! in the guest's memory, and shows it on the screen.

mod machine;

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::kernel::Setting;
use pagekit_user::PAGE;
use rustix::mount::{mount_bind, mount_change, MountPropagationFlags};
use rustix::thread::{unshare_unsafe, UnshareFlags};

use crate::env::{Content, Env};
use crate::groups::Case;
use machine::{Machine, FRAMES, RAM};

pub const CASES: &[Case] = &[
    Case::new("pages_16", |env| shows(env, 16, false)).smoke(),
    Case::new("pages_200", |env| shows(env, 200, false)).smoke(),
    Case::new("pages_200_hugetlb", |env| shows(env, 200, true)),
    Case::new("most_pages", |env| shows(env, env.list_limit()?, false)),
    Case::new("too_many_pages", too_many_pages),
];

/// Its name, as the guest has chosen.
const RESOURCE: u32 = 1;
/// A line of the picture is a page.
const WIDTH: usize = PAGE / 4;

/// The screen shows page by page what the guest has written, and what it writes afterwards.
fn shows(env: &Env, pages: usize, hugetlb: bool) -> Result<()> {
    let _memory = match hugetlb {
        true => Some(Setting::hugepages((RAM >> 21) as usize)?),
        false => None,
    };
    serve_qemu(env)?;
    let mut machine = Machine::start(hugetlb)?;
    show(env, &mut machine, pages)
}

/// QEMU says that the device has refused, and goes on.
fn too_many_pages(env: &Env) -> Result<()> {
    serve_qemu(env)?;
    let mut machine = Machine::start(false)?;
    let pages = env.list_limit()? + 1;
    // It may only be that there is nothing to show.
    let made = machine.request(&create_blob(pages))? == OK;
    let answer = machine.request(&set_scanout_blob(pages))?;
    ensure!(answer != OK, "SET_SCANOUT_BLOB");
    let said = machine.said()?;
    ensure!(
        said.ends_with("UDMABUF_CREATE_LIST: Invalid argument"),
        "says {said:?}"
    );
    ensure!(machine.buffers()?.is_empty());
    if made {
        unref(&mut machine)?;
    }
    show(env, &mut machine, 16)
}

/// From now on, the device is what this process finds as `/dev/udmabuf`.
fn serve_qemu(env: &Env) -> Result<()> {
    // SAFETY: No file descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }.context("unshare")?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", private).context("private mounts")?;
    mount_bind(&env.device, "/dev/udmabuf").context("mounting on /dev/udmabuf")
}

fn show(env: &Env, machine: &mut Machine, pages: usize) -> Result<()> {
    let mut content: Vec<_> = (0..pages).map(|page| Content::Page(1, page)).collect();
    for (page, content) in content.iter().enumerate() {
        machine.store(frame(page), &content.bytes())?;
    }
    for (what, request) in [
        ("RESOURCE_CREATE_BLOB", create_blob(pages)),
        ("SET_SCANOUT_BLOB", set_scanout_blob(pages)),
    ] {
        let answer = machine.request(&request)?;
        ensure!(answer == OK, "{what}: {answer:#x}: {}", machine.said()?);
    }
    let buffers = machine.buffers()?;
    let [(exporter, size)] = &buffers[..] else {
        bail!("QEMU has {buffers:?}");
    };
    let device = env.device.file_name().context("no name")?;
    ensure!(device == exporter.replace('_', "-").as_str(), "{exporter}");
    ensure!(*size == (pages * PAGE) as u64, "{size} bytes");
    check(machine, &content).context("at first")?;

    for (page, content) in content.iter_mut().enumerate().step_by(3) {
        // Not of another file: that is in each fourth byte, which the screen doesn't show.
        *content = Content::Page(1, pages + page);
        machine.store(frame(page), &content.bytes())?;
    }
    check(machine, &content).context("later")?;
    unref(machine)
}

/// The screen must show these pages.
fn check(machine: &mut Machine, content: &[Content]) -> Result<()> {
    let answer = machine.request(&flush(content.len()))?;
    ensure!(answer == OK, "RESOURCE_FLUSH: {answer:#x}");
    let shown: Vec<_> = content.iter().map(|&content| line(content)).collect();
    let screen = machine.screen(WIDTH, content.len())?;
    for (page, seen) in screen.chunks_exact(3 * WIDTH).enumerate() {
        let like = || match shown.iter().position(|line| line == seen) {
            Some(other) => format!("what page {other} should be"),
            None => "something else".to_owned(),
        };
        ensure!(seen == shown[page], "page {page} is {}", like());
    }
    Ok(())
}

fn unref(machine: &mut Machine) -> Result<()> {
    let answer = machine.request(&request(RESOURCE_UNREF, &[RESOURCE, 0]))?;
    ensure!(answer == OK, "RESOURCE_UNREF: {answer:#x}");
    ensure!(machine.buffers()?.is_empty(), "the buffer stays");
    Ok(())
}

/// Where the guest has a page: none is beside the one before.
fn frame(page: usize) -> u64 {
    const COUNT: u64 = (RAM - FRAMES) / PAGE as u64;
    // A prime number.
    const STEP: u64 = 1237;
    assert!(page < COUNT as usize && COUNT % STEP != 0);
    FRAMES + page as u64 * STEP % COUNT * PAGE as u64
}

/// A page as a line of the screen: of each blue, green, red and nothing, in the other order.
fn line(content: Content) -> Vec<u8> {
    let bytes = content.bytes();
    let pixels = bytes.chunks_exact(4);
    pixels
        .flat_map(|pixel| [pixel[2], pixel[1], pixel[0]])
        .collect()
}

// --- Requests, as in <linux/virtio_gpu.h> ---------------------------------------------

/// C: `VIRTIO_GPU_CMD_RESOURCE_UNREF` and so on.
const RESOURCE_UNREF: u32 = 0x102;
const RESOURCE_FLUSH: u32 = 0x104;
const RESOURCE_CREATE_BLOB: u32 = 0x10c;
const SET_SCANOUT_BLOB: u32 = 0x10d;
/// C: `VIRTIO_GPU_RESP_OK_NODATA`.
const OK: u32 = 0x1100;

/// With `struct virtio_gpu_ctrl_hdr`, of which only the type is not 0.
fn request(kind: u32, words: &[u32]) -> Vec<u8> {
    let words = [kind, 0, 0, 0, 0, 0]
        .into_iter()
        .chain(words.iter().copied());
    words.flat_map(|word| word.to_le_bytes()).collect()
}

fn create_blob(pages: usize) -> Vec<u8> {
    // Of guest memory, and shareable.
    let (memory, flags) = (1, 2);
    let size = (pages * PAGE) as u32;
    let mut words = vec![RESOURCE, memory, flags, pages as u32, 0, 0, size, 0];
    for page in 0..pages {
        words.extend([frame(page) as u32, 0, PAGE as u32, 0]);
    }
    request(RESOURCE_CREATE_BLOB, &words)
}

/// The rectangle of the whole picture.
fn whole(pages: usize) -> [u32; 4] {
    [0, 0, WIDTH as u32, pages as u32]
}

fn set_scanout_blob(pages: usize) -> Vec<u8> {
    const B8G8R8X8: u32 = 2;
    let [x, y, width, height] = whole(pages);
    request(
        SET_SCANOUT_BLOB,
        &[
            x,
            y,
            width,
            height,
            0,
            RESOURCE,
            width,
            height,
            B8G8R8X8,
            0,
            PAGE as u32,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        ],
    )
}

fn flush(pages: usize) -> Vec<u8> {
    let [x, y, width, height] = whole(pages);
    request(RESOURCE_FLUSH, &[x, y, width, height, RESOURCE, 0])
}
