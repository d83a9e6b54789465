"""The steps of a build, as the text of a build.ninja and as the commands that ninja makes of it."""

import shlex
from collections.abc import Iterable
from pathlib import Path
from string import Template
from typing import NamedTuple

from build_variables import words_of
from without_ninja import Command

ROOT = Path(__file__).resolve().parent.parent

# Of the operators. A package for Hugging Face's `kernels` has one of its own.
NAMESPACE = "fusedlstm"

COMMANDS = {
    "cxx": "$cxx $flags -MD -MF $out.d -c $in -o $out",
    "nvcc": "$nvcc $flags -MD -MF $out.d -c $in -o $out",
    "link": (
        "$cxx -shared -s -Wl,--no-as-needed -Wl,--exclude-libs,ALL -Wl,--version-script=$exports $in $flags -o $out"
    ),
}
RULES = f"""\
ninja_required_version = 1.8
rule cxx
  command = {COMMANDS["cxx"]}
  depfile = $out.d
  deps = gcc
  description = C++  $in
rule nvcc
  command = {COMMANDS["nvcc"]}
  depfile = $out.d
  deps = gcc
  description = CUDA $in
rule link
  command = {COMMANDS["link"]}
  description = LINK $out
"""


class Step(NamedTuple):
    output: str
    rule: str  # of COMMANDS
    inputs: list[str]
    flags: list[str]


class NinjaFile:
    """The text of a build.ninja under construction.

    namespace: of the operators. What has it compiled in goes below `folder`, "" or with a slash at its end; the other
    objects serve every namespace.
    """

    def __init__(self, namespace: str = NAMESPACE, folder: str = "", **variables: str):
        self.namespace, self.folder, self.variables = namespace, folder, variables
        self.outputs: dict[str, str] = {}  # by their place in the package
        self.steps: list[Step] = []

    def object(self, source: Path, flags: list[str], rule: str = "cxx", folder: str = "objects") -> str:
        if b"FUSEDLSTM_NAMESPACE" in source.read_bytes():
            flags, folder = [*flags, f"-DFUSEDLSTM_NAMESPACE={self.namespace}"], f"{self.folder}{folder}"
        output = f"{folder}/{source.relative_to(ROOT)}.o"
        self.steps.append(Step(output, rule, [str(source)], flags))
        return output

    def library(self, name: str, inputs: list[str], flags: list[str]) -> str:
        output = f"{self.folder}{name}"
        self.steps.append(Step(output, "link", inputs, [*words_of("LDFLAGS"), *flags]))
        self.outputs[name] = output
        return output

    def text(self) -> str:
        lines = [*(f"{name} = {_escape(value)}" for name, value in self.variables.items()), RULES]
        for step in self.steps:
            lines.append(f"build {_paths([step.output])}: {step.rule} {_paths(step.inputs)}")
            lines.append(f"  flags = {_escape(shlex.join(step.flags))}")
        return "\n".join([*lines, f"default {_paths(self.outputs.values())}", ""])

    def commands(self) -> list[Command]:
        """What ninja makes of the text."""
        made = []
        for output, rule, inputs, flags in self.steps:
            values = {"in": shlex.join(inputs), "out": shlex.quote(output), "flags": shlex.join(flags)}
            line = Template(COMMANDS[rule]).substitute(self.variables, **values)
            made.append(Command(output, line, links=rule == "link"))
        return made


def _paths(paths: Iterable[str]) -> str:
    return " ".join(_escape(path).replace(" ", "$ ").replace(":", "$:") for path in paths)


def _escape(text: str) -> str:
    return text.replace("$", "$$")
