# SPDX-License-Identifier: GPL-2.0
"""Boot a built kernel in a virtual machine and run a shell script there as root.

The guest's root is the host's file system, read-only, with the host user's
rights; only out/ is writable. Everything the guest needs must lie in out/: other
host directories may be hidden (virtme-ng mounts tmpfs on /run, /var/tmp, ...). A
guest of another architecture has out/, busybox, and /usr with kmod and Python.

A run leaves in out/<name>/:
  console.log  what the kernel and qemu wrote, up to the last moment of a hang
  dmesg.log    the kernel log as the guest read it at the end
  stdout.log   what the script wrote; it is echoed while it comes
  status       the script's exit status; no such file: the guest died
"""

import contextlib
import ctypes
import fcntl
import functools
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.lib.build import OUT, TOOLS, Broken

# Time limits are given for hardware acceleration; emulation is that much slower.
SLOWER = {"kvm": 1, "tcg": 8, "icount": 16}
ACCEL_NAMES = {"kvm": "hardware acceleration", "tcg": "emulation", "icount": "emulation, instruction clock"}
BOOT_LIMIT = 25  # seconds; under emulation a KASAN kernel needs 70
POWEROFF_LIMIT = 10
TROUBLED = "the kernel reports trouble before the script runs"
PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
PROBE_VALID = 24 * 3600

# What the kernel says when it is unwell. Messages are matched at their start,
# so that a test whose own text has "WARNING" in it does no harm.
REPORT = re.compile(
    r"^\[ *\d+\.\d+\](?:\[[^]]*\])? ("
    r"WARNING: |BUG: |kernel BUG at |Oops|Kernel panic|Internal error|Unable to handle|"
    r"general protection fault|UBSAN: |INFO: task .* blocked for more than|INFO: trying to register|"
    r"INFO: possible recursive|rcu: INFO: .* stall|watchdog: BUG|rust_kernel: panicked|"
    r"kmemleak: \d+ new suspected|Out of memory: Killed|Bad page cache|sysfs: cannot create duplicate|list_(?:add|del) corruption"
    r").*", re.M)

# The shell leads a process group of its own and kills all of it when the pipe on
# its stdin closes. The kernel closes that pipe however this program ends, kill -9
# included, so that no qemu stays behind.
GUARD = '"$@" </dev/null & exec >/dev/null 2>&1; read _; kill -KILL 0'

# Runs in the guest, where sh need not be bash. What the script writes goes through
# a port of our own: virtme-ng's ports need udev in the guest, and without udev it
# mixes the script's output into the console.
WRAPPER = """\
for port in /sys/class/virtio-ports/*; do
	[ "$(cat $port/name)" = pagekit ] && exec >/dev/${{port##*/}} 2>&1
done
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
cd {out} || exit
export TMPDIR=/run/tmp OUT={out} {env}
: >started
sh {script} {args} </dev/null
status=$?
dmesg >dmesg.log
sync
echo $status >status.new && mv status.new status
"""


@dataclass
class Result:
    status: int | None  # the script's exit status; None: it did not get to its end
    reason: str | None  # why the run failed, in one line; None: it passed
    out_dir: Path
    accel: str
    seconds: float

    @property
    def exit_code(self) -> int:
        if self.status is None:
            return 124 if "time limit" in (self.reason or "") else 125
        return self.status or (1 if self.reason else 0)


def alone(function):
    """Two runs of one name at once would mix what they leave."""
    @functools.wraps(function)
    def locked(kdir, script, name, **options):
        OUT.mkdir(exist_ok=True)
        with open(OUT / f"{name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Broken(f"another run uses out/{name}; wait for its end") from error
            return function(kdir, script, name, **options)
    return locked


@alone
def run(kdir, script, name, *, args=(), beside=(), memory="1G", cpus=2, timeout=60, icount=False,
        append=(), env=None, accel=None, virtme_run=None, echo=True, expected=None, nodes=(), built=None, qemu=()) -> Result:
    """Boot the kernel built in kdir and run the sh script in it. beside: files that it
    reads. timeout: seconds for the script with hardware acceleration. icount: one CPU
    and a clock that counts guest instructions, for figures that repeat. expected: a
    pattern of what the kernel may report. nodes: the memory of each NUMA node. The CPUs are on the
    first. built: what the set-up says of a kernel of another architecture. qemu: more options of it."""
    kdir, script, out = Path(kdir).resolve(), Path(script), OUT / name
    cross = built and "QEMU" in built
    if not cross:
        virtme_run = virtme_run or find_virtme_run()
    accel = "icount" if icount else "tcg" if cross else accel or probe(kdir, virtme_run)
    cpus = 1 if icount else cpus
    try:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        shutil.copy(script, out / "script.sh")
        for file in beside:
            shutil.copy(file, out)
    except OSError as error:
        raise Broken(error) from error
    exports = " ".join(f"{k}={shlex.quote(str(v))}" for k, v in (env or {}).items())
    (out / "wrapper.sh").write_text(WRAPPER.format(
        out=shlex.quote(str(out)), env=exports, script="script.sh", args=shlex.join(map(str, args))))
    # An emulator translates a program again wherever that lies, and looks at all of it for each byte that is
    # written to one of its pages: minutes, where the kernel clears what it frees.
    options = ("ignore_loglevel", "printk.time=1", "log_buf_len=4M", "oops=panic", "nokaslr", "norandmaps", *append)
    if cross:
        cmd = _qemu(built, kdir, out, memory, cpus, nodes, options)
    else:
        cmd = _virtme(virtme_run, accel, kdir, out, memory, cpus, nodes, options)
    cmd += [*qemu, "-chardev", "file,id=pagekit,path=/proc/self/fd/1", "-device", "virtio-serial-pci",
            "-device", "virtserialport,name=pagekit,chardev=pagekit"]
    if icount:
        cmd += ["-icount", "shift=0,sleep=off"]
    if echo:
        print(f"vm: booting {kdir} ({ACCEL_NAMES[accel]}, {cpus} CPU{'s'[:cpus > 1]}, {memory} memory)", flush=True)
    start = time.monotonic()
    late = _boot([str(c) for c in cmd], out, accel, timeout, echo)
    again = None
    if late == TROUBLED:
        again = f"{TROUBLED}: {_report((out / 'console.log').read_text(errors='replace'))}"
        (out / "started").unlink()
    elif accel != "kvm" and not (out / "started").exists():
        # None of our modules is loaded: the emulator has crashed, or the kernel waits for what that has lost.
        again = late or "the machine ended before the script"
    if again:
        print(f"vm: {again}; once more", flush=True)
        late = _boot([str(c) for c in cmd], out, accel, timeout, echo)
    return _judge(out, accel, time.monotonic() - start, late, expected)


def _virtme(virtme_run, accel, kdir, out, memory, cpus, nodes, options) -> list:
    """A machine of this one's kind. virtme-run itself, because the vng wrapper wants a terminal. 9p because
    virtiofsd is not everywhere and one way of sharing is enough to test. More options of qemu may follow."""
    cmd = [virtme_run, "--kdir", kdir, "--mods", "none", "--force-9p", "--rwdir", OUT,
           "--memory", memory, "--cpus", cpus, "--name", "pagekit", "--show-boot-console",
           "--script-sh", f"exec sh {shlex.quote(str(out / 'wrapper.sh'))}"]
    for node, size in enumerate(nodes):
        cmd += ["--numa", size if node else f"{size},cpus=0-{cpus - 1}"]
    for option in options:
        cmd += ["--kopt", option]
    if accel != "kvm":
        cmd += ["--disable-kvm"]
    return [*cmd, "--qemu-opts"]


# The root of a guest of another architecture, as the kernel's gen_init_cpio reads it.
ROOT = """\
dir /dev 755 0 0
nod /dev/console 600 0 0 c 5 1
dir /proc 755 0 0
dir /sys 755 0 0
dir /run 755 0 0
dir /usr 755 0 0
dir /bin 755 0 0
slink /sbin usr/sbin 777 0 0
slink /lib usr/lib 777 0 0
slink /lib64 usr/lib64 777 0 0
file /bin/busybox {usr}/bin/busybox 755 0 0
slink /bin/sh busybox 777 0 0
file /init {init} 755 0 0
"""


def _qemu(built, kdir, out, memory, cpus, nodes, options) -> list:
    """A machine of another architecture."""
    usr = Path(built["GUEST"], "usr")
    (out / "root.txt").write_text(ROOT.format(usr=usr, init=TOOLS / "lib/init.sh"))
    with open(out / "root.cpio", "wb") as root:
        subprocess.run([kdir / "usr/gen_init_cpio", out / "root.txt"], stdout=root, check=True)
    cmd = [*shlex.split(built["QEMU"]), "-m", memory, "-smp", cpus, "-nodefaults", "-no-reboot", "-display", "none",
           "-chardev", "file,id=console,path=/proc/self/fd/2", "-serial", "chardev:console",
           "-kernel", kdir / built["IMAGE"], "-initrd", out / "root.cpio",
           "-fsdev", f"local,id=share,path={OUT},security_model=none,multidevs=remap",
           "-device", "virtio-9p-pci,fsdev=share,mount_tag=share",
           "-fsdev", f"local,id=usr,path={usr},security_model=none,readonly=on", "-device", "virtio-9p-pci,fsdev=usr,mount_tag=usr",
           "-append", " ".join((f"console={built['CONSOLE']} panic=-1", *options, f"SHARE={OUT} RUN={out / 'wrapper.sh'}"))]
    for node, size in enumerate(nodes):
        cmd += ["-object", f"memory-backend-ram,id=node{node},size={size}",
                "-numa", f"node,memdev=node{node}" + ("" if node else f",cpus=0-{cpus - 1}")]
    return cmd


def _boot(cmd, out, accel, timeout, echo) -> str | None:
    """Run the machine until it ends. Returns what exceeded its time limit, if anything."""
    limit = time.monotonic() + BOOT_LIMIT * SLOWER[accel]
    phase, seconds = "boot", BOOT_LIMIT * SLOWER[accel]
    # Orphans of the group become ours, to wait until the last of them is gone.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    guard = subprocess.Popen(["sh", "-c", GUARD, "sh", *cmd], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, start_new_session=True, env=os.environ | {"TMPDIR": str(out)})
    try:
        with open(out / "console.log", "wb") as console, open(out / "stdout.log", "wb") as stdout, \
                selectors.DefaultSelector() as ready:
            ready.register(guard.stdout, selectors.EVENT_READ, stdout)
            ready.register(guard.stderr, selectors.EVENT_READ, console)
            while ready.get_map():
                for key, _ in ready.select(0.5):
                    data = os.read(key.fd, 1 << 16)
                    if not data:
                        ready.unregister(key.fileobj)
                    key.data.write(data)
                    key.data.flush()
                    if echo and key.data is stdout:
                        sys.stdout.buffer.write(data)
                        sys.stdout.buffer.flush()
                if phase == "boot" and (out / "started").exists():
                    # It says nothing about the script, and after it the kernel looks for less.
                    if _report((out / "console.log").read_text(errors="replace")):
                        return TROUBLED
                    phase, seconds = "script", timeout * SLOWER[accel]
                    limit = time.monotonic() + seconds
                elif phase == "script" and (out / "status").exists():
                    phase, seconds = "power-off", POWEROFF_LIMIT * SLOWER[accel]
                    limit = time.monotonic() + seconds
                if time.monotonic() > limit:
                    return f"{phase} exceeded its time limit of {seconds:g} s"
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(guard.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-guard.pid, 0)
        for stream in (guard.stdin, guard.stdout, guard.stderr):
            stream.close()
        guard.wait()
        for left in out.glob("virtme_ret*"):
            left.unlink()


def _report(log, expected=None) -> str | None:
    """The first line of what the kernel reports: it tells most. The timestamp says nothing."""
    lines = (report[0][report.start(1) - report.start():].strip() for report in REPORT.finditer(log))
    return next((line for line in lines if not expected or not re.match(expected, line)), None)


def _judge(out, accel, seconds, late, expected) -> Result:
    console = (out / "console.log").read_text(errors="replace").replace("\r", "")
    dmesg = out / "dmesg.log"
    log = console + (dmesg.read_text(errors="replace") if dmesg.exists() else "")
    report = _report(log, expected)
    status = reason = None
    with contextlib.suppress(OSError, ValueError):
        status = int((out / "status").read_text())
    if report:
        reason = f"kernel report: {report}"
    elif late:
        reason = f"hang: {late}"
    elif not (out / "started").exists():
        last = console.strip().splitlines()[-1:] or ["(nothing)"]
        reason = f"the guest did not come up; last on the console: {last[0].strip()}"
    elif status is None:
        reason = "the guest died: the script's exit status is missing"
    elif status:
        reason = f"the script failed with exit status {status}"
    return Result(status, reason, out, accel, seconds)


def find_virtme_run() -> str:
    """virtme-run beside the vng that VNG= names, or in PATH."""
    vng = os.environ.get("VNG")
    found = shutil.which(Path(vng).with_name("virtme-run")) if vng else shutil.which("virtme-run")
    if not found:
        raise Broken("virtme-run not found; run tools/setup/setup.sh, or name virtme-ng's vng with VNG=")
    return found


def probe(kdir, virtme_run) -> str:
    """Does /dev/kvm really run a guest? Only a boot tells: there are machines where
    it exists and guests hang on it. The answer is kept for a day or until the next
    boot of this machine."""
    if choice := os.environ.get("PAGEKIT_ACCEL"):
        if choice not in ("kvm", "tcg"):
            raise Broken("PAGEKIT_ACCEL must be kvm or tcg")
        return choice
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    cache = Path(os.environ.get("PAGEKIT_CACHE") or OUT) / f"accel-{os.getuid()}"
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with contextlib.suppress(OSError, ValueError):
        known_boot, known = cache.read_text().split()
        if known_boot == boot_id and time.time() - cache.stat().st_mtime < PROBE_VALID:
            return known
    print(f"vm: trying hardware acceleration (at most {BOOT_LIMIT} s) ... ", end="", flush=True)
    trial = OUT / "probe.sh"
    OUT.mkdir(exist_ok=True)
    trial.write_text("exit 0\n")
    result = run(kdir, trial, "probe", timeout=10, accel="kvm", virtme_run=virtme_run, echo=False)
    accel = "tcg" if result.reason else "kvm"
    print("works" if accel == "kvm" else f"no: {result.reason}", flush=True)
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(f"{boot_id} {accel}\n")
    return accel
