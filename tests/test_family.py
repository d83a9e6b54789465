"""FusedGRU, FusedRNN and their cells against torch.nn's: values, gradients, errors and everything around a call.

What FusedLSTM is tested for, for the rest of the family. Every kernel by itself: test_family_kernels.py.
"""

import pytest
import torch
from family import FAMILY, GRU, family
from torch import nn
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence

import fusedlstm
from fusedlstm import functional

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
    for T, B, I, H in [(20, 8, 16, 32), (30, 4, 64, 100), (30, 4, 32, 128), (10, 16, 128, 256)]:
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
def test_any_strides(member):
    """Inputs and states that lie in memory as they please: transposed, expanded, every second one."""
    fused, plain = member.pair(3, 4, dtype=torch.float64)
    inputs = torch.randn(3, 2, 5).double().permute(2, 1, 0), torch.randn(5, 1, 3).double().expand(5, 2, 3)
    for x in (*inputs, torch.randn(10, 4, 6).double()[::2, ::2, ::2]):
        for h in (torch.randn(1, 4, 2).double().mT, torch.randn(1, 1, 4).double().expand(1, 2, 4)):
            results = [outputs_and_gradients(module, x, h) for module in (fused, plain)]
            for actual, expected in zip(*results, strict=True):
                torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


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
def test_hooks_and_functional_call(member):
    fused, _ = member.pair(3, 4)
    x, seen = torch.randn(5, 2, 3), []
    handle = fused.register_forward_hook(lambda *_: seen.append(1))
    fused(x)
    handle.remove()
    assert seen == [1]
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


@pytest.mark.parametrize("member", FAMILY[:2], ids=str)  # relu has corners
def test_gradgradcheck_and_forward_mode(member):
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


@pytest.mark.parametrize("kind", ["lengths", "reset", "packed"])
@pytest.mark.parametrize("member", FAMILY[:2], ids=str)  # relu has corners
def test_gradcheck_of_row_states(member, kind):
    fused, _ = member.pair(2, 3, bidirectional=kind != "reset", dtype=torch.float64)
    x, h = torch.randn(4, 3, 2).double(), torch.randn(1 + fused.bidirectional, 3, 3).double()
    lengths, reset = torch.tensor([1, 4, 2]), torch.rand(4, 3) < 0.4

    def call(x, h):
        if kind == "packed":
            output, h_n = fused(pack_padded_sequence(x, lengths, enforce_sorted=False), h)
            return output.data, h_n
        return fused(x, h, lengths=lengths) if kind == "lengths" else fused(x, h, reset=reset, reset_state=2 * h)

    arguments = x.requires_grad_(), h.requires_grad_()
    assert torch.autograd.gradcheck(call, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, arguments, fast_mode=True)


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@family
def test_batches_of_gradients(member, options):
    """Several gradients for one result at a time, of first and second order, are those found one by one."""
    module, _ = member.pair(3, 4, **options, dtype=torch.float64)
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    inputs, output = [x, *module.parameters()], module(x)[0]
    (gradient,) = torch.autograd.grad(output.sin().sum(), x, create_graph=True)
    for results in (output, gradient):
        batch = torch.randn(3, *results.shape, dtype=torch.float64)
        kept = dict(retain_graph=True, materialize_grads=True)
        one_by_one = zip(*(torch.autograd.grad(results, inputs, d, **kept) for d in batch))
        found = torch.autograd.grad(results, inputs, batch, is_grads_batched=True, **kept)
        for actual, expected in zip(found, one_by_one, strict=True):
            torch.testing.assert_close(actual, torch.stack(expected), rtol=0, atol=1e-12)


@family
def test_vectorized_jacobian_and_hessian(member):
    fused, plain = member.pair(2, 3, dtype=torch.float64)
    x = torch.randn(4, 2, 2, dtype=torch.float64)
    for of, result in ((jacobian, lambda output: output), (hessian, lambda output: output.sin().sum())):
        expected, actual = (of(lambda x, m=m, r=result: r(m(x)[0]), x, vectorize=m is fused) for m in (plain, fused))
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@family
def test_second_order_of_a_cell(member):
    fused, plain = member.pair_of_cells(2, 3, dtype=torch.float64)
    x, h, u = torch.randn(4, 2).double(), torch.randn(4, 3).double(), torch.randn(4, 3).double()

    def penalty(module):
        leaf = h.clone().requires_grad_()
        (first,) = torch.autograd.grad((module(x, leaf) * u).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), list(module.parameters()), materialize_grads=True)

    torch.testing.assert_close(penalty(fused), penalty(plain))


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


# How a layer is called is no matter of its cell.
@pytest.mark.parametrize(("member", "kind"), list(zip(FAMILY, [None, "lengths", None])), ids=str)
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


@pytest.mark.parametrize(("member", "options"), list(zip(FAMILY, [{"bidirectional": True}, {}, {}])), ids=str)
@pytest.mark.usefixtures("cheap_onnx")
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
