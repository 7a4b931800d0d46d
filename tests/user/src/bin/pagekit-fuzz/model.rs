// SPDX-License-Identifier: GPL-2.0
//! What must be in which page. A page is one however many files, buffers and mappings show it.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Display};
use std::ops::Range;
use std::rc::Rc;

use anyhow::{bail, Result};
use pagekit_user::PAGE;

/// Each word of a page says which page it is, and which word: shifted data shows.
const MAGIC: u64 = 0xface << 48;
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
/// C: `MAGIC` of `tests/drivers/node.rs`.
const NODE_MAGIC: u64 = 0x7061_6765_0100_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Zero,
    /// That page of a node, never written.
    Node(u16),
    /// Written so often, as that page of that memory.
    Tag {
        memory: u16,
        page: u16,
        version: u16,
    },
}

impl Content {
    fn word(self, i: usize) -> u64 {
        match self {
            Self::Zero => 0,
            Self::Node(page) if i == 0 => NODE_MAGIC | u64::from(page),
            Self::Node(_) => 0,
            Self::Tag {
                memory,
                page,
                version,
            } => {
                let place = u64::from(memory) << 32 | u64::from(page) << 16;
                (MAGIC | place | u64::from(version)) ^ SPREAD.wrapping_mul(i as u64)
            }
        }
    }

    /// What a word says.
    fn of(i: usize, word: u64) -> Option<Self> {
        let tag = word ^ SPREAD.wrapping_mul(i as u64);
        match word {
            0 => Some(Self::Zero),
            _ if tag & 0xffff << 48 == MAGIC => Some(Self::Tag {
                memory: (tag >> 32) as u16,
                page: (tag >> 16) as u16,
                version: tag as u16,
            }),
            _ if word & !0xffff == NODE_MAGIC => Some(Self::Node(word as u16)),
            _ => None,
        }
    }
}

impl Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zero => f.write_str("zeros"),
            Self::Node(page) => write!(f, "fresh page {page} of a node"),
            Self::Tag {
                memory,
                page,
                version,
            } => write!(f, "version {version} of page {page} of m{memory}"),
        }
    }
}

pub struct Page {
    memory: u16,
    index: u16,
    /// With other threads, which write when they want.
    shared: bool,
    content: Cell<Content>,
}

impl Page {
    fn new(memory: u16, index: usize, shared: bool, content: Content) -> Rc<Self> {
        Rc::new(Self {
            memory,
            index: index as u16,
            shared,
            content: Cell::new(content),
        })
    }

    pub fn is_shared(&self) -> bool {
        self.shared
    }

    /// What it holds when it is written now.
    pub fn next(&self, version: u16) -> Content {
        Content::Tag {
            memory: self.memory,
            page: self.index,
            version,
        }
    }

    pub fn content(&self) -> Content {
        self.content.get()
    }

    pub fn set(&self, content: Content) {
        self.content.set(content);
    }

    pub fn check_word(&self, i: usize, word: u64) -> Result<()> {
        let want = self.content();
        if word == want.word(i) {
            return Ok(());
        }
        // Others write while it is read, and maybe byte by byte: each is of a version, or of zeros.
        // Versions differ in the lowest two.
        let tag = self.next(0).word(i).to_le_bytes();
        let mut bytes = word.to_le_bytes().into_iter().zip(tag).skip(2);
        if self.shared && bytes.all(|(is, tag)| is == tag || is == 0) {
            return Ok(());
        }
        let is = Content::of(i, word);
        let (page, memory) = (self.index, self.memory);
        let is = is.map_or(format!("{word:#x}"), |content| content.to_string());
        bail!("word {i} of page {page} of m{memory} should be of {want}, is of {is}")
    }

    pub fn check(&self, bytes: &[u8; PAGE]) -> Result<()> {
        let mut words = bytes.chunks_exact(8).enumerate();
        words.try_for_each(|(i, word)| self.check_word(i, u64::from_ne_bytes(word.try_into()?)))
    }
}

pub fn bytes(content: Content) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&content.word(i).to_ne_bytes());
    }
    bytes
}

/// The drivers of `pagekit_style.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    I915,
    Nouveau,
    Radeon,
}

impl Driver {
    pub fn device(self) -> &'static str {
        match self {
            Self::I915 => "/dev/pagekit-i915",
            Self::Nouveau => "/dev/pagekit-nouveau",
            Self::Radeon => "/dev/pagekit-radeon",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Memfd {
        sealed: bool,
    },
    Anonymous,
    Node {
        pfns: bool,
        eager: bool,
    },
    /// What a driver exports, if it can be.
    Buffer {
        by: Option<Driver>,
        read_only: bool,
    },
    /// An object of the GEM driver, which the kernel may evict.
    Dumb,
    /// An object of i915 that is mapped as its file is.
    FileMmap,
    /// An object of user memory, which is not exported.
    Userptr,
}

impl Kind {
    /// What is not read only.
    pub fn buffer(by: Option<Driver>) -> Self {
        Self::Buffer {
            by,
            read_only: false,
        }
    }
}

/// An array of pages: a file, a buffer, private memory.
pub struct Memory {
    pub id: u16,
    pub kind: Kind,
    pub shared: bool,
    pages: RefCell<Vec<Rc<Page>>>,
    /// How often devices have it mapped, and what they have, which is not what is in the file if
    /// somebody has punched holes in that.
    users: Cell<usize>,
    pinned: RefCell<Vec<Rc<Page>>>,
}

impl Memory {
    pub fn new(id: u16, kind: Kind, shared: bool, len: usize) -> Rc<Self> {
        let pages = (0..len).map(|i| {
            let fresh = match kind {
                Kind::Node { .. } => Content::Node(i as u16),
                _ => Content::Zero,
            };
            Page::new(id, i, shared, fresh)
        });
        Self::of(id, kind, shared, pages.collect())
    }

    /// With pages of others.
    pub fn of(id: u16, kind: Kind, shared: bool, pages: Vec<Rc<Page>>) -> Rc<Self> {
        Rc::new(Self {
            id,
            kind,
            shared,
            pages: RefCell::new(pages),
            users: Cell::new(0),
            pinned: RefCell::default(),
        })
    }

    pub fn len(&self) -> usize {
        self.pages.borrow().len()
    }

    /// What mappings and the file show, unless it is past the end.
    pub fn page(&self, i: usize) -> Option<Rc<Page>> {
        self.pages.borrow().get(i).cloned()
    }

    pub fn pages(&self, range: Range<usize>) -> Vec<Rc<Page>> {
        self.pages.borrow()[range].to_vec()
    }

    /// What devices see.
    pub fn device_page(&self, i: usize) -> Option<Rc<Page>> {
        match self.users.get() {
            0 => self.page(i),
            _ => self.pinned.borrow().get(i).cloned(),
        }
    }

    /// Others, which are zero, take the place of pages.
    pub fn renew(&self, range: Range<usize>) {
        let mut pages = self.pages.borrow_mut();
        for i in range.start..range.end.min(pages.len()) {
            pages[i] = Page::new(self.id, i, self.shared, Content::Zero);
        }
    }

    pub fn resize(&self, len: usize) {
        let before = self.len();
        let mut pages = self.pages.borrow_mut();
        pages.truncate(len);
        pages.extend((before..len).map(|i| Page::new(self.id, i, self.shared, Content::Zero)));
    }

    pub fn pin(&self) {
        if self.users.replace(self.users.get() + 1) == 0 {
            *self.pinned.borrow_mut() = self.pages.borrow().clone();
        }
    }

    pub fn unpin(&self) {
        self.users.set(self.users.get() - 1);
        if self.users.get() == 0 {
            self.pinned.take();
        }
    }

    pub fn users(&self) -> usize {
        self.users.get()
    }

    /// Whether it is a dma-buf, or can be exported as one.
    pub fn is_buffer(&self) -> bool {
        matches!(self.kind, Kind::Buffer { .. } | Kind::Dumb | Kind::FileMmap)
    }

    /// Which driver's object it is.
    pub fn driver(&self) -> Option<Driver> {
        match self.kind {
            Kind::Buffer { by, .. } => by,
            Kind::FileMmap => Some(Driver::I915),
            Kind::Userptr => Some(Driver::Radeon),
            _ => None,
        }
    }

    pub fn read_only(&self) -> bool {
        matches!(
            self.kind,
            Kind::Buffer {
                read_only: true,
                ..
            }
        )
    }

    /// Whether mappings of it are of PFNs.
    pub fn shows_pfns(&self) -> bool {
        matches!(
            self.kind,
            Kind::Buffer { .. } | Kind::Dumb | Kind::Node { pfns: true, .. }
        )
    }

    /// Whether holes can be punched in it, through a mapping or otherwise: a large folio loses its
    /// data there, also for those that have it pinned, and stays.
    pub fn takes_holes(&self) -> bool {
        matches!(self.kind, Kind::Memfd { .. } | Kind::FileMmap) && self.len() < LARGE_FOLIO
    }
}

/// In files of as many pages there may be large folios.
pub const LARGE_FOLIO: usize = 16;
