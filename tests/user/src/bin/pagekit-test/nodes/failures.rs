// SPDX-License-Identifier: GPL-2.0
//! What can fail at the nodes fails in turn.

use anyhow::Result;
use pagekit_user::{abi, PAGE};

use super::{see_all, touch, Node, PAGES};
use crate::env::{written, Env};
use crate::failures::inject::each;
use crate::failures::{each_drop, map_nowhere, open};
use crate::groups::Case;

pub const CASES: &[Case] = &[Case::new("open", open), Case::new("mmap", mmap).smoke()];

/// For those that map on fault.
pub const FAULT_CASES: &[Case] = &[Case::new("fault", fault).smoke()];

/// These don't depend on how it maps.
pub const FILE_CASES: &[Case] = &[Case::new("show_file", show_file), Case::new("put", put)];

fn mmap(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    each(
        || Ok(()),
        |()| map_nowhere(&node.file, PAGES),
        |(), map| see_all(&map, 0),
    )
}

/// In what can be a huge page, and in what can't.
fn fault(env: &Env) -> Result<()> {
    let node = Node::open(env)?;
    for page in [0, PAGES - 1] {
        each(
            || Ok(map_nowhere(&node.file, PAGES)?),
            |map| {
                touch(map, page);
                Ok(())
            },
            |map, ()| see_all(map, 0),
        )?;
    }
    Ok(())
}

fn show_file(env: &Env) -> Result<()> {
    let memfd = written(1, 16)?;
    each(
        || Node::open(env),
        |node| node.show_file(&memfd, 3, 8),
        |node, ()| see_all(&node.map(0, 8)?, 3),
    )
}

/// When the node is closed, it marks the pages of the file.
fn put(env: &Env) -> Result<()> {
    each_drop(|| Node::of_file(env, &abi::memfd(16 * PAGE as u64)?, 0, 16))
}
