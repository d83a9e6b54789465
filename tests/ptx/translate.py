"""A kernel in PTX as a C++ function: a register is a local variable, a label one of goto."""

import re

from .meaning import meaning
from .text import Argument, Brace, Label, Registers

SPECIAL = {
    **{f"%{name}.{axis}": f"special.{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"},
    **{f"%{name}": f"special.{name}" for name in ("cluster_ctarank", "cluster_nctarank")},
    "%globaltimer_hi": "thread.globaltimer_hi({line})",
}
DECLARATION = re.compile(r"(?:pred|b\d+) (\w+);")
# The name that a translated kernel has in its library.
SYMBOL = "translated_kernel"


class Operands(list):
    """C++ expressions, and the line they stand in."""

    def __init__(self, expressions, line):
        super().__init__(expressions)
        self.line = line


def translate(entry):
    """The C++ source of an entry of text.entries()."""
    return "\n".join(_Translator(entry).lines())


class _Translator:
    def __init__(self, entry):
        self.entry = entry
        self.symbols = {
            parameter.name: f"reinterpret_cast<u64>(parameters[{i}])" for i, parameter in enumerate(entry.parameters)
        }
        self.symbols |= {name: f"reinterpret_cast<u64>({_name(name)})" for name in entry.variables}
        self.symbols |= dict.fromkeys(entry.shared, "thread.shared_memory({line})")
        self.arguments = set()

    def lines(self):
        yield '#include "instructions.h"'
        yield "using namespace ptx;"
        body = [line for statement in self.entry.body for line in self.statement(statement)]
        used = set(re.findall(r"\w+", " ".join(line for line in body if not DECLARATION.fullmatch(line))))
        for name, value in self.entry.variables.items():
            if _name(name) in used:
                yield f"static const u8 {_name(name)}[]{{{', '.join(map(str, value))}}};"
        yield f'extern "C" void {SYMBOL}(Thread& thread, const void* const* parameters) {{'
        yield "  (void)parameters;"
        yield "  const Special special = thread.special();"
        for line in body:
            # Of thousands of registers that are declared, some hundreds are left.
            declared = DECLARATION.fullmatch(line)
            if declared is None or declared[1] in used:
                yield "  " + line
        yield "}"

    def statement(self, statement):
        if isinstance(statement, Label):
            yield f"{_name(statement.name)}:;"
        elif isinstance(statement, Brace):
            yield statement.text
        elif isinstance(statement, Registers):
            for name in statement.names:
                yield f"{_bits(statement.type)} {_name(name)};"
        elif isinstance(statement, Argument):
            self.arguments.add(statement.name)
            yield f"{_bits(statement.type)} {statement.name};"
        else:
            text = self.instruction(statement)
            guard = f"{'!' if statement.is_negated else ''}{_name(statement.guard)}" if statement.guard else ""
            yield f"if ({guard}) {{ {text} }}" if guard else text

    def instruction(self, instruction):
        line = instruction.line
        if instruction.opcode == "st.param.b64" or instruction.opcode == "st.param.b32":
            to, value = instruction.operands
            return f"{re.fullmatch(r'.(param[0-9]+).0.', to)[1]} = {self.operand(value, line)};"
        if instruction.opcode == "call.uni":
            return self.call(instruction)
        operands = Operands((self.operand(text, line) for text in instruction.operands), line)
        return meaning(instruction, operands)

    def call(self, instruction):
        function, arguments = instruction.operands
        if function != "__assertfail":
            raise ValueError(f"line {instruction.line}: expected a call of __assertfail, got {function}")
        text, _, _, name, _ = re.findall(r"\w+", arguments)
        strings = ", ".join(f"reinterpret_cast<const char*>({each})" for each in (text, name))
        return f"thread.assert_failed({instruction.line}, {strings});"

    def operand(self, text, line):
        """A C++ expression, or a list of them."""
        if text.startswith("{"):
            return [self.operand(part.strip(), line) for part in text[1:-1].split(",")]
        if text.startswith("["):
            return self.address(text[1:-1].strip(), line)
        if match := re.fullmatch(r"0[fF]([0-9A-F]{8})|0[dD]([0-9A-F]{16})", text):
            return f"0x{match[1] or match[2]}ull"
        if re.fullmatch(r"-?(0x)?[0-9A-Fa-f]+", text):
            return f"({text}ll)" if text != str(-(2**63)) else "(-9223372036854775807ll - 1)"
        value = self.symbols.get(text) or SPECIAL.get(text)
        if value is not None:
            return value.format(line=line)
        return _name(text.split("|")[0])  # the predicate behind the bar, of a shuffle, is not used

    def address(self, text, line):
        base, _, offset = text.partition("+")
        return f"{self.operand(base.strip(), line)} + {offset}" if offset else self.operand(base, line)


def _bits(type):
    return "pred" if type == "pred" else f"b{re.search('[0-9]+', type)[0]}"


def _name(name):
    """Of a register, a label or a variable, in C++."""
    return "v_" + re.sub(r"\W", "_", name)
