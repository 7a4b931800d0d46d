# SPDX-License-Identifier: GPL-2.0
"""Where things are, running programs, and all that is built: modules, what runs in user
space, the kernel's selftests, a driver that is installed, HTML and charts.
"""

import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]
TOP = TOOLS.parent
TESTS = TOP / "tests"
LISTS = TESTS / "lists"
OUT = TOP / "out"
BIN = OUT / "user" / "release"
# As people say it on the command line. To what we start, the name of a kernel says it.
ARCH, PAGES = os.environ.pop("ARCH", ""), os.environ.pop("PAGES", "")

# Those of tools/setup/config.
KERNELS = ("base", "debug", "prod")

HELPERS = ("pagekit_pages", "pagekit_pin", "pagekit_vma")
SAMPLE = "pagekit_udmabuf"
# Once loaded, it stays, and what it needs stays with it.
HEAP = "pagekit_heap"
# The kernel tree's own tests, with where the headers are that the machine lacks, or has of
# an older kernel.
SELFTESTS = {
    "udmabuf": ("include/uapi", "drivers/dma-buf/udmabuf.c"),
    "pfnmap": ("tools/include/uapi", "mm/pfnmap.c", "mm/vm_util.c"),
    "heaps": ("include/uapi", "dmabuf-heaps/dmabuf-heap.c"),
    # Ours, in their form.
    "mmap_offset": ("include/uapi", TESTS / "selftest/mmap_offset.c"),
    "guest_fault": ("include/uapi", TESTS / "selftest/guest_fault.c"),
    "buffer_life": ("include/uapi", TESTS / "selftest/buffer_life.c"),
    "user_frames": ("include/uapi", TESTS / "selftest/user_frames.c"),
}
# Drivers as a newcomer makes them, by kind, and where: beside the root that the helpers are installed in.
NEW_DRIVERS = {"template": "acme_share", "gem": "acme_gem"}
DRIVERS = OUT / "drivers"


class Broken(Exception):
    """Something that a command stands on did not work; the message says in one line what."""

    last = ""  # what a program wrote before it failed, for those who read on later


def guarded(main) -> int:
    """main(), with a short word instead of a traceback when somebody stops it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        return main()
    except Broken as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def read_list(path) -> list[str]:
    """The lines of a list in tests/lists."""
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def run(*cmd, check=False, **options):
    """Run a command. What it writes is in the result."""
    result = subprocess.run([str(c) for c in cmd], capture_output=True, text=True, **options)
    if check and result.returncode:
        said = "\n".join((result.stdout + result.stderr).splitlines()[-20:])
        raise Broken(f"{' '.join(result.args)} ended with exit status {result.returncode}:\n{said}")
    return result


def call(what, *cmd, **options):
    """Run a command with its output visible."""
    cmd, last, output = [str(c) for c in cmd], deque(maxlen=20), None
    try:
        with subprocess.Popen(cmd, cwd=TOP, stderr=subprocess.PIPE, text=True, errors="replace", **options) as process:
            try:
                for line in process.stderr:
                    print(line, end="", file=sys.stderr, flush=True)
                    last.append(line)
                output = process.stdout and process.stdout.read()
            except BaseException:
                process.terminate()
                raise
    except OSError as error:
        raise Broken(f"{what} failed: {error}") from error
    if process.returncode:
        broken = Broken(f"{what} failed: {cmd[0]} ended with exit status {process.returncode}")
        broken.last = "\n" + "".join(last).rstrip()
        raise broken
    return subprocess.CompletedProcess(cmd, 0, output)


# --- The set-up ------------------------------------------------------------------


def architectures(line) -> dict[str, str]:
    """What the architectures are called that we know, by that line of theirs."""
    return {re.search(f"^{line}=(.*)", path.read_text(), re.M)[1]: path.stem for path in TOOLS.glob("setup/arch/*.env")}


def kind_of(kdir) -> tuple[str, str] | None:
    """The architecture and the page size of the kernel that is built there."""
    path = Path(kdir, "include/config/auto.conf")
    config = path.read_text() if kdir and path.exists() else ""  # the set-up says what is wrong
    shift = re.search(r"^CONFIG_PAGE_SHIFT=(\d+)$", config, re.M)
    arch = next((name for symbol, name in architectures("SYMBOL").items() if f"\nCONFIG_{symbol}=y\n" in config), None)
    return (arch, f"{1 << int(shift[1]) >> 10}k") if arch and shift else None


def kernel(config="base") -> str:
    """The name of such a kernel of the architecture and page size that are asked for, or of a tree of somebody's own.
    What is usual is left out, as in Makefile: know_kernel of the set-up reads these names."""
    names = architectures("MACHINE")
    arch, pages = kind_of(os.environ.get("KDIR", "")) or (ARCH, PAGES)
    usual = (names.get(platform.machine()), "4k", "base", "")
    return "-".join(word for word in (names.get(arch, arch), pages, config) if word not in usual) or "base"


def setup_tool(name) -> str:
    """Where the set-up has it."""
    return run(TOOLS / "setup/setup.sh", name, check=True).stdout.strip()


def set_up(config, what="kernel", user=True) -> dict:
    """Kernel, modules and user-space side; quiet when nothing is to do. Returns what
    `setup.sh env` says, and where programs are: BIN."""
    call(f"setting up the {config} kernel", TOOLS / "setup/setup.sh", what, config, stdout=subprocess.DEVNULL)
    text = call("setup.sh env", TOOLS / "setup/setup.sh", "env", config, stdout=subprocess.PIPE).stdout
    env = dict(word.split("=", 1) for word in shlex.split(text) if "=" in word)
    call("building the modules", "make", "--silent", "--no-print-directory", "modules", f"KERNEL_NAME={config}")
    env["BIN"] = build_user(env) if user else ""
    os.environ |= {name: env[name] for name in ("PAGEKIT_CACHE", "PATH", "VNG")}
    return env


def release(kdir) -> str:
    return Path(kdir, "include/config/kernel.release").read_text().strip()


def compiler(kdir) -> str:
    """The one of C and the one of Rust."""
    text = Path(kdir, "include/config/auto.conf").read_text()
    return ", ".join(sorted(re.findall(r'^CONFIG_(?:RUSTC|CC)_VERSION_TEXT="?(.*?)"?$', text, re.M)))


def source_of(kdir) -> Path:
    """The kernel's source, if it was built elsewhere. cloc wants no links."""
    return (Path(kdir, "source") if Path(kdir, "source").exists() else Path(kdir)).resolve()


# --- Modules ---------------------------------------------------------------------


def modules_dir(config) -> Path:
    return OUT / f"modules-{'custom' if os.environ.get('KDIR') else config}"


def kbuild(built, folder, *targets, rustflags="") -> str:
    """Build in a folder of its own. Returns what the compilers said."""
    llvm = [f"LLVM={built['LLVM']}"] if "LLVM" in built else []
    env = os.environ | {name: built[name] for name in ("PATH", "RUST_LIB_SRC", "LIBCLANG_PATH") if name in built}
    result = run("make", "-C", built["KDIR"], f"ARCH={built['ARCH']}", f"M={folder}", *llvm, f"KRUSTFLAGS={rustflags}",
                 *targets, env=env)
    if result.returncode:
        said = "\n".join(json.loads(line)["rendered"] if line.startswith("{") else line
                         for line in result.stderr.split("\n"))
        raise Broken(f"{os.path.relpath(folder)} does not build:\n{said[max(said.find('error'), 0):][:3000]}")
    return result.stderr


def plain_helpers(modules) -> Path:
    """The helpers without what they have for C: what figures are of."""
    folder = modules.with_name(f"{modules.name}-plain")
    symbols = " ".join(name.upper() for name in HELPERS)
    run("make", "--silent", "modules", "KERNEL_NAME=base", f"SYMBOLS={symbols}", f"OUT={folder}", cwd=TOP,
        check=True)
    return folder


def text_of(file) -> int:
    """The bytes of its code and constants."""
    return int(run("size", file, check=True).stdout.split("\n")[1].split()[0])


def depends(module: Path) -> list[str]:
    found = run("modinfo", "-F", "depends", module, check=True).stdout
    return [name for name in found.strip().split(",") if name]


def load_order(modules: Path, *wanted) -> list[str]:
    """The modules wanted, or all there, each after those it depends on."""
    order = []

    def add(name):
        if name not in order and (path := modules / f"{name}.ko").exists():
            for other in depends(path):
                add(other)
            order.append(name)

    for name in wanted or sorted(path.stem for path in modules.glob("*.ko")):
        add(name)
    for name in wanted or [SAMPLE]:
        if name not in order:
            raise Broken(f"{name}.ko is not in {modules}")
    return order


# --- What runs in user space -------------------------------------------------------


def build_user(built=None) -> Path:
    """Returns where the programs are: those of this machine, or for a kernel that was built."""
    built = built or {}
    folder, target, env = OUT / "user", [], dict(os.environ)
    if triple := built.get("RUST_TARGET"):
        # Its std is built, too: no other toolchain needs to be installed.
        folder = folder.with_name(f"{folder.name}-{built['ARCH']}")
        target = ["-Zbuild-std=std,panic_abort", "--target", triple]
        name = f"CARGO_TARGET_{triple.upper().replace('-', '_')}"
        env |= {"RUSTC_BOOTSTRAP": "1", "__CARGO_TESTS_ONLY_SRC_ROOT": built["RUST_LIB_SRC"],
                f"{name}_LINKER": f"{built['CROSS']}gcc", f"{name}_RUSTFLAGS": "-Ctarget-feature=+crt-static"}
    if (shift := built.get("PAGE_SHIFT", "12")) != "12":
        folder = folder.with_name(f"{folder.name}-{1 << int(shift) - 10}k")
        env["PAGEKIT_PAGE_SHIFT"] = shift
    programs = Path(folder, built.get("RUST_TARGET", ""), "release")
    quiet = ["--quiet"] if (programs / "pagekit-test").exists() else []
    call("building the user-space side", "cargo", "build", *quiet, *target, "--release", "--locked",
         "--manifest-path", TESTS / "user/Cargo.toml", "--target-dir", folder, env=env)
    return programs


def build_selftests(built):
    """The kernel tree's own, unchanged, and ours in their form. A guest of another architecture has no libraries."""
    source, cross = source_of(built["KDIR"]), built.get("CROSS")
    selftests = source / "tools/testing/selftests"
    for name, (headers, *files) in SELFTESTS.items():
        place = "-isystem" if headers.startswith("tools") else "-idirafter"
        call(f"building the {name} selftest", f"{cross}gcc" if cross else "cc", *["-static"] * bool(cross),
             "-O2", "-w", "-D__user=", "-I", selftests, place, source / headers,
             *(selftests / file for file in files), "-o", built["BIN"] / f"{name}-selftest")


def build_compat(built):
    """The 32-bit program: without libc, for which a 64-bit machine has no other."""
    call("building the 32-bit program", *shlex.split(built["COMPAT_CC"]), "-O2", "-Wall", "-Wextra", "-Werror",
         "-ffreestanding", "-fno-stack-protector", "-fno-pie", "-nostdlib", "-static",
         f"-DPAGE={1 << int(built['PAGE_SHIFT'])}", TESTS / "user/compat.c", "-o", built["BIN"] / "pagekit-compat")


# --- A driver made of the template ---------------------------------------------------


def install(config, *targets, **variables):
    """Build and install with these targets of make, below out/drivers."""
    call(f"make {targets[-1]}", "make", "--silent", "--no-print-directory", *targets, f"KERNEL_NAME={config}",
         f"INSTALL_MOD_PATH={DRIVERS / 'root'}", *(f"{name}={value}" for name, value in variables.items()))


def install_drivers(folders, config, built) -> dict:
    """Build them against helpers that are installed, and install them. Returns what guest/driver.sh wants to know."""
    names = []
    for folder in folders:
        install(config, "-C", folder, "modules", "modules_install", KDIR=built["KDIR"])
        names.append(next(folder.glob("*.ko")).stem)
        user = DRIVERS / "users" / names[-1]
        user.mkdir(parents=True, exist_ok=True)
        for program in folder.glob("*.py"):
            shutil.copyfile(program, user / program.name)
    shutil.copyfile(TESTS / "guest/driver.sh", DRIVERS / "driver.sh")
    return {"DRIVERS": " ".join(names), "ROOT": DRIVERS / "root", "USERS": DRIVERS / "users",
            "PYTHON": "python3" if "GUEST" in built else sys.executable, "DRIVER_SH": DRIVERS / "driver.sh"}


def new_drivers(config, built) -> dict:
    """Make one of each kind as newcomers do, where the kernel has what it takes."""
    shutil.rmtree(DRIVERS, ignore_errors=True)
    install(config, "modules_install")
    made = {kind: DRIVERS / name for kind, name in NEW_DRIVERS.items() if (modules_dir(config) / f"pagekit_{kind}.ko").exists()}
    for kind, folder in made.items():
        install(config, "new-driver", NAME=folder.name, DIR=folder, KIND=kind)
    return install_drivers(made.values(), config, built)


# --- Documents ------------------------------------------------------------------------------


def build_htmldocs(folder) -> str:
    """Make HTML of the documents. Returns what Sphinx says against them."""
    return run(setup_tool("sphinx"), "-q", "-E", "-W", "--keep-going", "-b", "html", TOP / "Documentation",
               folder).stderr.strip()


def draw(chart, found, picture):
    """Draw a document's chart of what was found."""
    call(f"drawing {picture.name}", setup_tool("matplotlib"), "-m", chart, found, picture)
