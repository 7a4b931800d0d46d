// SPDX-License-Identifier: GPL-2.0
//! What makes files and objects, and what is done to files.

use super::*;

impl World<'_> {
    pub(super) fn create_memfd(&mut self, pages: usize, sealed: bool) -> Result<()> {
        let memory = self.memory(Kind::Memfd { sealed }, pages);
        self.note(format_args!(
            "m{} = memfd of {pages} pages{}",
            memory.id,
            if sealed { ", sealed" } else { "" }
        ));
        let seals = match sealed {
            true => SealFlags::SHRINK,
            false => SealFlags::empty(),
        };
        let memfd = abi::memfd_with((pages * PAGE) as u64, MemfdFlags::ALLOW_SEALING, seals)?;
        self.open(memfd, memory);
        Ok(())
    }

    pub(super) fn resize(&mut self, file: Pick, pages: usize) -> Result<()> {
        let fits = |memory: &Memory| is_memfd(memory) && memory.takes_holes() && !memory.shared;
        let Some(file) = self.file(file, fits) else {
            return Ok(());
        };
        let Open { file, memory } = &self.files[file];
        let want = match memory.kind {
            Kind::Memfd { sealed: true } if pages < memory.len() => Fails(Errno::PERM),
            _ => Done,
        };
        let what = format!("truncate m{} to {pages} pages", memory.id);
        let done = self.attempt(want, false, what, || ftruncate(file, (pages * PAGE) as u64))?;
        if done.is_some() {
            memory.resize(pages);
        }
        Ok(())
    }

    pub(super) fn punch(&mut self, file: Pick, span: Span) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let Some((first, count, memory)) = self.fallocate(file, span, flags, "punch")? else {
            return Ok(());
        };
        memory.renew(first..first + count);
        Ok(())
    }

    pub(super) fn allocate(&mut self, file: Pick, span: Span) -> Result<()> {
        self.fallocate(file, span, FallocateFlags::KEEP_SIZE, "allocate")
            .map(drop)
    }

    fn fallocate(
        &mut self,
        file: Pick,
        span: Span,
        flags: FallocateFlags,
        verb: &str,
    ) -> Result<Option<(usize, usize, Rc<Memory>)>> {
        let fits = |memory: &Memory| is_memfd(memory) && memory.takes_holes() && memory.len() != 0;
        let Some(file) = self.file(file, fits) else {
            return Ok(None);
        };
        let Open { file, memory } = &self.files[file];
        let (first, count) = span.within(memory.len());
        let what = format!("{verb} m{} pages {first}..{}", memory.id, first + count);
        let (at, len) = ((first * PAGE) as u64, (count * PAGE) as u64);
        self.attempt(Done, false, what, || fallocate(file, flags, at, len))?;
        Ok(Some((first, count, memory.clone())))
    }

    pub(super) fn write_file(&mut self, file: Pick, page: usize) -> Result<()> {
        let Some(file) = self.file(file, |memory| is_memfd(memory) && memory.len() != 0) else {
            return Ok(());
        };
        let memory = self.files[file].memory.clone();
        let i = page % memory.len();
        let page = memory.page(i).context("within the file")?;
        let content = self.next_version(&page);
        self.note(format_args!(
            "write {content} to page {i} of m{}",
            memory.id
        ));
        self.files[file]
            .file
            .write_all_at(&bytes(content), (i * PAGE) as u64)?;
        page.set(content);
        Ok(())
    }

    pub(super) fn udmabuf(&mut self, parts: &[(Pick, Span)]) -> Result<()> {
        let mut want = Done;
        let (mut ranges, mut pages, mut shown) = (Vec::new(), Vec::new(), String::new());
        for &(file, span) in parts {
            let Some(file) = self.memfd(file) else {
                return Ok(());
            };
            let Open { file, memory } = &self.files[file];
            let (first, count) = span.of(memory.len());
            let end = first + count;
            if end > memory.len() || memory.kind == (Kind::Memfd { sealed: false }) {
                want = Fails(Errno::INVAL);
            } else {
                pages.extend(memory.pages(first..end));
            }
            ranges.push((file.as_raw_fd(), first, count));
            shown += &format!(" m{} pages {first}..{end}", memory.id);
        }
        let kind = Kind::buffer(None);
        let memory = self.memory_of(kind, pages);
        let what = format!("m{} = udmabuf of{shown}", memory.id);
        if let Some(buf) = self.attempt(want, false, what, || create_udmabuf(&ranges))? {
            self.open(buf, memory);
        }
        Ok(())
    }

    pub(super) fn heap(&mut self, pages: usize, read_only: bool) -> Result<()> {
        let kind = Kind::Buffer {
            by: None,
            read_only,
        };
        let memory = self.memory(kind, pages);
        let suffix = if read_only { ", read only" } else { "" };
        let what = format!("m{} = heap buffer of {pages} pages{suffix}", memory.id);
        if let Some(buf) = self.attempt(Done, false, what, || allocate_heap(pages, read_only))? {
            self.open(buf, memory);
        }
        Ok(())
    }

    pub(super) fn create(&mut self, by: Driver, pages: usize, file_mmap: bool) -> Result<()> {
        let (want, kind) = match (by, file_mmap) {
            (_, false) => (Done, Kind::buffer(Some(by))),
            (Driver::I915, true) => (Done, Kind::FileMmap),
            (_, true) => (Fails(Errno::INVAL), Kind::FileMmap),
        };
        let memory = self.memory(kind, pages);
        let object = Object::open(by.device())?;
        let create = Create {
            size: (pages * PAGE) as u64,
            flags: if file_mmap {
                style::CREATE_SHMEM_MMAP
            } else {
                0
            },
            ..Create::default()
        };
        let what = format!("m{} = {by:?} {create:?}", memory.id);
        if self
            .attempt(want, false, what, || object.create(&create))?
            .is_some()
        {
            self.add_object(by, object, memory, true);
        }
        Ok(())
    }

    pub(super) fn userptr(&mut self, pick: Pick) -> Result<()> {
        let fits = |kind| !matches!(kind, Kind::Node { .. } | Kind::Buffer { .. });
        let fits = |view: &View| fits(view.memory.kind) || view.memory.shows_pfns() && seldom(pick);
        let Some(view) = choose(&self.views, pick, fits) else {
            return Ok(());
        };
        let view = &self.views[view];
        let (len, address) = (view.len(), view.map.at(0));
        let pages: Option<Vec<_>> = (0..len).map(|i| view.accessible(i, true)).collect();
        let (want, pages) = match pages.filter(|_| !view.memory.shows_pfns()) {
            Some(pages) => (Done, pages),
            None => (Fails(Errno::FAULT), Vec::new()),
        };
        let shown = name(view);
        let memory = self.memory_of(Kind::Userptr, pages);
        let object = Object::open(Driver::Radeon.device())?;
        let create = Create {
            size: (len * PAGE) as u64,
            address: address as u64,
            flags: style::CREATE_USERPTR,
            reserved: 0,
        };
        let what = format!("m{} = Radeon object of {shown}", memory.id);
        if self
            .attempt(want, false, what, || object.create(&create))?
            .is_some()
        {
            self.add_object(Driver::Radeon, object, memory, true);
        }
        Ok(())
    }

    pub(super) fn node(&mut self, kind: Pick, file: Option<(Pick, Span)>) -> Result<()> {
        let (path, pfns, eager) = NODES[usize::from(kind) % NODES.len()];
        let node = File::options()
            .read(true)
            .write(true)
            .open(path)
            .context(path)?;
        let kind = Kind::Node { pfns, eager };
        // Pages of a file can be mapped as PFNs only.
        let of = file.and_then(|(file, span)| Some((self.memfd(file)?, span)));
        let Some((file, span)) = of.filter(|_| pfns) else {
            let memory = self.memory(kind, NODE_PAGES);
            self.note(format_args!("m{} = {path}", memory.id));
            self.open(node, memory);
            return Ok(());
        };
        let (memfd, from) = (&self.files[file].file, self.files[file].memory.clone());
        let (first, count) = span.of(from.len());
        let end = first + count;
        let (want, pages) = match end > from.len() {
            true => (Fails(Errno::INVAL), Vec::new()),
            false => (Done, from.pages(first..end)),
        };
        let what = format!(
            "m{} = {path} of m{} pages {first}..{end}",
            self.memories, from.id
        );
        let done = self.attempt(want, false, what, || {
            abi::show_file(&node, memfd, first, count)
        })?;
        let memory = self.memory_of(kind, pages);
        if done.is_some() {
            self.open(node, memory);
        }
        Ok(())
    }

    pub(super) fn export(&mut self, device: Pick) -> Result<()> {
        let Some((by, object, device)) = self.object(device) else {
            return Ok(());
        };
        let memory = device.memory.clone();
        let want = match memory.kind {
            Kind::Userptr => Fails(Errno::PERM),
            _ => Done,
        };
        let what = format!("export m{} from {by:?}", memory.id);
        if let Some(buf) = self.attempt(want, false, what, || object.export())? {
            self.open(buf, memory);
        }
        Ok(())
    }

    pub(super) fn close_file(&mut self, file: Pick) -> Result<()> {
        if let Some(file) = self.file(file, |_| true) {
            let id = self.files[file].memory.id;
            self.note(format_args!("close a file of m{id}"));
            self.files.swap_remove(file);
        }
        Ok(())
    }
}

/// Of ranges of memfds: their number, the first page, how many.
pub(super) fn create_udmabuf(ranges: &[(i32, usize, usize)]) -> io::Result<OwnedFd> {
    let device = File::open(UDMABUF).map_err(|_| last_errno())?;
    let items: Vec<_> = ranges
        .iter()
        .map(|&(memfd, first, count)| UdmabufCreateItem {
            memfd: memfd as u32,
            pad: 0,
            offset: (first * PAGE) as u64,
            size: (count * PAGE) as u64,
        })
        .collect();
    match items[..] {
        [UdmabufCreateItem {
            memfd,
            offset,
            size,
            ..
        }] => abi::create(
            device,
            &UdmabufCreate {
                memfd,
                flags: abi::UDMABUF_FLAGS_CLOEXEC,
                offset,
                size,
            },
        ),
        _ => abi::create_list(device, abi::UDMABUF_FLAGS_CLOEXEC, &items),
    }
}

pub(super) fn allocate_heap(pages: usize, read_only: bool) -> io::Result<OwnedFd> {
    let heap = File::open(HEAP).map_err(|_| last_errno())?;
    let access = if read_only {
        OFlags::RDONLY
    } else {
        OFlags::RDWR
    };
    let mut arg = HeapAllocation {
        len: (pages * PAGE) as u64,
        fd: 0,
        fd_flags: (access | OFlags::CLOEXEC).bits(),
        heap_flags: 0,
    };
    abi::heap_alloc(heap, &mut arg)
}
