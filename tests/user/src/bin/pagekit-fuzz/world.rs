// SPDX-License-Identifier: GPL-2.0
//! Does operations, and knows what must come of each.

mod devices;
mod files;
mod gem;
mod mappings;

use std::fmt::Display;
use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::abi::{self, HeapAllocation, UdmabufCreate, UdmabufCreateItem};
use pagekit_user::drm::Card;
use pagekit_user::kernel::{self, RootGroup};
use pagekit_user::mapping::{is_mapped, last_errno, Mapping, RW};
use pagekit_user::style::{self, Create, Info, Object};
use pagekit_user::test_importer::{self, Attachment, Dir, Importer, Through};
use pagekit_user::{HUGE_PAGES, PAGE};
use rustix::fs::{fallocate, ftruncate, FallocateFlags, MemfdFlags, OFlags, SealFlags};
use rustix::io::{self, Errno};
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use rustix::process::{waitpid, Pid, WaitOptions};

use crate::model::{bytes, Content, Driver, Kind, Memory, Page};
use crate::op::{Op, Pick, Prot, Remap, Span, Way};
use crate::trace::Trace;

pub const UDMABUF: &str = "/dev/pagekit-udmabuf";
pub const HEAP: &str = "/dev/dma_heap/pagekit";
/// The GEM driver, if it is there: older kernels have none.
pub fn card() -> Option<Card> {
    Card::find("pagekit-gem").ok()
}
/// Where mappings begin that may have huge pages.
const HUGE: usize = HUGE_PAGES * PAGE;
/// Of larger ones, not all pages are looked at each time.
const LOOK_AT: usize = 12;
/// How many devices of a thread map at once: DMA_API_DEBUG warns of more than eight that may write
/// to the same page.
const MAPPED: usize = 2;
/// Fresh pages of a node.
const NODE_PAGES: usize = 2 * HUGE_PAGES + 37;
/// Each, with whether it maps PFNs, and all at once.
pub const NODES: [(&str, bool, bool); 6] = [
    ("/dev/pagekit-node-pfns", true, false),
    ("/dev/pagekit-node-huge-pfns", true, false),
    ("/dev/pagekit-node-eager-pfns", true, true),
    ("/dev/pagekit-node-pages", false, false),
    ("/dev/pagekit-node-huge-pages", false, false),
    ("/dev/pagekit-node-eager-pages", false, true),
];

/// What must come of an operation.
#[derive(Clone, Copy)]
enum Want {
    Done,
    Fails(Errno),
    FailsAnyhow,
    Either,
}
use Want::*;

/// An open file with pages.
struct Open {
    file: File,
    memory: Rc<Memory>,
}

/// A part of a mapping, all of which may be used alike.
struct View {
    map: Mapping,
    memory: Rc<Memory>,
    first: usize,
    prot: Prot,
    /// What was dropped, and never comes back.
    lost: bool,
}

impl View {
    fn len(&self) -> usize {
        self.map.len() / PAGE
    }

    fn page(&self, i: usize) -> Option<Rc<Page>> {
        self.memory.page(self.first + i).filter(|_| !self.lost)
    }

    /// The page, if that may be done with it.
    fn accessible(&self, i: usize, write: bool) -> Option<Rc<Page>> {
        match self.prot {
            Prot::Write => self.page(i),
            Prot::Read if !write => self.page(i),
            _ => None,
        }
    }
}

/// What the card has a handle of.
struct Handle {
    number: u32,
    memory: Rc<Memory>,
}

impl Handle {
    /// Whether it stands for a buffer of somebody else.
    fn is_import(&self) -> bool {
        self.memory.kind != Kind::Dumb
    }
}

enum End {
    Importer(Attachment<'static>),
    Object(Driver, Object),
}

/// What has a buffer: an importer, or an object of a driver.
struct Device {
    end: End,
    memory: Rc<Memory>,
    /// An object of the driver that made it, and so not attached.
    own: bool,
    /// The exporter may move what it has mapped.
    dynamic: bool,
    mapped: Option<Dir>,
    /// It is mapped now, and not only when it is accessed again.
    live: bool,
}

impl Device {
    fn driver(&self) -> Option<Driver> {
        match self.end {
            End::Importer(_) => None,
            End::Object(by, _) => Some(by),
        }
    }

    fn object(&self) -> Option<(Driver, &Object)> {
        match &self.end {
            End::Importer(_) => None,
            End::Object(by, object) => Some((*by, object)),
        }
    }

    /// Whether i915 has made it, or what it shows.
    fn is_of_i915(&self) -> bool {
        [self.driver(), self.memory.driver()].contains(&Some(Driver::I915))
    }

    /// Whether it is mapped for the other direction.
    fn is_against(&self, write: bool) -> bool {
        self.mapped
            == Some(if write {
                Dir::ToDevice
            } else {
                Dir::FromDevice
            })
    }

    /// Copies from `user` to the device, or the other way.
    fn copy(
        &self,
        write: bool,
        by_address: bool,
        offset: usize,
        user: &mut [u8],
    ) -> io::Result<()> {
        match &self.end {
            End::Importer(attachment) => {
                let way = if by_address {
                    Through::Dma
                } else {
                    Through::Vmap
                };
                match write {
                    true => attachment.write(way, offset, user),
                    false => attachment.read(way, offset, user),
                }
            }
            End::Object(_, object) => match write {
                true => object.write(offset, user),
                false => object.read(offset, user),
            },
        }
    }

    /// From now on it is mapped, or isn't.
    fn set_live(&mut self, live: bool) {
        match (self.live, live) {
            (false, true) => self.memory.pin(),
            (true, false) => self.memory.unpin(),
            _ => {}
        }
        self.live = live;
    }
}

/// What a sequence has made so far. Dropped in this order.
pub struct World<'a> {
    views: Vec<View>,
    devices: Vec<Device>,
    files: Vec<Open>,
    /// One file of the GEM driver, and what that has.
    handles: Vec<Handle>,
    card: Option<Rc<Card>>,
    group: &'a RootGroup,
    trace: &'a Trace,
    thread: usize,
    /// No other thread shrinks or wedges anything.
    alone: bool,
    wedged: bool,
    memories: u16,
    versions: u16,
    steps: usize,
    /// Where system calls copy from and to.
    scratch: File,
}

/// A file that several threads have. All have as many pages.
pub type Shared = (OwnedFd, Kind);
const SHARED_PAGES: usize = 8;

/// One of each exporter; the second shows the pages of the first.
pub fn shared() -> Result<Vec<Shared>> {
    let memfd = abi::memfd((SHARED_PAGES * PAGE) as u64)?;
    let udmabuf = files::create_udmabuf(&[(memfd.as_raw_fd(), 0, SHARED_PAGES)])?;
    let heap = files::allocate_heap(SHARED_PAGES, false)?;
    let mut files = vec![
        (OwnedFd::from(memfd), Kind::Memfd { sealed: true }),
        (udmabuf, Kind::buffer(None)),
        (heap, Kind::buffer(None)),
    ];
    for by in [Driver::I915, Driver::Nouveau, Driver::Radeon] {
        let buf = Object::new(by.device(), SHARED_PAGES)?.export()?;
        files.push((buf, Kind::buffer(Some(by))));
    }
    if let Some(card) = card() {
        files.push((card.create_dumb(SHARED_PAGES)?.export()?, Kind::Dumb));
    }
    Ok(files)
}

impl<'a> World<'a> {
    pub fn new(
        thread: usize,
        shared: &[Shared],
        group: &'a RootGroup,
        trace: &'a Trace,
    ) -> Result<Self> {
        let mut world = Self {
            views: Vec::new(),
            devices: Vec::new(),
            files: Vec::new(),
            handles: Vec::new(),
            card: card().map(Rc::new),
            group,
            trace,
            thread,
            alone: shared.is_empty(),
            wedged: false,
            memories: 100 * thread as u16,
            versions: 0,
            steps: 0,
            scratch: abi::memfd(PAGE as u64)?,
        };
        for (id, (fd, kind)) in (0..).zip(shared) {
            let memory = match world.files.first().filter(|_| id == 1) {
                Some(memfd) => Memory::of(id, *kind, true, memfd.memory.pages(0..SHARED_PAGES)),
                None => Memory::new(id, *kind, true, SHARED_PAGES),
            };
            let file = File::from(fd.try_clone()?);
            world.files.push(Open { file, memory });
        }
        Ok(world)
    }

    pub fn run(&mut self, ops: Vec<Op>) -> Result<()> {
        for op in ops {
            self.step(op)?;
            self.steps += 1;
            self.look(false)?;
        }
        self.look(true)?;
        for device in 0..self.devices.len() {
            for page in [0, self.devices[device].memory.len() - 1] {
                self.access(device, page, false, Way::Vmap, None)?;
            }
        }
        Ok(())
    }

    // --- What operations are made of ------------------------------------------------

    /// Makes a call, and holds what comes of it against what must.
    fn attempt<T>(
        &self,
        want: Want,
        i915: bool,
        what: impl Display,
        call: impl FnOnce() -> io::Result<T>,
    ) -> Result<Option<T>> {
        match want {
            Done => self.note(&what),
            Fails(errno) => self.note(format_args!("{what}: {errno}")),
            FailsAnyhow => self.note(format_args!("{what}: fails")),
            Either => self.note(format_args!("{what}: may fail")),
        }
        match (call(), want) {
            (Ok(value), Done | Either) => Ok(Some(value)),
            (Err(_), FailsAnyhow | Either) => Ok(None),
            (Err(errno), Fails(want)) if errno == want => Ok(None),
            // Another thread may have wedged it.
            (Err(Errno::IO), _) if i915 && !self.alone => Ok(None),
            (Err(errno), Done) => bail!("{what}: {errno}"),
            (Err(errno), Fails(want)) => bail!("{what}: {errno}, should be: {want}"),
            (Ok(_), _) => bail!("{what}: succeeds"),
        }
    }

    fn note(&self, what: impl Display) {
        self.trace.note(self.thread, what);
    }

    fn memory(&mut self, kind: Kind, len: usize) -> Rc<Memory> {
        self.memories += 1;
        Memory::new(self.memories - 1, kind, false, len)
    }

    fn memory_of(&mut self, kind: Kind, pages: Vec<Rc<Page>>) -> Rc<Memory> {
        self.memories += 1;
        Memory::of(self.memories - 1, kind, false, pages)
    }

    fn next_version(&mut self, page: &Page) -> Content {
        self.versions += 1;
        page.next(self.versions)
    }

    fn open(&mut self, file: impl Into<OwnedFd>, memory: Rc<Memory>) {
        let file = File::from(file.into());
        self.files.push(Open { file, memory });
    }

    fn show(&mut self, map: Mapping, memory: Rc<Memory>, first: usize, prot: Prot) {
        self.views.push(View {
            map,
            memory,
            first,
            prot,
            lost: false,
        });
    }

    /// An object or an importer, not mapped yet.
    fn add(&mut self, end: End, memory: Rc<Memory>, own: bool, dynamic: bool) {
        self.devices.push(Device {
            end,
            memory,
            own,
            dynamic,
            mapped: None,
            live: false,
        });
    }

    fn file(&self, pick: Pick, fits: impl Fn(&Memory) -> bool) -> Option<usize> {
        choose(&self.files, pick, |file| fits(&file.memory))
    }

    fn memfd(&self, pick: Pick) -> Option<usize> {
        self.file(pick, is_memfd)
    }

    fn view(&self, pick: Pick) -> Option<usize> {
        choose(&self.views, pick, |_| true)
    }

    /// Pages `first` to `first + count` of a view become one of their own.
    fn split(&mut self, at: usize, first: usize, count: usize) -> usize {
        let View {
            map,
            memory,
            first: start,
            prot,
            lost,
        } = self.views.swap_remove(at);
        let (head, rest) = map.split(first * PAGE);
        let (map, tail) = rest.split(count * PAGE);
        for (map, skipped) in [(head, 0), (tail, first + count), (map, first)] {
            if !map.is_empty() {
                self.views.push(View {
                    map,
                    memory: memory.clone(),
                    first: start + skipped,
                    prot,
                    lost,
                });
            }
        }
        self.views.len() - 1
    }

    /// Those that can do without it for a while no longer have it mapped.
    fn invalidate(&mut self, memory: &Rc<Memory>) {
        for device in &mut self.devices {
            if device.dynamic && Rc::ptr_eq(&device.memory, memory) {
                device.set_live(false);
            }
        }
    }

    // --- What must be seen --------------------------------------------------------

    /// Looks through mappings: at a word of each page, or in the end at all.
    fn look(&self, all: bool) -> Result<()> {
        let word = self.steps * 37 % (PAGE / 8);
        for (number, view) in self.views.iter().enumerate() {
            // Each time another is left as it is, and another page is the first.
            if !all && (self.steps + number) % 3 == 0 {
                continue;
            }
            let len = view.len();
            let looks = if all { len } else { len.min(LOOK_AT) };
            for look in 0..looks {
                let i = (self.steps + look * len / looks) % len;
                let Some(page) = view.accessible(i, false) else {
                    continue;
                };
                if all {
                    page.check(&view.map.page(i))
                } else {
                    let mut bytes = [0; 8];
                    view.map.read(i * PAGE + word * 8, &mut bytes);
                    page.check_word(word, u64::from_ne_bytes(bytes))
                }
                .with_context(|| format!("page {i} of {}", name(view)))?;
            }
        }
        // What must not be seen is a system call each.
        if let Some(view) = self.views.get(self.steps % self.views.len().max(1)) {
            let i = self.steps % view.len();
            if view.accessible(i, false).is_none() && !view.memory.shared {
                let seen = self.copy_from(view.map.at(i * PAGE));
                ensure!(
                    seen == Err(Errno::FAULT),
                    "page {i} of {} can be read",
                    name(view)
                );
            }
        }
        for Open { file, memory } in self
            .files
            .iter()
            .filter(|file| all && is_memfd(&file.memory))
        {
            for (i, page) in memory.pages(0..memory.len()).iter().enumerate() {
                let mut bytes = [0; PAGE];
                file.read_exact_at(&mut bytes, (i * PAGE) as u64)?;
                page.check(&bytes)
                    .with_context(|| format!("page {i} of m{}", memory.id))?;
            }
        }
        Ok(())
    }

    /// Has the kernel read at an address, or write there, which is no signal when it fails.
    fn copy_from(&self, address: *mut u8) -> io::Result<()> {
        // SAFETY: the kernel reads there.
        match unsafe { libc::pwrite(self.scratch.as_raw_fd(), address.cast(), 8, 0) } {
            8 => Ok(()),
            _ => Err(last_errno()),
        }
    }

    fn copy_to(&self, address: *mut u8) -> io::Result<()> {
        // SAFETY: in a mapping of ours, to which nobody has references.
        match unsafe { libc::pread(self.scratch.as_raw_fd(), address.cast(), 8, 0) } {
            8 => Ok(()),
            _ => Err(last_errno()),
        }
    }

    // --- The operations -------------------------------------------------------------

    /// Does it, if there is what it is done to.
    fn step(&mut self, op: Op) -> Result<()> {
        match op {
            Op::Memfd { pages, sealed } => self.create_memfd(pages.into(), sealed),
            Op::Resize { file, pages } => self.resize(file, pages.into()),
            Op::Punch { file, span } => self.punch(file, span),
            Op::Allocate { file, span } => self.allocate(file, span),
            Op::WriteFile { file, page } => self.write_file(file, page.into()),
            Op::Anonymous { pages } => self.anonymous(pages.into()),
            Op::Udmabuf { parts } => self.udmabuf(&parts),
            Op::Heap { pages, read_only } => self.heap(pages.into(), read_only),
            Op::Object {
                by,
                pages,
                file_mmap,
            } => self.create(by, pages.into(), file_mmap),
            Op::Userptr { view } => self.userptr(view),
            Op::Dumb { pages } => self.dumb(pages.into()),
            Op::Node { kind, file } => self.node(kind, file),
            Op::Export { device } => self.export(device),
            Op::Import { by, file } => self.import(by, file),
            Op::GemImport { file } => self.gem_import(file),
            Op::GemExport { handle } => self.gem_export(handle),
            Op::GemClose { handle } => self.gem_close(handle),
            Op::Attach { file, dynamic } => self.attach(file, dynamic),
            Op::CloseFile { file } => self.close_file(file),
            Op::CloseDevice { device } => self.close_device(device),
            Op::Mmap {
                file,
                span,
                prot,
                private,
                aligned,
            } => self.mmap(file, span, prot, private, aligned),
            Op::MmapNode {
                handle,
                span,
                prot,
                private,
                aligned,
            } => self.mmap_node(handle, span, prot, private, aligned),
            Op::Protect { view, span, prot } => self.protect(view, span, prot),
            Op::Unmap { view, span } => self.unmap(view, span),
            Op::Remap { view, pages, how } => self.remap(view, pages.into(), how),
            Op::Advise { view, advice } => self.advise(view, advice),
            Op::Write { view, page } => self.write(view, page.into()),
            Op::Fork { view, page } => self.fork(view, page.into()),
            Op::MapDevice { device, dir } => self.map_device(device, dir),
            Op::UnmapDevice { device } => self.unmap_device(device),
            Op::Access {
                device,
                page,
                write,
                way,
                through,
            } => {
                let Some(at) = choose(&self.devices, device, |_| true) else {
                    return Ok(());
                };
                let len = self.devices[at].memory.len();
                let way = match self.devices[at].mapped {
                    None if !seldom(device) => Way::Vmap,
                    _ => way,
                };
                let page = usize::from(page) % if seldom(device) { len + 1 } else { len };
                self.access(at, page, write, way, through)
            }
            Op::Twice { device } => self.twice(device),
            Op::Move { device } => self.move_buffer(device),
            Op::Sync { file, flags } => self.sync(file, flags),
            Op::Info { device } => self.info(device),
            Op::Shrink { device, revoke } => self.shrink(device, revoke),
            Op::Wedge {
                device,
                milliseconds,
            } => self.wedge(device, milliseconds),
            Op::Reset { device } => self.reset(device),
            Op::Reclaim => {
                self.note(format_args!("reclaim memory"));
                self.group.reclaim(256 * PAGE)
            }
            Op::Evict => self.evict(),
        }
    }
}

fn choose<T>(list: &[T], pick: Pick, fits: impl Fn(&T) -> bool) -> Option<usize> {
    let fitting: Vec<usize> = (0..list.len()).filter(|&i| fits(&list[i])).collect();
    Some(fitting[usize::from(pick).checked_rem(fitting.len())?])
}

/// For what fails.
fn seldom(pick: Pick) -> bool {
    pick % 8 == 0
}

fn is_memfd(memory: &Memory) -> bool {
    matches!(memory.kind, Kind::Memfd { .. })
}

fn name(view: &View) -> String {
    let (first, len) = (view.first, view.len());
    format!(
        "the {:?} mapping of m{} pages {first}..{}",
        view.prot,
        view.memory.id,
        first + len
    )
}

fn device_name(device: &Device) -> impl Display {
    let id = device.memory.id;
    match device.driver() {
        Some(by) => format!("m{id} in {by:?}"),
        None => format!("m{id} in the importer"),
    }
}
