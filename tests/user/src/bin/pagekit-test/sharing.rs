// SPDX-License-Identifier: GPL-2.0
//! Several processes, threads and devices at one buffer.

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{ensure, Context, Result};
use pagekit_user::drm::{same_buffer, Card};
use pagekit_user::importer::{Importer, Kind, Through};
use pagekit_user::map::Mapping;
use pagekit_user::process::{Child, End};
use pagekit_user::{kernel, PAGE};

use crate::env::{check_file, item, read_page, written, Case, Content, Env};

pub const CASES: &[Case] = &[
    Case::new("vgem_import", vgem_import).smoke(),
    Case::new("vgem_outlives_fd", vgem_outlives_fd),
    Case::new("device_reads", device_reads).smoke(),
    Case::new("device_writes", device_writes).smoke(),
    Case::new("device_maps_twice", device_maps_twice).smoke(),
    Case::new("kernel_maps", kernel_maps).smoke(),
    Case::new("two_processes", two_processes),
    Case::new("threads", threads),
    Case::new("threads_one_buffer", threads_one_buffer),
    Case::new("killed", killed).smoke(),
];

fn vgem_import(env: &Env) -> Result<()> {
    let (_memfd, buf) = env.buffer(1, 16)?;
    let card = Card::find("vgem")?;
    let handle = card.import(buf.as_fd()).context("PRIME_FD_TO_HANDLE")?;
    let again = handle.export().context("PRIME_HANDLE_TO_FD")?;
    ensure!(same_buffer(&buf, &again)?, "re-exported as another dma-buf");
    check_file(&Mapping::shared(&again, 3 * PAGE, 13 * PAGE)?, 1, 3)
}

/// The importer keeps the buffer alive.
fn vgem_outlives_fd(env: &Env) -> Result<()> {
    let before = kernel::pins()?;
    let (memfd, buf) = env.buffer(1, 16)?;
    let card = Card::find("vgem")?;
    let handle = card.import(buf.as_fd())?;
    drop((memfd, buf));
    ensure!(kernel::pins()? > before, "unpinned while imported");
    let again = handle.export()?;
    check_file(&Mapping::shared(&again, 0, 16 * PAGE)?, 1, 0)?;
    drop((handle, again));
    ensure!(kernel::pins()? == before, "pinned after the last user");
    Ok(())
}

/// A device sees each page where a mapping shows it, whatever files and ranges it is from.
fn device_reads(env: &Env) -> Result<()> {
    let buf = shuffled(env)?;
    see_shuffled(&buf, Through::Dma)
}

fn kernel_maps(env: &Env) -> Result<()> {
    let buf = shuffled(env)?;
    see_shuffled(&buf, Through::Vmap)?;
    let page = Content::Page(9, 9);
    Importer::open()?.write(&buf, Through::Vmap, 5 * PAGE, &page.bytes())?;
    page.check(&Mapping::shared(&buf, 5 * PAGE, PAGE)?.page(0))
}

/// What a device writes is in the mapping and in the memfd, at any offset.
fn device_writes(env: &Env) -> Result<()> {
    let (memfd, buf) = env.buffer(1, 16)?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let importer = Importer::open()?;
    for page in [0, 7, 15] {
        let content = Content::Page(2, page);
        importer.write(&buf, Through::Dma, page * PAGE, &content.bytes())?;
        content.check(&map.page(page))?;
        content.check(&read_page(&memfd, page)?)?;
    }
    Content::Page(1, 8).check(&map.page(8))
}

fn device_maps_twice(env: &Env) -> Result<()> {
    let importer = Importer::open()?;
    let (_memfd, buf) = env.buffer(1, 16)?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let segments = importer.attach(&buf, Kind::Static)?.map_twice()?;
    ensure!((1..=16).contains(&segments), "{segments} segments");
    check_file(&map, 1, 0)
}

/// Pages of two files, in no order.
fn shuffled(env: &Env) -> Result<OwnedFd> {
    let (a, b) = (written(1, 16)?, written(2, 16)?);
    let items = [
        item(&a, 12, 4),
        item(&b, 3, 1),
        item(&a, 0, 2),
        item(&a, 12, 1),
    ];
    Ok(pagekit_user::abi::create_list(env.open()?, 0, &items)?)
}

fn see_shuffled(buf: &OwnedFd, way: Through) -> Result<()> {
    let importer = Importer::open()?;
    let pages = [
        (1, 12),
        (1, 13),
        (1, 14),
        (1, 15),
        (2, 3),
        (1, 0),
        (1, 1),
        (1, 12),
    ];
    let mut whole = vec![0; pages.len() * PAGE];
    importer.read(buf, way, 0, &mut whole)?;
    for (at, (id, page)) in pages.into_iter().enumerate() {
        let want = Content::Page(id, page);
        let bytes = whole[at * PAGE..][..PAGE].try_into()?;
        want.check(bytes)
            .with_context(|| format!("page {at} of all"))?;
        let mut alone = [0; PAGE];
        importer.read(buf, way, at * PAGE, &mut alone)?;
        want.check(&alone)
            .with_context(|| format!("page {at} alone"))?;
    }
    let past = importer.read(buf, way, (pages.len() - 1) * PAGE, &mut [0; PAGE + 1]);
    ensure!(past.is_err(), "read past the end");
    Ok(())
}

/// Two processes export the same file at the same time; each has buffers of its own.
fn two_processes(env: &Env) -> Result<()> {
    let memfd = written(1, 64)?;
    let work = |id: u8| {
        for round in 0..20 {
            let buf = env.export(&memfd, 0, 64)?;
            let map = Mapping::shared(&buf, 8 * PAGE, 56 * PAGE)?;
            // Half of the file each.
            let page = usize::from(id) * 20 + round;
            map.write(page * PAGE, &Content::Page(id, page).bytes());
            Content::Page(id, page).check(&map.page(page))?;
        }
        Ok(())
    };
    let child = Child::spawn(|| work(1))?;
    work(0)?;
    child.join("child")?;
    for page in 0..40 {
        Content::Page((page / 20) as u8, page).check(&read_page(&memfd, 8 + page)?)?;
    }
    Ok(())
}

fn threads(env: &Env) -> Result<()> {
    on_threads(|id| {
        let mine = written(id, 32)?;
        for round in 0..20 {
            let buf = env.export(&mine, round, 32 - round)?;
            let map = Mapping::shared(&buf, 0, (32 - round) * PAGE)?;
            drop(buf);
            check_file(&map, id, round)?;
        }
        Ok(())
    })
}

/// Mapped, faulted, split and unmapped from all sides.
fn threads_one_buffer(env: &Env) -> Result<()> {
    let memfd = written(1, 64)?;
    let items = [item(&memfd, 32, 32), item(&memfd, 0, 32)];
    let buf = pagekit_user::abi::create_list(env.open()?, 0, &items)?;
    let whole = Mapping::shared(&buf, 0, 64 * PAGE)?;
    on_threads(|id| {
        for round in 0..20 {
            let map = Mapping::shared(&buf, 0, 32 * PAGE)?;
            let (head, tail) = map.cut_out((1 + round % 8) * PAGE, PAGE)?;
            check_file(&head, 1, 32)?;
            check_file(&tail, 1, 34 + round % 8)?;
            let page = 32 + usize::from(id) * 8 + round % 8;
            Content::Page(1, page - 32).check(&whole.page(page))?;
        }
        Ok(())
    })
}

/// Runs `work` on four threads.
fn on_threads(work: impl Fn(u8) -> Result<()> + Sync) -> Result<()> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads = [0, 1, 2, 3].map(|id| scope.spawn(move || work(id)));
        threads
            .into_iter()
            .enumerate()
            .try_for_each(|(id, thread)| {
                let result = thread.join();
                result
                    .unwrap_or_else(|_| anyhow::bail!("panic"))
                    .with_context(|| format!("thread {id}"))
            })
    })
}

/// A process that dies by SIGKILL with buffers, mappings and an import leaves nothing
/// pinned.
fn killed(env: &Env) -> Result<()> {
    let before = kernel::pins()?;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let child = Child::spawn(|| {
        let buffers = (0..8).map(|id| env.buffer(id, 32));
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        let maps = buffers
            .iter()
            .map(|(_, buf)| Mapping::shared(buf, 0, 32 * PAGE));
        let maps = maps.collect::<Result<Vec<_>, _>>()?;
        maps.iter().for_each(Mapping::touch);
        let card = Card::find("vgem")?;
        let _import = card.import(buffers[0].1.as_fd())?;
        theirs.write_all(b"x")?;
        loop {
            std::thread::park();
        }
    })?;
    drop(theirs);
    if ours.read_exact(&mut [0]).is_err() {
        return child.join("child");
    }
    let held = kernel::pins()? - before;
    ensure!(held == 8 * 32, "{held} pins held by the child");
    child.kill()?;
    let end = child.wait()?;
    ensure!(end == End::Killed(libc::SIGKILL), "{end:?}");
    let held = kernel::pins()? - before;
    ensure!(held == 0, "{held} pins after the kill");
    Ok(())
}
