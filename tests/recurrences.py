"""Recurrences with variants: what they have, their arguments drawn, and their results against the reference."""

import pytest
import torch
from tolerance import assert_near, tolerance

from fusedlstm.cells import CELLS
from fusedlstm.reference_varied import RecurrenceArguments, recurrence

# What a recurrence has, by name; those of the LSTM alone begin with an asterisk.
FEATURES = {
    "nothing": (),
    "mask": ("mask",),
    "mask per step": ("masks",),
    "zoneout": ("zoneout",),
    "chosen zoneout": ("chosen zoneout",),
    "expectation": ("expectation",),
    "*peepholes": ("weight_ch",),
    "*norm of c": ("gain_c", "bias_c"),
    "norm": ("gain", "bias"),
    "*norm of c without bias": ("gain", "gain_c"),
    "bias": ("bias",),
    "lengths": ("lengths", "zoneout"),
    "reset": ("reset", "reset_state", "mask", "zoneout"),
    "reset to zeros": ("reset",),
    "all": ("masks", "chosen zoneout", "gain", "bias", "lengths", "reverse"),
    "*all": ("mask", "chosen zoneout", "weight_ch", "gain", "gain_c", "bias_c", "reset", "reset_state"),
}
CASES = [
    (cell, name)
    for cell in CELLS
    for name in FEATURES
    if (cell == "lstm" or name[0] != "*") and (cell in ("lstm", "gru") or "gain" not in FEATURES[name])
]
cases = pytest.mark.parametrize(("cell", "name"), CASES, ids=[f"{cell}-{name}" for cell, name in CASES])


def draw(cell, features, T, B, H) -> RecurrenceArguments:
    """Values of the sizes that layers have, in float64; as many features as units, and two."""
    cell, generator = CELLS[cell], torch.Generator().manual_seed(5)

    def values(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def chosen(*shape):
        return (torch.rand(*shape, dtype=torch.float64, generator=generator) < 0.4).double()

    states, GH, I, has = len(cell.states), cell.gates * H, H + 2, features.__contains__
    is_normed = has("gain")
    zoneout = [chosen(T, B, H) for _ in range(states)] if has("zoneout") or has("chosen zoneout") else []
    if has("chosen zoneout"):
        zoneout = [z.bool() for z in zoneout]  # as training has it
    if has("expectation"):
        zoneout = [torch.full((1, 1, H), 0.3, dtype=torch.float64)] * states
    reset = chosen(T, B) == 1 if has("reset") else None
    if reset is not None and reset.numel():
        reset[0, 0] = False  # the initial state is of consequence
    return RecurrenceArguments(
        input=values(T, B, I),
        initial=[values(B, H) / 2 for _ in range(states)],
        weight_ih=values(GH, I) / I**0.5,
        weight_hh=values(GH, H) / H**0.5,
        bias_ih=values(GH) / 3 if cell.is_apart and not is_normed else None,
        bias=values(GH) / 3 if cell.is_apart or has("bias") else None,
        mask=chosen(T if has("masks") else 1, B, H) / 0.4 if has("mask") or has("masks") else None,
        zoneout=zoneout,
        weight_ch=values(3 * H) / 3 if has("weight_ch") else None,
        gain_ih=1 + values(GH) / 3 if is_normed and cell.name == "lstm" else None,
        gain=1 + values(GH) / 3 if is_normed else None,
        gain_c=1 + values(H) / 3 if has("gain_c") else None,
        bias_c=values(H) / 3 if has("bias_c") else None,
        eps=0.1,  # a norm of a few units that are alike passes on errors many times as large, but for this
        lengths=torch.randint(0, T + 1, (B,), generator=generator) if has("lengths") else None,
        reset=reset,
        reset_state=[values(B, H) / 2 for _ in range(states)] if has("reset_state") else [],
        reverse=has("reverse"),
        keeps=False,
        allow_tf32=False,
    )


def in_a_row(a, names=RecurrenceArguments._fields):
    """Its floating tensors by name."""
    found = {}
    for name in names:
        value = getattr(a, name)
        for place, tensor in enumerate(value if isinstance(value, list) else [value]):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                found[f"{name}[{place}]" if isinstance(value, list) else name] = tensor
    return found


def changed(a, change) -> RecurrenceArguments:
    """The arguments with change(name, tensor) in place of each floating tensor."""

    def of(name, value):
        if isinstance(value, list):
            return [of(f"{name}[{place}]", tensor) for place, tensor in enumerate(value)]
        return change(name, value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return RecurrenceArguments(*[of(name, value) for name, value in a._asdict().items()])


def moved(a, device) -> RecurrenceArguments:
    """The arguments on a device; gradients come back."""

    def to_device(value):
        if isinstance(value, list):
            return list(map(to_device, value))
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return RecurrenceArguments(*map(to_device, a))


def results(run, a) -> dict:
    """Output, last states and the gradients of all that has one, by name."""
    a = changed(a, lambda name, tensor: tensor.clone().requires_grad_(name.partition("[")[0] not in MASKS))
    output, last = run(a)
    generator = torch.Generator().manual_seed(6)
    cotangents = [
        torch.randn(t.shape, dtype=torch.float64, generator=generator).to(t) for t in (output, *last)
    ]  # fmt: skip
    pairs = [(result, d) for result, d in zip((output, *last), cotangents) if result.requires_grad]
    leaves = {name: tensor for name, tensor in in_a_row(a).items() if tensor.requires_grad}
    found = torch.autograd.grad(
        [result for result, _ in pairs], list(leaves.values()), [d for _, d in pairs], allow_unused=True
    )
    named = {f"d_{name}": torch.zeros_like(t) if d is None else d for (name, t), d in zip(leaves.items(), found)}
    return {"output": output, **{f"last[{k}]": state for k, state in enumerate(last)}, **named}


MASKS = "mask", "zoneout"


def check(run, cell, name, T, B, H, dtype, device_type="cpu"):
    """Results and gradients of run(cell, arguments) against the reference in float64: of each the part of its tolerance
    that was used is at most one."""
    rounded = changed(draw(cell, FEATURES[name], T, B, H), lambda _, tensor: tensor.to(dtype))
    expected = results(lambda a: recurrence(CELLS[cell], *a), changed(rounded, lambda _, tensor: tensor.double()))
    found = results(lambda a: run(CELLS[cell], a), rounded)
    # A norm divides by the deviation of what it is given, and passes errors on in the same proportion.
    layers = 1 + sum(getattr(rounded, gain) is not None for gain in ("gain_ih", "gain", "gain_c"))
    for what, value in found.items():
        terms = 2 * H + 2 if what in ("output", "last[0]", "last[1]") else 2 * H + 2 + T * B
        allowed = tolerance(dtype, terms, T, layers, device_type)
        assert_near(value, expected[what], allowed, f"{cell}, {name}, {what}")
