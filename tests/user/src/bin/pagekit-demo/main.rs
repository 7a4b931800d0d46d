// SPDX-License-Identifier: GPL-2.0
//! Shares a file through a dma-buf: with other mappings, with another driver and
//! with another process, and checks at each step that all see the same memory.

mod second;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use lexopt::prelude::*;
use pagekit_user::abi::{self, UdmabufCreate, SYNC_READ, UDMABUF_FLAGS_CLOEXEC};
use pagekit_user::drm::{same_buffer, Card};
use pagekit_user::mapping::Mapping;
use pagekit_user::{kernel, PAGE};
use sha2::{Digest, Sha256};

use second::Second;

const CHUNK: usize = 1 << 20;
/// How much of the file a mapping at an offset shows.
const WINDOW: usize = 256 * PAGE;
/// What is left for the rest of the system.
const RESERVE: u64 = 48 << 20;

type Sum = [u8; 32];

fn main() -> ExitCode {
    match parse_args().and_then(|(device, file)| demo(&device, &file)) {
        Ok(()) => {
            println!("demo: ok");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("demo: FAILED: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn parse_args() -> Result<(PathBuf, PathBuf)> {
    const USAGE: &str = "usage: pagekit-demo --device DEV FILE";
    let (mut device, mut file) = (None, None);
    let mut parser = lexopt::Parser::from_env();
    while let Some(arg) = parser.next()? {
        match arg {
            Long("device") => device = Some(PathBuf::from(parser.value()?)),
            Value(value) if file.is_none() => file = Some(PathBuf::from(value)),
            Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            _ => bail!("{}; {USAGE}", arg.unexpected()),
        }
    }
    Ok((device.context(USAGE)?, file.context(USAGE)?))
}

fn demo(device: &Path, path: &Path) -> Result<()> {
    let (file, len) = open(path)?;
    let size = usize::try_from(len)?.next_multiple_of(PAGE);
    let pages = size / PAGE;
    // Started first, so that it inherits none of what follows.
    let second = Second::start()?;
    let pins_before = kernel::pins()?;

    println!("sharing {}: {len} bytes, {pages} pages", path.display());
    println!("{:<22} {:>15}  {:<16}  where", "step", "pages", "sha256");

    let memfd = abi::memfd(size as u64)?;
    let sum = copy(&file, &memfd, len).with_context(|| format!("reading {}", path.display()))?;
    let file_len = len as usize;
    row("written to a memfd", 0..pages, &sum, "memfd");

    let dev = File::options().read(true).write(true).open(device);
    let dev = dev.with_context(|| format!("opening {}", device.display()))?;
    let arg = UdmabufCreate {
        memfd: memfd.as_raw_fd() as u32,
        flags: UDMABUF_FLAGS_CLOEXEC,
        offset: 0,
        size: size as u64,
    };
    let buf = abi::create(&dev, &arg).context("UDMABUF_CREATE")?;
    ensure!(
        abi::size(&buf)? == size as u64,
        "the dma-buf has {} bytes, not {size}",
        abi::size(&buf)?
    );
    let exporter = abi::fdinfo(buf.as_raw_fd(), "exp_name")?;
    let pins_shared = kernel::pins()?;

    let whole = Mapping::shared(&buf, 0, size).context("mapping the dma-buf")?;
    let mapped = abi::with_cpu_access(&buf, SYNC_READ, || {
        ensure!(
            zeros(&whole, file_len),
            "the end of the last page is not zero"
        );
        Ok(checksum(&whole, file_len))
    })?;
    row("mapped whole", 0..pages, &mapped, &address(&whole));
    ensure!(mapped == sum, "the mapped buffer is not the file");

    for first in offsets(pages) {
        let len = WINDOW.min(size - first * PAGE);
        let map = Mapping::shared(&buf, first * PAGE, len)
            .with_context(|| format!("mapping from page {first}"))?;
        let mapped = abi::with_cpu_access(&buf, SYNC_READ, || Ok(checksum(&map, len)))?;
        row(
            "mapped at an offset",
            first..first + len / PAGE,
            &mapped,
            &address(&map),
        );
        ensure!(
            mapped == file_checksum(&memfd, first * PAGE, len)?,
            "the mapping from page {first} shows something else"
        );
    }

    let card = Card::find("vgem")?;
    let handle = card.import(buf.as_fd()).context("importing into vgem")?;
    let again = handle.export().context("exporting from vgem")?;
    ensure!(
        same_buffer(&buf, &again)?,
        "vgem re-exports another dma-buf"
    );
    let mapped = checksum(&Mapping::shared(&again, 0, size)?, file_len);
    let place = format!("vgem handle {}: the same dma-buf", handle.handle);
    row("imported into vgem", 0..pages, &mapped, &place);
    ensure!(mapped == sum, "the buffer from vgem is not the file");
    drop((handle, again));

    let reply = second.share(buf.as_fd(), file_len, &sum)?;
    let place = format!("{:#x} in process {}", reply.address, reply.pid);
    row("second process", 0..pages, &reply.sum, &place);
    ensure!(reply.sum == sum, "the second process saw something else");
    // It wrote through the buffer; the memfd must show it.
    let text = second::reply_text(reply.pid, &sum);
    let at = reply.page * PAGE;
    let mut bytes = vec![0; text.len()];
    memfd.read_exact_at(&mut bytes, at as u64)?;
    ensure!(
        bytes == text.as_bytes(),
        "the memfd doesn't have the reply, but {:?}",
        String::from_utf8_lossy(&bytes)
    );
    let replied = abi::with_cpu_access(&buf, SYNC_READ, || Ok(checksum(&whole, file_len)))?;
    row(
        "its reply, in memfd",
        reply.page..reply.page + 1,
        &replied,
        &format!("{text:.40}..."),
    );
    ensure!(
        replied == file_checksum(&memfd, 0, file_len)?,
        "after the reply, buffer and memfd differ"
    );
    // The other way round: the file's own bytes again, through the memfd.
    restore(&file, &memfd, at, text.len(), file_len)?;
    let restored = abi::with_cpu_access(&buf, SYNC_READ, || Ok(checksum(&whole, file_len)))?;
    row("restored by memfd", 0..pages, &restored, &address(&whole));
    ensure!(restored == sum, "the buffer is not the file any more");
    ensure!(
        zeros(&whole, file_len),
        "the end of the last page is not zero"
    );

    drop((whole, buf, memfd));
    let pins_after = kernel::pins()?;
    println!(
        "exported by {exporter}; pages pinned in the system before: {pins_before}, \
         while shared: {pins_shared}, after: {pins_after}"
    );
    ensure!(pins_shared > pins_before, "nothing was pinned while shared");
    ensure!(
        pins_after == pins_before,
        "{} pins are left",
        pins_after - pins_before
    );
    Ok(())
}

/// The file, if it can be shared.
fn open(path: &Path) -> Result<(File, u64)> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("can't read {name}"))?;
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "{name} is not a regular file");
    let (len, mib) = (meta.len(), |bytes: u64| bytes.div_ceil(1 << 20));
    ensure!(len > 0, "{name} is empty");
    let free = kernel::memory("MemAvailable")?;
    ensure!(
        // The buffer itself, and some bytes for each of its pages.
        len.saturating_add(len / 128).saturating_add(RESERVE) <= free,
        "{name} is too large: {} MiB, and {} MiB of memory are free here, {} of which are needed otherwise",
        mib(len),
        mib(free),
        mib(RESERVE)
    );
    Ok((file, len))
}

/// Copies `len` bytes and returns their checksum.
fn copy(mut file: &File, memfd: &File, len: u64) -> Result<Sum> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut at = 0;
    while at < len {
        let part = &mut chunk[..CHUNK.min((len - at) as usize)];
        file.read_exact(part)?;
        hash.update(&part);
        memfd.write_all_at(part, at)?;
        at += part.len() as u64;
    }
    Ok(hash.finalize().into())
}

/// Writes what the file has at `at`, and zeros behind its end, to the memfd.
fn restore(file: &File, memfd: &File, at: usize, len: usize, file_len: usize) -> Result<()> {
    let mut bytes = vec![0; len];
    let in_file = len.min(file_len.saturating_sub(at));
    file.read_exact_at(&mut bytes[..in_file], at as u64)?;
    Ok(memfd.write_all_at(&bytes, at as u64)?)
}

/// The checksum of the mapping's first `len` bytes.
fn checksum(map: &Mapping, len: usize) -> Sum {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        let part = &mut chunk[..CHUNK.min(len - at)];
        map.read(at, part);
        hash.update(&part);
    }
    hash.finalize().into()
}

/// The checksum of part of a file, through read().
fn file_checksum(file: &File, start: usize, len: usize) -> Result<Sum> {
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    for at in (0..len).step_by(CHUNK) {
        let part = &mut chunk[..CHUNK.min(len - at)];
        file.read_exact_at(part, (start + at) as u64)?;
        hash.update(&part);
    }
    Ok(hash.finalize().into())
}

/// Whether the mapping has only zeros from `start`, in its last page.
fn zeros(map: &Mapping, start: usize) -> bool {
    let mut rest = vec![0; map.len() - start];
    map.read(start, &mut rest);
    rest.iter().all(|&byte| byte == 0)
}

/// Pages other than the first to map from.
fn offsets(pages: usize) -> Vec<usize> {
    let mut offsets = vec![1, pages / 3, pages / 2, pages - 1];
    offsets.retain(|&page| 0 < page && page < pages);
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn address(map: &Mapping) -> String {
    format!("{:p}", map.at(0))
}

fn row(step: &str, pages: std::ops::Range<usize>, sum: &Sum, place: &str) {
    let (from, to) = (pages.start, pages.end - 1);
    println!(
        "{step:<22} {:>15}  {}  {place}",
        format!("{from}..{to}"),
        hex(&sum[..8])
    );
    // Steps take time with large files: show each when it is done.
    let _ = std::io::stdout().flush();
}
