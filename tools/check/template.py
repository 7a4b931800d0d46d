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
# How a driver that is called acme_2 calls itself, in the order of its source.
NAMED = {"template": ["acme_2", "acme-2", "acme_2"], "gem": ["acme_2", "acme-2", "acme-2", "acme-2"]}


def cases():
    """The template is small, and new-driver makes nothing where it should not."""
    code = re.findall(r"^\s*(?!//)\S.*$", (TOP / "samples/template.rs").read_text(), re.M)
    yield case("template.lines", f"{len(code)} lines of code" if len(code) > TEMPLATE_LINES else "")
    folder = TOP / "out/new-driver"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    env = os.environ | {"KDIR": "/kernel"}

    def new(name, place, *kind):
        # With a slash, as shells complete names of folders.
        made = run(TOP / "samples/new-driver.sh", name, f"{folder / place}/", *kind, env=env)
        return "" if made.returncode == 0 else made.stderr

    wrong = [name for name, why in NAMES.items() if why not in new(name, "refused")]
    yield case("template.bad-names", f"not refused as they should: {wrong}" if wrong else "")
    (folder / "taken").mkdir()
    (folder / "link").symlink_to("nowhere")
    kept = all("exists" in new("acme", place) for place in ("taken", "link")) and not any((folder / "taken").iterdir())
    yield case("template.keeps-existing", "" if kept else "a folder that exists was touched")
    for kind, wanted in NAMED.items():
        said = new("acme_2", kind, kind)
        source = "".join(path.read_text() for path in sorted((folder / kind).glob("*.*")))
        names = ["".join(found) for found in re.findall(
            r'\bname: c?"([a-z]\S*)"|(?<!link_)name = c?"(\S+)"|export_fd\(c"(\w+)"|Registration::new\(c"(\S+)"', source)]
        ok = not said and not re.search(rf"pagekit[_-]{kind}", source) and names == wanted
        yield case(f"template.names-{kind}", said or ("" if ok else f"the new driver has these names: {names}"))
    left = sorted(path.name for path in folder.iterdir())
    yield case("template.leaves-nothing", "" if left == sorted([*NAMED, "link", "taken"]) else f"left: {', '.join(left)}")
