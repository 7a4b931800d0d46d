# SPDX-License-Identifier: GPL-2.0
"""make clients: programs that people run, on mainline's devices and on ours, side by side."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tools.lib import guest
from tools.lib.build import HEAP, OUT, SAMPLE, TOOLS, call, guarded, load_order, modules_dir, set_up
from tools.lib.tap import Case, parse_tap, summary

HERE = TOOLS / "clients"
FILES = OUT / "clients"
# Programs of ours, and the libraries that they try.
PROGRAMS = {"egl": ("EGL", "GLESv2"), "vulkan": ("vulkan",)}
# By how the guest calls it: what it is, the package that has it, and the exporters that it must come to.
CLIENTS = {
    "egl": ("Mesa llvmpipe, EGL", "libegl-mesa0", {"udmabuf", "heap"}),
    "vulkan": ("Mesa lavapipe, Vulkan", "mesa-vulkan-drivers", {"udmabuf", "heap"}),
    "camera-heap": ("libcamera cam, DMA heap", "libcamera-tools", {"heap"}),
    "camera-udmabuf": ("libcamera cam, udmabuf", "libcamera-tools", {"udmabuf"}),
}
# What these are called in fdinfo.
EXPORTERS = {
    "mainline": {"udmabuf": "udmabuf", "heap": "system"},
    "pagekit": {"udmabuf": SAMPLE, "heap": "pagekit"},
}
FRAMES = 8
# In NV12: see virtual.yaml.
FRAME = 640 * 480 * 3 // 2
TIMEOUT = 90


def build(root: Path):
    """Programs and settings go where the guest may write. What they link to is not the machine's."""
    shutil.rmtree(FILES, ignore_errors=True)
    (FILES / "camera").mkdir(parents=True)
    shutil.copy(HERE / "virtual.yaml", FILES / "camera")
    libraries = root / "usr/lib/x86_64-linux-gnu"
    for name, linked in PROGRAMS.items():
        call(f"building {name}", "cc", "-O2", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", f"--sysroot={root}",
             "-B", libraries, "-L", libraries, HERE / f"{name}.c", *(f"-l{each}" for each in linked), "-o", FILES / name)


def cases_of(name, side, text) -> list[Case]:
    """What the client has said, and what must be true of it."""
    wanted = {EXPORTERS[side][kind] for kind in CLIENTS[name][2]}
    seen = {*re.findall(r"^# exporter (\S+)", text, re.M)}
    cases = [(case.name, case.ok, case.detail) for case in parse_tap(text, side)]
    cases.append(("exporters", seen == wanted, ", ".join(sorted(seen)) or "none"))
    if name.startswith("camera-"):
        seen = frames(name, side)
        cases += [("frames", len(seen) == FRAMES * FRAME, f"{len(seen)} bytes"), ("picture", len({*seen}) > 1, "one colour")]
        if side != "mainline":
            cases.append(("same", seen == frames(name, "mainline"), "not mainline's frames"))
    return [Case(side, f"{side}.{name}.{case}", ok, "" if ok else detail) for case, ok, detail in cases]


def frames(name, side) -> bytes:
    path = FILES / f"{name}-{side}"
    return path.read_bytes() if path.exists() else b""


def seconds(text) -> float | None:
    times = [float(time) for time in re.findall(r"^# (?:begun|ended) ([\d.]+)$", text, re.M)]
    return round(times[1] - times[0], 1) if len(times) == 2 else None


def main() -> int:
    built = set_up("base", user=False)
    clients = Path(call("getting the clients", TOOLS / "setup/setup.sh", "clients",
                        stdout=subprocess.PIPE).stdout.splitlines()[-1])
    versions = dict(line.split() for line in (clients / "versions").read_text().splitlines())
    build(clients / "root")
    modules = modules_dir("base")
    env = {"ROOT": clients / "root", "FILES": FILES, "HEAP": HEAP, "FRAMES": FRAMES, "FRAMES_SIZE": FRAMES * FRAME}
    result = guest.run("base", built, "clients", env, modules, load_order(modules, SAMPLE, HEAP), memory="2G",
                       timeout=TIMEOUT)
    cases, rows = [Case("base", "vm.clean", not result.reason, result.reason or "")], []
    text = (result.out_dir / "stdout.log").read_text(errors="replace")
    said = {(name, side): part for name, side, part in re.findall(r"^== (\S+) (\S+)\n(.*?)(?=^== |\Z)", text, re.M | re.S)}
    for name, (what, package, _) in CLIENTS.items():
        row = {"client": what, "version": versions[package]}
        for side in EXPORTERS:
            part = said.get((name, side), "")
            own = cases_of(name, side, part)
            row[side] = {"passed": sum(case.ok for case in own), "of": len(own), "seconds": seconds(part)}
            cases += own
        rows.append(row)
    (OUT / "clients.json").write_text(json.dumps({"rows": rows, "cases": [vars(case) for case in cases]}, indent=1) + "\n")
    line = "{:26}{:20}{:>12}{:>8}{:>12}{:>8}"
    print("\n" + line.format("client", "version", "mainline", "took", "pagekit", "took"))
    for row in rows:
        sides = [row[side] for side in EXPORTERS]
        print(line.format(row["client"], row["version"], *(
            value for side in sides for value in (f"{side['passed']} of {side['of']}", f"{side['seconds']} s"))))
    return summary(cases)


if __name__ == "__main__":
    sys.exit(guarded(main))
