// SPDX-License-Identifier: GPL-2.0
//! What is done in random order. Operations name what they are done to by numbers of which any is
//! right, whatever there is: so what is left of a sequence is one, too.

use pagekit_user::test_importer::Dir;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::mm::Advice;

use crate::model::Driver;

/// One of those there are.
pub type Pick = u8;

/// Pages of those there are.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    first: u16,
    count: u16,
    /// One too many.
    past_end: bool,
}

impl Span {
    /// The first page, and how many: of so many, or one more.
    pub fn of(self, len: usize) -> (usize, usize) {
        if self.past_end || len == 0 {
            let first = usize::from(self.first) % (len + 1);
            (first, len - first + 1)
        } else {
            self.within(len)
        }
    }

    pub fn within(self, len: usize) -> (usize, usize) {
        let first = usize::from(self.first) % len;
        (first, 1 + usize::from(self.count) % (len - first))
    }
}

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prot {
    None,
    Read,
    Write,
}

#[derive(Clone, Copy, Debug)]
pub enum Remap {
    Move,
    Shrink,
    Grow,
}

#[derive(Clone, Copy, Debug)]
pub enum Way {
    /// As a device does, or for a driver of `pagekit_style.h` its only way.
    Dma,
    Vmap,
}

#[derive(Clone, Debug)]
pub enum Op {
    Memfd {
        pages: u16,
        sealed: bool,
    },
    Resize {
        file: Pick,
        pages: u16,
    },
    Punch {
        file: Pick,
        span: Span,
    },
    Allocate {
        file: Pick,
        span: Span,
    },
    WriteFile {
        file: Pick,
        page: u16,
    },
    Anonymous {
        pages: u16,
    },
    Udmabuf {
        parts: Vec<(Pick, Span)>,
    },
    Heap {
        pages: u16,
        read_only: bool,
    },
    Object {
        by: Driver,
        pages: u16,
        file_mmap: bool,
    },
    Userptr {
        view: Pick,
    },
    Dumb {
        pages: u16,
    },
    Node {
        kind: Pick,
        file: Option<(Pick, Span)>,
    },
    Export {
        device: Pick,
    },
    Import {
        by: Driver,
        file: Pick,
    },
    GemImport {
        file: Pick,
    },
    GemExport {
        handle: Pick,
    },
    GemClose {
        handle: Pick,
    },
    Attach {
        file: Pick,
        dynamic: bool,
    },
    CloseFile {
        file: Pick,
    },
    CloseDevice {
        device: Pick,
    },
    Mmap {
        file: Pick,
        span: Span,
        prot: Prot,
        private: bool,
        aligned: bool,
    },
    MmapNode {
        handle: Pick,
        span: Span,
        prot: Prot,
        private: bool,
        aligned: bool,
    },
    Protect {
        view: Pick,
        span: Span,
        prot: Prot,
    },
    Unmap {
        view: Pick,
        span: Span,
    },
    Remap {
        view: Pick,
        pages: u16,
        how: Remap,
    },
    Advise {
        view: Pick,
        advice: Advice,
    },
    Write {
        view: Pick,
        page: u16,
    },
    Fork {
        view: Pick,
        page: u16,
    },
    MapDevice {
        device: Pick,
        dir: Dir,
    },
    UnmapDevice {
        device: Pick,
    },
    Access {
        device: Pick,
        page: u16,
        write: bool,
        way: Way,
        through: Option<(Pick, u16)>,
    },
    Twice {
        device: Pick,
    },
    Move {
        device: Pick,
    },
    Sync {
        file: Pick,
        flags: u64,
    },
    Info {
        device: Pick,
    },
    Shrink {
        device: Pick,
        revoke: bool,
    },
    Wedge {
        device: Pick,
        milliseconds: u32,
    },
    Reset {
        device: Pick,
    },
    Reclaim,
    Evict,
}

const ADVICE: [Advice; 12] = [
    Advice::LinuxDontNeed,
    Advice::LinuxRemove,
    Advice::LinuxPageOut,
    Advice::LinuxCold,
    Advice::LinuxPopulateRead,
    Advice::LinuxPopulateWrite,
    Advice::LinuxHugepage,
    Advice::LinuxNoHugepage,
    Advice::LinuxMergeable,
    Advice::LinuxDoDump,
    Advice::WillNeed,
    Advice::Random,
];

pub fn ops(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Op>> {
    vec(op(), len)
}

fn op() -> impl Strategy<Value = Op> {
    // Which of those there are makes nothing simpler.
    let p = || any::<Pick>().no_shrink();
    let at = || any::<u16>().no_shrink();
    let flip = any::<bool>;
    let often = |weight: f64| prop::bool::weighted(weight);
    let span = || {
        (at(), at(), often(0.05)).prop_map(|(first, count, past_end)| Span {
            first,
            count,
            past_end,
        })
    };
    // Mostly few. Large enough for huge pages, else.
    let pages = || prop_oneof![19 => 1u16..13, 1 => 500u16..1100];
    let by = || {
        prop_oneof![
            Just(Driver::Nouveau),
            Just(Driver::Radeon),
            Just(Driver::I915)
        ]
    };
    let prot = || prop_oneof![1 => Just(Prot::None), 2 => Just(Prot::Read), 5 => Just(Prot::Write)];
    let dir =
        prop_oneof![3 => Just(Dir::Both), 1 => Just(Dir::ToDevice), 1 => Just(Dir::FromDevice)];
    let how = prop_oneof![Just(Remap::Move), Just(Remap::Shrink), Just(Remap::Grow)];
    let way = prop_oneof![Just(Way::Dma), Just(Way::Vmap)];
    prop_oneof![
        6 => (pages(), often(0.9)).prop_map(|(pages, sealed)| Op::Memfd { pages, sealed }),
        2 => (p(), 0u16..15).prop_map(|(file, pages)| Op::Resize { file, pages }),
        4 => (p(), span()).prop_map(|(file, span)| Op::Punch { file, span }),
        2 => (p(), span()).prop_map(|(file, span)| Op::Allocate { file, span }),
        4 => (p(), at()).prop_map(|(file, page)| Op::WriteFile { file, page }),
        2 => pages().prop_map(|pages| Op::Anonymous { pages }),
        8 => vec((p(), span()), 1..4).prop_map(|parts| Op::Udmabuf { parts }),
        3 => (pages(), often(0.2)).prop_map(|(pages, read_only)| Op::Heap { pages, read_only }),
        7 => (by(), pages(), often(0.2))
            .prop_map(|(by, pages, file_mmap)| Op::Object { by, pages, file_mmap }),
        3 => p().prop_map(|view| Op::Userptr { view }),
        5 => pages().prop_map(|pages| Op::Dumb { pages }),
        1 => (p(), prop::option::of((p(), span()))).prop_map(|(kind, file)| Op::Node { kind, file }),
        7 => p().prop_map(|device| Op::Export { device }),
        6 => (by(), p()).prop_map(|(by, file)| Op::Import { by, file }),
        4 => p().prop_map(|file| Op::GemImport { file }),
        4 => p().prop_map(|handle| Op::GemExport { handle }),
        2 => p().prop_map(|handle| Op::GemClose { handle }),
        6 => (p(), flip()).prop_map(|(file, dynamic)| Op::Attach { file, dynamic }),
        4 => p().prop_map(|file| Op::CloseFile { file }),
        3 => p().prop_map(|device| Op::CloseDevice { device }),
        14 => (p(), span(), prot(), often(0.1), often(0.3)).prop_map(
            |(file, span, prot, private, aligned)| Op::Mmap { file, span, prot, private, aligned }),
        7 => (p(), span(), prot(), often(0.1), often(0.3)).prop_map(
            |(handle, span, prot, private, aligned)| Op::MmapNode { handle, span, prot, private, aligned }),
        5 => (p(), span(), prot()).prop_map(|(view, span, prot)| Op::Protect { view, span, prot }),
        5 => (p(), span()).prop_map(|(view, span)| Op::Unmap { view, span }),
        6 => (p(), at(), how).prop_map(|(view, pages, how)| Op::Remap { view, pages, how }),
        8 => (p(), 0..ADVICE.len() * 2).prop_map(|(view, advice)| Op::Advise {
            view,
            // Half of them the first two.
            advice: *ADVICE.get(advice).unwrap_or(&ADVICE[advice % 2]),
        }),
        10 => (p(), at()).prop_map(|(view, page)| Op::Write { view, page }),
        2 => (p(), at()).prop_map(|(view, page)| Op::Fork { view, page }),
        8 => (p(), dir).prop_map(|(device, dir)| Op::MapDevice { device, dir }),
        4 => p().prop_map(|device| Op::UnmapDevice { device }),
        16 => (p(), at(), flip(), way, prop::option::weighted(0.3, (p(), at()))).prop_map(
            |(device, page, write, way, through)| Op::Access { device, page, write, way, through }),
        1 => p().prop_map(|device| Op::Twice { device }),
        3 => p().prop_map(|device| Op::Move { device }),
        3 => (p(), 0u64..10).prop_map(|(file, flags)| Op::Sync { file, flags }),
        4 => p().prop_map(|device| Op::Info { device }),
        4 => (p(), flip()).prop_map(|(device, revoke)| Op::Shrink { device, revoke }),
        1 => (p(), 1u32..3).prop_map(|(device, milliseconds)| Op::Wedge { device, milliseconds }),
        3 => p().prop_map(|device| Op::Reset { device }),
        1 => Just(Op::Reclaim),
        2 => Just(Op::Evict),
    ]
}
