"""PTX as nvcc writes it, taken apart: entries, their parameters, registers and instructions. Knows no meaning."""

import re
from dataclasses import dataclass, field

COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
# What stands in the body of an entry, one after the other. A quoted text is of .pragma only.
STATEMENT = re.compile(r"\s*(?:(?P<label>[$\w]+):|(?P<brace>[{}])|(?P<text>(?:\"[^\"]*\"|[^;\"])+);)")
ENTRY = re.compile(r"\.entry\s+(?P<name>[$\w]+)\s*\((?P<parameters>[^)]*)\)(?P<directives>[^{]*)\{")
PARAMETER = re.compile(r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([$\w]+)(?:\[(\d+)\])?")
INSTRUCTION = re.compile(
    r"(?:@(?P<no>!?)(?P<guard>[%\w]+)\s+)?(?P<opcode>[a-z][\w.:]*)(?:\s+(?P<operands>.*))?", re.DOTALL
)
VARIABLE = re.compile(r"\.global\s+\.align\s+(\d+)\s+\.b8\s+([$\w]+)\[(\d+)\]\s*(?:=\s*\{([\d,\s]*)\})?\s*;")
SHARED = re.compile(r"\.extern\s+\.shared\s+\.align\s+\d+\s+\.b8\s+([$\w]+)\[\];")


@dataclass(frozen=True)
class Parameter:
    name: str
    bytes: int


@dataclass(frozen=True)
class Instruction:
    opcode: str
    operands: tuple  # texts; what stands in braces or brackets is one
    guard: str = ""  # a predicate; "" for none
    is_negated: bool = False
    line: int = 0


@dataclass(frozen=True)
class Label:
    name: str


@dataclass(frozen=True)
class Brace:
    text: str


@dataclass(frozen=True)
class Registers:
    type: str  # "pred", "b32", ...
    names: tuple


@dataclass(frozen=True)
class Argument:
    """Of a call, declared where the call is."""

    type: str
    name: str


@dataclass
class Entry:
    name: str
    parameters: list
    body: list = field(repr=False)  # of the five above
    variables: dict = field(repr=False)  # of global memory, name: bytes
    shared: tuple  # names of the dynamic shared memory


def bytes_of(type):
    """Of a value of a PTX type, by its name."""
    return int(re.search(r"\d+$", type)[0]) // 8


def entry_of(ptx, name):
    """The entry of a PTX file that has this name, as g++ mangles it."""
    text = COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), ptx)
    (match,) = (match for match in ENTRY.finditer(text) if without_unique(match["name"]) == without_unique(name))
    parameters = [
        Parameter(name, int(count or 1) * bytes_of(type))
        for _, type, name, count in PARAMETER.findall(match["parameters"])
    ]
    variables = {
        name: bytes(int(byte) for byte in (values or "0").split(",")).ljust(int(size), b"\0")
        for _, name, size, values in VARIABLE.findall(text)
    }
    body = list(statements(text, match.end()))
    return Entry(match["name"], parameters, body, variables, tuple(SHARED.findall(text)))


def without_unique(name):
    """A mangled name without what nvcc and g++ have in place of a namespace without a name."""
    match = re.search(r"\d+_GLOBAL__N_", name)
    if match is None:
        return name
    begin = match.start() + len(length := re.match(r"\d+", match[0])[0])
    return name[: match.start()] + name[begin + int(length) :]


def statements(text, at):
    """Those from a place behind an opening brace to the one that closes it."""
    depth, line, counted = 1, text.count("\n", 0, at) + 1, at
    while True:
        match = STATEMENT.match(text, at)
        begin, at = match.start(match.lastgroup), match.end()
        line, counted = line + text.count("\n", counted, begin), begin
        if match["label"]:
            yield Label(match["label"])
        elif match["brace"]:
            depth += 1 if match["brace"] == "{" else -1
            if depth == 0:
                return
            yield Brace(match["brace"])
        elif (made := statement(match["text"].strip(), line)) is not None:
            yield made


def statement(text, line):
    """An instruction or a declaration; None for what tells a compiler how to compile."""
    if text.startswith((".pragma", ".loc")):
        return None
    if match := re.fullmatch(r"\.reg\s+\.(\w+)\s+(.*)", text, re.DOTALL):
        return Registers(match[1], tuple(name for part in match[2].split(",") for name in numbered(part.strip())))
    if match := re.fullmatch(r"\.param\s+\.(\w+)\s+(\w+)", text):
        return Argument(match[1], match[2])
    match = INSTRUCTION.fullmatch(text)
    if match is None:
        raise ValueError(f"line {line}: expected a PTX instruction, got {text!r}")
    operands = split(match["operands"] or "")
    return Instruction(match["opcode"], operands, match["guard"] or "", bool(match["no"]), line)


def numbered(name):
    """%r<3> as %r0, %r1, %r2."""
    if match := re.fullmatch(r"(.+)<(\d+)>", name):
        return [f"{match[1]}{i}" for i in range(int(match[2]))]
    return [name]


def split(operands):
    """Texts that commas part, but for those within braces, brackets and parentheses."""
    parts = re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|\([^)]*\)|[^,{\[(])+", operands)
    return tuple(" ".join(part.split()) for part in parts if part.strip())
