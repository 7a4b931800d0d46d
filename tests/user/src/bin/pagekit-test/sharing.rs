// SPDX-License-Identifier: GPL-2.0
//! Several processes, threads and devices at one buffer.

use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{self, with_cpu_access, SYNC_READ};
use pagekit_user::drm::{same_buffer, Card};
use pagekit_user::kernel::Setting;
use pagekit_user::mapping::Mapping;
use pagekit_user::process::{Child, End};
use pagekit_user::test_importer::{Dir, Importer, Kind, Through};
use pagekit_user::{kernel, PAGE};

use crate::device::{check_import, pages_of};
use crate::env::{check_file, check_pages, item, read_page, written, Content, Env};
use crate::groups::Case;
use crate::memory::{fill_mapped, huge_memfd, HUGE_PAGES};

/// For any exporter.
pub const CASES: &[Case] = &[
    Case::new("vgem_import", vgem_import).smoke(),
    Case::new("vgem_outlives_fd", vgem_outlives_fd),
    Case::new("threads", threads),
    Case::new("threads_one_buffer", threads_one_buffer),
    Case::new("killed", killed).smoke(),
];

pub const OF_MEMFDS: &[Case] = &[
    Case::new("device_reads_list", |env| list(env, Through::Dma)).smoke(),
    Case::new("device_writes_file", device_writes_file).smoke(),
    Case::new("device_hugetlb", device_hugetlb),
    Case::new("cpu_reads_list", cpu_reads_list).smoke(),
    Case::new("kernel_reads_list", |env| list(env, Through::Vmap)).smoke(),
    Case::new("two_processes", two_processes),
];

fn vgem_import(env: &Env) -> Result<()> {
    let buf = env.filled(1, 16)?;
    let card = Card::find("vgem")?;
    let handle = card.import(buf.as_fd()).context("PRIME_FD_TO_HANDLE")?;
    let again = handle.export().context("PRIME_HANDLE_TO_FD")?;
    ensure!(same_buffer(&buf, &again)?, "re-exported as another dma-buf");
    check_file(&Mapping::shared(&again, 3 * PAGE, 13 * PAGE)?, 1, 3)
}

/// The importer keeps the buffer alive.
fn vgem_outlives_fd(env: &Env) -> Result<()> {
    let before = kernel::buffers()?;
    let buf = env.filled(1, 16)?;
    let card = Card::find("vgem")?;
    let handle = card.import(buf.as_fd())?;
    drop(buf);
    ensure!(
        kernel::buffers()? == before + 1,
        "released while it is imported"
    );
    let again = handle.export()?;
    check_file(&Mapping::shared(&again, 0, 16 * PAGE)?, 1, 0)?;
    drop((handle, again));
    ensure!(kernel::buffers()? == before, "stays after the last user");
    Ok(())
}

/// What a device writes is in the memfd.
fn device_writes_file(env: &Env) -> Result<()> {
    let (memfd, buf) = env.buffer(1, 16)?;
    let importer = Importer::open()?;
    for page in [0, 7, 15] {
        let content = Content::Page(2, page);
        importer.write(&buf, Through::Dma, page * PAGE, &content.bytes())?;
        content.check(&read_page(&memfd, page)?)?;
    }
    Content::Page(1, 8).check(&read_page(&memfd, 8)?)
}

/// Pages that are contiguous for longer than a device may take in one piece.
fn device_hugetlb(env: &Env) -> Result<()> {
    let _hugepages = Setting::hugepages(2)?;
    let memfd = huge_memfd(2 * HUGE_PAGES)?;
    fill_mapped(&memfd, 2 * HUGE_PAGES)?;
    let buf = env.export(&memfd, 7, 2 * HUGE_PAGES - 7)?;
    let want = pages_of(1, 7, 2 * HUGE_PAGES - 7);
    check_import(&buf, Through::Dma, &want)
}

/// Pages of two files, in no order.
fn list(env: &Env, way: Through) -> Result<()> {
    let (a, b) = (written(1, 16)?, written(2, 16)?);
    let items = [
        item(&a, 12, 4),
        item(&b, 3, 1),
        item(&a, 0, 2),
        item(&a, 12, 1),
    ];
    let buf = abi::create_list(env.open()?, 0, &items)?;
    let want = [(1, 12, 4), (2, 3, 1), (1, 0, 2), (1, 12, 1)];
    let want = want.map(|(id, first, pages)| pages_of(id, first, pages));
    check_import(buf, way, &want.concat())
}

/// The CPU reads a buffer that has the same page twice while a device has it mapped. No sync
/// follows: DMA_API_DEBUG could not tell which of the two it is for, and would warn.
fn cpu_reads_list(env: &Env) -> Result<()> {
    let memfd = written(1, 16)?;
    let items = [0, 2, 2].map(|page| item(&memfd, page, 1));
    let buf = abi::create_list(env.open()?, 0, &items)?;
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    attachment.map(Dir::Both)?;
    let map = Mapping::shared(&buf, 0, 3 * PAGE)?;
    with_cpu_access(&buf, SYNC_READ, || {
        check_pages(&map, |at| Content::Page(1, [0, 2, 2][at]))
    })
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
        for round in 0..20 {
            let buf = env.filled(id, 32 - round)?;
            let map = Mapping::shared(&buf, 0, (32 - round) * PAGE)?;
            drop(buf);
            check_file(&map, id, 0)?;
        }
        Ok(())
    })
}

/// Mapped, split and unmapped from all sides, by devices too.
fn threads_one_buffer(env: &Env) -> Result<()> {
    let buf = env.filled(1, 64)?;
    let whole = Mapping::shared(&buf, 0, 64 * PAGE)?;
    on_threads(|id| {
        let importer = Importer::open()?;
        for round in 0..20 {
            let map = Mapping::shared(&buf, 32 * PAGE, 32 * PAGE)?;
            let (head, tail) = map.cut_out((1 + round % 8) * PAGE, PAGE)?;
            check_file(&head, 1, 32)?;
            check_file(&tail, 1, 34 + round % 8)?;
            let page = usize::from(id) * 8 + round % 8;
            Content::Page(1, page).check(&whole.page(page))?;
            let mut seen = [0; PAGE];
            importer.read(&buf, Through::Dma, page * PAGE, &mut seen)?;
            Content::Page(1, page).check(&seen)?;
            abi::with_cpu_access(&buf, SYNC_READ, || Ok(()))?;
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

/// A process that dies by SIGKILL with buffers, mappings and imports leaves nothing
/// behind.
fn killed(env: &Env) -> Result<()> {
    let before = kernel::buffers()?;
    let (mut ours, mut theirs) = UnixStream::pair()?;
    let child = Child::spawn(|| {
        let buffers = (0..8).map(|id| env.filled(id, 32));
        let buffers = buffers.collect::<Result<Vec<_>>>()?;
        let maps = buffers.iter().map(|buf| Mapping::shared(buf, 0, 32 * PAGE));
        let maps = maps.collect::<Result<Vec<_>, _>>()?;
        maps.iter().for_each(Mapping::touch);
        let card = Card::find("vgem")?;
        let _import = card.import(buffers[0].as_fd())?;
        let importer = Importer::open()?;
        let attachment = importer.attach(&buffers[1], Kind::Static)?;
        attachment.map(Dir::Both)?;
        theirs.write_all(b"x")?;
        loop {
            std::thread::park();
        }
    })?;
    drop(theirs);
    if ours.read_exact(&mut [0]).is_err() {
        return child.join("child");
    }
    let held = kernel::buffers()? - before;
    ensure!(held == 8, "the child has {held} buffers");
    child.kill()?;
    let end = child.wait()?;
    ensure!(end == End::Killed(libc::SIGKILL), "{end:?}");
    let held = kernel::buffers()? - before;
    ensure!(held == 0, "{held} buffers after the kill");
    Ok(())
}
