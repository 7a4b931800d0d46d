// SPDX-License-Identifier: GPL-2.0
//! QEMU with a virtio GPU, and what a driver in its guest does. The guest's CPU sleeps: each access
//! to its memory and to the device is a command of qtest.

use std::fmt::Display;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use pagekit_user::abi;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{fcntl_setfd, FdFlags};

/// The guest's memory, and where its frames are that nothing else has: above what a PC and the
/// queue below use.
pub const RAM: u64 = 16 << 20;
pub const FRAMES: u64 = 2 << 20;

/// Where the driver has its one queue, and what it puts there.
const DESCRIPTORS: u64 = 0x10_0000;
const AVAILABLE: u64 = 0x10_1000;
const USED: u64 = 0x10_2000;
const RESPONSE: u64 = 0x10_3000;
const REQUEST: u64 = 0x11_0000;
/// Where it puts the device's registers.
const BARS: u32 = 0xe000_0000;

/// The device's place in configuration space: `addr=2` on the first bus.
const CONFIG: u32 = 0x8000_0000 | 2 << 11;
/// C: `PCI_COMMAND` and two of its bits; the first capability, and one that a vendor defines.
const COMMAND: u32 = 4;
const MEMORY: u32 = 1 << 1;
const MASTER: u32 = 1 << 2;
const CAPABILITIES: u32 = 0x34;
const VENDOR: u32 = 9;
/// C: `VIRTIO_PCI_CAP_COMMON_CFG`, `VIRTIO_PCI_CAP_NOTIFY_CFG`.
const COMMON: u32 = 1;
const NOTIFY: u32 = 2;
/// C: `VIRTIO_PCI_COMMON_DFSELECT` and so on.
const DFSELECT: u64 = 0;
const DF: u64 = 4;
const GFSELECT: u64 = 8;
const GF: u64 = 12;
const STATUS: u64 = 20;
const Q_SELECT: u64 = 22;
const Q_SIZE: u64 = 24;
const Q_ENABLE: u64 = 28;
const Q_NOFF: u64 = 30;
const Q_DESCLO: u64 = 32;
const Q_AVAILLO: u64 = 40;
const Q_USEDLO: u64 = 48;
/// C: `VIRTIO_CONFIG_S_ACKNOWLEDGE` and so on.
const ACKNOWLEDGE: u64 = 1;
const DRIVER: u64 = 2;
const DRIVER_OK: u64 = 4;
const FEATURES_OK: u64 = 8;
/// C: `VIRTIO_GPU_F_RESOURCE_BLOB`, of the first 32 features; `VIRTIO_F_VERSION_1`, of the next.
const BLOB: u64 = 1 << 3;
const VERSION_1: u64 = 1;
/// C: `VRING_DESC_F_NEXT`, `VRING_DESC_F_WRITE`, where a descriptor has them, and the index of the
/// next one.
const NEXT: u64 = 1 << 32 | 1 << 48;
const WRITE: u64 = 2 << 32;
/// The size of C's `struct virtio_gpu_ctrl_hdr`.
const HEADER: u64 = 24;

pub struct Machine {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    monitor: BufReader<UnixStream>,
    /// What it says on stderr, and the last picture.
    log: File,
    picture: File,
    doorbell: u64,
    /// How many requests the driver has made.
    sent: u16,
}

impl Machine {
    /// Starts it, up to where the device takes requests.
    pub fn start(hugetlb: bool) -> Result<Self> {
        let [log, picture, bios] = [(); 3].map(|()| memfd());
        let (log, picture, bios) = (log?, picture?, bios?);
        // All it does is cli and hlt, at the reset vector.
        bios.write_all_at(&[0xfa, 0xf4], 0xfff0)?;
        bios.set_len(0x1_0000)?;
        let (monitor, end) = UnixStream::pair()?;
        let end = OwnedFd::from(end);
        fcntl_setfd(&end, FdFlags::empty())?;
        let huge = if hugetlb { "on,hugetlbsize=2M" } else { "off" };
        let mut process = Command::new("qemu-system-x86_64")
            .args(["-accel", "tcg", "-nodefaults", "-display", "none"])
            .args([
                "-machine",
                "pc,memory-backend=ram",
                "-m",
                &format!("{RAM}B"),
            ])
            .arg("-object")
            .arg(format!(
                "memory-backend-memfd,id=ram,size={RAM}B,hugetlb={huge}"
            ))
            .args(["-vga", "none", "-device", "virtio-gpu-pci,blob=true,addr=2"])
            .args([
                "-bios",
                &path(&bios),
                "-qtest",
                "stdio",
                "-qtest-log",
                "none",
            ])
            .arg("-chardev")
            .arg(format!("socket,id=monitor,fd={}", end.as_raw_fd()))
            .args(["-mon", "chardev=monitor,mode=control"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log.try_clone()?)
            .spawn()
            .context("qemu-system-x86_64")?;
        let commands = process.stdin.take().context("no stdin")?;
        let answers = process.stdout.take().context("no stdout")?;
        let mut machine = Self {
            process,
            commands,
            answers: BufReader::new(answers),
            monitor: BufReader::new(monitor),
            log,
            picture,
            doorbell: 0,
            sent: 0,
        };
        machine.execute("qmp_capabilities", "{}")?;
        machine.set_up()?;
        Ok(machine)
    }

    /// Of its dma-bufs: who exported them, and how large they are.
    pub fn buffers(&self) -> Result<Vec<(String, u64)>> {
        let (id, mut found) = (self.process.id(), Vec::new());
        for entry in fs::read_dir(format!("/proc/{id}/fd"))? {
            let entry = entry?;
            if fs::read_link(entry.path())?.starts_with("/dmabuf:") {
                let fd = entry.file_name();
                let field = |name| abi::fdinfo_of(id, fd.to_string_lossy(), name);
                found.push((field("exp_name")?, field("size")?.parse()?));
            }
        }
        Ok(found)
    }

    /// What it has said on stderr.
    pub fn said(&self) -> Result<String> {
        let mut text = vec![0; self.log.metadata()?.len() as usize];
        self.log.read_exact_at(&mut text, 0)?;
        Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
    }

    /// What its screen shows: three bytes a pixel.
    pub fn screen(&mut self, width: usize, height: usize) -> Result<Vec<u8>> {
        let file = format!("{{\"filename\": \"{}\"}}", path(&self.picture));
        self.execute("screendump", &file)?;
        let mut bytes = vec![0; self.picture.metadata()?.len() as usize];
        self.picture.read_exact_at(&mut bytes, 0)?;
        let head = format!("P6\n{width} {height}\n255\n");
        let pixels = bytes.strip_prefix(head.as_bytes());
        let pixels = pixels.filter(|pixels| pixels.len() == 3 * width * height);
        Ok(pixels.context("a picture of another size")?.to_vec())
    }

    /// Has the device do something. Returns the type of its response.
    pub fn request(&mut self, request: &[u8]) -> Result<u32> {
        self.store(REQUEST, request)?;
        let length = request.len() as u64;
        let chain = [REQUEST, length | NEXT, RESPONSE, HEADER | WRITE];
        self.store(DESCRIPTORS, &chain.map(u64::to_le_bytes).concat())?;
        // Both slots of the ring have descriptor 0 already.
        self.sent += 1;
        self.put("w", AVAILABLE + 2, self.sent.into())?;
        self.put("w", self.doorbell, 0)?;
        let begun = Instant::now();
        while self.get("w", USED + 2)? != u64::from(self.sent) {
            ensure!(begun.elapsed() < Duration::from_secs(60), "no response");
        }
        Ok(self.get("l", RESPONSE)? as u32)
    }

    /// Writes to the guest's memory.
    pub fn store(&mut self, to: u64, bytes: &[u8]) -> Result<()> {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.ask(format_args!("write {to:#x} {:#x} 0x{hex}", bytes.len()))
            .map(drop)
    }

    /// Accesses of a byte, a word or a long word.
    fn put(&mut self, size: &str, at: u64, value: u64) -> Result<()> {
        self.ask(format_args!("write{size} {at:#x} {value:#x}"))
            .map(drop)
    }

    fn get(&mut self, size: &str, at: u64) -> Result<u64> {
        self.ask(format_args!("read{size} {at:#x}"))
    }

    /// A command of qtest. Returns the number that it is answered with.
    fn ask(&mut self, command: impl Display) -> Result<u64> {
        writeln!(self.commands, "{command}").with_context(|| format!("QEMU: {:?}", self.said()))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let ok = words.next() == Some("OK");
        ensure!(ok, "{command}: {line:?}: {}", self.said()?);
        Ok(match words.next() {
            Some(word) => u64::from_str_radix(word.trim_start_matches("0x"), 16)?,
            None => 0,
        })
    }

    /// A command of QMP.
    fn execute(&mut self, command: &str, arguments: &str) -> Result<()> {
        let call = format!("{{\"execute\": \"{command}\", \"arguments\": {arguments}}}");
        writeln!(self.monitor.get_mut(), "{call}")?;
        loop {
            let mut line = String::new();
            let length = self.monitor.read_line(&mut line)?;
            ensure!(length != 0, "it is gone: {}", self.said()?);
            // Anything else is a greeting or an event.
            match line.starts_with("{\"return\"") {
                true => return Ok(()),
                false => ensure!(!line.starts_with("{\"error\""), "{command}: {line}"),
            }
        }
    }

    /// What firmware and the driver do before the first request.
    fn set_up(&mut self) -> Result<()> {
        let (common, _) = self.registers(COMMON)?;
        let (notify, at) = self.registers(NOTIFY)?;
        let scale = u64::from(self.config(at + 16)?);
        self.set_config(COMMAND, MEMORY | MASTER)?;

        self.put("b", common + STATUS, ACKNOWLEDGE | DRIVER)?;
        for (word, feature) in [(0, BLOB), (1, VERSION_1)] {
            self.put("l", common + DFSELECT, word)?;
            let offered = self.get("l", common + DF)?;
            ensure!(offered & feature != 0, "no {feature} of {word}");
            self.put("l", common + GFSELECT, word)?;
            self.put("l", common + GF, feature)?;
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        self.put("b", common + STATUS, status)?;
        // The first queue, of two entries.
        self.put("w", common + Q_SELECT, 0)?;
        self.put("w", common + Q_SIZE, 2)?;
        for (at, ring) in [
            (Q_DESCLO, DESCRIPTORS),
            (Q_AVAILLO, AVAILABLE),
            (Q_USEDLO, USED),
        ] {
            self.put("l", common + at, ring)?;
            self.put("l", common + at + 4, 0)?;
        }
        self.doorbell = notify + self.get("w", common + Q_NOFF)? * scale;
        self.put("w", common + Q_ENABLE, 1)?;
        self.put("b", common + STATUS, status | DRIVER_OK)?;
        let now = self.get("b", common + STATUS)?;
        ensure!(now == status | DRIVER_OK, "the device has status {now}");
        Ok(())
    }

    /// Registers of this kind: where they are, and where the capability is that says so. Gives
    /// their BAR a place.
    fn registers(&mut self, kind: u32) -> Result<(u64, u32)> {
        let mut at = self.config(CAPABILITIES)? & 0xff;
        while at != 0 {
            let head = self.config(at)?;
            if head & 0xff == VENDOR && head >> 24 == kind {
                let bar = self.config(at + 4)? & 0xff;
                let address = BARS + (bar << 20);
                self.set_config(0x10 + 4 * bar, address)?;
                let offset = self.config(at + 8)?;
                return Ok((u64::from(address + offset), at));
            }
            at = head >> 8 & 0xff;
        }
        bail!("the device has no capability {kind}")
    }

    fn config(&mut self, at: u32) -> Result<u32> {
        self.ask(format_args!("outl 0xcf8 {:#x}", CONFIG | at))?;
        Ok(self.ask("inl 0xcfc")? as u32)
    }

    fn set_config(&mut self, at: u32, value: u32) -> Result<()> {
        self.ask(format_args!("outl 0xcf8 {:#x}", CONFIG | at))?;
        self.ask(format_args!("outl 0xcfc {value:#x}")).map(drop)
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn memfd() -> Result<File> {
    abi::memfd_with(0, MemfdFlags::empty(), SealFlags::empty())
}

/// Where it opens a file of ours.
fn path(file: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())
}
