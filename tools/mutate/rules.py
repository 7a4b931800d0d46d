# SPDX-License-Identifier: GPL-2.0
"""Ways to break a source: one change of one line each, found by rules.

What releases, counts or marks is left out. What checks something says always the same,
or is off by one. Of flags one is left out. Comments and strings are blank to the rules,
and so is what is no code of a function.
"""

import re
from collections import Counter
from dataclasses import dataclass

# Not to be broken, for it does nothing when it runs: declarations, names and constants.
BLANK = (
    r"//[^\n]*", r"/\*.*?\*/", r'"(?:[^"\\\n]|\\.)*"',
    r"^(?:module!|extern  *\{|impl kernel::Module|bitflags::bitflags!) .*?^\}", r"^(?:pub )?use [^;]*;",
    r"^#(?:[^\n]*\\\n)*[^\n]*", r"^ *#\[[^\n]*", r"^ *(?:pub )?const [A-Z][^;]*;", r"^pub mod [^;]*;",
    r"\bassert_unchecked\([^;]*;",
)
# Statements that call one of these are left out.
RELEASES = (r"\w*?(?:put|unpin|release|drop|clear|truncate|dirty|accessed|_get|inc_len|set_flags|pins|folios|range"
            r"|yield)\w*")
FLAG = r"(?:\w+::)*_*[A-Z][A-Z0-9]*_[A-Z0-9_]+|flags::[A-Z]+|(?:\w+::)[A-Z]{4,}|BIT\(\w+\)"
# Ways to break a line beside others.
SECOND = ("condition always", "off by one", "flag true", "comparison", "always true")
OPEN, CLOSE = "([{", ")]}"
# What an operand can't go beyond, apart from brackets.
EDGE = re.compile(r"[;,]|=>|(?<![=!<>])=(?!=)|\b(?:if|while|return|in|let|match|else)\b|&&|\|\||"
                  r"(?<!\w)\|(?=\w)|(?<=\w)\|(?= )")


@dataclass(frozen=True)
class Mutant:
    file: str
    line: int
    rule: str
    was: str
    now: str
    text: str  # of the whole file


def blank(code) -> str:
    """The code with spaces where it is not code."""
    for pattern in BLANK:
        code = re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), code, flags=re.M | re.S)
    return code


def closing(code, at) -> int:
    """Where the bracket at `at` is closed."""
    depth = 0
    for i in range(at, len(code)):
        depth += (code[i] in OPEN) - (code[i] in CLOSE)
        if not depth:
            return i
    raise ValueError("a bracket is not closed")


def right(code, at) -> int:
    """Where the operand that begins at `at` ends."""
    i = at
    while i < len(code):
        if code[i] in CLOSE or EDGE.match(code, i):
            break
        if code[i] == "{" and not re.search(r"\b(?:unsafe|match|else) *$|[\w>] *\{ *\.\.$", code[at:i]):
            break
        i = closing(code, i) + 1 if code[i] in OPEN else i + 1
    return at + len(code[at:i].rstrip())


def left(code, at) -> int:
    """Where the operand that ends at `at` begins."""
    opened = {closing(code, i): i for i in range(at) if code[i] in OPEN}
    i = at
    while i > 0:
        j = i - 1
        if code[j] in OPEN:
            break
        if code[j] in CLOSE:
            if code[j] == "}" and "\n" in code[i:at] and not re.match(r"\s*[.?)=!<>&|]", code[i:]):
                break
            i = opened[j]
            continue
        if any(m.end() == i for n in range(1, 7) if (m := EDGE.match(code, max(0, i - n)))):
            break
        i = j
    return i + len(code[i:at]) - len(code[i:at].lstrip())


def operands(code):
    """The parts of each && and ||: (start, end, operator)."""
    for m in re.finditer(r"&&|\|\|", code):
        if not re.search(r"[\w)\]}>]\s*$", code[:m.start()]):
            continue  # a closure without arguments, or a reference to a reference
        after = m.end() + len(code[m.end():]) - len(code[m.end():].lstrip())
        first, last = (left(code, m.start()), m.start()), (after, right(code, after))
        for start, end in (first, last):
            end = start + len(code[start:end].rstrip())
            # && binds more tightly than ||: the chain of the former is a part of the latter.
            if m[0] == "||":
                while (more := re.search(r"&&\s*$", code[:start])) and start == first[0]:
                    start = left(code, more.start())
                while more := re.match(r"\s*&&\s*", code[end:]):
                    end = right(code, end + more.end())
            yield start, end, m[0]


def conditions(code):
    """What each `if` looks at: (start, end, what comes then)."""
    for m in re.finditer(r"\bif (?!let\b)", code):
        start = m.end()
        if code[start] == "(" and re.match(r"\s*(?:return|break|[\w*]|\n)", code[closing(code, start) + 1:]):
            end = closing(code, start)
            yield start + 1, end, code[end + 1:].lstrip()
        else:
            end = right(code, start)
            yield start, end, code[end:].lstrip(" {=>\n\t")


def statement(code, end) -> int:
    """Where the statement whose last character is before `end` begins."""
    i = end
    while i > 0:
        j = i - 1
        if code[j] in ";{":
            break
        if code[j] == "}" and not re.match(r"\s*[.?);]", code[i:]):
            break
        if code[j] in CLOSE:
            depth = 0
            while True:
                depth += (code[j] in CLOSE) - (code[j] in OPEN)
                if not depth:
                    break
                j -= 1
        i = j
    return i + len(code[i:end]) - len(code[i:end].lstrip())


def edits(code, c):
    """(start, end, what to put there, rule)"""
    nothing = "" if c else "()"
    covered = []
    for start, end, operator in operands(code):
        covered.append((start, end))
        if "let " not in code[start:end]:
            yield start, end, "false" if operator == "||" else "true", "part of a condition"
    for start, end, then in conditions(code):
        whole = not any(start <= a and b <= end for a, b in covered)
        covered.append((start, end))
        if whole:
            yield start, end, "false", "condition never"
            if not re.match(r"(?:return|break|continue|Err)\b", then):
                yield start, end, "true", "condition always"

    def elsewhere(m):
        return not any(a <= m.start() < b for a, b in covered)

    for m in re.finditer(r"(?<= )(<|<=|>|>=)(?= )", code):
        yield m.start(), m.end(), m[0][:-1] or m[0] if "=" in m[0] else m[0] + "=", "off by one"
    for m in re.finditer(r" (==|!=) ", code):
        if elsewhere(m):
            yield m.start(1), m.end(1), {"==": "!=", "!=": "=="}[m[1]], "comparison"
    for m in re.finditer(r"[\w.]+\.contains\([^()]*\)", code):
        if elsewhere(m):
            for value in ("false", "true"):
                yield m.start(), m.end(), value, f"flag {value}"
    for m in re.finditer(r"(?<=[-+] )1\b|(?<=_(?:sub|add)\()1(?=\))", code):
        yield m.start(), m.end(), "0", "off by one"
    for m in re.finditer(r"\.(?:min|max)\(", code):
        yield m.start(), closing(code, m.end() - 1) + 1, "", "limit"
    for pattern in (rf"(?:{FLAG})\s*\|\s*(?!\|)", rf"(?<!\|)\s*\|\s*(?:{FLAG})(?!\w|\s*\|)", rf"\s*& ~(?:{FLAG})"):
        for m in re.finditer(pattern, code):
            if not re.search(r"GFP_KERNEL(_ACCOUNT)?\b", m[0]):
                yield m.start(), m.end(), "", "flag left out"
    for m in re.finditer(r"(?<== )(?:\w+::)*FOLL_\w+(?=;)", code):
        yield m.start(), m.end(), "0", "flag left out"
    for m in re.finditer(r"(?<=GFP_KERNEL)_ACCOUNT\b", code):
        yield m.start(), m.end(), "", "flag left out"
    for m in re.finditer(r"(\w+)\s*\.checked_(\w+)\(([^()]*)\)", code):
        yield m.start(), m.end(), f"Some({m[1]}.wrapping_{m[2]}({m[3]}))", "wraps"
    for m in re.finditer(r"\?;", code):
        start = statement(code, m.start())
        what = code[start:m.start()]
        if not re.match(r"(?:let|return)\b", what) and not re.search(r"(?<![=!<>])=(?![=>])", what):
            yield start, m.end(), f"let _ = {what};", "error ignored"
    call = rf"^[ \t]*((?:unsafe \{{ |let _ = )?(?:to_result\()?(?:[\w.]+\.|(?:\w+::)*)(?:{RELEASES})\()"
    for m in re.finditer(call, code, re.M):
        start = m.start(1)
        end = closing(code, m.end(1) - 1) + 1
        tail = re.match(r" \};" if m[1].startswith("unsafe") else r"\)\?;" if "to_result" in m[1] else ";", code[end:])
        if tail:
            yield start, end + tail.end() - 1, nothing, "left out"
    for m in re.finditer(r"^[ \t]*((?:unsafe \{ )?\(?\*?[\w.]+\)?\.[\w.()]+ [&|]?= [^;]*);", code, re.M):
        yield m.start(1), m.end(1), nothing, "left out"
    for m in re.finditer(r"^[ \t]*(\w+ \|= [^;]*);", code, re.M):
        yield m.start(1), m.end(1), nothing, "left out"
    for m in re.finditer(r"^[ \t]*([A-Z]\w+ => [^{\n]*,)$", code, re.M):
        yield m.start(1), m.end(1), "", "left out"
    for m in re.finditer(r"^SHIM\(", code, re.M):
        end = closing(code, m.end() - 1)
        kind = re.match(r"(\w+), \w+,\s*", code[m.end():])
        if kind and kind[1] in ("void", "bool"):
            start = closing(code, m.end() + kind.end()) + 2
            start += len(code[start:]) - len(code[start:].lstrip())
            for value in ("(void)0",) if kind[1] == "void" else ("false", "true"):
                yield start, end, value, "left out" if kind[1] == "void" else f"always {value}"
    for m in re.finditer(r"\bpte_mkspecial(?=\()", code):
        yield m.start(), m.end(), "", "left out"


def once(found) -> list[Mutant]:
    """Without those that are one more way to break a line."""
    lines = Counter((m.file, m.line) for m in found if m.rule not in SECOND)
    return [m for m in found if m.rule not in SECOND or not lines[m.file, m.line]]


def of(name, text) -> list[Mutant]:
    """All of one source, in the order of its lines."""
    code = blank(text)
    found = {}
    for start, end, new, rule in edits(code, name.endswith((".c", ".h"))):
        # What follows keeps its line.
        new += "\n" * (text[start:end].count("\n") - new.count("\n"))
        changed = text[:start] + new + text[end:]
        was = " ".join(text[start:end].split())
        line = text.count("\n", 0, start) + 1
        found.setdefault(changed, Mutant(name, line, rule, was, " ".join(new.split()), changed))
    return sorted(found.values(), key=lambda m: (m.line, m.rule, m.was))
