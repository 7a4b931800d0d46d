// SPDX-License-Identifier: GPL-2.0
//! Devices at a buffer, and CPU access meanwhile. For any exporter.
//!
//! Where DMA goes through bounce buffers, which `swiotlb=force` makes all of it do, a device and
//! the CPU see the same only where the exporter has synced.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{with_cpu_access, SYNC_READ, SYNC_RW, SYNC_WRITE};
use pagekit_user::mapping::Mapping;
use pagekit_user::test_importer::{Attachment, Dir, Importer, Kind, Through};
use pagekit_user::{kernel, PAGE};
use rustix::io::Errno;

use crate::env::{check_file, check_pages, Content, Env};
use crate::groups::Case;

pub const CASES: &[Case] = &[
    Case::new("device_reads", |env| reads(env, Through::Dma)).smoke(),
    Case::new("device_writes", |env| writes(env, Through::Dma)).smoke(),
    Case::new("device_large", device_large).smoke(),
    Case::new("device_steps", device_steps).smoke(),
    Case::new("device_directions", device_directions).smoke(),
    Case::new("device_maps_twice", device_maps_twice).smoke(),
    Case::new("device_dynamic", device_dynamic).smoke(),
    Case::new("device_told_of_moves", device_told_of_moves).smoke(),
    Case::new("device_then_cpu", device_then_cpu).smoke(),
    Case::new("cpu_then_device", cpu_then_device).smoke(),
    Case::new("device_beside_cpu", device_beside_cpu).smoke(),
    Case::new("device_to_device", device_to_device).smoke(),
    Case::new("device_late", device_late).smoke(),
    Case::new("kernel_reads", |env| reads(env, Through::Vmap)).smoke(),
    Case::new("kernel_writes", |env| writes(env, Through::Vmap)).smoke(),
    Case::new("kernel_beside_device", kernel_beside_device).smoke(),
];

/// The importer must see pages as `want` says, as a whole and alone, and nothing behind them.
pub fn check_import(buf: impl AsFd, way: Through, want: &[Content]) -> Result<()> {
    let importer = Importer::open()?;
    let mut whole = vec![0; want.len() * PAGE];
    importer.read(&buf, way, 0, &mut whole)?;
    for (at, want) in want.iter().enumerate() {
        want.check(whole[at * PAGE..][..PAGE].try_into()?)
            .with_context(|| format!("page {at} of all"))?;
    }
    for at in [0, want.len() / 2, want.len() - 1] {
        let mut alone = [0; PAGE];
        importer.read(&buf, way, at * PAGE, &mut alone)?;
        want[at]
            .check(&alone)
            .with_context(|| format!("page {at} alone"))?;
    }
    let past = importer.read(&buf, way, (want.len() - 1) * PAGE, &mut [0; PAGE + 1]);
    ensure!(past == Err(Errno::RANGE), "read past the end: {past:?}");
    Ok(())
}

/// Pages of file `id` from page `first`.
pub fn pages_of(id: u8, first: usize, pages: usize) -> Vec<Content> {
    (first..first + pages)
        .map(|page| Content::Page(id, page))
        .collect()
}

fn reads(env: &Env, way: Through) -> Result<()> {
    check_import(env.filled(1, 16)?, way, &pages_of(1, 0, 16))
}

fn writes(env: &Env, way: Through) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let importer = Importer::open()?;
    for page in [0, 7, 15] {
        importer.write(&buf, way, page * PAGE, &Content::Page(2, page).bytes())?;
    }
    check_pages(&map, |page| match page {
        0 | 7 | 15 => Content::Page(2, page),
        _ => Content::Page(1, page),
    })
}

/// Contiguous pages may be more than a device takes in one piece.
fn device_large(env: &Env) -> Result<()> {
    const PAGES: usize = (8 << 20) / PAGE;
    check_import(env.filled(1, PAGES)?, Through::Dma, &pages_of(1, 0, PAGES))
}

/// One step after the other, and none twice.
fn device_steps(env: &Env) -> Result<()> {
    let before = kernel::buffers()?;
    let (buf, other) = (env.filled(1, 16)?, env.filled(2, 16)?);
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    let again = importer.attach(&other, Kind::Static).map(drop);
    ensure!(again == Err(Errno::BUSY), "attached twice: {again:?}");
    for _ in 0..2 {
        let result = read(&attachment, 0).map(drop);
        ensure!(result == Err(Errno::NXIO), "read unmapped: {result:?}");
        ensure!(attachment.unmap() == Err(Errno::NXIO));
        attachment.map(Dir::Both)?;
        ensure!(attachment.map(Dir::Both) == Err(Errno::BUSY));
        Content::Page(1, 5).check(&read(&attachment, 5)?)?;
        attachment.unmap()?;
    }
    // It is the attachment that keeps the buffer.
    attachment.map(Dir::Both)?;
    drop((buf, other));
    ensure!(kernel::buffers()? == before + 1, "released while attached");
    Content::Page(1, 6).check(&read(&attachment, 6)?)?;
    drop(attachment);
    ensure!(kernel::buffers()? == before, "stays after detaching");
    Ok(())
}

/// A device must do what it was mapped for only.
fn device_directions(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    let bytes = Content::Page(2, 3).bytes();
    for (dir, may_read, may_write) in [
        (Dir::Both, true, true),
        (Dir::ToDevice, true, false),
        (Dir::FromDevice, false, true),
    ] {
        let allowed = |yes| if yes { Ok(()) } else { Err(Errno::ACCESS) };
        attachment.map(dir)?;
        let result = read(&attachment, 3).map(drop);
        ensure!(result == allowed(may_read), "{dir:?}: read {result:?}");
        let result = attachment.write(Through::Dma, 3 * PAGE, &bytes);
        ensure!(result == allowed(may_write), "{dir:?}: write {result:?}");
        attachment.unmap()?;
    }
    Ok(())
}

fn device_maps_twice(env: &Env) -> Result<()> {
    let importer = Importer::open()?;
    let buf = env.filled(1, 16)?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let segments = importer.attach(&buf, Kind::Static)?.map_twice()?;
    ensure!((1..=16).contains(&segments), "{segments} segments");
    check_file(&map, 1, 0)
}

/// An importer that can cope with moves, at a buffer that never moves.
fn device_dynamic(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Dynamic)?;
    attachment.map(Dir::Both)?;
    write(&attachment, Content::Page(2, 4))?;
    Content::Page(2, 4).check(&read(&attachment, 4)?)?;
    Content::Page(1, 5).check(&read(&attachment, 5)?)?;
    attachment.unmap()?;
    let moves = attachment.moves()?;
    ensure!(moves == 0, "{moves} moves");
    Content::Page(2, 4).check(&Mapping::shared(&buf, 0, 16 * PAGE)?.page(4))
}

/// An importer that is told of a move unmaps, and maps again when it is used.
fn device_told_of_moves(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let (dynamic, other) = (Importer::open()?, Importer::open()?);
    let dynamic = dynamic.attach(&buf, Kind::Dynamic)?;
    let other = other.attach(&buf, Kind::Static)?;
    dynamic.map(Dir::Both)?;
    for page in 3..5 {
        // Seen by the CPU without a sync, because nothing is mapped any more; and the other way.
        write(&dynamic, Content::Page(2, page))?;
        other.pretend_move()?;
        Content::Page(2, page).check(&map.page(page))?;
        map.write(page * PAGE, &Content::Page(3, page).bytes());
        Content::Page(3, page).check(&read(&dynamic, page)?)?;
    }
    other.pretend_move()?;
    let moves = (dynamic.moves()?, other.moves()?);
    ensure!(moves == (3, 0), "told of {moves:?} moves");
    ensure!(dynamic.map(Dir::Both) == Err(Errno::BUSY));
    dynamic.unmap()?;
    ensure!(dynamic.unmap() == Err(Errno::NXIO));
    let result = read(&dynamic, 3).map(drop);
    ensure!(result == Err(Errno::NXIO), "read unmapped: {result:?}");
    Ok(())
}

/// The CPU sees what a device has written while that stays mapped, and the rest as it was.
fn device_then_cpu(env: &Env) -> Result<()> {
    for dir in [Dir::Both, Dir::FromDevice] {
        let buf = env.filled(1, 16)?;
        let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
        let importer = Importer::open()?;
        let attachment = importer.attach(&buf, Kind::Static)?;
        attachment.map(dir)?;
        let check = |written: usize| {
            check_pages(&map, |page| {
                Content::Page(if page < written { 2 } else { 1 }, page)
            })
        };
        for (page, access) in [SYNC_READ, SYNC_RW].into_iter().enumerate() {
            write(&attachment, Content::Page(2, page))?;
            with_cpu_access(&buf, access, || check(page + 1))
                .with_context(|| format!("{dir:?}, access {access}"))?;
        }
        drop(attachment);
        check(2).with_context(|| format!("{dir:?}, unmapped"))?;
    }
    Ok(())
}

/// A device sees what the CPU has written while it stays mapped.
fn cpu_then_device(env: &Env) -> Result<()> {
    for dir in [Dir::Both, Dir::ToDevice] {
        let buf = env.filled(1, 16)?;
        let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
        let importer = Importer::open()?;
        let attachment = importer.attach(&buf, Kind::Static)?;
        attachment.map(dir)?;
        for (page, access) in [SYNC_WRITE, SYNC_RW].into_iter().enumerate() {
            let content = Content::Page(2, page);
            with_cpu_access(&buf, access, || {
                map.write(page * PAGE, &content.bytes());
                Ok(())
            })?;
            content
                .check(&read(&attachment, page)?)
                .with_context(|| format!("{dir:?}, access {access}"))?;
        }
        Content::Page(1, 2).check(&read(&attachment, 2)?)?;
    }
    Ok(())
}

/// What a device has written survives that the CPU writes beside it.
fn device_beside_cpu(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    attachment.map(Dir::Both)?;
    write(&attachment, Content::Page(2, 3))?;
    with_cpu_access(&buf, SYNC_WRITE, || {
        map.write(5 * PAGE, &Content::Page(3, 5).bytes());
        Ok(())
    })?;
    Content::Page(3, 5)
        .check(&read(&attachment, 5)?)
        .context("the CPU's")?;
    Content::Page(2, 3)
        .check(&read(&attachment, 3)?)
        .context("the device's")
}

/// What one device has written is seen by another that stays mapped too, after CPU access.
fn device_to_device(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let (from, to) = (Importer::open()?, Importer::open()?);
    let from = from.attach(&buf, Kind::Static)?;
    let to = to.attach(&buf, Kind::Static)?;
    // Mapped in both orders: the exporter may keep them in any.
    for page in 3..5 {
        let (first, second) = match page {
            3 => ((&from, Dir::FromDevice), (&to, Dir::ToDevice)),
            _ => ((&to, Dir::ToDevice), (&from, Dir::FromDevice)),
        };
        first.0.map(first.1)?;
        second.0.map(second.1)?;
        let content = Content::Page(2, page);
        write(&from, content)?;
        with_cpu_access(&buf, SYNC_RW, || Ok(()))?;
        content.check(&read(&to, page)?)?;
        Content::Page(1, 5).check(&read(&to, 5)?)?;
        from.unmap()?;
        to.unmap()?;
    }
    Ok(())
}

/// CPU access begins when a device is done that there is a fence for, and shows what that has
/// written.
fn device_late(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    attachment.map(Dir::Both)?;
    for (value, access) in [(2, SYNC_READ), (3, SYNC_RW)] {
        attachment.fill_later(5, value, 200)?;
        with_cpu_access(&buf, access, || {
            let page = map.page(5);
            ensure!(page == [value; PAGE], "{access}: {:#x}", page[0]);
            Content::Page(1, 6).check(&map.page(6))
        })?;
        // The importer may have something left to do when the fence has signalled.
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A kernel mapping shows what a mapped device has written, and the other way round.
fn kernel_beside_device(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    attachment.map(Dir::Both)?;
    write(&attachment, Content::Page(2, 3))?;
    let mut seen = [0; PAGE];
    attachment.read(Through::Vmap, 3 * PAGE, &mut seen)?;
    Content::Page(2, 3).check(&seen).context("the device's")?;
    attachment.write(Through::Vmap, 4 * PAGE, &Content::Page(3, 4).bytes())?;
    Content::Page(3, 4)
        .check(&read(&attachment, 4)?)
        .context("the kernel's")
}

/// A page as the device sees it.
fn read(attachment: &Attachment<'_>, page: usize) -> Result<[u8; PAGE], Errno> {
    let mut bytes = [0; PAGE];
    attachment.read(Through::Dma, page * PAGE, &mut bytes)?;
    Ok(bytes)
}

/// Has the device write the page that `content` is for.
fn write(attachment: &Attachment<'_>, content: Content) -> Result<()> {
    let Content::Page(_, page) = content else {
        anyhow::bail!("no page");
    };
    Ok(attachment.write(Through::Dma, page * PAGE, &content.bytes())?)
}
