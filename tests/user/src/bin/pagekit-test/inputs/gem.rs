// SPDX-License-Identifier: GPL-2.0
//! What a GEM driver refuses: dumb buffers, handles, and mappings of its node.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::Result;
use pagekit_user::drm::{Card, Dumb, FenceAttach, FenceSignal, FENCE_WRITE};
use pagekit_user::mapping::{Mapping, RW};
use pagekit_user::PAGE;
use rustix::mm::{MapFlags, ProtFlags};

use super::{rows, tried};
use crate::env::Env;
use crate::groups::{Outcome, Row};

const PAGES: usize = 8;

pub const ROWS: &[&[Row]] = &[
    rows! { "DRM_IOCTL_MODE_CREATE_DUMB", create;
    create_no_height: "no rows" => INVAL, "core: drm_mode_create_dumb(): height", |d| d.height = 0;
    create_no_width: "no columns" => INVAL, "core: drm_mode_create_dumb(): width", |d| d.width = 0;
    create_no_bpp: "no bits" => INVAL, "core: drm_mode_create_dumb(): bpp", |d| d.bpp = 0;
    create_overflow: "2^32 - 1 squared" => INVAL, "core: drm_mode_create_dumb(): overflow",
        |d| (d.width, d.height) = (u32::MAX, u32::MAX);
    },
    rows! { "handle of an object", handle;
    handle_unknown: "no object" => NOENT, "core: drm_gem_prime_handle_to_dmabuf(): lookup", |h| *h += 77;
    handle_zero: "0" => NOENT, "core: drm_gem_prime_handle_to_dmabuf(): lookup", |h| *h = 0;
    },
    rows! { "DRM_IOCTL_PRIME_FD_TO_HANDLE", import;
    import_no_fd: "-1" => BADF, "core: dma_buf_get(): fget()", |fd| *fd = -1;
    import_no_buffer: "a file that is no dma-buf" => INVAL, "core: dma_buf_get(): is_dma_buf_file()", |fd| *fd = 0;
    },
    rows! { "DRM_IOCTL_VGEM_FENCE_ATTACH", fence;
    fence_flags: "flag 2" => INVAL, "gem.rs fence_attach(): flags", |f| f.flags |= FENCE_WRITE << 1;
    fence_pad: "pad 1" => INVAL, "gem.rs fence_attach(): pad", |f| f.pad = 1;
    fence_handle: "no object" => NOENT, "gem.rs fence_attach(): lookup_handle()", |f| f.handle += 77;
    },
    rows! { "DRM_IOCTL_VGEM_FENCE_SIGNAL", signal;
    signal_flags: "flag 1" => INVAL, "gem.rs fence_signal(): flags", |s| s.flags = 1;
    signal_unknown: "no fence" => NOENT, "fence.rs signal(): pending", |s| s.fence += 77;
    signal_zero: "fence 0" => NOENT, "fence.rs signal(): pending", |s| s.fence = 0;
    signal_max: "fence 2^32 - 1" => NOENT, "fence.rs signal(): pending", |s| s.fence = !0;
    },
    rows! { "mmap of a node", mmap;
    node_past_end: "9 of 8 pages" => INVAL, "drm.rs lookup()", |m| m.pages = PAGES + 1;
    node_crosses_end: "2 pages from page 7 of 8" => INVAL, "drm.rs lookup()", |m| (m.first, m.pages) = (PAGES - 1, 2);
    node_offset_0: "offset 0 of the node" => INVAL, "drm.rs lookup()", |m| m.first = usize::MAX;
    node_private: "MAP_PRIVATE" => INVAL, "vma.rs is_cow(): MAYWRITE", |m| m.flags = MapFlags::PRIVATE;
    node_private_read: "MAP_PRIVATE, PROT_READ" => INVAL, "vma.rs is_cow(): MAYWRITE, not WRITE",
        |m| (m.flags, m.prot) = (MapFlags::PRIVATE, ProtFlags::READ);
    },
];

fn create(env: &Env, change: impl FnOnce(&mut Dumb) -> Result<()>) -> Outcome {
    let card = Card::open(&env.device)?;
    let good = Dumb {
        width: 64,
        height: 64,
        bpp: 32,
    };
    let mut bad = good;
    change(&mut bad)?;
    tried(
        || card.create(bad).map(drop),
        || card.create(good).map(drop),
    )
}

fn handle(env: &Env, change: impl FnOnce(&mut u32) -> Result<()>) -> Outcome {
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(PAGES)?;
    let mut bad = handle.handle;
    change(&mut bad)?;
    tried(
        || card.export(bad).map(drop),
        || card.export(handle.handle).map(drop),
    )
}

fn import(env: &Env, change: impl FnOnce(&mut i32) -> Result<()>) -> Outcome {
    let card = Card::open(&env.device)?;
    let buf = env.filled(1, PAGES)?;
    let mut bad = buf.as_raw_fd();
    change(&mut bad)?;
    tried(
        || card.import_raw(bad).map(drop),
        || card.import(buf.as_fd()).map(drop),
    )
}

fn fence(env: &Env, change: impl FnOnce(&mut FenceAttach) -> Result<()>) -> Outcome {
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(PAGES)?;
    let good = FenceAttach {
        handle: handle.handle,
        flags: FENCE_WRITE,
        out_fence: 0,
        pad: 0,
    };
    let mut bad = good;
    change(&mut bad)?;
    tried(
        || card.attach_fence(bad).map(drop),
        || card.signal(card.attach_fence(good)?),
    )
}

fn signal(env: &Env, change: impl FnOnce(&mut FenceSignal) -> Result<()>) -> Outcome {
    let card = Card::open(&env.device)?;
    let fence = card.create_dumb(PAGES)?.write_fence()?;
    let good = FenceSignal { fence, flags: 0 };
    let mut bad = good;
    change(&mut bad)?;
    tried(|| card.signal_with(bad), || card.signal_with(good))
}

struct Map {
    first: usize,
    pages: usize,
    prot: ProtFlags,
    flags: MapFlags,
}

fn mmap(env: &Env, change: impl FnOnce(&mut Map) -> Result<()>) -> Outcome {
    let card = Card::open(&env.device)?;
    let handle = card.create_dumb(PAGES)?;
    let offset = handle.offset()?;
    let mut bad = Map {
        first: 0,
        pages: PAGES,
        prot: RW,
        flags: MapFlags::SHARED,
    };
    change(&mut bad)?;
    let at = match bad.first {
        usize::MAX => 0,
        first => offset + first * PAGE,
    };
    tried(
        || Mapping::new(&card, at, bad.pages * PAGE, bad.prot, bad.flags).map(drop),
        || handle.map(PAGES * PAGE).map(drop),
    )
}
