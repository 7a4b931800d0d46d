# SPDX-License-Identifier: GPL-2.0
"""The survey of what stands in the kernel's drivers: Documentation/survey.rst."""

import re
import shutil

from tools.lib.build import OUT, TOP
from tools.size.count import lines_of

SURVEY = TOP / "Documentation/survey.rst"
# Where drivers share memory through dma-bufs, and what they get, pin and map pages with.
PLACES = ("drivers/gpu/drm", "drivers/accel", "drivers/dma-buf", "drivers/media/common/videobuf2",
          "drivers/media/pci/intel", "drivers/misc/fastrpc.c", "drivers/staging/media", "drivers/tee", "drivers/xen")
CALLS = re.compile(r"\b(shmem_read_(mapping_page|folio)\w*|alloc_pages|alloc_pages_bulk|folio_alloc|memfd_pin_folios|"
                   r"pin_user_pages\w*|get_user_pages\w*|vmf_insert_\w+|vm_insert_pages?|vm_map_pages\w*|"
                   r"remap_pfn_range|apply_to_page_range)\(")
FUNCTION = re.compile(r"^(?:[a-z_][\w *]*\n)?(?=[a-z_])(?:[^\n;{}()#]*\W)?(\w+)\([^;{}]*?\)[^;{}()]*\n\{\n.*?^\}",
                      re.M | re.S)
# A row of either table of the survey: only what is a copy has lines.
ROW = re.compile(r"^   (drivers/[^:]*): (\w+)\(\), (?:(\d*), )?(.*)$", re.M)


def functions(file) -> dict[str, str]:
    return {match[1]: match[0] for match in FUNCTION.finditer(file.read_text(errors="replace"))}


def callers(tree):
    """Functions that get, pin or map pages: (file, function)."""
    for place in PLACES:
        for path in [tree / place] if place.endswith(".c") else sorted((tree / place).rglob("*.c")):
            file = str(path.relative_to(tree))
            if "test" in file or not CALLS.search(path.read_text(errors="replace")):
                continue
            for name, text in functions(path).items():
                if CALLS.search(re.sub(r"/\*.*?\*/", "", text.partition("{")[2], flags=re.S)):
                    yield file, name


def update(tree) -> int:
    """Count the lines of the functions in the survey again, and look for others."""
    text = SURVEY.read_text()
    rows = {match.group(1, 2): match.group(3, 4) for match in ROW.finditer(text)}
    bodies = {file: functions(tree / file) if (tree / file).exists() else {} for file, _ in rows}
    wrong = [f"{file}: {name}() is gone" for file, name in rows if name not in bodies[file]]
    wrong += [f"{file}: {name}() is not in the survey" for file, name in callers(tree) if (file, name) not in rows]
    if wrong:
        print("\n".join(wrong))
        return 1
    folder = OUT / "survey"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    copies = {}
    for file, name in (key for key, (lines, _) in rows.items() if lines is not None):
        copies[file, name] = folder / f"{len(copies)}.c"
        copies[file, name].write_text(bodies[file][name])
    lines = lines_of(copies.values())
    counted = {key: lines[path] for key, path in copies.items()}
    whole = [count for key, count in counted.items() if rows[key][1].startswith("all,")]
    total = (f"{len(counted)} functions in {len({file for file, _ in counted})} files, {sum(counted.values())} lines; "
             f"{len(whole)} with {sum(whole)} lines would go as a whole.")
    text = ROW.sub(lambda row: f"   {row[1]}: {row[2]}(), {counted[row[1], row[2]]}, {row[4]}"
                   if row.group(1, 2) in counted else row[0], text)
    SURVEY.write_text(re.sub(r"^\d+ functions in .*$", total, text, flags=re.M))
    print(f"survey: {total}")
    return 0
