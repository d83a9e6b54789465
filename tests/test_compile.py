"""Tracing: torch.compile in one graph, torch.export with dynamic sizes, opcheck, fx."""

import io
import os
import shutil
from dataclasses import replace

import pytest
import torch
from cases import OPTIONS
from forked_python import run_python
from layers import differentiable, draw
from tf32 import tf32
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, draft_export, export
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fusedlstm import FusedLSTM, _choice, ops

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="inductor needs a C++ compiler, also for GPUs"
)
LSTM = ops.OPERATORS["lstm"]
LAYER_OPERATORS = (LSTM.layer, LSTM.inference)


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch._dynamo.reset()


def _layer_nodes(graph) -> int:
    return sum(node.target in LAYER_OPERATORS for node in graph.nodes)


class Classifier(nn.Module):
    """A model around the LSTM, as people compile them."""

    def __init__(self, num_layers=2, bidirectional=True, **options):
        super().__init__()
        self.lstm = FusedLSTM(3, 4, num_layers, bidirectional=bidirectional, **options)
        self.head = nn.Linear(4 * (1 + bidirectional), 2)

    def forward(self, x, hx=None, lengths=None):
        output, (h_n, _) = self.lstm(x, hx, lengths=lengths)
        return self.head(output.relu()), h_n


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_training_step_in_one_graph(backend, device):
    model = Classifier(device=device, dtype=torch.float64).to(device, torch.float64)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    x = torch.randn(5, 2, 3, device=device, dtype=torch.float64, requires_grad=True)
    found = []
    for call in (model, compiled):
        output, h_n = call(x)
        loss = output.square().sum() + h_n.sum()
        found.append([output, h_n, *torch.autograd.grad(loss, [x, *model.parameters()])])
    for expected, actual in zip(*found):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_one_graph_for_all_sizes(device):
    counter = CompileCounterWithBackend("aot_eager")
    model = Classifier(device=device).to(device)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
    for T, B in [(5, 2), (7, 3), (40, 6)]:
        x = torch.randn(T, B, 3, device=device)
        torch.testing.assert_close(compiled(x)[0], model(x)[0])
    layer_nodes = [_layer_nodes(module.graph) for module in counter.graphs]
    assert sum(layer_nodes) == 2 and max(layer_nodes) == 2


@pytest.mark.parametrize("option", ["lengths", "reset", "states"])
def test_options_compile(option, device):
    module = FusedLSTM(3, 4, device=device)
    x = torch.randn(5, 2, 3, device=device)
    options = {
        "lengths": {"lengths": torch.tensor([2, 5], device=device)},
        "reset": {"reset": torch.rand(5, 2, device=device) < 0.5},
        "states": {"return_cell_states": True, "return_gates": True},
    }[option]
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(x, **options), module(x, **options)
    torch.testing.assert_close(actual, expected)


def test_no_grad_and_autocast_compile(device):
    module = FusedLSTM(3, 4, device=device)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 2, 3, device=device)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x)[0], module(x)[0])
    with torch.autocast(device.type, torch.bfloat16):
        assert compiled(x)[0].dtype == torch.bfloat16


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("cheap_inductor")
def test_inductor(device):
    """To it a layer is a call; how many there are of them is no matter, but of the code around them to compile."""
    model = Classifier(1, bidirectional=False, device=device).to(device)
    compiled = torch.compile(model, fullgraph=True)
    x, *hx = (torch.randn(*size, device=device) for size in ((5, 2, 3), (1, 2, 4), (1, 2, 4)))
    found = []
    for call in (model, compiled):
        output = call(x, hx)[0]
        found.append([output, *torch.autograd.grad(output.sum(), list(model.parameters()))])
    for expected, actual in zip(*found):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


def _exported(model, x, **kwargs):
    """`model` exported with dynamic time and batch."""
    T, B = Dim("T", min=1), Dim("B", min=1)
    shapes = {"x": {0: T, 1: B}, **dict.fromkeys(kwargs)}
    if "lengths" in kwargs:
        shapes["lengths"] = {0: B}
    return export(model, (x,), kwargs, dynamic_shapes=shapes)


def test_export_with_dynamic_time(device):
    model = Classifier(device=device).to(device).eval()
    program = _exported(model, torch.randn(5, 2, 3, device=device))
    assert _layer_nodes(program.graph) == 2
    assert len(program.graph.nodes) < 60  # whatever T is
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for T, B in [(5, 2), (1, 1), (40, 7)]:
        x = torch.randn(T, B, 3, device=device)
        torch.testing.assert_close(loaded(x)[0], model(x)[0])


def test_export_with_lengths(device):
    model = Classifier(device=device).to(device).eval()
    x = torch.randn(5, 2, 3, device=device)
    program = _exported(model, x, lengths=torch.tensor([5, 3], device=device))
    x, lengths = torch.randn(9, 3, 3, device=device), torch.tensor([9, 1, 4], device=device)
    actual = program.module()(x, lengths=lengths)[0]
    torch.testing.assert_close(actual, model(x, lengths=lengths)[0])


@needs_compiler
@pytest.mark.slow
@pytest.mark.usefixtures("cheap_inductor")
def test_aot_inductor_package_in_another_process(tmp_path):
    """The package needs the library's operators only, not the model's code. Nor are there kernels around to compile."""
    model, T, B = FusedLSTM(3, 4).eval(), Dim("T", min=1), Dim("B", min=1)
    given = torch.randn(5, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    program = export(model, given, dynamic_shapes=({0: T, 1: B}, ({1: B}, {1: B})))
    package = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "m.pt2"))
    torch.save((given, model(*given)), tmp_path / "expected.pt")
    code = (
        "import sys, torch, fusedlstm\n"
        "given, expected = torch.load(sys.argv[2])\n"
        "run = torch._inductor.aoti_load_package(sys.argv[1])\n"
        "torch.testing.assert_close(run(*given), expected)\n"
    )
    # To say what runs here, loading would try each instruction set too.
    done = run_python(code, package, tmp_path / "expected.pt", TORCHINDUCTOR_VEC_ISA_OK=0)
    assert done.returncode == 0, done.stderr


def _operator_arguments(case, requires_grad, **options):
    layer = draw(case, dtype=torch.float32, **options).layer
    return differentiable(layer) if requires_grad else layer


ONE_LAYER = [case for case in OPTIONS if case.num_layers == 1]


@pytest.mark.parametrize("case", ONE_LAYER, ids=lambda case: case.name)
def test_opcheck(case):
    torch.library.opcheck(LSTM.layer, _operator_arguments(case, True))
    torch.library.opcheck(LSTM.inference, _operator_arguments(case, False))


@pytest.mark.parametrize("kind", ["packed", "lengths", "reset"])
def test_opcheck_of_row_states(kind):
    case, options = {
        "packed": (replace(ONE_LAYER[0], T=4, variable="packed"), {"lengths": [4, 3, 1]}),
        "lengths": (replace(ONE_LAYER[0], variable="lengths"), {"lengths": [0, 5, 2]}),
        "reset": (replace(ONE_LAYER[0], resets=True), {"reset_state": True}),
    }[kind]
    torch.library.opcheck(LSTM.layer, _operator_arguments(case, True, **options))


@pytest.mark.slow
def test_opcheck_of_backward():
    """Traces the double backward through the reference: few steps, since it is a node per step."""
    case = replace(OPTIONS[4], T=2)
    assert case.proj_size
    arguments = _operator_arguments(case, True)
    output, (_, c_n), *kept = LSTM.layer(*arguments)
    output, c_n, gates, cells = (t.detach() for t in (output, c_n, *kept))
    needs = [True] * 7 + [False]
    incoming = (output, [None, c_n], None)
    torch.library.opcheck(LSTM.backward, (*incoming, *arguments, output, gates, cells, needs))


def test_make_fx_and_symbolic_trace():
    model = Classifier().eval()
    x = torch.randn(5, 2, 3)
    trace = make_fx(lambda x: model(x)[0], tracing_mode="symbolic", _allow_non_fake_inputs=True)
    traced = trace(x)
    assert _layer_nodes(traced.graph) == 2
    torch.testing.assert_close(traced(x), model(x)[0])
    symbolic = torch.fx.symbolic_trace(model)
    torch.testing.assert_close(symbolic(x)[0], model(x)[0])


class _FunctionCalls(TorchFunctionMode):
    """Records what is called."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.functions.append(function)
        return function(*args, **(kwargs or {}))


class _DispatchedCalls(TorchDispatchMode):
    """Records what is dispatched below autograd."""

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.functions.append(function)
        return function(*args, **(kwargs or {}))


def test_modes_see_the_operators_of_training():
    """Eager training takes a shorter way to the derivative than through the dispatcher."""
    module, x = FusedLSTM(3, 4, 2), torch.randn(5, 2, 3)
    with _FunctionCalls() as seen, _DispatchedCalls() as dispatched:
        module(x)[0].sum().backward()
    assert seen.functions.count(LSTM.layer) == 2
    assert dispatched.functions.count(LSTM.layer) == 2
    assert dispatched.functions.count(LSTM.backward) == 2
    with _DispatchedCalls() as dispatched:
        module(x)[0].sum().backward()
    assert dispatched.functions.count(LSTM.layer) == 2
    assert dispatched.functions.count(LSTM.backward) == 2
    traced = make_fx(lambda x: module(x)[0], pre_dispatch=True)(x)
    assert _layer_nodes(traced.graph) == 2


def test_fake_tensors():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        output, (h_n, _) = FusedLSTM(3, 4, 2)(torch.randn(5, 2, 3), lengths=torch.tensor([1, 2]))
    assert output.shape == (5, 2, 4) and h_n.shape == (2, 2, 4)


class OfFields(nn.Module):
    """Makes a PackedSequence of its fields, which can be inputs of a graph."""

    def __init__(self, **options):
        super().__init__()
        self.lstm = FusedLSTM(3, 4, 2, bidirectional=True, **options)

    def forward(self, data, batch_sizes, sorted_indices=None, unsorted_indices=None, hx=None):
        output, (h_n, c_n) = self.lstm(PackedSequence(data, batch_sizes, sorted_indices, unsorted_indices), hx)
        return output.data, h_n, c_n


def _fields(*lengths, is_sorted=False, with_state=False):
    packed = pack_sequence([torch.randn(n, 3) for n in lengths], enforce_sorted=is_sorted)
    state = torch.randn(4, len(lengths), 4), torch.randn(4, len(lengths), 4)
    return *packed, state if with_state else None


PACKED = [
    pytest.param({"is_sorted": True}, id="sorted"),
    pytest.param({"is_sorted": False}, id="indices"),
    pytest.param({"is_sorted": True, "with_state": True}, id="state"),
]


@pytest.mark.parametrize("options", PACKED)
def test_packed_input_compiles(options):
    model = OfFields()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for lengths in [(5, 3, 2), (7, 6, 2, 1)]:
        fields = _fields(*lengths, **options)
        torch.testing.assert_close(compiled(*fields), model(*fields))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("options", PACKED)
def test_packed_input_is_exported_with_dynamic_sizes(options, strict):
    model = OfFields().eval()
    B, fields = Dim("B", min=1), _fields(5, 3, 2, **options)
    per_batch = None if options["is_sorted"] else {0: B}
    state = ({1: B}, {1: B}) if options.get("with_state") else None
    shapes = {0: Dim("rows", min=1)}, {0: Dim("T", min=1)}, per_batch, per_batch, state
    program = export(model, fields, dynamic_shapes=shapes, strict=strict).module()
    reads_a_value = any(node.target is torch.ops.aten.item.default for node in program.graph.nodes)
    assert reads_a_value == (per_batch is None and state is None)
    for lengths in [(5, 3, 2), (7, 6, 2, 1)]:
        fields = _fields(*lengths, **options)
        torch.testing.assert_close(program(*fields), model(*fields))


def test_packing_in_an_exported_model_is_refused_with_what_to_do():
    """PyTorch takes the batch sizes that it makes there for float32."""

    class Packs(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = FusedLSTM(3, 4)

        def forward(self, x, lengths):
            return self.lstm(pack_padded_sequence(x, lengths))[0].data

    with pytest.raises(RuntimeError, match=r"Expected padded input and lengths= in torch\.export"):
        export(Packs(), (torch.randn(5, 2, 3), torch.tensor([5, 2])))


def test_packed_input_made_inside_is_one_node_of_symbolic_trace():
    fields = _fields(5, 3, 2)

    class Fixed(OfFields):
        def forward(self, data):
            return super().forward(data, *fields[1:])

    model = Fixed()
    traced = torch.fx.symbolic_trace(model)
    assert sum(node.op == "call_function" and node.target.__name__ == "run" for node in traced.graph.nodes) == 1
    torch.testing.assert_close(traced(fields[0]), model(fields[0]))


DRAFTED = {
    "plain": lambda x: {},
    "lengths": lambda x: {"lengths": torch.tensor([5, 2])},
    "reset": lambda x: {"reset": x[..., 0] > 0},
    "states": lambda x: {"return_cell_states": True},
}


@pytest.mark.parametrize("option", DRAFTED)
def test_draft_export(option):
    """It runs operators on real tensors too, and checks that they write to none of their arguments."""

    class Drafted(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = FusedLSTM(3, 4, 2)

        def forward(self, x):
            return self.lstm(x, **DRAFTED[option](x))

    model, x = Drafted().eval(), torch.randn(5, 2, 3)
    program = draft_export(model, (x,))
    assert program._report.successful(), program._report
    assert _layer_nodes(program.graph) == 2
    torch.testing.assert_close(program.module()(x), model(x))


def test_draft_export_of_packed_input():
    model, fields = OfFields().eval(), _fields(5, 3, 2)
    program = draft_export(model, fields)
    torch.testing.assert_close(program.module()(*fields), model(*fields))


@pytest.mark.parametrize("is_on", [False, True])
def test_the_switches_of_tf32_are_traced(is_on):
    """nn.LSTM on CUDA has cuDNN's switch, nn.LSTMCell that of matrix products."""

    def call(x):
        return x + _choice.is_tf32_on(is_cell=False), x + _choice.is_tf32_on(is_cell=True)

    with tf32(lstm=is_on, matmul=not is_on):
        found = torch.compile(call, fullgraph=True, backend="eager")(torch.zeros(()))
    assert found == (is_on, not is_on)
