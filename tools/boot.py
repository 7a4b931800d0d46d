# SPDX-License-Identifier: GPL-2.0
"""Boot a built kernel in a virtual machine and run any script there: see lib/vm.py."""

import argparse
import os
import sys
from pathlib import Path

from tools.lib.build import guarded, set_up
from tools.lib.vm import SLOWER, run


def main() -> int:
    parser = argparse.ArgumentParser(description="Run a shell script in a virtual machine, as root.",
                                     epilog="exit status: the script's; 1 after a kernel report; 124 after a hang; "
                                            "125 if the guest died")
    parser.add_argument("--kdir", default=os.environ.get("KDIR"), help="a built kernel tree (default: $KDIR)")
    parser.add_argument("--kernel", help="one of the set-up instead, such as arm64-16k")
    parser.add_argument("--name", default="vm", help="logs go to out/NAME (default: vm)")
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--timeout", type=float, default=60, metavar="SECONDS",
                        help=f"for the script, with hardware acceleration (emulation: times {SLOWER['tcg']})")
    parser.add_argument("--icount", action="store_true", help="one CPU, and a clock that counts guest instructions")
    parser.add_argument("--accel", choices=("kvm", "tcg"), help="do not probe")
    parser.add_argument("--append", action="append", default=[], metavar="OPTION", help="kernel command line")
    parser.add_argument("script", help="run by sh, in a copy in out/NAME")
    parser.add_argument("args", nargs=argparse.REMAINDER)
    options = vars(parser.parse_args())
    if name := options.pop("kernel"):
        options["built"] = set_up(name)
        options["kdir"] = options["built"]["KDIR"]
    if not options["kdir"] or not Path(options["kdir"], "usr").is_dir():
        parser.error("no built kernel: give its directory with --kdir")
    if not Path(options["script"]).is_file():
        parser.error(f"no such file: {options['script']}")
    result = run(options.pop("kdir"), options.pop("script"), options.pop("name"), **options)
    print(f"vm: {result.reason or 'ok'} ({result.seconds:.0f} s; logs in {os.path.relpath(result.out_dir)})")
    return result.exit_code


if __name__ == "__main__":
    sys.exit(guarded(main))
