// SPDX-License-Identifier: GPL-2.0
//! Shares buffers of each exporter with each importer: what one side writes the other must see, as
//! a whole and at offsets, and pages are pinned exactly when the exporter says.

use std::fmt::Write as _;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use pagekit_user::abi::{
    self, HeapAllocation, UdmabufCreate, SYNC_READ, SYNC_WRITE, UDMABUF_FLAGS_CLOEXEC,
};
use pagekit_user::drm::{Card, Handle};
use pagekit_user::mapping::Mapping;
use pagekit_user::style::{Object, INFO_IMPORTED, MAP_READ, MAP_WRITE};
use pagekit_user::test_importer::{self, Dir, Importer, Kind, Through};
use pagekit_user::{kernel, PAGE};
use rustix::fs::OFlags;

const PAGES: usize = 24;
const SIZE: usize = PAGES * PAGE;
/// So many that a heap has large folios of them.
const MANY: usize = 1024;

// --- Who there is ------------------------------------------------------------------

/// When pages are pinned.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pins {
    Always,
    /// While a device has them mapped.
    Mapped,
    /// They belong to the exporter, and go nowhere.
    Never,
}

/// How buffers are made.
#[derive(Clone, Copy)]
enum Make {
    Udmabuf,
    Object,
    Heap,
    Template,
    Dumb,
}

struct Exporter {
    name: &'static str,
    device: &'static str,
    make: Make,
    pins: Pins,
    /// What mainline's driver is known to get wrong.
    fails: &'static [Check],
}

const fn exporter(
    name: &'static str,
    device: &'static str,
    make: Make,
    pins: Pins,
    fails: &'static [Check],
) -> Exporter {
    Exporter {
        name,
        device,
        make,
        pins,
        fails,
    }
}

const EXPORTERS: &[Exporter] = &[
    exporter(
        "udmabuf",
        "/dev/pagekit-udmabuf",
        Make::Udmabuf,
        Pins::Always,
        &[],
    ),
    exporter("i915", "/dev/pagekit-i915", Make::Object, Pins::Mapped, &[]),
    exporter(
        "nouveau",
        "/dev/pagekit-nouveau",
        Make::Object,
        Pins::Always,
        &[],
    ),
    exporter(
        "radeon",
        "/dev/pagekit-radeon",
        Make::Object,
        Pins::Always,
        &[],
    ),
    exporter(
        "heap",
        "/dev/dma_heap/pagekit",
        Make::Heap,
        Pins::Never,
        &[],
    ),
    exporter(
        "template",
        "/dev/pagekit-template",
        Make::Template,
        Pins::Never,
        &[],
    ),
    exporter(
        "mainline-udmabuf",
        "/dev/udmabuf",
        Make::Udmabuf,
        Pins::Always,
        &[],
    ),
    exporter(
        "mainline-system-heap",
        "/dev/dma_heap/system",
        Make::Heap,
        Pins::Never,
        &[],
    ),
    exporter("gem", "pagekit-gem", Make::Dumb, Pins::Never, &[]),
    // drm_gem_shmem_fault() counts pages from the start of the VMA.
    exporter("vgem", "vgem", Make::Dumb, Pins::Never, &[Check::Offsets]),
];

const IMPORTERS: &[&str] = &["i915", "nouveau", "radeon", "test-importer", "gem", "vgem"];

/// DRM devices, of which each importer and exporter has its own.
struct Cards {
    /// Older kernels have none.
    gem: Option<Card>,
    vgem: Card,
}

impl Cards {
    fn find() -> Result<Self> {
        Ok(Self {
            gem: Card::find("pagekit-gem").ok(),
            vgem: Card::find("vgem")?,
        })
    }

    fn of(&self, name: &str) -> Result<&Card> {
        match name {
            "vgem" => Ok(&self.vgem),
            _ => self.gem.as_ref().context("no GEM driver"),
        }
    }
}

// --- The sides --------------------------------------------------------------------

/// Gets at the memory from one side.
trait Side {
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()>;
    fn write(&self, offset: usize, from: &[u8]) -> Result<()>;
}

/// A memfd, by system calls, which access the buffer that was made of it.
struct Memfd(OwnedFd, File);

impl Side for Memfd {
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        abi::with_cpu_access(&self.0, SYNC_READ, || {
            Ok(self.1.read_exact_at(to, offset as u64)?)
        })
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        abi::with_cpu_access(&self.0, SYNC_WRITE, || {
            Ok(self.1.write_all_at(from, offset as u64)?)
        })
    }
}

/// An object, by its driver.
impl Side for Object {
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        Ok(Object::read(self, offset, to)?)
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        Ok(Object::write(self, offset, from)?)
    }
}

/// A mapping of a whole dma-buf.
struct Mapped(OwnedFd, Mapping);

impl Mapped {
    fn new(buf: OwnedFd, pages: usize) -> Result<Self> {
        let map = Mapping::shared(&buf, 0, pages * PAGE)?;
        Ok(Self(buf, map))
    }
}

impl Side for Mapped {
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        abi::with_cpu_access(&self.0, SYNC_READ, || {
            self.1.read(offset, to);
            Ok(())
        })
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        abi::with_cpu_access(&self.0, SYNC_WRITE, || {
            self.1.write(offset, from);
            Ok(())
        })
    }
}

/// A dumb buffer, mapped through its DRM device.
struct Dumb<'a>(
    #[expect(dead_code, reason = "It keeps the handle.")] Handle<'a>,
    Mapped,
);

impl Side for Dumb<'_> {
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        self.1.read(offset, to)
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        self.1.write(offset, from)
    }
}

/// A device, by DMA addresses.
impl Side for test_importer::Attachment<'_> {
    fn read(&self, offset: usize, to: &mut [u8]) -> Result<()> {
        Ok(test_importer::Attachment::read(
            self,
            Through::Dma,
            offset,
            to,
        )?)
    }

    fn write(&self, offset: usize, from: &[u8]) -> Result<()> {
        Ok(test_importer::Attachment::write(
            self,
            Through::Dma,
            offset,
            from,
        )?)
    }
}

/// A buffer and the exporter's side of it.
struct Export<'a> {
    buf: OwnedFd,
    pages: usize,
    side: Box<dyn Side + 'a>,
    exporter: &'static str,
    /// Of a DRM device.
    handle: Option<u32>,
}

impl Exporter {
    fn create<'a>(&self, cards: &'a Cards, pages: usize) -> Result<Export<'a>> {
        let size = pages * PAGE;
        let open = || {
            let file = File::options().read(true).write(true).open(self.device);
            file.context(self.device)
        };
        let mut handle = None;
        let (buf, side): (_, Box<dyn Side>) = match self.make {
            Make::Udmabuf => {
                let memfd = abi::memfd(size as u64)?;
                let create = UdmabufCreate {
                    memfd: memfd.as_raw_fd() as u32,
                    flags: UDMABUF_FLAGS_CLOEXEC,
                    offset: 0,
                    size: size as u64,
                };
                let buf = abi::create(open()?, &create)?;
                (buf.try_clone()?, Box::new(Memfd(buf, memfd)))
            }
            Make::Object => {
                let object = Object::new(self.device, pages)?;
                (object.export()?, Box::new(object))
            }
            Make::Heap => {
                let mut allocation = HeapAllocation {
                    len: size as u64,
                    fd: 0,
                    fd_flags: (OFlags::RDWR | OFlags::CLOEXEC).bits(),
                    heap_flags: 0,
                };
                let buf = abi::heap_alloc(open()?, &mut allocation)?;
                (buf.try_clone()?, Box::new(Mapped::new(buf, pages)?))
            }
            Make::Template => {
                let buf = abi::template_create(open()?, pages)?;
                (buf.try_clone()?, Box::new(Mapped::new(buf, pages)?))
            }
            Make::Dumb => {
                let dumb = cards.of(self.name)?.create_dumb(pages)?;
                handle = Some(dumb.handle);
                let (buf, map) = (dumb.export()?, dumb.map(size)?);
                let mapped = Mapped(buf.try_clone()?, map);
                (buf, Box::new(Dumb(dumb, mapped)))
            }
        };
        Ok(Export {
            buf,
            pages,
            side,
            exporter: self.name,
            handle,
        })
    }
}

/// What an importer has of a buffer.
enum Import<'a> {
    Object(Object),
    Device(test_importer::Attachment<'a>),
    /// It never maps for a device: only its dma-buf can be mapped again.
    Card {
        side: Mapped,
        is_own: bool,
        _handle: Handle<'a>,
    },
}

impl<'a> Import<'a> {
    fn new(
        name: &str,
        export: &Export<'_>,
        importer: &'a Importer,
        cards: &'a Cards,
    ) -> Result<Self> {
        let buf = export.buf.as_fd();
        Ok(match name {
            "test-importer" => Self::Device(importer.attach(buf, Kind::Static)?),
            "gem" | "vgem" => {
                let handle = cards.of(name)?.import(buf)?;
                Self::Card {
                    side: Mapped::new(handle.export()?, export.pages)?,
                    is_own: export.exporter == name && export.handle == Some(handle.handle),
                    _handle: handle,
                }
            }
            style => Self::Object(Object::of(format!("/dev/pagekit-{style}"), buf)?),
        })
    }

    /// Whether the importer has found that the buffer is its own.
    fn is_own(&self) -> Result<bool> {
        Ok(match self {
            Self::Object(object) => object.info()?.flags & INFO_IMPORTED == 0,
            Self::Device(_) => false,
            Self::Card { is_own, .. } => *is_own,
        })
    }

    /// Maps the buffer for the device, if the importer does such a thing.
    fn map(&self) -> Result<bool> {
        match self {
            Self::Object(_) if self.is_own()? => return Ok(false),
            Self::Object(object) => object.map(MAP_READ | MAP_WRITE)?,
            Self::Device(attachment) => attachment.map(Dir::Both)?,
            Self::Card { .. } => return Ok(false),
        }
        Ok(true)
    }

    fn unmap(&self) -> Result<()> {
        match self {
            Self::Object(object) => object.unmap()?,
            Self::Device(attachment) => attachment.unmap()?,
            Self::Card { .. } => (),
        }
        Ok(())
    }

    fn side(&self) -> &dyn Side {
        match self {
            Self::Object(object) => object,
            Self::Device(attachment) => attachment,
            Self::Card { side, .. } => side,
        }
    }
}

// --- What is checked ----------------------------------------------------------------

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Data,
    Offsets,
}

/// Bytes that say which round wrote them, and where they are.
fn pattern(round: usize, offset: usize, len: usize) -> Vec<u8> {
    let byte = |at: usize| (at ^ (at / PAGE) * 7 ^ round * 61) as u8;
    (offset..offset + len).map(byte).collect()
}

/// What `from` writes there is what `to` reads.
fn pass(from: &dyn Side, to: &dyn Side, round: usize, offset: usize, len: usize) -> Result<()> {
    let want = pattern(round, offset, len);
    from.write(offset, &want)?;
    let mut got = vec![0; len];
    to.read(offset, &mut got)?;
    let wrong = want.iter().zip(&got).position(|(want, got)| want != got);
    ensure!(
        wrong.is_none(),
        "byte {:#x} is wrong",
        offset + wrong.unwrap_or(0)
    );
    Ok(())
}

fn whole(one: &dyn Side, other: &dyn Side) -> Result<()> {
    pass(one, other, 1, 0, SIZE).context("exporter to importer")?;
    pass(other, one, 2, 0, SIZE).context("importer to exporter")
}

/// A large buffer, of which only a little is written.
fn large(exporter: &Exporter, importer: &str, device: &Importer, cards: &Cards) -> Result<()> {
    let export = exporter.create(cards, MANY)?;
    let import = Import::new(importer, &export, device, cards)?;
    let maps = import.map()?;
    let (one, other) = (&*export.side, import.side());
    for (round, page) in [0, MANY / 2, MANY - 1].into_iter().enumerate() {
        pass(one, other, round, page * PAGE, PAGE).context("exporter to importer")?;
        pass(other, one, 3 + round, page * PAGE, PAGE).context("importer to exporter")?;
    }
    if maps {
        import.unmap()?;
    }
    Ok(())
}

/// Pieces, and mappings of the dma-buf that begin in its middle.
fn offsets(buf: &OwnedFd, one: &dyn Side, other: &dyn Side) -> Result<()> {
    for (round, (offset, len)) in [(PAGE, PAGE), (5 * PAGE - 1, 2), (7, SIZE - 7)]
        .into_iter()
        .enumerate()
    {
        let at = || format!("{len} bytes at {offset}");
        pass(one, other, 3 + round, offset, len).with_context(at)?;
        pass(other, one, 7 + round, offset, len).with_context(at)?;
    }
    for first in [1, PAGES / 2, PAGES - 1] {
        let (offset, len) = (first * PAGE, (PAGES - first) * PAGE);
        let want = pattern(11 + first, offset, len);
        other.write(offset, &want)?;
        let map = Mapping::shared(buf, offset, len)?;
        let mut got = vec![0; len];
        abi::with_cpu_access(buf, SYNC_READ, || {
            map.read(0, &mut got);
            Ok(())
        })?;
        ensure!(got == want, "mapped at page {first}");
    }
    Ok(())
}

/// Pages pinned after each step.
#[derive(Debug, Default, PartialEq, Eq)]
struct Pinned {
    create: i64,
    attach: i64,
    map: i64,
    unmap: i64,
    close: i64,
}

impl Pinned {
    fn expected(when: Pins, maps: bool) -> Self {
        let all = PAGES as i64;
        let always = if when == Pins::Always { all } else { 0 };
        Self {
            create: always,
            attach: always,
            map: if when == Pins::Mapped && maps {
                all
            } else {
                always
            },
            unmap: always,
            close: 0,
        }
    }
}

/// One exporter and one importer.
struct Cell {
    exporter: &'static Exporter,
    importer: &'static str,
    maps: bool,
    self_import: bool,
    pins: Pinned,
    left: i64,
    failed: Vec<(Check, String)>,
}

impl Cell {
    fn run(exporter: &'static Exporter, importer: &'static str, cards: &Cards) -> Result<Self> {
        let device = Importer::open()?;
        let (before, buffers) = (kernel::pins()?, kernel::buffers()?);
        let pinned = || Ok::<_, anyhow::Error>(kernel::pins()? - before);
        let mut pins = Pinned::default();
        let mut failed = Vec::new();

        let export = exporter.create(cards, PAGES).context("create")?;
        pins.create = pinned()?;
        let import = Import::new(importer, &export, &device, cards).context("attach")?;
        let self_import = import.is_own()?;
        pins.attach = pinned()?;
        let maps = import.map().context("map")?;
        pins.map = pinned()?;
        let (one, other) = (&*export.side, import.side());
        for (check, result) in [
            (Check::Data, whole(one, other)),
            (Check::Offsets, offsets(&export.buf, one, other)),
        ] {
            if let Err(error) = result {
                failed.push((check, format!("{error:#}")));
            }
        }
        if maps {
            import.unmap().context("unmap")?;
        }
        pins.unmap = pinned()?;
        drop(import);
        drop(export);
        pins.close = pinned()?;
        if let Err(error) = large(exporter, importer, &device, cards) {
            failed.push((Check::Data, format!("{MANY} pages: {error:#}")));
        }
        Ok(Self {
            exporter,
            importer,
            maps,
            self_import,
            pins,
            left: kernel::buffers()? - buffers,
            failed,
        })
    }

    fn is_ok(&self, check: Check) -> bool {
        self.failed.iter().all(|(failed, _)| *failed != check)
    }

    /// What is wrong that is not known of mainline's driver, and what is known and isn't wrong.
    fn complaints(&self) -> Vec<String> {
        let mut all = Vec::new();
        for (check, error) in &self.failed {
            if !self.exporter.fails.contains(check) {
                all.push(format!("{check:?}: {error}"));
            }
        }
        for check in self.exporter.fails {
            if self.is_ok(*check) {
                all.push(format!("{check:?}: mainline does not fail any more"));
            }
        }
        let want = Pinned::expected(self.exporter.pins, self.maps);
        if self.pins != want {
            all.push(format!("{:?}, not {want:?}", self.pins));
        }
        if self.self_import != (self.exporter.name == self.importer) {
            all.push(format!("self-import is {}", self.self_import));
        }
        if self.left != 0 {
            all.push(format!("{} buffers are left", self.left));
        }
        all
    }

    fn json(&self) -> String {
        let Pinned {
            create,
            attach,
            map,
            unmap,
            close,
        } = self.pins;
        format!(
            "{{\"exporter\": \"{}\", \"importer\": \"{}\", \"data_ok\": {}, \"self_import\": {}, \
             \"pins\": {{\"create\": {create}, \"attach\": {attach}, \"map\": {map}, \
             \"unmap\": {unmap}, \"close\": {close}}}, \"offset_ok\": {}}}",
            self.exporter.name,
            self.importer,
            self.is_ok(Check::Data),
            self.self_import,
            self.is_ok(Check::Offsets),
        )
    }
}

/// Runs all cells, writes what was seen to `path` and returns whether all is well.
fn run(path: &Path, without: &[String]) -> Result<bool> {
    let cards = Cards::find()?;
    let (mut json, mut well, mut number) = (String::new(), true, 0);
    let there = |name: &str| name != "gem" || cards.gem.is_some();
    let exporters = || {
        let left_out = |e: &&Exporter| without.iter().any(|name| name == e.name);
        EXPORTERS
            .iter()
            .filter(move |e| !left_out(e) && there(e.name))
    };
    let importers = || IMPORTERS.iter().filter(|name| there(name));
    println!("1..{}", exporters().count() * importers().count());
    for exporter in exporters() {
        for importer in importers() {
            number += 1;
            let case = format!("{number} - matrix.{}.{importer}", exporter.name);
            let complaints = match Cell::run(exporter, importer, &cards) {
                Ok(cell) => {
                    let comma = if json.is_empty() { "" } else { ",\n" };
                    write!(json, "{comma}{}", cell.json())?;
                    cell.complaints()
                }
                Err(error) => vec![format!("{error:#}")],
            };
            if complaints.is_empty() {
                println!("ok {case}");
            } else {
                println!("not ok {case} # {}", complaints.join("; "));
                well = false;
            }
        }
    }
    std::fs::write(path, format!("[{json}]\n")).with_context(|| path.display().to_string())?;
    Ok(well)
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(path) = args.next() else {
        eprintln!("usage: pagekit-matrix JSON [EXPORTER TO LEAVE OUT...]");
        return ExitCode::from(2);
    };
    match run(path.as_ref(), &args.collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("# {error:#}");
            ExitCode::from(2)
        }
    }
}
