// SPDX-License-Identifier: GPL-2.0
//! What is done to mappings.

use std::ops::Range;
use std::os::fd::AsFd;

use super::*;

impl World<'_> {
    pub(super) fn anonymous(&mut self, pages: usize) -> Result<()> {
        let memory = self.memory(Kind::Anonymous, pages);
        self.note(format_args!(
            "m{} = private memory of {pages} pages",
            memory.id
        ));
        self.show(Mapping::anonymous(pages * PAGE)?, memory, 0, Prot::Write);
        Ok(())
    }

    pub(super) fn mmap(
        &mut self,
        file: Pick,
        span: Span,
        prot: Prot,
        private: bool,
        aligned: bool,
    ) -> Result<()> {
        let Some(file) = self.file(file, |_| true) else {
            return Ok(());
        };
        let Open { file, memory } = &self.files[file];
        let (first, count) = span.of(memory.len());
        let end = first + count;
        let is_file = matches!(memory.kind, Kind::Memfd { .. } | Kind::FileMmap);
        let private = private && !is_file;
        let past_end = end > memory.len() && !matches!(memory.kind, Kind::Memfd { .. });
        let want = match prot {
            Prot::Write if memory.read_only() && !private => Fails(Errno::ACCESS),
            _ if past_end || private => Fails(Errno::INVAL),
            _ => Done,
        };
        let suffix = if private { ", private" } else { "" };
        let what = format!(
            "mmap m{} pages {first}..{end} for {prot:?}{suffix}",
            memory.id
        );
        let map = || map_pages(file, 0, first..end, prot, private, aligned);
        if let Some(map) = self.attempt(want, false, what, map)? {
            let memory = memory.clone();
            self.show(map, memory, first, prot);
        }
        Ok(())
    }

    pub(super) fn protect(&mut self, view: Pick, span: Span, prot: Prot) -> Result<()> {
        let Some(view) = self.view(view) else {
            return Ok(());
        };
        let (first, count) = span.within(self.views[view].len());
        let view = self.split(view, first, count);
        let View { map, memory, .. } = &self.views[view];
        let want = match prot {
            Prot::Write if memory.read_only() => Fails(Errno::ACCESS),
            _ => Done,
        };
        let flags = match prot {
            Prot::None => MprotectFlags::empty(),
            Prot::Read => MprotectFlags::READ,
            Prot::Write => MprotectFlags::READ | MprotectFlags::WRITE,
        };
        let what = format!("mprotect {} for {prot:?}", name(&self.views[view]));
        let done = self.attempt(want, false, what, || map.protect(0, map.len(), flags))?;
        if done.is_some() {
            self.views[view].prot = prot;
        }
        Ok(())
    }

    pub(super) fn unmap(&mut self, view: Pick, span: Span) -> Result<()> {
        let Some(view) = self.view(view) else {
            return Ok(());
        };
        let (first, count) = span.within(self.views[view].len());
        let view = self.split(view, first, count);
        let what = name(&self.views[view]);
        self.note(format_args!("munmap {what}"));
        self.views.swap_remove(view);
        Ok(())
    }

    pub(super) fn remap(&mut self, view: Pick, pages: usize, how: Remap) -> Result<()> {
        let Some(at) = self.view(view) else {
            return Ok(());
        };
        // It goes and comes back, because it changes in a call that looks at others.
        let mut view = self.views.swap_remove(at);
        let len = view.len();
        let (want, to) = match how {
            Remap::Move => (Done, len),
            Remap::Shrink => (Done, 1 + pages % len),
            Remap::Grow => match view.memory.kind {
                Kind::Buffer { .. } | Kind::Dumb | Kind::Node { .. } => {
                    (Fails(Errno::FAULT), len + 1)
                }
                _ => (Done, len),
            },
        };
        let what = format!("mremap {} to {to} pages", name(&view));
        self.attempt(want, false, format_args!("{what}"), || match how {
            Remap::Move => view.map.move_to(Mapping::anonymous(len * PAGE)?),
            _ => view.map.resize(to * PAGE),
        })?;
        self.views.push(view);
        Ok(())
    }

    pub(super) fn advise(&mut self, view: Pick, advice: Advice) -> Result<()> {
        let Some(at) = self.view(view) else {
            return Ok(());
        };
        let View {
            map, memory, first, ..
        } = &self.views[at];
        let want = match (advice, memory.kind) {
            (Advice::LinuxDontNeed, _) if memory.shows_pfns() => Fails(Errno::INVAL),
            (Advice::LinuxDontNeed, _) => Done,
            (Advice::LinuxRemove, Kind::Memfd { .. } | Kind::FileMmap) if !memory.takes_holes() => {
                return Ok(())
            }
            (Advice::LinuxRemove, Kind::Memfd { .. } | Kind::FileMmap) => Done,
            (Advice::LinuxRemove, _) => FailsAnyhow,
            _ => Either,
        };
        let what = format!("madvise {} {advice:?}", name(&self.views[at]));
        let done = self.attempt(want, false, what, || map.advise(advice))?;
        let range = *first..*first + self.views[at].len();
        match (advice, memory.kind) {
            _ if done.is_none() => {}
            (Advice::LinuxDontNeed, Kind::Anonymous) | (Advice::LinuxRemove, _) => {
                memory.renew(range);
            }
            // Nobody maps it again.
            (Advice::LinuxDontNeed, Kind::Node { eager: true, .. }) => self.views[at].lost = true,
            _ => {}
        }
        Ok(())
    }

    pub(super) fn write(&mut self, view: Pick, page: usize) -> Result<()> {
        let Some(view) = self.view(view) else {
            return Ok(());
        };
        let i = page % self.views[view].len();
        let Some(page) = self.views[view].accessible(i, true) else {
            let view = &self.views[view];
            if !view.memory.shared || view.prot != Prot::Write {
                let what = format!("write to page {i} of {}", name(view));
                let call = || self.copy_to(view.map.at(i * PAGE));
                self.attempt(Fails(Errno::FAULT), false, what, call)?;
            }
            return Ok(());
        };
        let content = self.next_version(&page);
        let view = &self.views[view];
        let what = format!("write {content} to page {i} of {}", name(view));
        self.note(what);
        view.map.write(i * PAGE, &bytes(content));
        page.set(content);
        Ok(())
    }

    /// The child looks through all mappings, and writes through one.
    pub(super) fn fork(&mut self, view: Pick, page: usize) -> Result<()> {
        let Some(view) = self.view(view) else {
            return Ok(());
        };
        let i = page % self.views[view].len();
        let written = self.views[view].accessible(i, true);
        let content = written.as_deref().map(|page| self.next_version(page));
        let view = &self.views[view];
        self.note(format_args!(
            "fork a child that writes to page {i} of {}",
            name(view)
        ));
        // Other threads may hold locks of the allocator: it does nothing but read and write.
        let data = content.map(bytes);
        let mut want = Vec::new();
        for view in &self.views {
            for i in (0..view.len()).step_by(view.len().div_ceil(LOOK_AT)) {
                if let Some(page) = view.accessible(i, false).filter(|page| !page.is_shared()) {
                    want.push((
                        view.map.at(i * PAGE),
                        bytes(page.content())[..8].try_into()?,
                    ));
                }
            }
        }
        // SAFETY: the child only accesses memory, and exits.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            let seen = |&(at, word): &(*mut u8, [u8; 8])| {
                // SAFETY: mapped and readable, by what is known here.
                unsafe { at.cast::<[u8; 8]>().read_volatile() == word }
            };
            let wrong = want.iter().position(|page| !seen(page));
            if let Some(data) = data {
                view.map.write(i * PAGE, &data);
            }
            // SAFETY: ends the process.
            unsafe { libc::_exit(wrong.map_or(0, |at| 1 + at.min(200) as i32)) };
        }
        let pid = Pid::from_raw(pid).filter(|_| pid > 0).context("fork")?;
        let (_, status) = waitpid(Some(pid), WaitOptions::empty())?.context("waitpid")?;
        ensure!(status.exit_status() == Some(0), "the child: {status:?}");
        if let (Some(page), Some(content)) = (written, content) {
            if view.memory.kind != Kind::Anonymous {
                page.set(content);
            }
        }
        Ok(())
    }
}

/// Maps pages of what begins at `base` in a file.
pub(super) fn map_pages(
    file: impl AsFd,
    base: usize,
    pages: Range<usize>,
    prot: Prot,
    private: bool,
    aligned: bool,
) -> io::Result<Mapping> {
    let flags = match private {
        true => MapFlags::PRIVATE,
        false => MapFlags::SHARED,
    };
    let (first, len) = (pages.start * PAGE, pages.len() * PAGE);
    match aligned {
        true => {
            let place = Mapping::reserve(len, HUGE, first % HUGE)?;
            Mapping::over(place, file, base + first, prot_flags(prot), flags)
        }
        false => Mapping::new(file, base + first, len, prot_flags(prot), flags),
    }
}

fn prot_flags(prot: Prot) -> ProtFlags {
    match prot {
        Prot::None => ProtFlags::empty(),
        Prot::Read => ProtFlags::READ,
        Prot::Write => RW,
    }
}
