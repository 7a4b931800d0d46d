// SPDX-License-Identifier: GPL-2.0
//! i915_style takes pages away from whoever has them mapped, and others.

use std::os::fd::AsFd;

use anyhow::{ensure, Context, Result};
use pagekit_user::mapping::Mapping;
use pagekit_user::style::{Object, MAP_READ, MAP_WRITE, SHRINK_REVOKE};
use pagekit_user::test_importer::{Dir, Importer, Kind};
use pagekit_user::{kernel, PAGE};
use rustix::io::Errno;

use super::{allow, at, race, see_map, see_object, side, Side, DYNAMIC, PAGES, STATIC};
use crate::env::{Content, Env};
use crate::groups::Case;
use crate::style::written;

pub const CASES: &[Case] = &[
    Case::new("fault_revoke", fault_revoke),
    Case::new("fault_shrink", fault_shrink),
    Case::new("shrink_map", shrink_map),
    Case::new("attach_revoke", attach_revoke),
    Case::new("map_unmap", map_unmap),
];

/// What is written through a mapping is what is read, also after a while.
fn faults<'a>(buf: impl AsFd, first: usize, pages: usize) -> Result<Side<'a>> {
    let map = Mapping::shared(buf, first * PAGE, pages * PAGE)?;
    let mut round = 0;
    Ok(side("fault", move || {
        round += 1;
        let page = round % pages;
        let content = Content::Page(round as u8, first + page);
        map.write(page * PAGE, &content.bytes());
        content.check(&map.page(page))?;
        std::thread::yield_now();
        content.check(&map.page(page)).context("later")?;
        Ok(true)
    }))
}

/// Held pages are given back.
fn shrinks(object: &Object) -> Side<'_> {
    side("shrink", || Ok(object.shrink(0)? > 0))
}

/// All shrinkers are asked to give back what they can.
fn reclaims<'a>() -> Side<'a> {
    side("reclaim", || {
        kernel::write("/proc/sys/vm/drop_caches", "2")?;
        Ok(true)
    })
}

/// Importers that can do without are asked to. `EBUSY`: one of them can't.
fn revokes(object: &Object) -> Side<'_> {
    side("revoke", || {
        let given = allow(object.shrink(SHRINK_REVOKE), &[Errno::BUSY])?;
        Ok(given.is_some_and(|pages| pages > 0))
    })
}

/// A device maps the object, sees what is there, and unmaps it.
fn maps<'a>(name: &'static str, importer: &str, buf: impl AsFd) -> Result<Side<'a>> {
    let import = Object::of(importer, buf)?;
    Ok(side(name, move || {
        import.map(MAP_READ | MAP_WRITE)?;
        see_object(&import)?;
        import.unmap()?;
        Ok(true)
    }))
}

fn is_at_rest(object: &Object) -> Result<()> {
    let info = object.info()?;
    ensure!(info.pinned == 0 && info.mappings == 0, "{info:?}");
    ensure!(object.shrink(0)? as u64 == info.held, "{info:?}");
    Ok(())
}

fn fault_revoke(env: &Env) -> Result<()> {
    let object = written(&at("i915"), 1, 3 * PAGES)?;
    let buf = object.export()?;
    let import = Object::of(DYNAMIC, &buf)?;
    let mut round = 0;
    let device = || {
        round += 1;
        let at = 2 * PAGES + round % PAGES;
        let (content, mut bytes) = (Content::Page(round as u8, at), [0; PAGE]);
        import.map(MAP_READ | MAP_WRITE)?;
        import.write(at * PAGE, &content.bytes())?;
        import.read(at * PAGE, &mut bytes)?;
        import.unmap()?;
        content.check(&bytes)?;
        Ok(true)
    };
    race(
        env.time,
        vec![
            faults(&buf, 0, PAGES)?,
            revokes(&object),
            faults(&buf, PAGES, PAGES)?,
            side("device", device),
        ],
    )?;
    drop(import);
    is_at_rest(&object)
}

fn fault_shrink(env: &Env) -> Result<()> {
    let object = written(&at("i915"), 1, 2 * PAGES)?;
    let buf = object.export()?;
    race(
        env.time,
        vec![
            faults(&buf, 0, PAGES)?,
            shrinks(&object),
            reclaims(),
            faults(&buf, PAGES, PAGES)?,
        ],
    )?;
    is_at_rest(&object)
}

fn shrink_map(env: &Env) -> Result<()> {
    let object = written(&at("i915"), 1, PAGES)?;
    let buf = object.export()?;
    let map = Mapping::shared(&buf, 0, PAGES * PAGE)?;
    // Held pages are what there is to shrink.
    let cpu = || {
        see_map(&map, 0, false)?;
        Ok(true)
    };
    race(
        env.time,
        vec![
            maps("static", STATIC, &buf)?,
            shrinks(&object),
            maps("dynamic", DYNAMIC, &buf)?,
            reclaims(),
            side("fault", cpu),
        ],
    )?;
    is_at_rest(&object)
}

fn attach_revoke(env: &Env) -> Result<()> {
    let object = written(&at("i915"), 1, PAGES)?;
    let buf = object.export()?;
    let importer = Importer::open()?;
    // With a mapping or without one.
    let attach = || {
        drop(Object::of(STATIC, &buf)?);
        let import = Object::of(DYNAMIC, &buf)?;
        import.map(MAP_READ)?;
        see_object(&import)?;
        Ok(true)
    };
    let detach = || {
        let attachment = importer.attach(&buf, Kind::Dynamic)?;
        attachment.map(Dir::Both)?;
        drop(attachment);
        Ok(true)
    };
    race(
        env.time,
        vec![
            side("attach", attach),
            revokes(&object),
            side("detach", detach),
        ],
    )?;
    ensure!(object.info()?.attachments == 0, "{:?}", object.info()?);
    is_at_rest(&object)
}

/// Two threads have one imported object, and its exporter takes it away from both.
fn map_unmap(env: &Env) -> Result<()> {
    let object = written(&at("i915"), 1, PAGES)?;
    let buf = object.export()?;
    for importer in [STATIC, DYNAMIC] {
        let import = Object::of(importer, &buf)?;
        let map = || Ok(allow(import.map(MAP_READ), &[Errno::BUSY])?.is_some());
        let unmap = || Ok(allow(import.unmap(), &[Errno::INVAL])?.is_some());
        let access = || see_object(&import).map(|()| true);
        // Mostly there is nothing to be had.
        let revoke = || Ok(allow(object.shrink(SHRINK_REVOKE), &[Errno::BUSY])?.is_some());
        let sides = vec![
            side("map", map),
            side("unmap", unmap),
            side("access", access),
            side("revoke", revoke),
        ];
        race(env.time / 2, sides).context(importer)?;
        drop(import);
        is_at_rest(&object)?;
    }
    Ok(())
}
