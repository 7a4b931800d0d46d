// SPDX-License-Identifier: GPL-2.0
//! The memory behind buffers: holes, never-written pages, swap, large folios,
//! hugetlb, and what happens to the file meanwhile.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pagekit_user::kernel::{Setting, ZramSwap};
use pagekit_user::mapping::Mapping;
use pagekit_user::{abi, kernel, PAGE};
use rustix::fs::{fallocate, fcntl_add_seals, FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::Advice;

use crate::env::{check_file, check_pages, fill, item, read_page, written, Content, Env};
use crate::groups::Case;
use crate::races::nodes::thp_switch;

pub const CASES: &[Case] = &[
    Case::new("holes", holes).smoke(),
    Case::new("coherent", coherent).smoke(),
    Case::new("stale_page", |env| stale(env, 1)).smoke(),
    Case::new("stale_16_pages", |env| stale(env, 16)),
    Case::new("stale_huge", |env| stale(env, HUGE_PAGES)),
    Case::new("unwritten_page", |env| unwritten(env, 1)).smoke(),
    Case::new("unwritten_16_pages", |env| unwritten(env, 16)),
    Case::new("unwritten_huge", |env| unwritten(env, HUGE_PAGES)),
    Case::new("stale_after_punch", stale_after_punch),
    Case::new("swapped_out_before", swapped_out_before),
    Case::new("dirty_on_release", dirty_on_release),
    Case::new("punch_hole", punch_hole),
    Case::new("seal_while_shared", seal_while_shared),
    Case::new("read_only_fd", read_only_fd).smoke(),
    Case::new("folios_16_pages", |env| folios(env, 16)),
    Case::new("folios_huge", |env| folios(env, HUGE_PAGES)),
    Case::new("folios_16_pages_pins", |env| folio_pins(env, 16)),
    Case::new("folios_huge_pins", |env| folio_pins(env, HUGE_PAGES)),
    Case::new("hugetlb", hugetlb),
    Case::new("hugetlb_list", hugetlb_list),
    Case::new("hugetlb_holes", hugetlb_holes),
    Case::new("hugetlb_none_left", hugetlb_none_left),
    Case::new("thp_switch", thp_switch),
];

pub use pagekit_user::HUGE_PAGES;
pub const THP: &str = "/sys/kernel/mm/transparent_hugepage";

/// Where the kernel says what it does with folios of so many pages.
pub fn thp(folio: usize) -> String {
    format!("{THP}/hugepages-{}kB", (folio * PAGE) >> 10)
}

/// A file that is all hole, and one with some pages written.
fn holes(env: &Env) -> Result<()> {
    let memfd = abi::memfd(32 * PAGE as u64)?;
    let buf = env.export(&memfd, 0, 32)?;
    check_pages(&Mapping::shared(&buf, 0, 32 * PAGE)?, |_| Content::Zero)?;

    let memfd = abi::memfd(32 * PAGE as u64)?;
    let want = |page| match page {
        3 | 17 | 31 => Content::Page(1, page),
        _ => Content::Zero,
    };
    for page in [3, 17, 31] {
        memfd.write_all_at(&want(page).bytes(), (page * PAGE) as u64)?;
    }
    let buf = env.export(&memfd, 0, 32)?;
    check_pages(&Mapping::shared(&buf, 0, 32 * PAGE)?, want)
}

/// Buffer, write(), read() and a mapping of the file are one memory.
fn coherent(env: &Env) -> Result<()> {
    let memfd = abi::memfd(8 * PAGE as u64)?;
    let buf = env.export(&memfd, 0, 8)?;
    let buf = Mapping::shared(&buf, 0, 8 * PAGE)?;
    let file = Mapping::shared(&memfd, 0, 8 * PAGE)?;
    let page = |id, page| Content::Page(id, page);
    // From the buffer to both ways of reading the file.
    buf.write(2 * PAGE, &page(1, 2).bytes());
    page(1, 2).check(&read_page(&memfd, 2)?)?;
    page(1, 2).check(&file.page(2))?;
    // And back.
    memfd.write_all_at(&page(2, 3).bytes(), 3 * PAGE as u64)?;
    page(2, 3).check(&buf.page(3))?;
    file.write(4 * PAGE, &page(3, 4).bytes());
    page(3, 4).check(&buf.page(4))
}

/// Leaves free memory that isn't zero, where the next file with such folios will get
/// its own from.
pub fn dirty_free_memory(folio: usize) -> Result<()> {
    const SIZE: usize = 96 << 20;
    ensure!(
        kernel::memory("MemAvailable")? > 2 * SIZE as u64,
        "needs {} MiB of memory",
        (2 * SIZE) >> 20
    );
    let memory = Mapping::shared(allocated(folio, SIZE)?, 0, SIZE)?;
    for offset in (0..SIZE).step_by(PAGE) {
        memory.write(offset, &[0xa5; PAGE]);
    }
    Ok(())
}

/// A memfd of `size` bytes made of folios of so many pages, allocated and not yet written.
pub fn allocated(folio: usize, size: usize) -> Result<File> {
    let memfd = abi::memfd(0)?;
    allocate(&memfd, folio, size)?;
    Ok(memfd)
}

/// Makes an empty memfd one of `size` bytes and folios of so many pages.
pub fn allocate(memfd: &File, folio: usize, size: usize) -> Result<()> {
    let step = folio * PAGE;
    let _within_size = match folio {
        1 => None,
        _ => {
            // Large folios need contiguous memory.
            kernel::write("/proc/sys/vm/compact_memory", "1")?;
            Some(Setting::set(format!("{THP}/shmem_enabled"), "within_size")?)
        }
    };
    let before = folios_allocated(folio)?;
    // The largest folio is taken that fits before the file's end.
    for start in (0..size).step_by(step) {
        memfd.set_len((start + step) as u64)?;
        fallocate(memfd, FallocateFlags::empty(), start as u64, step as u64)?;
    }
    let (got, want) = (folios_allocated(folio)? - before, size / step);
    ensure!(
        folio == 1 || got == want,
        "the file has {got} folios of {folio} pages, not {want}"
    );
    Ok(())
}

/// How many folios of so many pages shmem got since boot.
fn folios_allocated(folio: usize) -> Result<usize> {
    if folio == 1 {
        return Ok(0);
    }
    let path = format!("{}/stats/shmem_alloc", thp(folio));
    Ok(kernel::read(path)?.parse()?)
}

/// fallocate gives a file pages that nobody has zeroed yet.
fn stale(env: &Env, folio: usize) -> Result<()> {
    const SIZE: usize = 2 * HUGE_PAGES * PAGE;
    dirty_free_memory(folio)?;
    let memfd = allocated(folio, SIZE)?;
    // Not all of it: parts of a folio must be zeroed too.
    let pages = SIZE / PAGE - 10;
    let buf = env.export(&memfd, 3, pages)?;
    let map = Mapping::shared(&buf, 0, pages * PAGE)?;
    check_pages(&map, |_| Content::Zero)
}

/// The file zeroes its never-written pages when it is first read: not after somebody
/// wrote to them through the buffer.
fn unwritten(env: &Env, folio: usize) -> Result<()> {
    const PAGES: usize = HUGE_PAGES + 88;
    let memfd = allocated(folio, 2 * HUGE_PAGES * PAGE)?;
    let buf = env.export(&memfd, 3, PAGES)?;
    let map = Mapping::shared(&buf, 0, PAGES * PAGE)?;
    let page = Content::Page(1, 7);
    map.write(7 * PAGE, &page.bytes());
    page.check(&read_page(&memfd, 10)?).context("in the file")?;
    page.check(&map.page(7)).context("in the buffer")
}

/// Allocated, punched and allocated again.
fn stale_after_punch(env: &Env) -> Result<()> {
    let pages = 256;
    let size = (pages * PAGE) as u64;
    let memfd = written(1, pages)?;
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&memfd, punch, 0, size)?;
    dirty_free_memory(1)?;
    fallocate(&memfd, FallocateFlags::empty(), 0, size / 2)?;
    let buf = env.export(&memfd, 0, pages)?;
    check_pages(&Mapping::shared(&buf, 0, pages * PAGE)?, |_| Content::Zero)
}

/// Drives all pages of the file out of memory.
pub fn evict(memfd: &File, pages: usize) -> Result<()> {
    let mut resident = 0;
    for _ in 0..20 {
        let map = Mapping::shared(memfd, 0, pages * PAGE)?;
        resident = map.resident()?;
        if resident == 0 {
            return Ok(());
        }
        // Reclaim finds pages through page tables, so they must be mapped.
        map.touch();
        map.advise(Advice::LinuxPageOut)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("{resident} of {pages} pages don't leave memory")
}

fn swapped_out_before(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(32 << 20)?;
    let memfd = written(1, 256)?;
    evict(&memfd, 256)?;
    let buf = env.export(&memfd, 0, 256)?;
    check_file(&Mapping::shared(&buf, 0, 256 * PAGE)?, 1, 0)
}

/// What was written through the buffer must survive reclaim after its release:
/// neither devices nor PFN mappings mark pages dirty, release has to.
fn dirty_on_release(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(32 << 20)?;
    let memfd = abi::memfd(256 * PAGE as u64)?;
    let buf = env.export(&memfd, 0, 256)?;
    let map = Mapping::shared(&buf, 0, 256 * PAGE)?;
    for page in 0..256 {
        map.write(page * PAGE, &Content::Page(1, page).bytes());
    }
    drop((map, buf));
    evict(&memfd, 256)?;
    for page in 0..256 {
        Content::Page(1, page)
            .check(&read_page(&memfd, page)?)
            .with_context(|| format!("page {page} after swap"))?;
    }
    Ok(())
}

/// The buffer keeps its pages when the file loses them.
fn punch_hole(env: &Env) -> Result<()> {
    let (memfd, buf) = env.buffer(1, 32)?;
    let map = Mapping::shared(&buf, 0, 32 * PAGE)?;
    map.touch();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&memfd, punch, 8 * PAGE as u64, 16 * PAGE as u64)?;
    check_file(&map, 1, 0)?;
    check_file(&Mapping::shared(&buf, 4 * PAGE, 28 * PAGE)?, 1, 4)?;
    Content::Zero.check(&read_page(&memfd, 10)?)?;
    Content::Page(1, 30).check(&read_page(&memfd, 30)?)?;
    // The file's new page is another one.
    map.write(10 * PAGE, &Content::Page(2, 10).bytes());
    Content::Zero.check(&read_page(&memfd, 10)?)?;
    Content::Page(2, 10).check(&map.page(10))
}

/// A file can't be sealed against writes while a buffer can write to it.
fn seal_while_shared(env: &Env) -> Result<()> {
    let (memfd, buf) = env.buffer(1, 4)?;
    let result = fcntl_add_seals(&memfd, SealFlags::WRITE);
    ensure!(result == Err(Errno::BUSY), "F_SEAL_WRITE: {result:?}");
    drop(buf);
    fcntl_add_seals(&memfd, SealFlags::WRITE).context("F_SEAL_WRITE after release")
}

/// Who may only read a file does not get to write to it by a buffer.
fn read_only_fd(env: &Env) -> Result<()> {
    let memfd = written(1, 4)?;
    let read_only = File::open(format!("/proc/self/fd/{}", memfd.as_raw_fd()))?;
    let dev = env.open()?;
    for items in [
        &[item(&read_only, 0, 4)][..],
        &[item(&memfd, 0, 4), item(&read_only, 0, 4)],
    ] {
        let result = abi::create_list(&dev, 0, items).map(drop);
        ensure!(
            result == Err(Errno::ACCESS),
            "of a file opened read only: {result:?}"
        );
    }
    let buf = env.export(&memfd, 0, 4)?;
    check_file(&Mapping::shared(&buf, 0, 4 * PAGE)?, 1, 0)
}

/// Ranges that begin and end anywhere in folios of `size` pages, twice, and in
/// reverse.
fn check_split_folios(env: &Env, memfd: &File, size: usize, pages: usize) -> Result<()> {
    let whole = env.export(memfd, 0, pages)?;
    check_file(&Mapping::shared(&whole, 0, pages * PAGE)?, 1, 0)?;
    for first in [1, size - 1, size, size + 5] {
        let map = Mapping::shared(&whole, first * PAGE, (pages - first) * PAGE)?;
        check_file(&map, 1, first)?;
    }
    drop(whole);

    let ranges = [
        (2 * size - 3, 7),
        (5, 1),
        (5, size + 1),
        (5, size + 1),
        (size - 1, 2),
        (0, 1),
        (pages - 1, 1),
        (size / 2, 1),
        (size / 2 - 1, 1),
    ];
    let items = ranges.map(|(first, pages)| item(memfd, first, pages));
    let want: Vec<_> = ranges
        .iter()
        .flat_map(|&(first, pages)| (first..first + pages).map(|page| Content::Page(1, page)))
        .collect();
    let buf = abi::create_list(env.open()?, abi::UDMABUF_FLAGS_CLOEXEC, &items)
        .context("UDMABUF_CREATE_LIST")?;
    check_pages(&Mapping::shared(&buf, 0, want.len() * PAGE)?, |page| {
        want[page]
    })?;
    // The file stays usable.
    drop(buf);
    check_file(&Mapping::shared(memfd, 0, pages * PAGE)?, 1, 0)
}

fn folios(env: &Env, folio: usize) -> Result<()> {
    check_split_folios(env, &large_folio_file(folio)?, folio, 4 * folio)
}

/// A written memfd of four folios of so many pages.
fn large_folio_file(folio: usize) -> Result<File> {
    let memfd = allocated(folio, 4 * folio * PAGE)?;
    fill(&memfd, 1, 4 * folio)?;
    Ok(memfd)
}

/// One pin for each page, whatever the folios' size.
fn folio_pins(env: &Env, size: usize) -> Result<()> {
    let memfd = large_folio_file(size)?;
    let before = kernel::pins()?;
    for (first, pages) in [(0, 4 * size), (size - 1, 2), (3, size)] {
        let buf = env.export(&memfd, first, pages)?;
        let held = kernel::pins()? - before;
        ensure!(held == pages as i64, "{held} pins for {pages} pages");
        drop(buf);
        let held = kernel::pins()? - before;
        ensure!(held == 0, "{held} pins after release");
    }
    Ok(())
}

pub fn huge_memfd(pages: usize) -> Result<File> {
    abi::memfd_with(
        (pages * PAGE) as u64,
        MemfdFlags::ALLOW_SEALING | MemfdFlags::HUGETLB,
        SealFlags::SHRINK,
    )
}

/// hugetlb files have no write().
pub fn fill_mapped(memfd: impl AsFd, pages: usize) -> Result<()> {
    let map = Mapping::shared(memfd, 0, pages * PAGE)?;
    for page in 0..pages {
        map.write(page * PAGE, &Content::Page(1, page).bytes());
    }
    Ok(())
}

fn hugetlb(env: &Env) -> Result<()> {
    let _hugepages = Setting::hugepages(4)?;
    let memfd = huge_memfd(4 * HUGE_PAGES)?;
    fill_mapped(&memfd, 4 * HUGE_PAGES)?;
    let buf = env.export(&memfd, 0, 4 * HUGE_PAGES)?;
    drop(memfd);
    check_file(&Mapping::shared(&buf, 0, 4 * HUGE_PAGES * PAGE)?, 1, 0)?;
    for first in [1, 10, HUGE_PAGES - 1, HUGE_PAGES + 1] {
        let map = Mapping::shared(&buf, first * PAGE, 2 * HUGE_PAGES * PAGE)?;
        check_file(&map, 1, first)?;
    }
    Ok(())
}

fn hugetlb_list(env: &Env) -> Result<()> {
    let _hugepages = Setting::hugepages(4)?;
    let memfd = huge_memfd(4 * HUGE_PAGES)?;
    fill_mapped(&memfd, 4 * HUGE_PAGES)?;
    check_split_folios(env, &memfd, HUGE_PAGES, 4 * HUGE_PAGES)
}

/// Pages of the pool that were used before, then a file that is all hole.
fn hugetlb_holes(env: &Env) -> Result<()> {
    let _hugepages = Setting::hugepages(2)?;
    fill_mapped(huge_memfd(2 * HUGE_PAGES)?, 2 * HUGE_PAGES)?;
    let memfd = huge_memfd(2 * HUGE_PAGES)?;
    let buf = env.export(&memfd, 7, HUGE_PAGES)?;
    let map = Mapping::shared(&buf, 0, HUGE_PAGES * PAGE)?;
    check_pages(&map, |_| Content::Zero)?;
    map.write(3 * PAGE, &Content::Page(1, 10).bytes());
    let file = Mapping::shared(&memfd, 0, 2 * HUGE_PAGES * PAGE)?;
    Content::Page(1, 10).check(&file.page(10))
}

/// More holes than hugepages: an error, and nothing stays pinned.
fn hugetlb_none_left(env: &Env) -> Result<()> {
    let _hugepages = Setting::hugepages(2)?;
    let memfd = huge_memfd(4 * HUGE_PAGES)?;
    let before = kernel::pins()?;
    let result = env.try_export(&memfd, 0, 4 * HUGE_PAGES)?;
    ensure!(matches!(result, Err(Errno::NOMEM)), "{result:?}");
    let held = kernel::pins()? - before;
    ensure!(held == 0, "{held} pins stay");
    Ok(())
}
