// SPDX-License-Identifier: GPL-2.0
//! The GEM driver: handles of one open file, mappings at their fake offsets, and shrinkers.

use std::os::fd::AsFd;

use super::mappings::map_pages;
use super::*;

impl World<'_> {
    fn handle(&self, pick: Pick, fits: impl Fn(&Handle) -> bool) -> Option<(Rc<Card>, usize)> {
        Some((self.card.clone()?, choose(&self.handles, pick, fits)?))
    }

    pub(super) fn dumb(&mut self, pages: usize) -> Result<()> {
        let Some(card) = self.card.clone() else {
            return Ok(());
        };
        let memory = self.memory(Kind::Dumb, pages);
        let what = format!("m{} = dumb buffer of {pages} pages", memory.id);
        let create = || Ok(card.create_dumb(pages)?.keep());
        if let Some(number) = self.attempt(Done, false, what, create)? {
            self.handles.push(Handle { number, memory });
        }
        Ok(())
    }

    /// What the file has a handle of gets no other.
    pub(super) fn gem_import(&mut self, file: Pick) -> Result<()> {
        let (Some(card), Some(file)) = (self.card.clone(), self.file(file, Memory::is_buffer))
        else {
            return Ok(());
        };
        let Open { file, memory } = &self.files[file];
        let memory = memory.clone();
        let what = format!("import m{} into the GEM driver", memory.id);
        let import = || Ok(card.import(file.as_fd())?.keep());
        let Some(number) = self.attempt(Done, false, what, import)? else {
            return Ok(());
        };
        let same = |handle: &&Handle| Rc::ptr_eq(&handle.memory, &memory);
        let known = self.handles.iter().find(same);
        let other = self.handles.iter().find(|handle| handle.number == number);
        ensure!(
            known.map(|handle| handle.number) == other.map(|handle| handle.number),
            "m{} gets handle {number}, which is of {:?}",
            memory.id,
            other.map(|handle| handle.memory.id)
        );
        if known.is_none() {
            self.handles.push(Handle { number, memory });
        }
        Ok(())
    }

    pub(super) fn gem_export(&mut self, handle: Pick) -> Result<()> {
        let Some((card, at)) = self.handle(handle, |_| true) else {
            return Ok(());
        };
        let Handle { number, memory } = &self.handles[at];
        let (number, memory) = (*number, memory.clone());
        let what = format!("export m{} from the GEM driver", memory.id);
        if let Some(buf) = self.attempt(Done, false, what, || card.export(number))? {
            self.open(buf, memory);
        }
        Ok(())
    }

    pub(super) fn gem_close(&mut self, handle: Pick) -> Result<()> {
        if let Some((card, at)) = self.handle(handle, |_| true) {
            let Handle { number, memory } = self.handles.swap_remove(at);
            let what = format!("close the handle of m{}", memory.id);
            self.attempt(Done, false, what, || card.close(number))?;
        }
        Ok(())
    }

    /// Maps through the device: imports have no place there.
    pub(super) fn mmap_node(
        &mut self,
        handle: Pick,
        span: Span,
        prot: Prot,
        private: bool,
        aligned: bool,
    ) -> Result<()> {
        let fits = |it: &Handle| !it.is_import() || seldom(handle);
        let Some((card, at)) = self.handle(handle, fits) else {
            return Ok(());
        };
        let handle = &self.handles[at];
        let (number, memory) = (handle.number, handle.memory.clone());
        let (first, count) = span.of(memory.len());
        if first >= memory.len() {
            // Behind its end another one may begin.
            return Ok(());
        }
        let end = first + count;
        let want = match end > memory.len() || private || handle.is_import() {
            true => Fails(Errno::INVAL),
            false => Done,
        };
        let suffix = if private { ", private" } else { "" };
        let what = format!(
            "mmap m{} pages {first}..{end} of the GEM driver for {prot:?}{suffix}",
            memory.id
        );
        let map = || {
            let base = card.offset(number)?;
            map_pages(&card, base, first..end, prot, private, aligned)
        };
        if let Some(map) = self.attempt(want, false, what, map)? {
            self.show(map, memory, first, prot);
        }
        Ok(())
    }

    /// Asks all shrinkers for all they have. What nobody uses is taken out of all mappings.
    pub(super) fn evict(&mut self) -> Result<()> {
        self.note(format_args!("ask shrinkers for all they have"));
        kernel::write("/proc/sys/vm/drop_caches", "2")?;
        let mut seen = Vec::new();
        for view in self.views.iter().filter(|_| self.alone) {
            let memory = &view.memory;
            // A look at a page maps those around it, also for what was split off.
            if memory.kind != Kind::Dumb || memory.users() != 0 || seen.contains(&memory.id) {
                continue;
            }
            let i = self.steps % view.len();
            if view.accessible(i, false).is_some() {
                seen.push(memory.id);
                ensure!(
                    !is_mapped(&view.map, i),
                    "page {i} of {} is still mapped",
                    name(view)
                );
            }
        }
        Ok(())
    }
}
