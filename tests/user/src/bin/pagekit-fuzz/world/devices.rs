// SPDX-License-Identifier: GPL-2.0
//! What devices do, and is done to them.

use super::*;

impl World<'_> {
    pub(super) fn add_object(&mut self, by: Driver, object: Object, memory: Rc<Memory>, own: bool) {
        let dynamic = !own && by == Driver::Nouveau;
        self.add(End::Object(by, object), memory, own, dynamic);
    }

    pub(super) fn import(&mut self, by: Driver, file: Pick) -> Result<()> {
        let Some(file) = self.file(file, Memory::is_buffer) else {
            return Ok(());
        };
        let Open { file, memory } = &self.files[file];
        let object = Object::open(by.device())?;
        let what = format!("import m{} into {by:?}", memory.id);
        if self
            .attempt(Done, false, what, || object.import(file))?
            .is_some()
        {
            let memory = memory.clone();
            let own = memory.driver() == Some(by);
            self.add_object(by, object, memory, own);
        }
        Ok(())
    }

    pub(super) fn attach(&mut self, file: Pick, dynamic: bool) -> Result<()> {
        let Some(file) = self.file(file, Memory::is_buffer) else {
            return Ok(());
        };
        let Open { file, memory } = &self.files[file];
        let kind = match dynamic {
            true => test_importer::Kind::Dynamic,
            false => test_importer::Kind::Static,
        };
        let importer = Importer::open()?;
        let what = format!("attach {kind:?} to m{}", memory.id);
        let attach = || importer.into_attachment(file, kind);
        if let Some(attachment) = self.attempt(Done, false, what, attach)? {
            let memory = memory.clone();
            self.add(End::Importer(attachment), memory, false, dynamic);
        }
        Ok(())
    }

    pub(super) fn close_device(&mut self, device: Pick) -> Result<()> {
        if let Some(device) = choose(&self.devices, device, |_| true) {
            self.note(format_args!("close {}", device_name(&self.devices[device])));
            let mut device = self.devices.swap_remove(device);
            // The child of another thread may have it open, too, for a while.
            if let (Some(_), Some((_, object))) = (device.mapped, device.object()) {
                if !self.alone {
                    object.unmap()?;
                }
            }
            device.set_live(false);
        }
        Ok(())
    }

    /// Whether that waits for the device of i915.
    fn hangs(&self, needs_i915: bool) -> bool {
        self.wedged && needs_i915
    }

    pub(super) fn map_device(&mut self, pick: Pick, dir: Dir) -> Result<()> {
        let mapped = self.devices.iter().filter(|device| device.mapped.is_some());
        if mapped.count() >= if self.alone { 3 * MAPPED } else { MAPPED } {
            return Ok(());
        }
        let fits = |device: &Device| !device.own && device.mapped.is_none() || seldom(pick);
        let Some(at) = choose(&self.devices, pick, fits) else {
            return Ok(());
        };
        let device = &self.devices[at];
        let ours = device.driver() == Some(Driver::I915);
        let exported = device.memory.driver() == Some(Driver::I915);
        let busy = device.mapped.is_some();
        let want = match device.end {
            _ if device.own => Fails(Errno::INVAL),
            _ if self.hangs(ours) => Fails(Errno::IO),
            _ if busy => Fails(Errno::BUSY),
            _ if self.hangs(exported) => Fails(Errno::IO),
            _ => Done,
        };
        let what = format!("map {} for {dir:?}", device_name(device));
        let call = || match &device.end {
            End::Importer(attachment) => attachment.map(dir),
            End::Object(_, object) => object.map(match dir {
                Dir::Both => style::MAP_READ | style::MAP_WRITE,
                Dir::ToDevice => style::MAP_READ,
                Dir::FromDevice => style::MAP_WRITE,
            }),
        };
        if self.attempt(want, ours || exported, what, call)?.is_some() {
            self.devices[at].mapped = Some(dir);
            self.devices[at].set_live(true);
        }
        Ok(())
    }

    pub(super) fn unmap_device(&mut self, pick: Pick) -> Result<()> {
        let fits = |device: &Device| device.mapped.is_some() || seldom(pick);
        let Some(at) = choose(&self.devices, pick, fits) else {
            return Ok(());
        };
        let device = &self.devices[at];
        let want = match (device.mapped, &device.end) {
            (Some(_), _) => Done,
            (None, End::Importer(_)) => Fails(Errno::NXIO),
            (None, End::Object(..)) => Fails(Errno::INVAL),
        };
        let what = format!("unmap {}", device_name(device));
        let call = || match &device.end {
            End::Importer(attachment) => attachment.unmap(),
            End::Object(_, object) => object.unmap(),
        };
        if self.attempt(want, false, what, call)?.is_some() {
            self.devices[at].mapped = None;
            self.devices[at].set_live(false);
        }
        Ok(())
    }

    /// What must come of a copy from the device or to it.
    fn want_access(&self, device: &Device, write: bool, by_address: bool, past_end: bool) -> Want {
        let hangs = self.hangs(device.is_of_i915());
        match device.end {
            End::Importer(_) if by_address => match () {
                () if device.mapped.is_none() => Fails(Errno::NXIO),
                () if device.is_against(write) => Fails(Errno::ACCESS),
                () if !device.live && hangs => Fails(Errno::IO),
                () if past_end => Fails(Errno::RANGE),
                () => Done,
            },
            End::Importer(_) if past_end => Fails(Errno::RANGE),
            End::Object(..) if device.own && hangs => Fails(Errno::IO),
            End::Object(..) if past_end => Fails(Errno::INVAL),
            _ if hangs => Fails(Errno::IO),
            _ => Done,
        }
    }

    /// Copies a page from the device or to it, from or to a page of a mapping or memory of ours.
    pub(super) fn access(
        &mut self,
        at: usize,
        index: usize,
        write: bool,
        way: Way,
        through: Option<(Pick, u16)>,
    ) -> Result<()> {
        let device = &self.devices[at];
        let memory = device.memory.clone();
        let past_end = index >= memory.len();
        // Which of two errors it was says whether it was mapped again.
        if past_end && !self.alone {
            return Ok(());
        }
        let by_address = matches!((&device.end, way), (End::Importer(_), Way::Dma));
        let want = self.want_access(device, write, by_address, past_end);
        // Not between what is shared and what is not.
        let page = memory.device_page(index);
        let exact = |page: &Rc<Page>| !page.is_shared();
        let through = through.filter(|_| page.as_ref().is_none_or(exact));
        let through = through.and_then(|(view, i)| {
            let view = &self.views[self.view(view)?];
            let i = usize::from(i) % view.len();
            let user = view.accessible(i, !write).filter(exact)?;
            Some((
                view.map.at(i * PAGE),
                user,
                format!(" by page {i} of {}", name(view)),
            ))
        });
        let content = match (&through, &page) {
            (Some((_, user, _)), _) => user.content(),
            (None, Some(page)) => {
                self.versions += 1;
                page.next(self.versions)
            }
            (None, None) => Content::Zero,
        };
        let device = &self.devices[at];
        let mut data = if write { bytes(content) } else { [0; PAGE] };
        let (user, suffix) = match &through {
            Some((user, _, suffix)) => (*user, suffix.as_str()),
            None => (data.as_mut_ptr(), ""),
        };
        let verb = match (write, &through) {
            (true, None) => &format!("write {content} to"),
            (true, Some(_)) => "write to",
            (false, _) => "read",
        };
        let what = format!(
            "{verb} page {index} of {}, {way:?}{suffix}",
            device_name(device)
        );
        let done = self.attempt(want, device.is_of_i915(), what, || {
            // SAFETY: a page that is ours, or in a mapping to which nobody has references.
            let user = unsafe { std::slice::from_raw_parts_mut(user, PAGE) };
            device.copy(write, by_address, index * PAGE, user)
        })?;
        // Moved buffers are mapped again first.
        let again = match device.end {
            End::Importer(_) if past_end => {
                by_address
                    && !device.is_against(write)
                    && !self.hangs(device.is_of_i915() && !device.live)
            }
            End::Importer(_) => by_address && done.is_some(),
            End::Object(..) => done.is_some(),
        };
        if again && device.mapped.is_some() && !device.own {
            self.devices[at].set_live(true);
        }
        let (Some(page), Some(())) = (page, done) else {
            return Ok(());
        };
        match (write, through) {
            (true, _) => page.set(content),
            (false, Some((_, user, _))) => user.set(page.content()),
            (false, None) => page
                .check(&data)
                .with_context(|| format!("page {index} of {}", device_name(&self.devices[at])))?,
        }
        Ok(())
    }

    fn importer(&self, pick: Pick) -> Option<(&Attachment<'static>, &Device)> {
        let fits = |device: &Device| device.object().is_none();
        let device = &self.devices[choose(&self.devices, pick, fits)?];
        match &device.end {
            End::Importer(attachment) => Some((attachment, device)),
            End::Object(..) => None,
        }
    }

    pub(super) fn object(&self, pick: Pick) -> Option<(Driver, &Object, &Device)> {
        let fits = |device: &Device| device.object().is_some();
        let device = &self.devices[choose(&self.devices, pick, fits)?];
        device.object().map(|(by, object)| (by, object, device))
    }

    pub(super) fn twice(&mut self, device: Pick) -> Result<()> {
        let Some((attachment, device)) = self.importer(device) else {
            return Ok(());
        };
        let i915 = device.memory.driver() == Some(Driver::I915);
        let want = if self.hangs(i915) {
            Fails(Errno::IO)
        } else {
            Done
        };
        let what = format!("map twice {}", device_name(device));
        self.attempt(want, i915, what, || attachment.map_twice())?;
        Ok(())
    }

    pub(super) fn move_buffer(&mut self, device: Pick) -> Result<()> {
        let Some((attachment, device)) = self.importer(device) else {
            return Ok(());
        };
        let memory = device.memory.clone();
        let what = format!("say that m{} moves", memory.id);
        self.attempt(Done, false, what, || attachment.pretend_move())?;
        self.invalidate(&memory);
        Ok(())
    }

    pub(super) fn info(&mut self, device: Pick) -> Result<()> {
        // As above: others count, too.
        let Some((by, object, device)) = self.object(device).filter(|_| self.alone) else {
            return Ok(());
        };
        let memory = &device.memory;
        let what = format!("info of {}", device_name(device));
        let Some(info) = self.attempt(Done, false, what, || object.info())? else {
            return Ok(());
        };
        let count = |fits: &dyn Fn(&Device) -> bool| {
            let same = |device: &&Device| Rc::ptr_eq(&device.memory, memory) && fits(device);
            self.devices.iter().filter(same).count()
        };
        let handle = |handle: &Handle| Rc::ptr_eq(&handle.memory, memory) && handle.is_import();
        let attachments =
            count(&|device| !device.own) + usize::from(self.handles.iter().any(handle));
        let sharers = count(&|device| device.own);
        let want = if device.own {
            Info {
                pinned: match by {
                    Driver::I915 if memory.users() == 0 => 0,
                    _ => memory.len() as u64,
                },
                attachments: attachments as u32,
                mappings: memory.users() as u32,
                sharers: match by {
                    Driver::Radeon => attachments + sharers,
                    _ => sharers,
                } as u32,
                ..Info::default()
            }
        } else {
            Info {
                attachments: 1,
                mappings: device.live.into(),
                sharers: 1,
                flags: style::INFO_IMPORTED,
                ..Info::default()
            }
        };
        let wedged = match by {
            Driver::I915 if self.wedged => style::INFO_WEDGED,
            _ => 0,
        };
        let want = Info {
            size: (memory.len() * PAGE) as u64,
            held: info.held,
            resident: info.resident,
            flags: want.flags | wedged,
            ..want
        };
        ensure!(
            info == want,
            "{}: {info:?}, should be {want:?}",
            device_name(device)
        );
        Ok(())
    }

    pub(super) fn shrink(&mut self, device: Pick, revoke: bool) -> Result<()> {
        let Some((by, object, device)) = self.object(device) else {
            return Ok(());
        };
        let memory = device.memory.clone();
        let fixed =
            |device: &Device| Rc::ptr_eq(&device.memory, &memory) && device.live && !device.dynamic;
        let want = match by {
            Driver::Nouveau | Driver::Radeon => Fails(Errno::NOTTY),
            Driver::I915 if !revoke => Done,
            Driver::I915 if !device.own => Fails(Errno::INVAL),
            Driver::I915 if memory.shared => Either,
            Driver::I915 if self.devices.iter().any(fixed) => Fails(Errno::BUSY),
            Driver::I915 => Done,
        };
        let what = format!("shrink {}, revoke: {revoke}", device_name(device));
        let flags = if revoke { style::SHRINK_REVOKE } else { 0 };
        let done = self.attempt(want, false, what, || object.shrink(flags))?;
        if done.is_some() && revoke {
            self.invalidate(&memory);
        }
        Ok(())
    }

    fn i915(&self, device: Pick) -> Option<&Object> {
        let i915 = |device: &Device| device.driver() == Some(Driver::I915);
        let device = choose(&self.devices, device, i915)?;
        self.devices[device].object().map(|(_, object)| object)
    }

    pub(super) fn wedge(&mut self, device: Pick, milliseconds: u32) -> Result<()> {
        let Some(object) = self.i915(device) else {
            return Ok(());
        };
        let what = format!("wedge I915 for {milliseconds} ms");
        self.attempt(Done, false, what, || object.wedge(milliseconds))?;
        self.wedged = self.alone;
        if !self.alone {
            std::thread::yield_now();
            self.i915(device).context("an object")?.reset()?;
        }
        Ok(())
    }

    pub(super) fn reset(&mut self, device: Pick) -> Result<()> {
        let Some(object) = self.i915(device) else {
            return Ok(());
        };
        self.attempt(Done, false, format_args!("reset I915"), || object.reset())?;
        self.wedged = false;
        Ok(())
    }

    pub(super) fn sync(&mut self, file: Pick, flags: u64) -> Result<()> {
        let Some(file) = self.file(file, Memory::is_buffer) else {
            return Ok(());
        };
        let Open { file, memory } = &self.files[file];
        let i915 = memory.driver() == Some(Driver::I915);
        let known = abi::SYNC_RW | abi::SYNC_END;
        let want = match () {
            () if flags & !known != 0 || flags & abi::SYNC_RW == 0 => Fails(Errno::INVAL),
            () if flags & abi::SYNC_END == 0 && self.hangs(i915) => Fails(Errno::IO),
            () => Done,
        };
        let what = format!("sync m{} {flags:#x}", memory.id);
        self.attempt(want, i915, what, || abi::sync(file, flags))?;
        Ok(())
    }
}
