"""What each instruction is in C++: a table of opcodes. An instruction that is not in it is an error.

The functions that are called are those of instructions.h, and of the `thread` of thread.h.
"""

import re

INTEGER = "[su](16|32|64)"
NUMBER = "f32|f64"
WORD = "b16|b32|b64"
SPACES = {
    "": "Space::kGeneric",
    ".global": "Space::kGlobal",
    ".global.nc": "Space::kGlobal",
    ".relaxed.gpu.global": "Space::kGlobal",
    ".shared": "Space::kShared",
    ".param": "Space::kParameters",
}
MEMORY = "|".join(re.escape(space) for space in sorted(SPACES, key=len, reverse=True) if space)
MMA = {
    "m16n8k16.row.col.f32.bf16.bf16.f32": "kBf16K16",
    "m16n8k16.row.col.f32.f16.f16.f32": "kF16K16",
    "m16n8k8.row.col.f32.f16.f16.f32": "kF16K8",
    "m16n8k8.row.col.f32.tf32.tf32.f32": "kTf32K8",
}


class UnknownInstruction(Exception):
    """One that no test has needed so far: its meaning has to be added here."""


def _as_bits(type):
    """Registers are bits: what memory holds of a number too."""
    return type.replace("f", "b")


def _load(match, x):
    space, count, type = SPACES[match["space"] or ""], match["count"], _as_bits(match["type"])
    if not count:
        return f"{x[0]} = loaded<{type}>(thread, {x.line}, {space}, {x[1]});"
    registers = "".join(f" {name} = v.at[{i}];" for i, name in enumerate(x[0]))
    return f"{{ const auto v = loaded<Vector<{count}, {type}>>(thread, {x.line}, {space}, {x[1]});{registers} }}"


def _store(match, x):
    space, type = SPACES[match["space"] or ""], _as_bits(match["type"])
    values = x[1] if match["count"] else [x[1]]
    elements = ", ".join(f"static_cast<{type}>({value})" for value in values)
    value = f"const {type} v[]{{{elements}}};"
    return f"{{ {value} thread.store({x.line}, {space}, {x[0]}, v, sizeof v); }}"


def _mov(match, x):
    type = match["type"]
    if isinstance(x[0], list):  # the lowest bits first
        part = int(type[1:]) // len(x[0])
        taken = "".join(f" {name} = static_cast<b{part}>(v >> {part * i});" for i, name in enumerate(x[0]))
        return f"{{ const {type} v = {x[1]};{taken} }}"
    if isinstance(x[1], list):
        part = int(type[1:]) // len(x[1])
        return f"{x[0]} = {' | '.join(f'{type}{{b{part}({name})}} << {part * i}' for i, name in enumerate(x[1]))};"
    return f"{x[0]} = {x[1]};"


def _mma(match, x):
    a, b, c = (", ".join(registers) for registers in x[1:])
    taken = "".join(f" {name} = d[{i}];" for i, name in enumerate(x[0]))
    return (
        f"{{ u32 d[4]; const u32 a[]{{{a}}}, b[]{{{b}}}, c[]{{{c}}};"
        f" thread.mma({x.line}, Mma::{MMA[match['shape']]}, d, a, b, c);{taken} }}"
    )


def _st_async(match, x):
    return f"{{ const u32 v[]{{{', '.join(x[1])}}}; thread.st_async({x.line}, {x[0]}, v, sizeof v, {x[2]}); }}"


# (opcode, C++): a format of the operands and of the groups of the opcode, or a function of both.
TABLE = [
    (f"(?P<op>add|sub)\\.(?P<type>{INTEGER})", "{0} = {op}<{type}>({1}, {2});"),
    (f"(?P<op>add|sub|mul)(\\.rn)?\\.(?P<type>{NUMBER})", "{0} = {op}<{type}>({1}, {2});"),
    (f"(?P<op>mul)\\.lo\\.(?P<type>{INTEGER})", "{0} = {op}<{type}>({1}, {2});"),
    ("mul\\.wide\\.(?P<type>[su](16|32))", "{0} = mul_wide<{type}>({1}, {2});"),
    (f"mad\\.lo\\.(?P<type>{INTEGER})", "{0} = mad<{type}>({1}, {2}, {3});"),
    (f"fma\\.rn\\.(?P<type>{NUMBER})", "{0} = fma<{type}>({1}, {2}, {3});"),
    ("(?P<op>div|rem)\\.(?P<type>[su](32|64))", "{0} = {op}<{type}>({1}, {2});"),
    (f"div\\.rn\\.(?P<type>{NUMBER})", "{0} = div<{type}>({1}, {2});"),
    (f"(?P<op>min|max)\\.(?P<type>{INTEGER}|{NUMBER})", "{0} = {op}<{type}>({1}, {2});"),
    (f"neg\\.(?P<type>{NUMBER}|s32|s64)", "{0} = neg<{type}>({1});"),
    (f"abs\\.(?P<type>{NUMBER})", "{0} = abs<{type}>({1});"),
    (f"copysign\\.(?P<type>{NUMBER})", "{0} = copysign<{type}>({1}, {2});"),
    (f"sqrt\\.rn\\.(?P<type>{NUMBER})", "{0} = sqrt<{type}>({1});"),
    (f"rcp\\.rn\\.(?P<type>{NUMBER})", "{0} = rcp_rn<{type}>({1});"),
    ("ex2\\.approx\\.ftz\\.f32", "{0} = ex2_approx_ftz({1});"),
    ("rcp\\.approx\\.ftz\\.f32", "{0} = rcp_approx_ftz({1});"),
    ("rcp\\.approx\\.ftz\\.f64", "{0} = rcp_approx_ftz_f64({1});"),
    ("tanh\\.approx\\.f32", "{0} = tanh_approx({1});"),
    (f"(?P<op>and|or|xor)\\.(?P<type>pred|{WORD})", "{0} = {op}_<{type}>({1}, {2});"),
    (f"not\\.(?P<type>pred|{WORD})", "{0} = not_<{type}>({1});"),
    (f"shl\\.(?P<type>{WORD})", "{0} = shl<{type}>({1}, {2});"),
    (f"shr\\.(?P<type>{INTEGER}|{WORD})", "{0} = shr<{type}>({1}, {2});"),
    ("bfi\\.b32", "{0} = bfi({1}, {2}, {3}, {4});"),
    (f"setp\\.(?P<op>eq|ne)\\.(?P<type>{INTEGER}|{WORD}|{NUMBER})", "{0} = setp_{op}<{type}>({1}, {2});"),
    (f"setp\\.(?P<op>lt|le|gt|ge)\\.(?P<type>{INTEGER}|{NUMBER})", "{0} = setp_{op}<{type}>({1}, {2});"),
    (f"setp\\.(?P<op>(equ|neu|ltu|leu|gtu|geu|nan))\\.(?P<type>{NUMBER})", "{0} = setp_{op}<{type}>({1}, {2});"),
    (f"selp\\.(?P<type>{INTEGER}|{WORD}|{NUMBER})", "{0} = selp<{type}>({1}, {2}, {3});"),
    (f"mov\\.(?P<type>pred|{INTEGER}|{WORD}|{NUMBER})", _mov),
    ("cvt\\.(?P<to>[su](16|32|64))\\.(?P<from>[su](8|16|32|64))", "{0} = cvt<{to}, {from}>({1});"),
    (f"cvt\\.rn\\.(?P<to>{NUMBER})\\.(?P<from>{INTEGER})", "{0} = cvt<{to}, {from}>({1});"),
    ("cvt\\.f64\\.f32", "{0} = cvt<f64, f32>({1});"),
    ("cvt\\.rn\\.f32\\.f64", "{0} = cvt<f32, f64>({1});"),
    ("cvt\\.rni\\.f32\\.f32", "{0} = cvt_rni({1});"),
    ("cvt\\.f32\\.f16", "{0} = cvt_f32_f16({1});"),
    ("cvt\\.rn\\.f16\\.f32", "{0} = cvt_f16_f32({1});"),
    ("cvt\\.rn\\.bf16x2\\.f32", "{0} = cvt_bf16x2_f32({1}, {2});"),
    ("cvta\\.global\\.u64", "{0} = thread.to_generic({line}, Space::kGlobal, {1});"),
    ("cvta\\.shared\\.u64", "{0} = thread.to_generic({line}, Space::kShared, {1});"),
    ("cvta\\.to\\.global\\.u64", "{0} = thread.from_generic({line}, Space::kGlobal, {1});"),
    ("cvta\\.to\\.shared\\.u64", "{0} = thread.from_generic({line}, Space::kShared, {1});"),
    (f"ld(?P<space>{MEMORY})?(\\.v(?P<count>[24]))?\\.(?P<type>[bsuf]\\d+)", _load),
    (f"st(?P<space>{MEMORY})?(\\.v(?P<count>[24]))?\\.(?P<type>[bsuf]\\d+)", _store),
    ("prefetch\\.global\\.L2", "thread.prefetch({line}, {0});"),
    # Memory has no caches here, and one order: only what waits has a meaning.
    ("fence\\.(acq_rel\\.gpu|mbarrier_init\\.release\\.cluster|proxy\\.async\\.shared::cta)", ""),
    ("bra(\\.uni)?", "goto {0};"),
    ("ret", "return;"),
    ("bar\\.sync", "thread.bar_sync({line}, {0});"),
    ("bar\\.warp\\.sync", "thread.bar_warp_sync({line}, {0});"),
    ("barrier\\.cluster\\.arrive\\.release\\.aligned", "thread.cluster_arrive({line});"),
    ("barrier\\.cluster\\.wait\\.acquire\\.aligned", "thread.cluster_wait({line});"),
    ("shfl\\.sync\\.bfly\\.b32", "{0} = thread.shfl_bfly({line}, {1}, {2}, {3}, {4});"),
    ("vote\\.sync\\.any\\.pred", "{0} = thread.vote_any({line}, {1}, {2});"),
    (f"mma\\.sync\\.aligned\\.(?P<shape>{'|'.join(map(re.escape, MMA))})", _mma),
    ("mapa\\.shared::cluster\\.u32", "{0} = thread.mapa({line}, {1}, {2});"),
    ("mbarrier\\.init\\.shared::cta\\.b64", "thread.mbarrier_init({line}, {0}, {1});"),
    (
        "mbarrier\\.arrive\\.expect_tx\\.shared::cta\\.b64",  # {0}: the state, which nobody takes
        "thread.mbarrier_arrive_expect_tx({line}, {1}, {2});",
    ),
    (
        "mbarrier\\.try_wait\\.parity\\.acquire\\.(cta|cluster)\\.shared::cta\\.b64",
        "{0} = thread.mbarrier_try_wait_parity({line}, {1}, {2});",
    ),
    ("st\\.async\\.shared::cluster\\.mbarrier::complete_tx::bytes\\.v[24]\\.b32", _st_async),
    (
        "cp\\.async\\.bulk\\.shared::cluster\\.shared::cta\\.mbarrier::complete_tx::bytes",
        "thread.cp_async_bulk({line}, {0}, {1}, {2}, {3});",
    ),
]
COMPILED = [(re.compile(opcode), meaning) for opcode, meaning in TABLE]


def meaning(instruction, operands):
    """The C++ statement of an instruction.

    Args:
        instruction: of text.Instruction.
        operands: of each a C++ expression, or a list of them of what stands in braces; with the attribute `line`.
    """
    for opcode, cpp in COMPILED:
        if match := opcode.fullmatch(instruction.opcode):
            if callable(cpp):
                return cpp(match, operands)
            return cpp.format(*operands, line=operands.line, **match.groupdict())
    raise UnknownInstruction(f"line {instruction.line}: {instruction.opcode}: expected one of those in meaning.py")
