"""FusedGRU, FusedRNN and their cells against torch.nn's: what FusedLSTM is tested for, for the rest of the family.

The operators are tested against the reference (which test_reference_is_torch holds to torch.nn) under every instruction
set and plan; the modules against torch.nn's in values, gradients, errors and everything around a call.
"""

import copy
import json
import pickle
from dataclasses import dataclass
from functools import cache, partial

import pytest
import torch
from cases import Case
from layers import differentiable, draw
from tolerance import assert_near, tolerance
from torch import nn
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fusedlstm
from fusedlstm import functional, reference
from fusedlstm._arguments import flat_tensors
from fusedlstm.cells import CELLS, LSTM
from fusedlstm.ops import OPERATORS

ISAS = json.loads(torch.ops.fusedlstm._cpu_info())["available"]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@dataclass(frozen=True)
class Member:
    """One class of the family, by the cell that its layers run."""

    cell: str
    layer: partial
    plain: partial
    one_step: partial
    plain_step: partial

    def __str__(self):
        return self.cell

    def pair(self, *sizes, dtype=None, **options):
        """The same layers twice: ours and torch's."""
        plain, fused = self.plain(*sizes, **options, dtype=dtype), self.layer(*sizes, **options, dtype=dtype)
        fused.load_state_dict(plain.state_dict())
        return fused, plain

    def pair_of_cells(self, *sizes, dtype=None, **options):
        plain, fused = self.plain_step(*sizes, **options, dtype=dtype), self.one_step(*sizes, **options, dtype=dtype)
        fused.load_state_dict(plain.state_dict())
        return fused, plain


def _rnn(nonlinearity):
    classes = fusedlstm.FusedRNN, nn.RNN, fusedlstm.FusedRNNCell, nn.RNNCell
    return Member(f"rnn_{nonlinearity}", *(partial(c, nonlinearity=nonlinearity) for c in classes))


GRU = Member("gru", *map(partial, (fusedlstm.FusedGRU, nn.GRU, fusedlstm.FusedGRUCell, nn.GRUCell)))
FAMILY = [GRU, _rnn("tanh"), _rnn("relu")]
family = pytest.mark.parametrize("member", FAMILY, ids=str)


@pytest.fixture
def forced():
    yield torch.ops.fusedlstm._cpu_force
    torch.ops.fusedlstm._cpu_force("", "")


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


# The operators: every cell by every kernel, against the reference.

# Below, on and above vectors, folds and blocks: T, B, I, H, and whether there are two directions.
SIZES = [(1, 1, 5, 7), (1, 4, 33, 40), (3, 2, 17, 9, True), (6, 5, 4, 2), (5, 13, 3, 50, True), (4, 20, 30, 67)]
ROWS = {"plain": {}, "packed": {"variable": "packed"}, "lengths": {"variable": "lengths"}, "reset": {"resets": True}}


def case_of(rows, T, B, I, H, bidirectional=False):
    return Case(rows, T, B, I, H, bidirectional=bidirectional, **ROWS[rows])


SMALL = case_of("plain", 3, 2, 4, 5)


def results_and_gradients(operator, layer, incoming):
    output, last, saved, carried = operator(*layer)
    results, given = [output, *last], [incoming.output, *incoming.last]
    if incoming.carried is not None:
        results, given = [*results, carried], [*given, incoming.carried]
    given = [d.to(result.dtype) for d, result in zip(given, results)]
    return [*results, saved, *torch.autograd.grad(results, flat_tensors(layer), given)]


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("plan", ["direct", "packed", "direct:units", "packed:units"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", ["gru", "rnn_tanh", "rnn_relu"])
def test_every_kernel_near_the_reference(cell, isa, plan, rows, forced, two_threads):
    """Forward, inference and every gradient. Of 16 bits, where relu's corners make gradients jump, values only."""
    forced(isa, plan)
    for dtype in DTYPES:
        for case in (case_of(rows, *sizes) for sizes in SIZES):
            if not (case.resets and case.bidirectional):
                check_against_reference(CELLS[cell], case, dtype)


@cache
def drawn_and_expected(name, step, case, dtype):
    """A layer, and what the reference makes of it in float64; the same for every kernel."""
    cell = CELLS[name]._replace(step=step)
    drawn = draw(case, cell, reset_state=case.resets, dtype=dtype)
    exact = differentiable(drawn.layer, torch.float64)
    return drawn, results_and_gradients(partial(reference.layer, cell), exact, drawn.incoming)


def check_against_reference(cell, case, dtype):
    drawn, expected = drawn_and_expected(cell.name, cell.step, case, dtype)
    layer = differentiable(drawn.layer)
    found = results_and_gradients(OPERATORS[cell.name].layer, layer, drawn.incoming)
    has_corners = cell.name == "rnn_relu" and dtype.itemsize == 2
    count = 2 + len(cell.states) + bool(cell.carried) if has_corners else len(expected)
    terms, rows = case.input_size + case.hidden_size, case.T * case.B
    for k, (actual, right) in enumerate(zip(found[:count], expected, strict=False)):
        assert actual.shape == right.shape and actual.dtype in (dtype, torch.float32)
        allowed = tolerance(dtype, terms + (rows if k > 2 else 0), case.T)
        allowed *= 2 if dtype is torch.float64 else 1  # the reference rounds too
        if dtype.itemsize == 2 and k > 2:  # slopes such as 1 - n^2 are of rounded n, as torch.nn's
            allowed *= 4
        size = max(1.0, right.abs().max().item()) if right.numel() else 1.0
        assert_near(actual / size, right / size, allowed, f"{cell.name} {dtype} {case} {k}")
    with torch.no_grad():
        output, last = OPERATORS[cell.name].inference(*layer)
    assert torch.equal(output, found[0])
    assert all(map(torch.equal, last, found[1 : 1 + len(last)]))


@pytest.mark.parametrize("broken", ["direct gradient of h lost", "bias of n outside the reset", "gates exchanged"])
def test_a_broken_reference_is_noticed(broken, monkeypatch):
    """The comparison has teeth: each of these differs from the kernels by more than it allows."""

    def step(from_input, from_hidden, states):
        if broken == "direct gradient of h lost":
            h = states[0]
            (after,), saved = CELLS["gru"].step(from_input, from_hidden, states)
            return [after - (z := saved.chunk(4, -1)[1]) * h + z * h.detach()], saved
        if broken == "gates exchanged":
            r, z, n = from_input.chunk(3, -1)
            return CELLS["gru"].step(torch.cat([z, r, n], -1), from_hidden, states)
        bias = torch.ones_like(from_hidden.chunk(3, -1)[2]) * 0.01
        return CELLS["gru"].step(from_input + torch.cat([0 * bias, 0 * bias, bias], -1), from_hidden, states)

    cell = CELLS["gru"]._replace(step=step)
    with pytest.raises(AssertionError):
        check_against_reference(cell, case_of("plain", 3, 2, 17, 9), torch.float32)


@family
def test_reference_is_torch(member):
    """In float64, layers and both directions: what all else rests on."""
    fused, plain = member.pair(5, 7, bidirectional=True, dtype=torch.float64)
    x, h = torch.randn(4, 3, 5, dtype=torch.float64), torch.randn(2, 3, 7, dtype=torch.float64)
    kinds = [list(kind) for kind in zip(*fused.all_weights)]
    output, last, *_ = reference.layer(CELLS[member.cell], x, [h], *kinds, [])
    for actual, expected in zip((output, *last), plain(x, h)):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


# The modules, against torch.nn's.

OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "two-layers": {"num_layers": 2},
    "bidirectional": {"bidirectional": True},
    "everything": {"num_layers": 3, "bidirectional": True, "batch_first": True},
}


def outputs_and_gradients(module, x, h):
    x, h = x.clone().requires_grad_(), h.clone().requires_grad_()
    results = module(x, h)
    generator = torch.Generator().manual_seed(1)
    given = [torch.randn(r.shape, generator=generator, dtype=torch.float64).to(r.dtype) for r in results]
    return [*results, *torch.autograd.grad(results, [x, h, *module.parameters()], given)]


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@family
def test_values_and_gradients(member, dtype, options):
    fused, plain = member.pair(6, 10, **options, dtype=dtype)
    x, h = torch.randn(5, 5, 6, dtype=dtype), torch.randn(plain.num_layers * (1 + plain.bidirectional), 5, 10).to(dtype)
    allowed = 20 * torch.finfo(dtype).eps * plain.num_layers
    for actual, expected in zip(outputs_and_gradients(fused, x, h), outputs_and_gradients(plain, x, h), strict=True):
        size = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(actual / size, expected / size, rtol=0, atol=allowed)


@family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_as_accurate_as_torch(member, dtype):
    """Root mean square error against float64 of the same values, over shapes; at most torch's."""
    for T, B, I, H in [(20, 8, 16, 32), (30, 4, 64, 100), (10, 16, 128, 256)]:
        fused, plain = member.pair(I, H, dtype=dtype)
        exact = member.plain(I, H, dtype=torch.float64)
        exact.load_state_dict({name: value.double() for name, value in plain.state_dict().items()})
        x = torch.randn(T, B, I).to(dtype)
        with torch.no_grad():
            right = exact(x.double())[0]
            ours, theirs = ((module(x)[0].double() - right).square().mean().sqrt() for module in (fused, plain))
        assert ours <= 1.02 * theirs, (T, B, I, H)


@family
def test_same_initial_values_names_and_text(member):
    for options in OPTIONS.values():
        torch.manual_seed(7)
        plain = member.plain(3, 4, **options)
        torch.manual_seed(7)
        fused = member.layer(3, 4, **options)
        assert [n for n, _ in fused.named_parameters()] == [n for n, _ in plain.named_parameters()]
        assert all(map(torch.equal, fused.parameters(), plain.parameters()))
        assert repr(fused) == f"Fused{plain!r}"
        plain.load_state_dict(fused.state_dict(), strict=True)


@family
def test_unbatched_packed_and_lengths(member):
    fused, plain = member.pair(3, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    x, h = torch.randn(5, 3, dtype=torch.float64), torch.randn(4, 4, dtype=torch.float64)
    torch.testing.assert_close(fused(x, h), plain(x, h))

    sequences = [torch.randn(n, 3, dtype=torch.float64) for n in (2, 5, 4)]
    for is_sorted in (True, False):
        some = sorted(sequences, key=len, reverse=True) if is_sorted else sequences
        packed, h = pack_sequence(some, enforce_sorted=is_sorted), torch.randn(4, 3, 4, dtype=torch.float64)
        (output, h_n), (right, right_h_n) = fused(packed, h), plain(packed, h)
        torch.testing.assert_close(output.data, right.data)
        torch.testing.assert_close(h_n, right_h_n)
    padded, lengths = pad_packed_sequence(packed)
    output, h_n = fused(padded, h, lengths=lengths)
    torch.testing.assert_close(output, pad_packed_sequence(right)[0])
    torch.testing.assert_close(h_n, right_h_n)


@family
def test_resets_are_calls_one_after_another(member):
    fused, _ = member.pair(3, 4, dtype=torch.float64)
    x, h, fresh = torch.randn(6, 2, 3).double(), torch.randn(1, 2, 4).double(), torch.randn(1, 2, 4).double()
    reset = torch.tensor([[0, 1], [0, 0], [1, 0], [0, 0], [0, 1], [0, 0]], dtype=torch.bool)
    expected, state = [], h
    for t in range(6):
        state = torch.where(reset[t][:, None], fresh, state)
        output, state = fused(x[t : t + 1], state)
        expected.append(output)
    output, h_n = fused(x, h, reset=reset, reset_state=fresh)
    torch.testing.assert_close(output, torch.cat(expected))
    torch.testing.assert_close(h_n, state)
    zeros = fused(x, h, reset=reset, reset_state=torch.zeros_like(h))[0]
    assert torch.equal(fused(x, h, reset=reset)[0], zeros)


def test_gates_of_the_gru():
    fused, _ = GRU.pair(3, 4, bidirectional=True, dtype=torch.float64)
    x = torch.randn(5, 2, 3).double()
    _, _, gates = fused(x, return_gates=True)
    assert gates.shape == (2, 5, 2, 12) and not gates.requires_grad
    w_ih, _, b_ih, b_hh = fused.all_weights[0]
    x_r, x_z, x_n = (x[0] @ w_ih.T + b_ih).chunk(3, -1)
    h_r, h_z, h_n = b_hh.chunk(3)
    r = (x_r + h_r).sigmoid()
    expected = torch.cat([r, (x_z + h_z).sigmoid(), (x_n + r * h_n).tanh()], -1)
    torch.testing.assert_close(gates[0, 0], expected)
    packed = pack_sequence([x[:, 0], x[:3, 1]])
    assert fused(packed, return_gates=True)[2].shape == (2, 8, 12)


@family
def test_cells(member):
    for options in ({}, {"bias": False}):
        fused, plain = member.pair_of_cells(3, 5, **options, dtype=torch.float64)
        assert repr(fused) == f"Fused{plain!r}"
        for rows in ((4,), ()):
            x, h = torch.randn(*rows, 3).double(), torch.randn(*rows, 5).double()
            for state in (None, h):
                torch.testing.assert_close(fused(x, state), plain(x, state))
                with torch.no_grad():
                    torch.testing.assert_close(fused(x, state), plain(x, state))
            given = torch.randn(*rows, 5).double()
            actual, expected = (
                torch.autograd.grad(module(x.requires_grad_(), h.requires_grad_()), [x, h, *module.parameters()], given)
                for module in (fused, plain)
            )
            for a, e in zip(actual, expected, strict=True):
                torch.testing.assert_close(a, e)
        fused(x).mul_(2)  # a tensor of its own


@family
def test_no_rows(member):
    fused, _ = member.pair(3, 4)
    h = torch.randn(1, 2, 4)
    output, h_n = fused(torch.randn(0, 2, 3), h)
    assert output.shape == (0, 2, 4) and torch.equal(h_n, h)
    assert fused(torch.randn(5, 0, 3))[0].shape == (5, 0, 4)


@family
def test_functional(member):
    _, plain = member.pair(3, 4, num_layers=2, bidirectional=True)
    x = torch.randn(5, 2, 3)
    name, _, nonlinearity = member.cell.partition("_")
    options = {"nonlinearity": nonlinearity} if nonlinearity else {}
    found = getattr(functional, name)(x, None, plain.all_weights, bidirectional=True, **options)
    torch.testing.assert_close(found, plain(x))
    step, _ = member.pair_of_cells(3, 4)
    x, h = torch.randn(2, 3), torch.randn(2, 4)
    torch.testing.assert_close(getattr(functional, f"{name}_cell")(x, h, *step.parameters(), **options), step(x, h))


@family
def test_dropout_draws_the_same_masks(member):
    fused, plain = member.pair(3, 4, num_layers=3, dropout=0.5)
    x, outputs = torch.randn(5, 2, 3), []
    for module in (fused, plain):
        torch.manual_seed(3)
        outputs.append(module(x)[0])
    torch.testing.assert_close(*outputs)


AUTOCAST_STATES = [None, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("state", AUTOCAST_STATES, ids=str)
@pytest.mark.parametrize("input", [torch.float32, torch.bfloat16], ids=str)
@family
def test_autocast(member, input, state):
    """Dtypes are torch's on the CPU, where a GRU is promoted by its state and an RNN is not; layers and cells."""
    for (fused, plain), shape in ((member.pair(3, 4), (5, 2, 3)), (member.pair_of_cells(3, 4), (2, 3))):
        x = torch.randn(*shape).to(input)
        h = None if state is None else torch.randn(*(1,) * (len(shape) - 2), 2, 4).to(state)
        with torch.autocast("cpu", torch.bfloat16):
            actual, expected = fused(x, h), plain(x, h)
        torch.testing.assert_close(actual, expected, rtol=0, atol=2**-6)
        (actual[0] if isinstance(actual, tuple) else actual).sum().backward()
        assert all(p.grad.dtype == torch.float32 for p in fused.parameters())


@family
def test_pickle_deepcopy_hooks_and_parametrizations(member):
    fused, _ = member.pair(3, 4)
    x, seen = torch.randn(5, 2, 3), []
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        torch.testing.assert_close(other(x), fused(x))
    handle = fused.register_forward_hook(lambda *_: seen.append(1))
    fused(x)
    handle.remove()
    assert seen == [1]
    parametrizations.weight_norm(fused, "weight_hh_l0")
    fused(x)[0].sum().backward()
    assert fused.parametrizations.weight_hh_l0.original0.grad is not None
    doubled = {name: 2 * value for name, value in member.pair(3, 4)[0].named_parameters()}
    torch.testing.assert_close(functional_call(member.pair(3, 4)[0], doubled, x)[0], _with(member, doubled, x))


def _with(member, parameters, x):
    module = member.plain(3, 4)
    module.load_state_dict(parameters)
    return module(x)[0]


@family
def test_convert_and_revert(member):
    model = nn.ModuleDict({"layer": member.plain(3, 4, bidirectional=True), "step": member.plain_step(3, 4)})
    parameters, types = dict(model.named_parameters()), [type(m) for m in model.modules()]
    x, step = torch.randn(5, 2, 3), torch.randn(2, 3)
    expected = model["layer"](x), model["step"](step)
    fusedlstm.convert(model)
    assert [type(m).__name__ for m in model.values()] == [f"Fused{t.__name__}" for t in types[1:]]
    assert all(p is parameters[n] for n, p in model.named_parameters())
    torch.testing.assert_close((model["layer"](x), model["step"](step)), expected)
    fusedlstm.revert(model)
    assert [type(m) for m in model.modules()] == types


def test_convert_of_subclasses():
    class Own(nn.GRU):
        def forward(self, x):
            return super().forward(x)[0]

    model, x = nn.Sequential(Own(3, 4)), torch.randn(5, 2, 3)
    expected = model(x)
    fusedlstm.convert(model, subclasses=True)
    assert isinstance(model[0], fusedlstm.FusedGRU) and isinstance(model[0], Own)
    torch.testing.assert_close(model(x), expected)


# Transforms, compilers, exporters.


@family
def test_gradgradcheck_and_forward_mode(member):
    if member.cell == "rnn_relu":
        pytest.skip("relu has corners")
    fused, plain = member.pair(2, 3, bidirectional=True, dtype=torch.float64)
    x, h = torch.randn(3, 2, 2).double(), torch.randn(2, 2, 3).double()
    parameters = tuple(p.detach().requires_grad_() for p in fused.parameters())
    names = [n for n, _ in fused.named_parameters()]

    def call(x, h, *parameters):
        return functional_call(fused, dict(zip(names, parameters)), (x, h))

    arguments = (x.requires_grad_(), h.requires_grad_(), *parameters)
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)
    tangents = tuple(map(torch.randn_like, arguments))
    plain_call = lambda x, h, *p: functional_call(plain, dict(zip(names, p)), (x, h))  # noqa: E731
    torch.testing.assert_close(jvp(call, arguments, tangents), jvp(plain_call, arguments, tangents))


@family
def test_second_order_of_a_cell(member):
    fused, plain = member.pair_of_cells(2, 3, dtype=torch.float64)
    x, h, u = torch.randn(4, 2).double(), torch.randn(4, 3).double(), torch.randn(4, 3).double()

    def penalty(module):
        leaf = h.clone().requires_grad_()
        (first,) = torch.autograd.grad((module(x, leaf) * u).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), list(module.parameters()), allow_unused=True)

    for a, e in zip(penalty(fused), penalty(plain), strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if e is None else e) if a is not None else None


@family
def test_vmap_over_weights_is_one_call(member):
    modules = [member.pair(3, 4, dtype=torch.float64)[0] for _ in range(3)]
    parameters, _ = stack_module_state(modules)
    x = torch.randn(5, 2, 3).double()
    found = vmap(lambda p: functional_call(modules[0], p, (x,))[0])(parameters)
    for actual, module in zip(found, modules):
        torch.testing.assert_close(actual, module(x)[0])
    gradients = vmap(lambda p: grad(lambda p: functional_call(modules[0], p, (x,))[0].sum())(p))(parameters)
    for k, module in enumerate(modules):
        module(x)[0].sum().backward()
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(gradients[name][k], parameter.grad)


@pytest.mark.parametrize("kind", [None, "lengths"])
@family
def test_compiled_in_one_graph_and_exported(member, kind):
    fused, _ = member.pair(3, 4, num_layers=2)
    x, rows = torch.randn(5, 2, 3), {"lengths": torch.tensor([5, 2])} if kind else {}
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, **rows), fused(x, **rows))
    compiled(x, **rows)[0].sum().backward()
    step = torch.compile(member.pair_of_cells(3, 4)[0], fullgraph=True, backend="aot_eager")
    assert step(torch.randn(2, 3)).shape == (2, 4)
    steps = torch.export.Dim("T", min=2, max=100)
    shapes = ({0: steps}, None, *([None] if kind else []))
    program = torch.export.export(fused.eval(), (x, None, *rows.values()), dynamic_shapes=shapes)
    longer = torch.randn(9, 2, 3)
    torch.testing.assert_close(program.module()(longer, None, *rows.values()), fused(longer, None, *rows.values()))


@family
def test_opcheck(member):
    cell, operators = CELLS[member.cell], OPERATORS[member.cell]
    for rows in ROWS:
        layer = differentiable(draw(case_of(rows, 3, 4, 2, 5), cell, reset_state=rows == "reset").layer)
        tests = ["test_schema", "test_faketensor", "test_autograd_registration"]
        torch.library.opcheck(operators.layer, layer, test_utils=tests)
        torch.library.opcheck(operators.inference, layer, test_utils=tests[:2])


@family
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}], ids=str)
def test_onnx_is_one_node(member, options, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    fused, _ = member.pair(3, 4, **options)
    x = torch.randn(5, 2, 3)
    program = torch.onnx.export(fused.eval(), (x,), dynamo=True, verbose=False)
    assert [node.op_type for node in program.model.graph if node.op_type in ("GRU", "RNN", "LSTM", "Loop")] == [
        type(fused).__name__.removeprefix("Fused")
    ]
    path = tmp_path / "m.onnx"
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path))
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for actual, expected in zip(found, fused(x)):
        torch.testing.assert_close(torch.from_numpy(actual), expected.detach(), rtol=0, atol=1e-5)


# Bad input: torch's types, and its texts where it has any.

X, H0 = torch.randn(5, 2, 3), torch.randn(1, 2, 4)
BAD_CALLS = {
    "dimensions": (torch.randn(1, 5, 2, 3), None),
    "features": (torch.randn(5, 2, 4), None),
    "dtype": (X.double(), None),
    "hx-dimensions": (X, H0[0]),
    "hx-batch": (X, torch.randn(1, 3, 4)),
    "hx-hidden": (X, torch.randn(1, 2, 5)),
    "hx-layers": (X, torch.randn(2, 2, 4)),
    "unbatched-hx": (X[:, 0], H0),
}


@pytest.mark.parametrize("arguments", BAD_CALLS.values(), ids=BAD_CALLS)
@family
def test_errors_are_torch_s(member, arguments):
    fused, plain = member.pair(3, 4)
    with pytest.raises(Exception) as theirs:
        plain(*arguments)
    with pytest.raises(theirs.type) as ours:
        fused(*arguments)
    if "dimensions" not in str(theirs.value) and member.cell == "gru":  # nn.RNN's own text has a word more
        assert str(ours.value) == str(theirs.value)


@family
def test_what_torch_fails_at_by_accident(member):
    fused, _ = member.pair(3, 4)
    name = type(fused).__name__.removeprefix("Fused")
    with pytest.raises(TypeError, match=f"{name}: Expected hx to be a Tensor, got tuple"):
        fused(X, (H0, H0))
    with pytest.raises(TypeError, match=f"{name}: Expected input to be a Tensor or PackedSequence, got list"):
        fused([1.0])
    with pytest.raises(RuntimeError, match=r"same dtype, expected .*float32, got .*float64 for hidden"):
        fused(X, H0.double())
    with pytest.raises(ValueError, match=f"{name}: Expected reset with reset_state"):
        fused(X, reset_state=H0)
    with pytest.raises(RuntimeError, match="Expected reset_state size"):
        fused(X, reset=torch.zeros(5, 2, dtype=torch.bool), reset_state=H0[:, :1])
    fused.weight_hh_l0 = nn.Parameter(fused.weight_hh_l0[:, :3])
    with pytest.raises(RuntimeError, match=f"{name}: Expected weight_hh_l0 of shape"):
        fused(X)


@family
def test_cells_errors(member):
    fused, plain = member.pair_of_cells(3, 4)
    name = type(plain).__name__
    for arguments in ((torch.randn(2, 2, 3),), (torch.randn(2, 3), torch.randn(1, 2, 4)), (torch.randn(2, 5),)):
        with pytest.raises(Exception) as theirs:
            plain(*arguments)
        with pytest.raises(theirs.type) as ours:
            fused(*arguments)
        assert str(ours.value) == str(theirs.value)
    with pytest.raises(TypeError, match=f"{name}: Expected hx to be a Tensor, got tuple"):
        fused(torch.randn(2, 3), (torch.randn(2, 4),) * 2)
    with pytest.raises(RuntimeError, match="hidden0 has inconsistent hidden_size: got 5, expected 4"):
        fused(torch.randn(2, 3), torch.randn(2, 5))


def test_constructors_refuse_what_torch_s_do():
    for fused, plain in ((fusedlstm.FusedGRU, nn.GRU), (fusedlstm.FusedRNN, nn.RNN)):
        for options in ({"proj_size": 2}, {"num_layers": 0}, {"dropout": 2.0}, {"hidden_size": -1}):
            arguments = {"input_size": 3, "hidden_size": 4, **options}
            with pytest.raises(Exception) as theirs:
                plain(**arguments)
            with pytest.raises(theirs.type) as ours:
                fused(**arguments)
            assert str(ours.value) == str(theirs.value)
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        fusedlstm.FusedRNN(3, 4, nonlinearity="sin")
    assert fusedlstm.FusedRNN(3, 4, 1, "relu", False).nonlinearity == "relu"
    cell = fusedlstm.FusedRNNCell(3, 4, nonlinearity="sin")  # as nn.RNNCell, in forward only
    with pytest.raises(RuntimeError, match="Unknown nonlinearity: sin"):
        cell(torch.randn(2, 3))
    with pytest.raises(ValueError, match="Unknown nonlinearity 'sin'"):
        functional.rnn(X, None, nn.RNN(3, 4).all_weights, nonlinearity="sin")
    with pytest.raises(ValueError, match=r"GRU: Expected 2 or 4 tensors in weights\[0\], got 5"):
        functional.gru(X, None, [[*nn.GRU(3, 4).all_weights[0], X]])


def test_operator_refuses_projections_and_a_second_state():
    layer = draw(SMALL, CELLS["gru"], dtype=torch.float32).layer
    with pytest.raises(RuntimeError, match="expected 1 initial states, got 2"):
        OPERATORS["gru"].layer(*layer._replace(initial=layer.initial * 2))
    projected = layer._replace(
        weight_hr=[torch.randn(2, 5)], weight_hh=[torch.randn(15, 2)], initial=[torch.randn(1, 2, 2)]
    )
    with pytest.raises(RuntimeError, match="expected no weight_hr for this cell"):
        OPERATORS["gru"].layer(*projected)


def test_every_cell_is_described_as_the_library_has_it():
    """The sizes in fusedlstm/cells are those of csrc/cells: an operator makes what its description says."""
    for cell in CELLS.values():
        _, last, saved, carried = OPERATORS[cell.name].layer(*draw(SMALL, cell, dtype=torch.float32).layer)
        assert (len(last), saved.shape[-1], carried.shape[-1]) == (len(cell.states), 5 * cell.saved, 5 * cell.carried)
    assert CELLS["lstm"] is LSTM
