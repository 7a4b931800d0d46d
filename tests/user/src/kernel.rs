// SPDX-License-Identifier: GPL-2.0
//! The running kernel's counters, settings and messages.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::{HUGE_PAGES, PAGE};
use anyhow::{bail, ensure, Context, Result};
use rustix::thread::{sched_getcpu, sched_setaffinity, CpuSet};

/// How many page pins are held, system-wide.
pub fn pins() -> Result<i64> {
    // The counters drift per CPU until this is written.
    write("/proc/sys/vm/stat_refresh", "1")?;
    let vmstat = read("/proc/vmstat")?;
    let count = |name| field(&vmstat, name).with_context(|| format!("no {name} in vmstat"));
    Ok(count("nr_foll_pin_acquired")? - count("nr_foll_pin_released")?)
}

/// How many dma-bufs there are, system-wide.
pub fn buffers() -> Result<i64> {
    let info = read("/sys/kernel/debug/dma_buf/bufinfo")?;
    info.lines()
        .last()
        .and_then(|line| field(line, "Total"))
        .context("no total in bufinfo")
}

/// What must be as before when its users have gone, system-wide.
#[derive(Debug, PartialEq, Eq)]
pub struct Held {
    pins: i64,
    buffers: i64,
    device_mappings: i64,
    bounce_slots: i64,
}

impl Held {
    pub fn now() -> Result<Self> {
        Ok(Self {
            pins: pins()?,
            buffers: buffers()?,
            device_mappings: device_mappings()?,
            bounce_slots: bounce_slots()?,
        })
    }
}

/// How many files this process has open.
pub fn open_files() -> Result<usize> {
    let files = fs::read_dir("/proc/self/fd").context("/proc/self/fd")?;
    Ok(files.count())
}

/// A buffer as bufinfo shows it.
#[derive(Debug)]
pub struct Shown {
    pub size: usize,
    pub exporter: String,
    pub name: String,
    /// Those that are attached.
    pub devices: Vec<String>,
}

/// What the kernel shows of this buffer to everybody.
pub fn buffer(buf: impl AsFd) -> Result<Shown> {
    let ino = rustix::fs::fstat(buf)?.st_ino;
    let info = read("/sys/kernel/debug/dma_buf/bufinfo")?;
    let mut lines = info.lines();
    lines
        .by_ref()
        .find_map(|line| {
            let words: Vec<_> = line.split('\t').collect();
            let [size, _flags, _mode, _count, exporter, number, name] = words[..] else {
                return None;
            };
            (number.parse() == Ok(ino)).then(|| (size, exporter, name))
        })
        .map(|(size, exporter, name)| -> Result<Shown> {
            let devices = lines.skip_while(|line| *line != "\tAttached Devices:");
            let devices = devices.skip(1).map_while(|line| line.strip_prefix('\t'));
            Ok(Shown {
                size: size.parse()?,
                exporter: exporter.to_owned(),
                name: name.to_owned(),
                devices: devices.map(str::to_owned).collect(),
            })
        })
        .context("the buffer is not in bufinfo")?
}

/// How many mappings for devices there are, system-wide, where the kernel counts them.
pub fn device_mappings() -> Result<i64> {
    const DIR: &str = "/sys/kernel/debug/dma-api";
    let count = |name| -> Result<i64> { Ok(read(format!("{DIR}/{name}"))?.parse()?) };
    // It gives up if it has no memory itself, as where that is made to fail.
    match Path::new(DIR).exists() && read(format!("{DIR}/disabled"))? == "N" {
        true => Ok(count("nr_total_entries")? - count("num_free_entries")?),
        false => Ok(0),
    }
}

/// How much of the memory for bounce buffers is in use, system-wide.
pub fn bounce_slots() -> Result<i64> {
    const USED: &str = "/sys/kernel/debug/swiotlb/io_tlb_used";
    // Small machines have none.
    match Path::new(USED).exists() {
        true => Ok(read(USED)?.parse()?),
        false => Ok(0),
    }
}

/// The number after `name` in text such as `/proc/meminfo`.
pub fn field(text: &str, name: &str) -> Option<i64> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        (words.next()?.trim_end_matches(':') == name).then(|| words.next()?.parse().ok())?
    })
}

/// How often that has happened since boot.
pub fn event(name: &str) -> Result<i64> {
    field(&read("/proc/vmstat")?, name).with_context(|| format!("no {name} in vmstat"))
}

/// What `who` has used: this thread (`RUSAGE_THREAD`), the process, or its children that have
/// ended.
pub fn usage(who: libc::c_int) -> libc::rusage {
    // SAFETY: plain numbers, which may be zero.
    let mut usage = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills it in.
    let ret = unsafe { libc::getrusage(who, &mut usage) };
    assert_eq!(ret, 0, "getrusage knows whom to ask for");
    usage
}

/// How many page faults this thread takes in `access`.
pub fn faults(access: impl FnOnce()) -> i64 {
    let count = || usage(libc::RUSAGE_THREAD).ru_minflt;
    let before = count();
    access();
    count() - before
}

/// Bytes of page tables that this process has: huge pages need none.
pub fn page_tables() -> Result<usize> {
    let kib = field(&read("/proc/self/status")?, "VmPTE").context("no VmPTE")?;
    Ok(kib as usize * 1024)
}

/// A field of `/proc/meminfo`, in bytes.
pub fn memory(name: &str) -> Result<u64> {
    let kib = field(&read("/proc/meminfo")?, name).with_context(|| format!("no {name}"))?;
    Ok(kib as u64 * 1024)
}

pub fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    Ok(fs::read_to_string(path)
        .with_context(|| format!("reading {}", path.display()))?
        .trim_end()
        .to_owned())
}

/// Writes a file of procfs, sysfs or cgroupfs.
pub fn write(path: impl AsRef<Path>, value: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, value).with_context(|| format!("writing {value} to {}", path.display()))
}

/// A kernel setting, changed until dropped.
#[derive(Debug)]
pub struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    pub fn set(path: impl Into<PathBuf>, value: &str) -> Result<Self> {
        let path = path.into();
        let now = read(&path)?;
        // Choices are shown as "a [b] c".
        let before = match now.split_once('[').and_then(|(_, s)| s.split_once(']')) {
            Some((chosen, _)) => chosen.to_owned(),
            None => now,
        };
        write(&path, value)?;
        Ok(Self { path, before })
    }

    /// That many free hugepages of the usual size.
    pub fn hugepages(wanted: usize) -> Result<Self> {
        let kib = (HUGE_PAGES * PAGE) >> 10;
        let dir = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB");
        let count = |name| -> Result<usize> { Ok(read(format!("{dir}/{name}"))?.parse()?) };
        write("/proc/sys/vm/compact_memory", "1")?;
        let used = count("nr_hugepages")? - count("free_hugepages")?;
        let setting = Self::set(format!("{dir}/nr_hugepages"), &(used + wanted).to_string())?;
        let got = count("free_hugepages")?;
        ensure!(
            got >= wanted,
            "needs {wanted} hugepages, the kernel found memory for {got}"
        );
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // A case that can't restore is reported by the next one that needs it.
        let _ = write(&self.path, &self.before);
    }
}

/// A memory cgroup, removed on drop.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

impl Cgroup {
    pub fn new(name: &str) -> Result<Self> {
        let mounts = read("/proc/mounts")?;
        let root = mounts
            .lines()
            .find_map(|line| {
                let mut words = line.split_whitespace().skip(1);
                let (dir, kind) = (words.next()?, words.next()?);
                (kind == "cgroup2").then(|| Path::new(dir))
            })
            .context("no cgroup2 is mounted")?;
        write(root.join("cgroup.subtree_control"), "+memory")?;
        let dir = root.join(name);
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        Ok(Self(dir))
    }

    /// From now on, this process belongs to it.
    pub fn enter(&self) -> Result<()> {
        write(self.0.join("cgroup.procs"), "0")
    }

    /// How many bytes are charged to it.
    pub fn charge(&self) -> Result<u64> {
        Ok(read(self.0.join("memory.current"))?.parse()?)
    }

    /// How many bytes of pages stay charged to it once no process is in it and all that can be
    /// reclaimed is: some may be there for slabs that others have objects in.
    pub fn left(&self) -> Result<i64> {
        self.limit(self.slabs()? as u64)?;
        Ok(self.charge()? as i64 - self.slabs()?)
    }

    fn slabs(&self) -> Result<i64> {
        field(&read(self.0.join("memory.stat"))?, "slab").context("no slab in memory.stat")
    }

    /// Nothing beyond that many bytes can be charged to it.
    pub fn limit(&self, bytes: u64) -> Result<()> {
        write(self.0.join("memory.max"), &bytes.to_string())
    }

    /// Its processes get memory of these NUMA nodes only.
    pub fn set_nodes(&self, nodes: &str) -> Result<()> {
        let root = self.0.parent().context("the root group")?;
        write(root.join("cgroup.subtree_control"), "+cpuset")?;
        write(self.0.join("cpuset.mems"), nodes)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A number in hexadecimal that may be an address of the kernel: in the upper half, and no small
/// negative number.
pub fn address_in(text: &str) -> Option<&str> {
    let words = text.split(|c: char| !c.is_ascii_hexdigit() && c != 'x');
    words.into_iter().find(|word| {
        let digits = word.strip_prefix("0x").unwrap_or(word);
        digits.len() == 16
            && u64::from_str_radix(digits, 16)
                .is_ok_and(|n| (0xffff_8000 << 32..!0xffff).contains(&n))
    })
}

/// Reads what the kernel says, to notice when it complains.
pub struct Log {
    file: File,
    expected: Option<&'static str>,
}

impl Log {
    /// From now on. A message with `expected` in it is no complaint.
    pub fn follow(expected: Option<&'static str>) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("opening /dev/kmsg")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, expected })
    }

    /// The first complaint since the last call, or the first line that tells where the kernel has
    /// something.
    pub fn complaint(&mut self) -> Result<Option<String>> {
        const COMPLAINTS: [&str; 10] = [
            "WARNING: ",
            "BUG: ",
            "kernel BUG at ",
            "Oops",
            "INFO: ",
            "UBSAN: ",
            "general protection fault",
            "Bad page",
            "rust_kernel: panicked",
            "sysfs: cannot create duplicate filename",
        ];
        let mut found = None;
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => return Ok(found),
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    let text = text.split_once(';').map_or("", |(_, text)| text);
                    let expected = self.expected.is_some_and(|part| text.contains(part));
                    let complains = COMPLAINTS.iter().any(|c| text.starts_with(c)) && !expected;
                    // What is expected shows registers, too, and riscv addresses in each backtrace.
                    let backtrace = text.trim_start().starts_with("[<");
                    let shows = self.expected.is_none() && !backtrace && address_in(text).is_some();
                    if found.is_none() && (complains || shows) {
                        found = text.lines().next().map(str::to_owned);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(found),
                // Messages were overwritten before we read them.
                Err(e) if e.kind() == ErrorKind::BrokenPipe => continue,
                Err(e) => bail!("reading /dev/kmsg: {e}"),
            }
        }
    }
}

/// The memory controller of the root control group, unmounted on drop.
#[derive(Debug)]
pub struct RootGroup(PathBuf);

impl RootGroup {
    pub fn mount() -> Result<Self> {
        let place = std::env::temp_dir().join("pagekit-cgroup");
        fs::create_dir_all(&place)?;
        let path = CString::new(place.as_os_str().as_bytes())?;
        // SAFETY: NUL-terminated strings, and no data.
        let ret = unsafe {
            libc::mount(
                c"cgroup2".as_ptr(),
                path.as_ptr(),
                c"cgroup2".as_ptr(),
                0,
                std::ptr::null(),
            )
        };
        match ret {
            0 => Ok(Self(place)),
            _ => Err(std::io::Error::last_os_error()).context("mounting cgroup2"),
        }
    }

    /// Reclaims what goes to swap and what shrinkers have, as when memory is short. Other memory
    /// than that is left alone.
    pub fn reclaim(&self, bytes: usize) -> Result<()> {
        match fs::write(
            self.0.join("memory.reclaim"),
            format!("{bytes} swappiness=max"),
        ) {
            // There was not as much.
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(()),
            result => result.context("memory.reclaim"),
        }
    }
}

impl Drop for RootGroup {
    fn drop(&mut self) {
        if let Ok(path) = CString::new(self.0.as_os_str().as_bytes()) {
            // SAFETY: a NUL-terminated path.
            unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
        }
    }
}

pub const ZRAM: &str = "/dev/zram0";
const ZRAM_SYS: &str = "/sys/block/zram0";

/// A zram disk of `size` bytes, until dropped.
#[derive(Debug)]
pub struct Zram;

impl Zram {
    pub fn new(size: usize) -> Result<Self> {
        // A case that was killed leaves its own behind.
        swapoff();
        drop(Self);
        write(format!("{ZRAM_SYS}/disksize"), &size.to_string())?;
        Ok(Self)
    }
}

impl Drop for Zram {
    fn drop(&mut self) {
        let _ = write(format!("{ZRAM_SYS}/reset"), "1");
    }
}

/// Swap on a zram disk, until dropped.
#[derive(Debug)]
pub struct ZramSwap {
    // Dropped after swapoff.
    _disk: Zram,
}

impl ZramSwap {
    pub fn new(size: usize) -> Result<Self> {
        // New pages wait in lists of the CPU they were made on, where reclaim on
        // another CPU doesn't find them.
        stay_on_this_cpu()?;
        let disk = Zram::new(size)?;
        fs::write(ZRAM, swap_header(size / crate::PAGE)).context("writing the swap header")?;
        // SAFETY: a NUL-terminated path.
        if unsafe { libc::swapon(c"/dev/zram0".as_ptr(), 0) } != 0 {
            return Err(std::io::Error::last_os_error()).context("swapon");
        }
        Ok(Self { _disk: disk })
    }
}

impl Drop for ZramSwap {
    fn drop(&mut self) {
        swapoff();
    }
}

fn swapoff() {
    // SAFETY: a NUL-terminated path.
    unsafe { libc::swapoff(c"/dev/zram0".as_ptr()) };
}

/// From now on, this process and its children run on one CPU.
pub fn stay_on_this_cpu() -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(sched_getcpu());
    sched_setaffinity(None, &cpus).context("sched_setaffinity")
}

/// The first page of a swap device (C: `union swap_header`): what mkswap writes.
fn swap_header(pages: usize) -> [u8; crate::PAGE] {
    let mut page = [0; crate::PAGE];
    page[1024..1028].copy_from_slice(&1u32.to_ne_bytes());
    page[1028..1032].copy_from_slice(&(pages as u32 - 1).to_ne_bytes());
    page[crate::PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    page
}
