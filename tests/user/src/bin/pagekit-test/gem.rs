// SPDX-License-Identifier: GPL-2.0
//! What is special about a GEM driver: handles, fake offsets, and pages that a shrinker takes.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use pagekit_user::drm::{same_buffer, Card, Handle};
use pagekit_user::kernel::{self, ZramSwap};
use pagekit_user::mapping::{is_mapped, Mapping, RW};
use pagekit_user::process::{Child, End};
use pagekit_user::test_importer::{Dir, Entry, Importer, Kind, Through};
use pagekit_user::{abi, AROUND, HUGE_PAGES, PAGE};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::mm::MapFlags;

use crate::device;
use crate::env::{check_file, check_pages, written, Content, Env};
use crate::groups::Case;
use crate::i915::{fence, squeeze};

pub const CASES: &[Case] = &[
    Case::new("version", version).smoke(),
    Case::new("dumb", dumb).smoke(),
    Case::new("handles", handles).smoke(),
    Case::new("render_node", render_node).smoke(),
    Case::new("node_offsets", node_offsets).smoke(),
    Case::new("node_of_others", node_of_others).smoke(),
    Case::new("node_outlives_handle", node_outlives_handle).smoke(),
    Case::new("one_memory", one_memory).smoke(),
    Case::new("import_not_mapped", import_not_mapped).smoke(),
    Case::new("huge", huge),
    Case::new("write_combined", write_combined).smoke(),
    Case::new("write_combined_swaps", write_combined_swaps).smoke(),
    Case::new("write_combined_for_devices", write_combined_for_devices).smoke(),
    Case::new("shrinks", shrinks).smoke(),
    Case::new("shrink_spares_used", shrink_spares_used).smoke(),
    Case::new("shrink_spares_fences", shrink_spares_fences).smoke(),
    Case::new("fences", fences).smoke(),
    Case::new("fences_spare_from_shrinks", fences_spare_from_shrinks).smoke(),
    Case::new("fences_of_imports", fences_of_imports).smoke(),
    Case::new("fences_expire", fences_expire),
    Case::new("swap", swap).smoke(),
    Case::new("swap_before_a_device_maps", swap_before_a_device_maps),
    Case::new("faults_beside_shrinks", faults_beside_shrinks).smoke(),
    Case::new("killed_with_handles", killed_with_handles).smoke(),
    Case::new("unload_refused", unload_refused).smoke(),
];

/// A buffer of `pages`, written as file `id`.
pub fn filled(env: &Env, id: u8, pages: usize) -> Result<OwnedFd> {
    let buf = pages_of(env, pages)?;
    write(&Mapping::shared(&buf, 0, pages * PAGE)?, id, 0);
    Ok(buf)
}

pub fn pages_of(env: &Env, pages: usize) -> Result<OwnedFd> {
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(pages).context("MODE_CREATE_DUMB")?;
    Ok(handle.export().context("PRIME_HANDLE_TO_FD")?)
}

/// All of a mapping becomes file `id` from page `first` on.
fn write(map: &Mapping, id: u8, first: usize) {
    for page in 0..map.len() / PAGE {
        map.write(page * PAGE, &Content::Page(id, first + page).bytes());
    }
}

/// Asks all shrinkers for all that they have.
pub fn shrink() -> Result<()> {
    kernel::write("/proc/sys/vm/drop_caches", "2")
}

/// How many pages the objects of this file have in memory. Of no objects, nothing is shown.
fn resident(card: &Card) -> Result<usize> {
    let shown = abi::fdinfo(card.as_fd().as_raw_fd(), "drm-total-memory")?;
    if shown == "0" {
        return Ok(0);
    }
    let shown = abi::fdinfo(card.as_fd().as_raw_fd(), "drm-resident-memory")?;
    let (number, unit) = shown.split_once(' ').unwrap_or((&shown, ""));
    let number: usize = number.parse()?;
    let unit = match unit {
        "" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        _ => anyhow::bail!("{shown}"),
    };
    Ok(number * unit / PAGE)
}

/// The card of our device, in `/dev`.
pub fn card() -> Option<String> {
    let nodes = std::fs::read_dir("/sys/devices/faux/pagekit-gem/drm").ok()?;
    let names = nodes.filter_map(|node| node.ok()?.file_name().into_string().ok());
    let mut cards = names.filter(|name| name.starts_with("card"));
    Some(format!("dri/{}", cards.next()?))
}

/// The other node of the same device.
fn render(env: &Env) -> Result<PathBuf> {
    let name = env.device.file_name().context("no name")?;
    let nodes = PathBuf::from("/sys/class/drm")
        .join(name)
        .join("device/drm");
    for node in std::fs::read_dir(nodes)? {
        let name = node?.file_name();
        if name.as_encoded_bytes().starts_with(b"render") {
            return Ok(PathBuf::from("/dev/dri").join(name));
        }
    }
    anyhow::bail!("no render node")
}

fn version(env: &Env) -> Result<()> {
    let want = kernel::read("/sys/module/pagekit_gem/parameters/name")?;
    for node in [env.device.clone(), render(env)?] {
        let card = Card::open(node)?;
        let (name, shown) = (
            card.driver()?,
            abi::fdinfo(card.as_fd().as_raw_fd(), "drm-driver")?,
        );
        ensure!(name == want && shown == want, "{name}, {shown}");
    }
    Ok(())
}

fn dumb(env: &Env) -> Result<()> {
    let card = Card::open(&env.device)?;
    let before = kernel::buffers()?;
    for pages in [1, 37, HUGE_PAGES + 1] {
        let handle = card.create_dumb(pages)?;
        ensure!(resident(&card)? == 0, "pages before they are used");
        let map = handle.map(pages * PAGE)?;
        check_pages(&map, |_| Content::Zero)?;
        write(&map, 1, 0);
        check_file(&map, 1, 0)?;
        ensure!(resident(&card)? == pages, "{} pages", resident(&card)?);
        let buf = handle.export()?;
        ensure!(abi::size(&buf)? == (pages * PAGE) as u64);
        check_file(&Mapping::shared(&buf, 0, pages * PAGE)?, 1, 0)?;
        drop((map, handle, buf));
        ensure!(resident(&card)? == 0 && kernel::buffers()? == before);
    }
    Ok(())
}

/// An object is one buffer, and has one handle in each file.
fn handles(env: &Env) -> Result<()> {
    let (card, other) = (Card::open(&env.device)?, Card::open(&env.device)?);
    let handle = card.create_dumb(16)?;
    let buf = handle.export()?;
    ensure!(same_buffer(&buf, handle.export()?)?, "exported as another");
    // That it is closed twice does no harm.
    let again = card.import(buf.as_fd())?;
    ensure!(again.handle == handle.handle, "another handle");
    std::mem::forget(again);
    let theirs = other.import(buf.as_fd())?;
    ensure!(
        same_buffer(&buf, theirs.export()?)?,
        "exported as another by others"
    );
    write(&handle.map(16 * PAGE)?, 1, 0);
    drop(handle);
    check_file(&theirs.map(16 * PAGE)?, 1, 0)?;
    // Of all handles, none is left: the buffer alone has the object.
    drop(theirs);
    let theirs = other.import(buf.as_fd())?;
    ensure!(
        same_buffer(&buf, theirs.export()?)?,
        "exported as another from the buffer"
    );
    check_file(&theirs.map(16 * PAGE)?, 1, 0)
}

/// Who may not make buffers may share them.
fn render_node(env: &Env) -> Result<()> {
    let node = Card::open(render(env)?)?;
    let result = node.create_dumb(1).map(drop);
    ensure!(result == Err(Errno::ACCESS), "{result:?}");
    let buf = filled(env, 1, 16)?;
    let handle = node.import(buf.as_fd())?;
    ensure!(same_buffer(&buf, handle.export()?)?, "exported as another");
    let (_memfd, foreign) = foreign(2, 16)?;
    let handle = node.import(foreign.as_fd())?;
    let again = handle.export()?;
    ensure!(same_buffer(&foreign, &again)?, "exported as another");
    check_file(&Mapping::shared(again, 3 * PAGE, 13 * PAGE)?, 2, 3)
}

/// A buffer of mainline's udmabuf.
fn foreign(id: u8, pages: usize) -> Result<(std::fs::File, OwnedFd)> {
    let mut env = Env::new(crate::env::of_memfd);
    env.device = "/dev/udmabuf".into();
    let memfd = written(id, pages)?;
    let buf = env.export(&memfd, 0, pages)?;
    Ok((memfd, buf))
}

/// What is mapped at page n of the node shows page n, whatever becomes of the mapping.
fn node_offsets(env: &Env) -> Result<()> {
    const PAGES: usize = 32;
    let card = Card::open(&env.device)?;
    // Others are in front of it and behind.
    let others = [card.create_dumb(PAGES)?, card.create_dumb(PAGES)?];
    let handle = card.create_dumb(PAGES)?;
    let _behind = card.create_dumb(PAGES)?;
    for (id, other) in (2..).zip(&others) {
        write(&other.map(PAGES * PAGE)?, id, 0);
    }
    write(&handle.map(PAGES * PAGE)?, 1, 0);
    let at = |first: usize, pages: usize| {
        Mapping::shared(&card, handle.offset()? + first * PAGE, pages * PAGE)
    };
    for (first, pages) in [(0, PAGES), (10, 1), (10, 12), (1, 31), (31, 1)] {
        check_file(&at(first, pages)?, 1, first).with_context(|| format!("at page {first}"))?;
    }
    for touched in [false, true] {
        let map = at(2, 30)?;
        if touched {
            map.touch();
        }
        let (head, tail) = map.cut_out(10 * PAGE, 5 * PAGE)?;
        check_file(&head, 1, 2)?;
        check_file(&tail, 1, 17)?;
        let (_, mut rest) = at(0, PAGES)?.cut_out(0, 7 * PAGE)?;
        check_file(&rest, 1, 7)?;
        rest.move_to(Mapping::reserve(25 * PAGE, PAGE, 0)?)?;
        check_file(&rest, 1, 7)?;
        rest.resize(5 * PAGE)?;
        check_file(&rest, 1, 7)?;
    }
    // What an eviction takes out are its pages, and not those of others.
    let maps = [at(5, 20)?, others[0].map(PAGES * PAGE)?];
    maps.iter().for_each(Mapping::touch);
    shrink()?;
    ensure!(!is_mapped(&maps[0], 3) && !is_mapped(&maps[1], 3));
    check_file(&maps[0], 1, 5)?;
    check_file(&maps[1], 2, 0)?;
    // Past the end is another object, or nothing.
    for (first, pages) in [(0, PAGES + 1), (PAGES - 1, 2), (1, PAGES)] {
        let result = at(first, pages).map(drop);
        ensure!(
            result == Err(Errno::INVAL),
            "{pages} at {first}: {result:?}"
        );
    }
    let result = Mapping::new(&card, handle.offset()?, PAGE, RW, MapFlags::PRIVATE);
    ensure!(matches!(result, Err(Errno::INVAL)), "private: {result:?}");
    Ok(())
}

/// Who has no handle maps nothing.
fn node_of_others(env: &Env) -> Result<()> {
    let (card, other) = (Card::open(&env.device)?, Card::open(&env.device)?);
    let handle = card.create_dumb(16)?;
    let offset = handle.offset()?;
    let map = |at: usize| Mapping::shared(&other, offset + at * PAGE, PAGE).map(drop);
    ensure!(map(0) == Err(Errno::ACCESS) && map(3) == Err(Errno::ACCESS));
    let theirs = other.import(handle.export()?.as_fd())?;
    ensure!(map(0) == Ok(()) && map(3) == Ok(()));
    drop(theirs);
    ensure!(map(0) == Err(Errno::ACCESS) && map(3) == Err(Errno::ACCESS));
    drop(handle);
    ensure!(map(0) == Err(Errno::INVAL));
    Ok(())
}

/// A mapping keeps its object.
fn node_outlives_handle(env: &Env) -> Result<()> {
    let before = kernel::buffers()?;
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(16)?;
    let (map, buf) = (handle.map(16 * PAGE)?, handle.export()?);
    write(&map, 1, 0);
    drop((handle, buf));
    ensure!(kernel::buffers()? == before, "the buffer stays");
    drop(card);
    let (head, tail) = map.cut_out(3 * PAGE, PAGE)?;
    drop(head);
    shrink()?;
    check_file(&tail, 1, 4)
}

/// All ways lead to the same pages.
fn one_memory(env: &Env) -> Result<()> {
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(16)?;
    let buf = handle.export()?;
    let node = handle.map(16 * PAGE)?;
    let shared = Mapping::shared(&buf, 4 * PAGE, 12 * PAGE)?;
    let importer = Importer::open()?;
    write(&node, 1, 0);
    check_file(&shared, 1, 4)?;
    for (round, way) in [Through::Dma, Through::Vmap].into_iter().enumerate() {
        let page = 8 + round;
        let mut seen = [0; PAGE];
        importer.read(&buf, way, page * PAGE, &mut seen)?;
        Content::Page(1, page).check(&seen)?;
        let content = Content::Page(2, page);
        importer.write(&buf, way, page * PAGE, &content.bytes())?;
        content.check(&node.page(page))?;
        content.check(&shared.page(page - 4))?;
        shrink()?;
        content.check(&shared.page(page - 4))?;
        content.check(&node.page(page))?;
    }
    Ok(())
}

/// Imports are mapped by their own file, and by no offset of the node.
fn import_not_mapped(env: &Env) -> Result<()> {
    let card = Card::open(&env.device)?;
    let (_memfd, buf) = foreign(2, 16)?;
    let import = card.import(buf.as_fd())?;
    let result = import.map(PAGE).map(drop);
    ensure!(result == Err(Errno::INVAL), "{result:?}");
    let before = kernel::buffers()?;
    drop((buf, import));
    ensure!(kernel::buffers()? == before - 1, "the import stays");
    Ok(())
}

/// Objects that are large enough have huge pages, and addresses where these fit.
fn huge(env: &Env) -> Result<()> {
    let card = Card::open(&env.device)?;
    const PAGES: usize = 4 * HUGE_PAGES;
    let handle = card.create_dumb(PAGES)?;
    let map = handle.map(PAGES * PAGE)?;
    ensure!(
        map.at(0) as usize % (HUGE_PAGES * PAGE) == 0,
        "at {:?}",
        map.at(0)
    );
    let faults = kernel::faults(|| map.touch());
    ensure!(faults == 4, "{faults} faults for 4 huge pages");
    write(&map, 1, 0);
    // At the alignment that it has in the object, and by the buffer where that has been chosen.
    let at = HUGE_PAGES + 5;
    let part = Mapping::shared(&card, handle.offset()? + at * PAGE, (PAGES - at) * PAGE)?;
    ensure!(part.at(0) as usize % (HUGE_PAGES * PAGE) == 5 * PAGE);
    let faults = kernel::faults(|| part.touch());
    let want = 2 + (HUGE_PAGES - 5).div_ceil(AROUND) as i64;
    // And one of the program's own.
    ensure!(
        faults <= want + 1,
        "{faults} faults at an offset, not {want}"
    );
    check_file(&part, 1, at)?;
    let place = Mapping::reserve(PAGES * PAGE, HUGE_PAGES * PAGE, 0)?;
    let shared = Mapping::over(place, handle.export()?, 0, RW, MapFlags::SHARED)?;
    let faults = kernel::faults(|| shared.touch());
    ensure!(faults == 4, "{faults} faults by the buffer");
    // Huge pages are taken out, too, and split where a part is.
    shrink()?;
    ensure!(!is_mapped(&shared, HUGE_PAGES) && !is_mapped(&map, 3 * HUGE_PAGES));
    check_file(&map, 1, 0)?;
    let (head, tail) = map.cut_out(7 * PAGE, PAGE)?;
    check_file(&head, 1, 0)?;
    check_file(&tail, 1, 8)
}

/// Has the CPU not cache new objects, for as long as what this returns is there.
pub fn set_write_combine() -> Result<kernel::Setting> {
    kernel::Setting::set("/sys/module/pagekit_gem/parameters/write_combine", "Y")
}

/// How pages that the CPU shall not cache are mapped: on x86 as all others.
pub const WRITE_COMBINED: bool = cfg!(target_arch = "aarch64");

/// Page tables have what an object was made as, in small and huge entries of the node and of the
/// buffer.
fn write_combined(env: &Env) -> Result<()> {
    const PAGES: usize = HUGE_PAGES + 1;
    // What pgprot_writecombine() does elsewhere is not known here.
    if !cfg!(any(target_arch = "aarch64", target_arch = "x86_64")) {
        return Ok(());
    }
    let (card, importer) = (Card::open(&env.device)?, Importer::open()?);
    let cached = card.create_dumb(PAGES)?;
    let setting = set_write_combine()?;
    let combined = card.create_dumb(PAGES)?;
    drop(setting);
    for (handle, write_combined) in [(cached, false), (combined, WRITE_COMBINED)] {
        let place = || Mapping::reserve(PAGES * PAGE, HUGE_PAGES * PAGE, 0);
        let buf = handle.export()?;
        let maps = [
            handle.map(PAGES * PAGE)?,
            Mapping::over(place()?, &buf, 0, RW, MapFlags::SHARED)?,
            Mapping::shared(&card, handle.offset()? + PAGE, PAGE)?,
            Mapping::shared(&buf, PAGE, PAGE)?,
        ];
        write(&maps[0], 1, 0);
        for round in 0..2 {
            for (number, map) in maps.iter().enumerate() {
                map.touch();
                let huge = number < 2;
                let want = Entry {
                    write_combined,
                    huge,
                };
                let entry = importer.entry(map.at(0))?;
                ensure!(entry == want, "mapping {number}: {entry:?}, not {want:?}");
                if huge {
                    let want = Entry {
                        huge: false,
                        ..want
                    };
                    let entry = importer.entry(map.at(HUGE_PAGES * PAGE))?;
                    ensure!(entry == want, "its end: {entry:?}, not {want:?}");
                }
                check_file(map, 1, if huge { 0 } else { 1 })?;
            }
            // What comes back is as it was.
            if round == 0 {
                shrink()?;
                ensure!(!is_mapped(&maps[1], 3) && !is_mapped(&maps[2], 0));
            }
        }
    }
    Ok(())
}

/// Objects that the CPU doesn't cache go to swap and come back, too.
fn write_combined_swaps(env: &Env) -> Result<()> {
    let _setting = set_write_combine()?;
    swap(env)?;
    swap_before_a_device_maps(env)
}

/// They are like others for devices.
fn write_combined_for_devices(env: &Env) -> Result<()> {
    let _setting = set_write_combine()?;
    for case in device::CASES {
        (case.body)(env).with_context(|| case.name)?;
    }
    shrink_spares_used(env)?;
    one_memory(env)
}

/// The kernel takes pages out of all mappings when it wants memory, and they come back.
fn shrinks(env: &Env) -> Result<()> {
    const PAGES: usize = 512;
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(PAGES)?;
    let maps = [
        handle.map(PAGES * PAGE)?,
        Mapping::shared(handle.export()?, 0, PAGES * PAGE)?,
    ];
    write(&maps[0], 1, 0);
    for _ in 0..3 {
        for map in &maps {
            map.touch();
            ensure!(is_mapped(map, 100), "not mapped when touched");
        }
        shrink()?;
        for map in &maps {
            ensure!(!is_mapped(map, 100), "mapped after shrinking");
            check_file(map, 1, 0)?;
        }
    }
    Ok(())
}

/// What a device has mapped stays, for the CPU too.
fn shrink_spares_used(env: &Env) -> Result<()> {
    let buf = filled(env, 1, 16)?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let importers = [Importer::open()?, Importer::open()?];
    let attachments = [
        importers[0].attach(&buf, Kind::Static)?,
        importers[1].attach(&buf, Kind::Dynamic)?,
    ];
    for attachment in &attachments {
        attachment.map(Dir::Both)?;
    }
    let stays = |want: bool| -> Result<()> {
        map.touch();
        shrink()?;
        ensure!(is_mapped(&map, 7) == want, "not {want}");
        check_file(&map, 1, 0)
    };
    stays(true)?;
    attachments[0].unmap()?;
    stays(true)?;
    attachments[1].unmap()?;
    stays(false)?;
    attachments[0].map(Dir::ToDevice)?;
    stays(true)?;
    drop(attachments);
    stays(false)
}

/// So does what a device is still at work with.
fn shrink_spares_fences(env: &Env) -> Result<()> {
    let buf = filled(env, 1, 16)?;
    let map = Mapping::shared(&buf, 0, 16 * PAGE)?;
    let importer = Importer::open()?;
    let attachment = importer.attach(&buf, Kind::Static)?;
    attachment.map(Dir::Both)?;
    let card = Card::find("vgem")?;
    let (_handle, fence) = fence(&card, &buf)?;
    attachment.unmap()?;
    spared_until(&card, fence, &map)?;
    check_file(&map, 1, 0)
}

/// Shrinkers take nothing of what is mapped there before the fence is signalled, and all then.
fn spared_until(card: &Card, fence: u32, map: &Mapping) -> Result<()> {
    map.touch();
    shrink()?;
    ensure!(is_mapped(map, 7), "gone before the fence");
    card.signal(fence)?;
    shrink()?;
    ensure!(!is_mapped(map, 7), "there after the fence");
    Ok(())
}

/// Whether somebody who reads, or who writes, would not have to wait for the buffer.
fn ready(buf: impl AsFd, write: bool) -> Result<bool> {
    let flags = match write {
        true => PollFlags::OUT,
        false => PollFlags::IN,
    };
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    Ok(poll(&mut [PollFd::new(&buf, flags)], Some(&now))? == 1)
}

/// Fences as vgem has them: who waits for whom, and who ends them.
fn fences(env: &Env) -> Result<()> {
    let (card, other) = (Card::open(&env.device)?, Card::open(render(env)?)?);
    let handle = card.create_dumb(16)?;
    let buf = handle.export()?;
    let waits = |read: bool, write: bool| -> Result<()> {
        let seen = (!ready(&buf, false)?, !ready(&buf, true)?);
        ensure!(seen == (read, write), "{seen:?}, not {:?}", (read, write));
        Ok(())
    };
    let wrote = handle.write_fence()?;
    waits(true, true)?;
    ensure!(handle.write_fence() == Err(Errno::BUSY) && handle.read_fence() == Err(Errno::BUSY));
    // Of which file it is says whose it is.
    ensure!(other.signal(wrote) == Err(Errno::NOENT));
    card.signal(wrote)?;
    waits(false, false)?;
    ensure!(card.signal(wrote) == Err(Errno::NOENT));
    let theirs = other.import(buf.as_fd())?;
    let read = [handle.read_fence()?, handle.read_fence()?];
    ensure!(
        read[0] != wrote && read[1] != wrote,
        "a number is used again"
    );
    let last = theirs.read_fence()?;
    waits(false, true)?;
    ensure!(handle.write_fence() == Err(Errno::BUSY));
    card.signal(read[1])?;
    card.signal(read[0])?;
    waits(false, true)?;
    other.signal(last)?;
    waits(false, false)?;
    // Those of a file end with it.
    theirs.write_fence()?;
    let start = Instant::now();
    waits(true, true)?;
    theirs.keep();
    drop(other);
    waits(false, false)?;
    ensure!(start.elapsed() < FENCE_TIMEOUT, "it had expired");
    check_pages(&handle.map(16 * PAGE)?, |_| Content::Zero)
}

/// C: `VGEM_FENCE_TIMEOUT`.
const FENCE_TIMEOUT: Duration = Duration::from_secs(10);

/// Pages stay while there is a fence, for the CPU too.
fn fences_spare_from_shrinks(env: &Env) -> Result<()> {
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(16)?;
    let map = handle.map(16 * PAGE)?;
    write(&map, 1, 0);
    for fence in [Handle::read_fence, Handle::write_fence] {
        spared_until(&card, fence(&handle)?, &map)?;
    }
    check_file(&map, 1, 0)
}

/// A fence of an import is one of the buffer.
fn fences_of_imports(env: &Env) -> Result<()> {
    let card = Card::open(&env.device)?;
    let (_memfd, buf) = foreign(2, 16)?;
    let import = card.import(buf.as_fd())?;
    let fence = import.write_fence()?;
    ensure!(!ready(&buf, false)?, "no fence");
    ensure!(import.read_fence() == Err(Errno::BUSY));
    // It outlives the import.
    drop(import);
    ensure!(!ready(&buf, false)?, "the fence goes with the import");
    card.signal(fence)?;
    ensure!(ready(&buf, true)?, "there after it was signalled");
    Ok(())
}

/// CPU access waits for a fence, and at some time nobody waits any more.
fn fences_expire(env: &Env) -> Result<()> {
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(16)?;
    let buf = handle.export()?;
    let start = Instant::now();
    let fence = handle.write_fence()?;
    abi::with_cpu_access(&buf, abi::SYNC_READ, || Ok(()))?;
    let took = start.elapsed();
    ensure!(took > FENCE_TIMEOUT / 2, "{took:?}");
    ensure!(card.signal(fence) == Err(Errno::TIMEDOUT));
    ensure!(card.signal(fence) == Err(Errno::NOENT));
    let fence = handle.write_fence()?;
    card.signal(fence)?;
    Ok(())
}

const SWAPPED: usize = 1024;

/// Pages that nobody needs are swapped out when memory is short, and come back as they were.
fn swap(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(64 << 20)?;
    let (card, used) = (Card::open(&env.device)?, Card::open(&env.device)?);
    let (handle, other) = (card.create_dumb(SWAPPED)?, used.create_dumb(16)?);
    let (map, kept) = (handle.map(SWAPPED * PAGE)?, other.map(16 * PAGE)?);
    write(&kept, 2, 0);
    let importer = Importer::open()?;
    let attachment = importer.attach(other.export()?, Kind::Static)?;
    attachment.map(Dir::Both)?;
    for round in 0..2 {
        // Through the mapping, so that only the driver knows that they are dirty.
        for page in (0..SWAPPED).step_by(1 + 2 * round) {
            map.write(page * PAGE, &Content::Page(1, page).bytes());
        }
        ensure!(resident(&card)? == SWAPPED, "{}", resident(&card)?);
        squeeze(|| Ok(resident(&card)? == 0))?;
        ensure!(!is_mapped(&map, 100), "mapped, but in swap");
        if round == 0 {
            check_file(&map, 1, 0)?;
        } else {
            check_file(&Mapping::shared(handle.export()?, 0, SWAPPED * PAGE)?, 1, 0)?;
        }
    }
    ensure!(resident(&used)? == 16 && is_mapped(&kept, 3));
    check_file(&kept, 2, 0)
}

fn swap_before_a_device_maps(env: &Env) -> Result<()> {
    let _swap = ZramSwap::new(32 << 20)?;
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(256)?;
    write(&handle.map(256 * PAGE)?, 1, 0);
    let buf = handle.export()?;
    for way in [Through::Dma, Through::Vmap] {
        squeeze(|| Ok(resident(&card)? == 0))?;
        let mut bytes = vec![0; 256 * PAGE];
        Importer::open()?.read(&buf, way, 0, &mut bytes)?;
        for (page, bytes) in bytes.chunks_exact(PAGE).enumerate() {
            Content::Page(1, page).check(bytes.try_into()?)?;
        }
    }
    // What a device has written is in memory only: it must get to swap, too.
    let content = Content::Page(2, 100);
    Importer::open()?.write(&buf, Through::Dma, 100 * PAGE, &content.bytes())?;
    squeeze(|| Ok(resident(&card)? == 0))?;
    content.check(&handle.map(256 * PAGE)?.page(100))
}

/// Threads of one process fault while pages go, and none sees others.
fn faults_beside_shrinks(env: &Env) -> Result<()> {
    const PAGES: usize = 64;
    let buf = filled(env, 1, PAGES)?;
    let maps = [(); 2].map(|()| Mapping::shared(&buf, 0, PAGES * PAGE));
    let importer = Importer::open()?;
    std::thread::scope(|scope| {
        let readers = maps.map(|map| {
            scope.spawn(|| -> Result<()> {
                let map = map?;
                (0..100).try_for_each(|_| check_file(&map, 1, 0))
            })
        });
        // Others reserve the object meanwhile, so that faults find it so.
        let maps = scope.spawn(|| -> Result<()> {
            let attachment = importer.attach(&buf, Kind::Static)?;
            for _ in 0..100 {
                attachment.map(Dir::ToDevice)?;
                attachment.unmap()?;
            }
            Ok(())
        });
        for _ in 0..20 {
            shrink()?;
        }
        for thread in readers.into_iter().chain([maps]) {
            let result = thread.join();
            result.unwrap_or_else(|_| anyhow::bail!("panic"))?;
        }
        Ok(())
    })
}

/// Nothing of a process that is killed stays.
fn killed_with_handles(env: &Env) -> Result<()> {
    let before = kernel::buffers()?;
    let child = Child::spawn(|| {
        let card = Card::open(&env.device)?;
        let handles: Vec<Handle<'_>> = (0..8)
            .map(|_| card.create_dumb(32))
            .collect::<Result<_, _>>()?;
        let _bufs = handles
            .iter()
            .map(Handle::export)
            .collect::<Result<Vec<_>, _>>()?;
        let maps = handles.iter().map(|handle| handle.map(32 * PAGE));
        let maps: Vec<_> = maps.collect::<Result<_, _>>()?;
        maps.iter().for_each(Mapping::touch);
        // SAFETY: it ends here.
        unsafe { libc::raise(libc::SIGKILL) };
        Ok(())
    })?;
    let end = child.wait()?;
    ensure!(end == End::Killed(libc::SIGKILL), "{end:?}");
    ensure!(kernel::buffers()? == before, "buffers stay");
    Ok(())
}

/// What is open or exported keeps the module.
fn unload_refused(env: &Env) -> Result<()> {
    let unload = || {
        // SAFETY: a NUL-terminated name.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_delete_module,
                c"pagekit_gem".as_ptr(),
                libc::O_NONBLOCK,
            )
        };
        (ret != 0).then(pagekit_user::mapping::last_errno)
    };
    let buf = pages_of(env, 1)?;
    ensure!(unload() == Some(Errno::AGAIN), "unloaded with a buffer");
    let map = Mapping::shared(&buf, 0, PAGE)?;
    drop(buf);
    ensure!(unload() == Some(Errno::AGAIN), "unloaded with a mapping");
    drop(map);
    let _card = Card::open(&env.device)?;
    ensure!(unload() == Some(Errno::AGAIN), "unloaded with a file");
    Ok(())
}
