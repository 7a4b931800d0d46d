// SPDX-License-Identifier: GPL-2.0
//! What cases are made of: the device, buffers, and page contents that say which
//! page of which file they are.

use std::fmt::{self, Display};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{self, UdmabufCreate, UdmabufCreateItem};
use pagekit_user::mapping::Mapping;
use pagekit_user::{kernel, PAGE};
use rustix::io;

/// Makes a buffer of that many pages, written as file `id`.
pub type Fill = fn(&Env, u8, usize) -> Result<OwnedFd>;

pub struct Env {
    pub device: PathBuf,
    pub fill: Fill,
    pub list_limit: usize,
    pub size_limit_mb: u64,
    /// How long a race lasts.
    pub time: Duration,
}

impl Env {
    /// The limits are mainline's defaults.
    pub fn new(fill: Fill) -> Self {
        Self {
            device: PathBuf::new(),
            fill,
            list_limit: 1024,
            size_limit_mb: i32::MAX as u64,
            time: Duration::from_secs(1),
        }
    }

    /// A buffer of the device, whatever its kind, of `pages` that are written as file `id`.
    pub fn filled(&self, id: u8, pages: usize) -> Result<OwnedFd> {
        (self.fill)(self, id, pages)
    }

    pub fn open(&self) -> Result<File> {
        File::options()
            .read(true)
            .write(true)
            .open(&self.device)
            .with_context(|| format!("opening {}", self.device.display()))
    }

    /// Where a module parameter is, if the module shows it.
    pub fn parameter(&self, name: &str) -> Option<PathBuf> {
        let device = self.device.file_name()?.to_str()?;
        let path = format!("/sys/module/{}/parameters/{name}", device.replace('-', "_"));
        Some(PathBuf::from(path)).filter(|path| path.exists())
    }

    pub fn list_limit(&self) -> Result<usize> {
        Ok(match self.parameter("list_limit") {
            Some(path) => kernel::read(path)?.parse()?,
            None => self.list_limit,
        })
    }

    pub fn size_limit(&self) -> Result<u64> {
        let mb: u64 = match self.parameter("size_limit_mb") {
            Some(path) => kernel::read(path)?.parse()?,
            None => self.size_limit_mb,
        };
        Ok(mb << 20)
    }

    /// Exports pages of `memfd`.
    pub fn export(&self, memfd: &File, first: usize, pages: usize) -> Result<OwnedFd> {
        self.try_export(memfd, first, pages)?
            .context("UDMABUF_CREATE")
    }

    /// As `export`, for a case about its error.
    pub fn try_export(
        &self,
        memfd: impl AsFd,
        first: usize,
        pages: usize,
    ) -> Result<io::Result<OwnedFd>> {
        Ok(abi::create(
            self.open()?,
            &UdmabufCreate {
                memfd: memfd.as_fd().as_raw_fd() as u32,
                flags: abi::UDMABUF_FLAGS_CLOEXEC,
                offset: (first * PAGE) as u64,
                size: (pages * PAGE) as u64,
            },
        ))
    }

    /// A memfd of `pages`, written as file `id`, and all of it exported.
    pub fn buffer(&self, id: u8, pages: usize) -> Result<(File, OwnedFd)> {
        let memfd = written(id, pages)?;
        let buf = self.export(&memfd, 0, pages)?;
        Ok((memfd, buf))
    }
}

pub fn item(memfd: impl AsFd, first: usize, pages: usize) -> UdmabufCreateItem {
    UdmabufCreateItem {
        memfd: memfd.as_fd().as_raw_fd() as u32,
        pad: 0,
        offset: (first * PAGE) as u64,
        size: (pages * PAGE) as u64,
    }
}

/// Makes a buffer of a memfd.
pub fn of_memfd(env: &Env, id: u8, pages: usize) -> Result<OwnedFd> {
    Ok(env.buffer(id, pages)?.1)
}

/// A memfd whose pages say who they are.
pub fn written(id: u8, pages: usize) -> Result<File> {
    let memfd = abi::memfd((pages * PAGE) as u64)?;
    fill(&memfd, id, pages)?;
    Ok(memfd)
}

pub fn fill(memfd: &File, id: u8, pages: usize) -> Result<()> {
    for page in 0..pages {
        memfd.write_all_at(&Content::Page(id, page).bytes(), (page * PAGE) as u64)?;
    }
    Ok(())
}

/// What a page should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Page of the file with that id.
    Page(u8, usize),
    Zero,
}

/// What the first word of a `Content::Page` has in its upper half.
const MAGIC: u64 = 0x7061_6765 << 32;

impl Content {
    /// What the page begins with.
    pub fn word(self) -> u64 {
        match self {
            Self::Page(id, page) => MAGIC | u64::from(id) << 24 | page as u64,
            Self::Zero => 0,
        }
    }

    pub fn bytes(self) -> [u8; PAGE] {
        let mut bytes = [0; PAGE];
        if let Self::Page(..) = self {
            let first = self.word();
            for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
                // The word's place is in it too, so that shifted data shows.
                let word_value = first ^ (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                word.copy_from_slice(&word_value.to_ne_bytes());
            }
        }
        bytes
    }

    pub fn check(self, bytes: &[u8; PAGE]) -> Result<()> {
        let want = self.bytes();
        let Some(at) = (0..PAGE).find(|&i| bytes[i] != want[i]) else {
            return Ok(());
        };
        let first = u64::from_ne_bytes(bytes[..8].try_into()?);
        let got = match first {
            0 if *bytes == [0; PAGE] => Self::Zero.to_string(),
            _ if first & (!0 << 32) == MAGIC => {
                Self::Page((first >> 24) as u8, first as usize & 0xff_ffff).to_string()
            }
            _ => format!("{:02x} at byte {at}", bytes[at]),
        };
        anyhow::bail!("should be {self}, is {got}")
    }
}

impl Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Page(id, page) => write!(f, "page {page} of file {id}"),
            Self::Zero => f.write_str("zeros"),
        }
    }
}

/// The mapping's pages must hold what `want` says.
pub fn check_pages(map: &Mapping, want: impl Fn(usize) -> Content) -> Result<()> {
    ensure!(map.len() % PAGE == 0 && !map.is_empty());
    for page in 0..map.len() / PAGE {
        want(page)
            .check(&map.page(page))
            .with_context(|| format!("page {page} of the mapping"))?;
    }
    Ok(())
}

/// The mapping shows file `id` from page `first`.
pub fn check_file(map: &Mapping, id: u8, first: usize) -> Result<()> {
    check_pages(map, |page| Content::Page(id, first + page))
}

/// One page of a memfd, through read().
pub fn read_page(memfd: &File, page: usize) -> Result<[u8; PAGE]> {
    let mut bytes = [0; PAGE];
    memfd.read_exact_at(&mut bytes, (page * PAGE) as u64)?;
    Ok(bytes)
}

/// One page of a buffer, through another mapping.
pub fn peek(buf: impl AsFd, page: usize) -> Result<[u8; PAGE]> {
    Ok(Mapping::shared(buf, page * PAGE, PAGE)?.page(0))
}
