# SPDX-License-Identifier: GPL-2.0
"""What tests/lists says of cases is what sources and programs have: one that is lost is noticed."""

from tools.lib.cases import SMOKE, contents, counts, part_of
from tools.lib.tap import case


def cases():
    listed, found = counts(), contents()
    whole = {(suite, part) for suite, part in listed if part in (part_of(suite), SMOKE.get(part_of(suite)))}
    wrong = [f"{suite} {part}={len(found.get((suite, part), ()))}, not {listed.get((suite, part), 0)}"
             for suite, part in sorted(found.keys() | whole)
             if len(found.get((suite, part), ())) != listed.get((suite, part), 0)]
    yield case("lists.cases", f"sources and programs have {'; '.join(wrong)} as in tests/lists/cases.txt: if no case was lost, "
                              "write the new numbers there" if wrong else "")
