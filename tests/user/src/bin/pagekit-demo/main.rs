// SPDX-License-Identifier: GPL-2.0
//! Shares a file through a dma-buf: with other mappings, with another driver and
//! with another process, and checks at each step that all see the same memory.

mod second;
mod sum;

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use lexopt::prelude::*;
use pagekit_user::abi::{self, UdmabufCreate, SYNC_READ, UDMABUF_FLAGS_CLOEXEC};
use pagekit_user::drm::{same_buffer, Card};
use pagekit_user::mapping::Mapping;
use pagekit_user::{kernel, PAGE};

use second::Second;
use sum::{checksum, copy, file_checksum, hex, zeros, Sum};

/// How much of the file a mapping at an offset shows.
const WINDOW: usize = 256 * PAGE;
/// What is left for the rest of the system.
const RESERVE: u64 = 48 << 20;
const PAST_END: &str = "the end of the last page is not zero";

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
    // Started first, so that it inherits none of what follows.
    let second = Second::start()?;
    let pins_before = kernel::pins()?;

    let shared = Shared::new(device, path, file, len)?;
    let exporter = abi::fdinfo(shared.buf.as_raw_fd(), "exp_name")?;
    let pins_shared = kernel::pins()?;
    let whole = shared.map_whole()?;
    shared.map_at_offsets()?;
    shared.import_into_vgem()?;
    shared.share_with(second, &whole)?;

    drop((whole, shared));
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

/// A file, the memfd that it was copied to, and a dma-buf of that.
struct Shared {
    file: File,
    len: usize,
    sum: Sum,
    memfd: File,
    buf: OwnedFd,
    /// Of memfd and buffer: whole pages.
    size: usize,
}

impl Shared {
    fn new(device: &Path, path: &Path, file: File, len: u64) -> Result<Self> {
        let size = usize::try_from(len)?.next_multiple_of(PAGE);
        let pages = size / PAGE;
        println!("sharing {}: {len} bytes, {pages} pages", path.display());
        println!("{:<22} {:>15}  {:<16}  where", "step", "pages", "sha256");

        let memfd = abi::memfd(size as u64)?;
        let sum =
            copy(&file, &memfd, len).with_context(|| format!("reading {}", path.display()))?;
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
        let has = abi::size(&buf)?;
        ensure!(
            has == size as u64,
            "the dma-buf has {has} bytes, not {size}"
        );
        Ok(Self {
            file,
            len: len as usize,
            sum,
            memfd,
            buf,
            size,
        })
    }

    fn pages(&self) -> Range<usize> {
        0..self.size / PAGE
    }

    /// Of the first `len` bytes of a mapping of the buffer.
    fn checksum(&self, map: &Mapping, len: usize) -> Result<Sum> {
        abi::with_cpu_access(&self.buf, SYNC_READ, || Ok(checksum(map, len)))
    }

    fn map_whole(&self) -> Result<Mapping> {
        let whole = Mapping::shared(&self.buf, 0, self.size).context("mapping the dma-buf")?;
        let mapped = abi::with_cpu_access(&self.buf, SYNC_READ, || {
            ensure!(zeros(&whole, self.len), PAST_END);
            Ok(checksum(&whole, self.len))
        })?;
        row("mapped whole", self.pages(), &mapped, &address(&whole));
        ensure!(mapped == self.sum, "the mapped buffer is not the file");
        Ok(whole)
    }

    fn map_at_offsets(&self) -> Result<()> {
        for first in offsets(self.size / PAGE) {
            let len = WINDOW.min(self.size - first * PAGE);
            let map = Mapping::shared(&self.buf, first * PAGE, len)
                .with_context(|| format!("mapping from page {first}"))?;
            let mapped = self.checksum(&map, len)?;
            let pages = first..first + len / PAGE;
            row("mapped at an offset", pages, &mapped, &address(&map));
            ensure!(
                mapped == file_checksum(&self.memfd, first * PAGE, len)?,
                "the mapping from page {first} shows something else"
            );
        }
        Ok(())
    }

    fn import_into_vgem(&self) -> Result<()> {
        let card = Card::find("vgem")?;
        let handle = (card.import(self.buf.as_fd())).context("importing into vgem")?;
        let again = handle.export().context("exporting from vgem")?;
        ensure!(
            same_buffer(&self.buf, &again)?,
            "vgem re-exports another dma-buf"
        );
        let mapped = checksum(&Mapping::shared(&again, 0, self.size)?, self.len);
        let place = format!("vgem handle {}: the same dma-buf", handle.handle);
        row("imported into vgem", self.pages(), &mapped, &place);
        ensure!(mapped == self.sum, "the buffer from vgem is not the file");
        Ok(())
    }

    /// With another process, which writes to it, too.
    fn share_with(&self, second: Second, whole: &Mapping) -> Result<()> {
        let reply = second.share(self.buf.as_fd(), self.len, &self.sum)?;
        let place = format!("{:#x} in process {}", reply.address, reply.pid);
        row("second process", self.pages(), &reply.sum, &place);
        ensure!(
            reply.sum == self.sum,
            "the second process saw something else"
        );
        // It wrote through the buffer; the memfd must show it.
        let text = second::reply_text(reply.pid, &self.sum);
        let at = reply.page * PAGE;
        let mut bytes = vec![0; text.len()];
        self.memfd.read_exact_at(&mut bytes, at as u64)?;
        ensure!(
            bytes == text.as_bytes(),
            "the memfd doesn't have the reply, but {:?}",
            String::from_utf8_lossy(&bytes)
        );
        let replied = self.checksum(whole, self.len)?;
        row(
            "its reply, in memfd",
            reply.page..reply.page + 1,
            &replied,
            &format!("{text:.40}..."),
        );
        ensure!(
            replied == file_checksum(&self.memfd, 0, self.len)?,
            "after the reply, buffer and memfd differ"
        );
        // The other way round: the file's own bytes again, through the memfd.
        restore(&self.file, &self.memfd, at, text.len(), self.len)?;
        let restored = self.checksum(whole, self.len)?;
        row(
            "restored by memfd",
            self.pages(),
            &restored,
            &address(whole),
        );
        ensure!(restored == self.sum, "the buffer is not the file any more");
        ensure!(zeros(whole, self.len), PAST_END);
        Ok(())
    }
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

/// Writes what the file has at `at`, and zeros behind its end, to the memfd.
fn restore(file: &File, memfd: &File, at: usize, len: usize, file_len: usize) -> Result<()> {
    let mut bytes = vec![0; len];
    let in_file = len.min(file_len.saturating_sub(at));
    file.read_exact_at(&mut bytes[..in_file], at as u64)?;
    Ok(memfd.write_all_at(&bytes, at as u64)?)
}

/// Pages other than the first to map from.
fn offsets(pages: usize) -> Vec<usize> {
    let mut offsets = vec![1, pages / 3, pages / 2, pages - 1];
    offsets.retain(|&page| 0 < page && page < pages);
    offsets.sort_unstable();
    offsets.dedup();
    offsets
}

fn address(map: &Mapping) -> String {
    format!("{:p}", map.at(0))
}

fn row(step: &str, pages: Range<usize>, sum: &Sum, place: &str) {
    let (from, to) = (pages.start, pages.end - 1);
    println!(
        "{step:<22} {:>15}  {}  {place}",
        format!("{from}..{to}"),
        hex(&sum[..8])
    );
    // Steps take time with large files: show each when it is done.
    let _ = std::io::stdout().flush();
}
