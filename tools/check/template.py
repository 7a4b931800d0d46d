# SPDX-License-Identifier: GPL-2.0
"""The template of a driver, and what make new-driver makes of it."""

import os
import re
import shutil

from tools.lib.build import TOP, run
from tools.lib.tap import case

# What make new-driver refuses, with a word of what it says.
NAMES = {
    "": "which name", "7up": "begins with a letter", "Acme": "a to z", "acme-share": "a to z", "a b": "a to z",
    "../acme": "a to z", "a" * 56: "at most 55", "kernel": "a crate", "pagekit_pin": "its own modules"}
TEMPLATE_LINES = 60


def cases():
    """The template is small, and new-driver makes nothing where it should not."""
    code = re.findall(r"^\s*(?!//)\S.*$", (TOP / "samples/template.rs").read_text(), re.M)
    yield case("template.lines", f"{len(code)} lines of code" if len(code) > TEMPLATE_LINES else "")
    folder = TOP / "out/new-driver"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env = os.environ | {"KDIR": "/kernel"}

    def new(name, place):
        made = run(TOP / "samples/new-driver.sh", name, folder / place, env=env)
        return "" if made.returncode == 0 else made.stderr

    wrong = [name for name, why in NAMES.items() if why not in new(name, "refused")]
    yield case("template.bad-names", f"not refused as they should: {wrong}" if wrong else "")
    (folder / "taken").mkdir()
    (folder / "link").symlink_to("nowhere")
    kept = all("exists" in new("acme", place) for place in ("taken", "link")) and not any((folder / "taken").iterdir())
    yield case("template.keeps-existing", "" if kept else "a folder that exists was touched")
    said = new("acme_2", "acme")
    source = "".join(path.read_text() for path in (folder / "acme").glob("*.*"))
    names = re.findall(r'name: "(\w+)"|name = c"(\S+)"|export_fd\(c"(\w+)"', source)
    ok = not said and "pagekit_template" not in source and "".join(map("".join, names)) == "acme_2acme-2acme_2"
    yield case("template.names", said or ("" if ok else f"the new driver has these names: {names}"))
    left = sorted(path.name for path in folder.iterdir())
    yield case("template.leaves-nothing", "" if left == ["acme", "link", "taken"] else f"left: {', '.join(left)}")
