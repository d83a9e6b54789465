"""The kernels of recurrences with variants against the reference in float64: results and every gradient."""

import json
from types import SimpleNamespace

import pytest
import torch
from tolerance import assert_near, tolerance

from fusedlstm import _recurrence
from fusedlstm._recurrence import run_recurrence
from fusedlstm.cells import CELLS
from fusedlstm.reference_varied import RecurrenceArguments, recurrence

INFO = json.loads(torch.ops.fusedlstm._cpu_info())
# Of all instruction sets those that have kernels of float32 and float64.
SETS = [isa for isa in INFO["available"] if isa in ("baseline", "neon", "avx2", "avx512")]
PLANS = "direct:rows", "direct:units", "packed:rows", "packed:units", "packed:units:3"

# What a recurrence has, by name; those of the LSTM alone begin with an asterisk.
FEATURES = {
    "nothing": (),
    "mask": ("mask",),
    "mask per step": ("masks",),
    "zoneout": ("zoneout",),
    "expectation": ("expectation",),
    "*peepholes": ("weight_ch",),
    "*norm of c": ("gain_c", "bias_c"),
    "norm": ("gain", "bias"),
    "*norm of c without bias": ("gain", "gain_c"),
    "bias": ("bias",),
    "lengths": ("lengths", "zoneout"),
    "reset": ("reset", "reset_state", "mask", "zoneout"),
    "reset to zeros": ("reset",),
    "all": ("masks", "zoneout", "gain", "bias", "lengths", "reverse"),
    "*all": ("mask", "zoneout", "weight_ch", "gain", "gain_c", "bias_c", "reset", "reset_state"),
}
CASES = [
    (cell, name)
    for cell in CELLS
    for name in FEATURES
    if (cell == "lstm" or name[0] != "*") and (cell in ("lstm", "gru") or "gain" not in FEATURES[name])
]
cases = pytest.mark.parametrize(("cell", "name"), CASES, ids=[f"{cell}-{name}" for cell, name in CASES])
SIZES = [(7, 3, 5), (5, 9, 70), (2, 2, 1)]


def draw(cell, features, T, B, H) -> RecurrenceArguments:
    """Values of the sizes that layers have, in float64."""
    cell, generator = CELLS[cell], torch.Generator().manual_seed(5)

    def values(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    def chosen(*shape):
        return (torch.rand(*shape, dtype=torch.float64, generator=generator) < 0.4).double()

    states, GH, has = len(cell.states), cell.gates * H, features.__contains__
    zoneout = [chosen(T, B, H) for _ in range(states)] if has("zoneout") else []
    if has("expectation"):
        zoneout = [torch.full((1, 1, H), 0.3, dtype=torch.float64)] * states
    reset = chosen(T, B) == 1 if has("reset") else None
    if reset is not None and reset.numel():
        reset[0, 0] = False  # the initial state is of consequence
    return RecurrenceArguments(
        from_input=values(T, B, GH),
        initial=[values(B, H) / 2 for _ in range(states)],
        weight_hh=values(GH, H) / H**0.5,
        bias=values(GH) / 3 if cell.is_apart or has("bias") else None,
        mask=chosen(T if has("masks") else 1, B, H) / 0.4 if has("mask") or has("masks") else None,
        zoneout=zoneout,
        weight_ch=values(3 * H) / 3 if has("weight_ch") else None,
        gain=1 + values(GH) / 3 if has("gain") else None,
        gain_c=1 + values(H) / 3 if has("gain_c") else None,
        bias_c=values(H) / 3 if has("bias_c") else None,
        eps=1e-3,
        lengths=torch.randint(0, T + 1, (B,), generator=generator) if has("lengths") else None,
        reset=reset,
        reset_state=[values(B, H) / 2 for _ in range(states)] if has("reset_state") else [],
        reverse=has("reverse"),
        keeps=False,
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
            return [change(f"{name}[{place}]", tensor) for place, tensor in enumerate(value)]
        return change(name, value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return RecurrenceArguments(*[of(name, value) for name, value in a._asdict().items()])


def results(run, a) -> dict:
    """Output, last states and the gradients of all that has one, by name."""
    a = changed(a, lambda name, tensor: tensor.clone().requires_grad_(name.partition("[")[0] not in MASKS))
    output, last = run(a)
    generator = torch.Generator().manual_seed(6)
    cotangents = [
        torch.randn(t.shape, dtype=torch.float64, generator=generator).to(t.dtype) for t in (output, *last)
    ]  # fmt: skip
    pairs = [(result, d) for result, d in zip((output, *last), cotangents) if result.requires_grad]
    leaves = {name: tensor for name, tensor in in_a_row(a).items() if tensor.requires_grad}
    found = torch.autograd.grad(
        [result for result, _ in pairs], list(leaves.values()), [d for _, d in pairs], allow_unused=True
    )
    named = {f"d_{name}": torch.zeros_like(t) if d is None else d for (name, t), d in zip(leaves.items(), found)}
    return {"output": output, **{f"last[{k}]": state for k, state in enumerate(last)}, **named}


MASKS = "mask", "zoneout"


def check(cell, name, T, B, H, dtype):
    """Of each result the part of its tolerance that was used is at most one."""
    rounded = changed(draw(cell, FEATURES[name], T, B, H), lambda _, tensor: tensor.to(dtype))
    expected = results(lambda a: recurrence(CELLS[cell], *a), changed(rounded, lambda _, tensor: tensor.double()))
    found = results(lambda a: run_recurrence(CELLS[cell], a), rounded)
    # A norm divides by the deviation of what it is given, and passes errors on in the same proportion.
    layers = 3 if "gain" in FEATURES[name] or "gain_c" in FEATURES[name] else 1
    for what, value in found.items():
        allowed = tolerance(dtype, H if what in ("output", "last[0]", "last[1]") else H + T * B, T, layers)
        assert_near(value, expected[what], allowed, f"{cell}, {name}, {what}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@cases
def test_values_and_gradients(cell, name, dtype):
    for sizes in SIZES:
        check(cell, name, *sizes, dtype)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_instruction_set(cell, isa, forced):
    forced(isa, "")
    for name in ("zoneout", "all" if cell in ("lstm", "gru") else "lengths", *(["*all"] if cell == "lstm" else [])):
        for dtype in (torch.float32, torch.float64):
            check(cell, name, 5, 9, 37, dtype)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_plan(cell, plan, forced):
    """Also where a team dissolves; with the same number of threads all bits are the same in every call."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        forced("", plan)
        name = {"lstm": "*all", "gru": "all"}.get(cell, "reset")
        for sizes in [(5, 9, 70), (4, 2, 5)]:
            check(cell, name, *sizes, torch.float32)
        a = changed(draw(cell, FEATURES[name], 5, 9, 70), lambda _, tensor: tensor.float())
        first, second = (results(lambda a: run_recurrence(CELLS[cell], a), a) for _ in range(2))
        if plan.count(":") == 2:
            forced("", plan.rpartition(":")[0])
            second = results(lambda a: run_recurrence(CELLS[cell], a), a)
        assert all(torch.equal(value, second[what]) for what, value in first.items())
    finally:
        torch.set_num_threads(threads)


@cases
def test_every_argument_is_seen(cell, name):
    """A kernel that overlooked one, or took another for it, would be far beyond what is allowed."""
    a = draw(cell, FEATURES[name], 5, 3, 6)
    expected = run_recurrence(CELLS[cell], a)[0]
    for argument in in_a_row(a):
        other = changed(a, lambda own, tensor: tensor.flip(-1) if own == argument else tensor)  # noqa: B023
        is_uniform = argument.startswith("zoneout") and "expectation" in FEATURES[name]
        differs = (run_recurrence(CELLS[cell], other)[0] - expected).abs().max() > 1e-3
        assert differs or is_uniform, argument


@pytest.mark.parametrize("cell", CELLS)
def test_empty(cell):
    for sizes in [(0, 3, 5), (4, 0, 5), (0, 0, 5)]:
        a = draw(cell, ("zoneout", "mask"), *sizes)
        found, expected = (results(run, a) for run in (lambda a: run_recurrence(CELLS[cell], a),
                                                       lambda a: recurrence(CELLS[cell], *a)))  # fmt: skip
        assert all(torch.equal(value, expected[what]) for what, value in found.items())


BAD = {
    "weight_hh": (lambda a: a._replace(weight_hh=a.weight_hh[:-1]), r"weight_hh of size \[20, 5\], got \[19, 5\]"),
    "initial": (lambda a: a._replace(initial=a.initial[:1]), "2 initial, got 1"),
    "mask": (lambda a: a._replace(mask=torch.ones(2, 3, 5)), r"mask of size \[7 or 1, 3 or 1, 5\], got \[2, 3, 5\]"),
    "dtype": (lambda a: a._replace(gain=torch.ones(20, dtype=torch.float32)), "gain of from_input's dtype"),
    "lengths": (lambda a: a._replace(lengths=torch.tensor([1, 2, 3], dtype=torch.int32)), "lengths of dtype int64"),
    "zoneout": (lambda a: a._replace(zoneout=[torch.ones(1, 1, 5, dtype=torch.float64)]), "0 or 2 zoneout, got 1"),
}


@pytest.mark.parametrize(("change", "text"), BAD.values(), ids=BAD)
def test_refusals(change, text):
    with pytest.raises(RuntimeError, match=text):
        torch.ops.fusedlstm.lstm_recurrence(*change(draw("lstm", ("mask",), 7, 3, 5)))
    with pytest.raises(RuntimeError, match="of an LSTM alone"):
        torch.ops.fusedlstm.gru_recurrence(*draw("gru", ("gain_c",), 7, 3, 5))


def test_other_devices_run_the_loop_and_say_so(monkeypatch):
    monkeypatch.setattr(_recurrence, "recurrence", lambda cell, *arguments: "the loop")
    of_gpu = SimpleNamespace(is_cpu=False, is_meta=False, device="cuda:0")
    arguments = draw("lstm", ("mask",), 7, 3, 5)._replace(from_input=of_gpu)
    with pytest.warns(RuntimeWarning, match="as a loop over steps in plain PyTorch on cuda:0: its kernels of them are"):
        assert run_recurrence(CELLS["lstm"], arguments) == "the loop"


def test_one_step_runs_the_loop(monkeypatch):
    """A kernel would transpose weight_hh first, which takes longer than to multiply by it."""
    monkeypatch.setattr(_recurrence, "recurrence", lambda cell, *arguments: "the loop")
    assert run_recurrence(CELLS["gru"], draw("gru", ("gain",), 1, 3, 5)) == "the loop"
    assert run_recurrence(CELLS["gru"], draw("gru", ("gain",), 2, 3, 5)) != "the loop"


def test_operators_are_described_to_compilers():
    """Sizes, strides and dtypes of results as the fake kernels say, and gradients also through AOTAutograd."""
    for cell, name in (("lstm", "*all"), ("gru", "mask")):
        a = changed(draw(cell, FEATURES[name], 3, 2, 5), lambda own, tensor: tensor.requires_grad_(own != "mask"))
        a = a._replace(zoneout=[z.detach() for z in a.zoneout])
        operator = getattr(torch.ops.fusedlstm, f"{cell}_recurrence").default
        torch.library.opcheck(
            operator, tuple(a), test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
        )
