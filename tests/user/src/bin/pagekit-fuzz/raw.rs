// SPDX-License-Identifier: GPL-2.0
//! Garbage at every ioctl: each answer is an errno or a success, and nothing is left.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{ensure, Context, Result};
use pagekit_user::drm;
use pagekit_user::mapping::Mapping;
use pagekit_user::style::{self, Object};
use pagekit_user::test_importer;
use pagekit_user::{abi, PAGE};
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::ioctl::{opcode, Opcode};
use rustix::mm::MprotectFlags;

use crate::model::{Driver, Kind};
use crate::op::Pick;
use crate::trace::{join, Trace};
use crate::world::{card, shared, HEAP, NODES, UDMABUF};

/// The last error number that programs know.
const LAST_ERRNO: i32 = libc::EHWPOISON;
/// In between, sizes can be had, and others go without.
const TOO_MUCH: std::ops::Range<u64> = 4 << 20..64 << 30;

#[derive(Clone, Copy, Debug)]
pub enum Command {
    Known(Pick),
    /// With a bit changed.
    Near(Pick, u32),
    Any(u32),
}

#[derive(Clone, Copy, Debug)]
pub enum Address {
    Memory(usize),
    /// So many bytes before what is not mapped.
    End(usize),
    ReadOnly(usize),
    Buffer(usize),
    Kernel(usize),
    NotCanonical,
    Low(usize),
}

#[derive(Clone, Copy, Debug)]
pub enum Word {
    Number(u64),
    Halves(u32, u32),
    File(Pick, u32),
    Address(Address),
}

#[derive(Clone, Debug)]
pub struct Call {
    target: Pick,
    command: Command,
    at: Address,
    words: Vec<Word>,
}

pub fn calls(len: std::ops::Range<usize>) -> impl Strategy<Value = Vec<Call>> {
    vec(call(), len)
}

fn call() -> impl Strategy<Value = Call> {
    let p = || any::<Pick>().no_shrink();
    let command = prop_oneof![
        12 => p().prop_map(Command::Known),
        2 => (p(), 0u32..32).prop_map(|(known, bit)| Command::Near(known, bit)),
        1 => any::<u32>().prop_map(Command::Any),
    ];
    let at = prop_oneof![9 => Just(Address::Memory(0)), 3 => address()];
    (p(), command, at, vec(word(), 0..12)).prop_map(|(target, command, at, words)| Call {
        target,
        command,
        at,
        words,
    })
}

fn address() -> impl Strategy<Value = Address> {
    prop_oneof![
        (0usize..64).prop_map(Address::Memory),
        (0usize..64).prop_map(Address::End),
        (0usize..64).prop_map(Address::ReadOnly),
        (0usize..64).prop_map(Address::Buffer),
        (0usize..64).prop_map(Address::Kernel),
        Just(Address::NotCanonical),
        (0usize..8192).prop_map(Address::Low),
    ]
}

fn word() -> impl Strategy<Value = Word> {
    let edge = |shift: std::ops::Range<u32>| {
        (shift, 0u64..3)
            .prop_map(|(shift, by)| (1 << shift) + by - 1)
            .prop_map(Word::Number)
    };
    let half = || prop_oneof![4 => 0u32..5, 1 => any::<u32>(), 1 => Just(u32::MAX)];
    prop_oneof![
        4 => (0u64..5).prop_map(Word::Number),
        4 => (0u64..20).prop_map(|pages| Word::Number(pages * PAGE as u64)),
        1 => edge(0..22),
        1 => edge(36..64),
        1 => any::<u64>().no_shrink().prop_map(Word::Number),
        2 => (half(), half()).prop_map(|(low, high)| Word::Halves(low, high)),
        4 => (any::<Pick>().no_shrink(), half()).prop_map(|(file, high)| Word::File(file, high)),
        3 => address().prop_map(Word::Address),
    ]
}

struct Target {
    file: OwnedFd,
    name: &'static str,
    commands: &'static [Opcode],
    /// It takes any size, also one that is no multiple of a page.
    any_size: bool,
}

const STYLE: &[Opcode] = &[
    style::CREATE,
    style::IMPORT,
    style::EXPORT,
    style::MAP,
    style::UNMAP,
    style::ACCESS,
    style::INFO,
    style::WEDGE,
    style::RESET,
    style::SHRINK,
];

/// C: `DMA_BUF_IOCTL_SYNC`, `DMA_BUF_SET_NAME_A`, `DMA_BUF_SET_NAME_B`,
/// `DMA_BUF_IOCTL_EXPORT_SYNC_FILE`, `DMA_BUF_IOCTL_IMPORT_SYNC_FILE`.
const DMA_BUF: &[Opcode] = &[
    abi::DMA_BUF_IOCTL_SYNC,
    opcode::write::<u32>(b'b', 1),
    opcode::write::<u64>(b'b', 1),
    opcode::read_write::<u64>(b'b', 2),
    opcode::write::<u64>(b'b', 3),
];

/// Each device, and each driver with an object, an import and nothing; and their buffers.
fn targets() -> Result<Vec<Target>> {
    let mut targets = Vec::new();
    let mut add = |file: OwnedFd, name, commands, any_size| {
        targets.push(Target {
            file,
            name,
            commands,
            any_size,
        });
    };
    let open = |path| {
        File::options()
            .read(true)
            .write(true)
            .open(path)
            .context(path)
    };
    let list = &[abi::UDMABUF_CREATE, abi::UDMABUF_CREATE_LIST];
    add(open(UDMABUF)?.into(), UDMABUF, list, false);
    add(open(HEAP)?.into(), HEAP, &[abi::DMA_HEAP_IOCTL_ALLOC], true);
    let files = shared()?;
    for by in [Driver::I915, Driver::Nouveau, Driver::Radeon] {
        let path = by.device();
        add(open(path)?.into(), path, STYLE, false);
        for (file, kind) in &files {
            if let Kind::Buffer { .. } | Kind::Dumb = kind {
                add(Object::of(path, file)?.into(), path, STYLE, false);
            }
        }
    }
    if let Some(card) = card() {
        add(File::from(card).into(), "gem", drm::COMMANDS, true);
    }
    let importer = || open(test_importer::DEVICE).map(OwnedFd::from);
    for _ in 0..2 {
        add(
            importer()?,
            test_importer::DEVICE,
            test_importer::COMMANDS,
            true,
        );
    }
    let (node, ..) = NODES[0];
    add(
        open(node)?.into(),
        node,
        &[abi::SHOW_FILE, abi::SHOW_USER],
        false,
    );
    for (file, kind) in files {
        match kind {
            Kind::Buffer { .. } | Kind::Dumb => add(file, "dma-buf", DMA_BUF, false),
            _ => add(file, "memfd", DMA_BUF, false),
        }
    }
    Ok(targets)
}

/// Numbers from here on are those of files that calls have made.
fn first_number(targets: &[Target]) -> Result<(i32, Vec<OwnedFd>)> {
    let last = targets.iter().map(|target| target.file.as_raw_fd()).max();
    let mut fill = Vec::new();
    loop {
        let file = targets[0].file.try_clone()?;
        let number = file.as_raw_fd();
        fill.push(file);
        if Some(number) > last {
            return Ok((number + 1, fill));
        }
    }
}

/// What addresses point into.
struct Places {
    memory: Mapping,
    read_only: Mapping,
    buffer: Mapping,
}

impl Places {
    fn new(targets: &[Target]) -> Result<Self> {
        let (memory, _hole) = Mapping::anonymous(3 * PAGE)?.cut_out(2 * PAGE, PAGE)?;
        let read_only = Mapping::anonymous(PAGE)?;
        read_only.protect(0, PAGE, MprotectFlags::READ)?;
        let buf = targets.iter().find(|target| target.name == "dma-buf");
        Ok(Self {
            memory,
            read_only,
            buffer: Mapping::shared(&buf.context("no buffer")?.file, 0, PAGE)?,
        })
    }

    fn at(&self, address: Address) -> *mut u8 {
        match address {
            Address::Memory(at) => self.memory.at(at),
            Address::End(left) => self.memory.at(self.memory.len() - left),
            Address::ReadOnly(at) => self.read_only.at(at),
            Address::Buffer(at) => self.buffer.at(at),
            Address::Kernel(at) => (0xffff_8880_0000_0000 + at) as *mut u8,
            Address::NotCanonical => 0x8000_0000_0000_0000 as *mut u8,
            Address::Low(at) => at as *mut u8,
        }
    }

    /// Puts what the kernel shall read where an address points to.
    fn put(&self, address: Address, bytes: &[u8]) {
        let (map, at) = match address {
            Address::Memory(at) => (&self.memory, at),
            Address::End(left) => (&self.memory, self.memory.len() - left),
            Address::Buffer(at) => (&self.buffer, at),
            _ => return,
        };
        map.write(at, &bytes[..bytes.len().min(map.len() - at)]);
    }
}

/// All calls, by so many threads.
pub fn run(calls: &[Call], threads: usize, trace: &Trace) -> Result<()> {
    let targets = targets()?;
    let (first, _fill) = first_number(&targets)?;
    std::thread::scope(|scope| {
        let chunks = calls.chunks(calls.len().div_ceil(threads));
        let threads: Vec<_> = (1..)
            .zip(chunks)
            .map(|(thread, calls)| {
                let targets = &targets;
                scope.spawn(move || -> Result<()> {
                    let places = Places::new(targets)?;
                    let mut calls = calls.iter();
                    calls.try_for_each(|call| make(call, targets, &places, first, thread, trace))
                })
            })
            .collect();
        threads.into_iter().try_for_each(join)
    })
}

fn make(
    call: &Call,
    targets: &[Target],
    places: &Places,
    first: i32,
    thread: usize,
    trace: &Trace,
) -> Result<()> {
    let target = &targets[usize::from(call.target) % targets.len()];
    let known = |pick: Pick| target.commands[usize::from(pick) % target.commands.len()];
    let command = match call.command {
        Command::Known(pick) => known(pick),
        Command::Near(pick, bit) => known(pick) ^ 1 << bit,
        Command::Any(command) => command,
    };
    let value = |word: &Word| {
        let word = match *word {
            Word::Number(number) => number,
            Word::Halves(low, high) => u64::from(low) | u64::from(high) << 32,
            Word::File(pick, high) => {
                let file = &targets[usize::from(pick) % targets.len()].file;
                file.as_raw_fd() as u64 | u64::from(high) << 32
            }
            Word::Address(address) => places.at(address) as u64,
        };
        let taken = TOO_MUCH.contains(&word) && (target.any_size || word % PAGE as u64 == 0);
        if taken {
            word >> 16
        } else {
            word
        }
    };
    let words: Vec<u64> = call.words.iter().map(value).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    places.put(call.at, &bytes);
    let (name, at) = (target.name, call.at);
    trace.note(
        thread,
        format_args!("{name} {command:#x} at {at:?} {words:x?}"),
    );
    // SAFETY: what the kernel writes to are places to which nobody has references: other addresses
    // are not user memory, but for a random number that is one by a chance of less than 2^-40.
    let result = unsafe { abi::ioctl(&target.file, command, places.at(call.at).cast()) };
    if let Err(errno) = result {
        let number = errno.raw_os_error();
        ensure!(number <= LAST_ERRNO, "{name} {command:#x}: error {number}");
    } else if command == style::WEDGE {
        // Others would wait for minutes.
        // SAFETY: it has no argument.
        unsafe { abi::ioctl(&target.file, style::RESET, std::ptr::null()) }?;
    }
    // SAFETY: nobody has these files but the calls that have made them.
    let closed = unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) };
    ensure!(closed == 0, "close_range");
    Ok(())
}
