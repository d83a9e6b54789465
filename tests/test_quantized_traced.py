"""Modules with int8 weights in what traces, compiles, exports and transforms programs."""

import io

import pytest
import torch
from family import EVERY, LSTM, every, tensors_of
from quantized_layers import assert_equal, flat, quantized_of
from torch import nn
from torch.export import Dim
from torch.func import functional_call, grad, jvp, vmap
from torch.nn.utils.rnn import pack_sequence
from torch.utils.flop_counter import FlopCounterMode

from fusedlstm import FusedLSTM, FusedLSTMCell, quantize

X = torch.randn(3, 2, 5)
DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
class TestTraced:
    """In graphs a layer is one node."""

    @pytest.fixture(autouse=True)
    def _from_the_start(self):
        """Otherwise graphs of several tests count as those of one."""
        torch._dynamo.reset()

    @pytest.fixture
    def module(self):
        return quantized_of(LSTM, 5, 7, num_layers=2, bidirectional=True)[1]

    @pytest.mark.parametrize("call", ["plain", "states", "one sequence", "lengths"])
    def test_compiled_in_one_graph(self, call):
        _, module = quantized_of(LSTM, 5, 7, **DEEP)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
        for x in (torch.randn(9, 8, 5), torch.randn(3, 4, 5)):
            arguments = {
                "plain": (x,), "states": (x, module(x)[1]), "one sequence": (x[0],),
                "lengths": (x, None, torch.tensor([1, 0, 2] * 3)[: len(x)]),
            }[call]  # fmt: skip
            assert_equal(flat(compiled(*arguments)), flat(module(*arguments)))

    @every
    def test_compiled_layer_of_each_cell(self, member):
        """How a layer is called is no matter of its cell."""
        _, module = quantized_of(member, 5, 7)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_equal(flat(compiled(X)), flat(module(X)))

    @every
    def test_a_compiled_cell(self, member):
        cell = quantize(member.one_step(5, 7).eval())
        found = torch.compile(cell, fullgraph=True, backend="aot_eager")(X[0])
        assert_equal(tensors_of(found), tensors_of(cell(X[0])))

    @pytest.mark.usefixtures("cheap_inductor")
    def test_compiled_for_real(self):
        _, module = quantized_of(LSTM, 5, 7)
        compiled = torch.compile(module, fullgraph=True)
        assert_equal(flat(compiled(X)), flat(module(X)))

    def test_compiled_with_packed_input(self, module):
        packed = pack_sequence([X[:, 0], X[:2, 1]])
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_equal(flat(compiled(packed)), flat(module(packed)))

    def test_compiled_refuses_what_it_does_otherwise(self, module):
        compiled = torch.compile(module, backend="aot_eager")
        with pytest.raises(RuntimeError, match="expected arguments without gradients"):
            compiled(X.clone().requires_grad_())
        with pytest.raises(Exception, match="Expected 5, got 6"):
            compiled(torch.randn(3, 2, 6))

    @pytest.mark.parametrize("strict", [False, True])
    def test_exported(self, module, strict):
        shapes = {0: Dim("T", min=1), 1: Dim("B", min=1)}
        program = torch.export.export(module, (X,), dynamic_shapes=(shapes,), strict=strict)
        nodes = [node for node in program.graph.nodes if "layer_quantized" in str(node.target)]
        assert len(nodes) == module.num_layers and set(program.state_dict) == set(module.state_dict())
        for x in (torch.randn(9, 8, 5), torch.randn(1, 1, 5)):
            assert_equal(flat(program.module()(x)), flat(module(x)))
        with pytest.raises(RuntimeError, match="expected arguments without gradients"):
            program.module()(X.clone().requires_grad_())
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        assert_equal(flat(torch.export.load(file).module()(X)), flat(module(X)))

    def test_symbolic_trace(self, module):
        model = nn.Sequential(module)
        traced = torch.fx.symbolic_trace(model)
        calls = [node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"]
        assert calls == ["Sizes", "run"]
        assert_equal(flat(traced(X)), flat(model(X)))
        cell = quantize(FusedLSTMCell(5, 7).eval())
        assert_equal(tensors_of(torch.fx.symbolic_trace(cell)(X[0])), tensors_of(cell(X[0])))

    def test_jit_trace(self, module):
        with pytest.warns(UserWarning, match=r"give them the model as it was before fusedlstm\.quantize"):
            traced = torch.jit.trace(module, (X,))
        file = io.BytesIO()
        frozen = torch.jit.freeze(traced)
        torch.jit.save(frozen, file)
        file.seek(0)
        loaded = torch.jit.load(file)
        for x in (X, torch.randn(9, 8, 5)):
            for graph in (traced, frozen, loaded):
                assert_equal(flat(graph(x)), flat(module(x)))

    def test_jit_script(self, module):
        with pytest.raises(NotImplementedError, match=r"got QuantizedLSTM; take torch\.jit\.trace or torch\.export"):
            torch.jit.script(nn.Sequential(module))

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*LeafSpec:FutureWarning", "ignore::UserWarning")
    @pytest.mark.usefixtures("cheap_onnx")
    @pytest.mark.parametrize("way", ["model", "program", "trace"])
    def test_onnx(self, module, way, tmp_path):
        pytest.importorskip("onnxscript")
        given = torch.export.export(module, (X,)) if way == "program" else module
        options = {"dynamo": way != "trace", "verbose": False}
        with pytest.raises((torch.onnx.errors.OnnxExporterError, NotImplementedError)) as caught:
            torch.onnx.export(given, () if way == "program" else (X,), tmp_path / "model.onnx", **options)
        cause = caught.value
        while cause.__cause__ is not None:
            cause = cause.__cause__
        assert "without int8 weights" in str(cause) and "before fusedlstm.quantize" in str(cause)
        assert "onnxruntime.quantization.quantize_dynamic" in str(cause)

    def test_transforms(self, module):
        cell = quantize(FusedLSTMCell(5, 7).eval())
        text = "no rules for transforms of torch.func and forward mode: expected a call outside"
        calls = {
            "vmap": lambda: vmap(module)(torch.randn(4, 3, 2, 5)),
            "vmap of cells": lambda: vmap(cell)(torch.randn(4, 2, 5)),
            "grad": lambda: grad(lambda x: module(x)[0].sum())(X),
            "jvp": lambda: jvp(lambda x: module(x)[0], (X,), (X,)),
        }
        for call in calls.values():
            with pytest.raises(NotImplementedError, match=text):
                call()

    def test_functional_call(self, module):
        state = {name: torch.zeros_like(value) for name, value in module.state_dict().items()}
        assert not functional_call(module, state, X)[0].any()
        assert module(X)[0].any()

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_casts_to_float32(self, module, dtype):
        low, cell = X.to(dtype), quantize(FusedLSTMCell(5, 7).eval())
        hx = module(X)[1]
        hx_of_cell = cell(X[0])
        expected, of_cell = flat(module(low.float(), hx)), tensors_of(cell(low[0].float(), hx_of_cell))
        with torch.autocast("cpu", dtype):
            assert_equal(flat(module(low, hx)), expected)
            assert_equal(tensors_of(cell(low[0], hx_of_cell)), of_cell)
            assert_equal(flat(module(X)), flat(module.float()(X)))
            packed = pack_sequence([low[:, 0]])
            assert module(packed)[0].data.dtype is torch.float32
            linear = nn.Linear(5, 5).requires_grad_(False)
            assert nn.Sequential(linear, module)(X)[0].dtype is torch.float32
            with pytest.raises(RuntimeError, match=r"torch\.float64.*does not match the dtype in which"):
                module(X.double())
        with torch.autocast("cpu", dtype):
            other = quantize(FusedLSTM(5, 7).eval())
            assert other.scale_ih_l0.dtype is torch.float32

    def test_flops_are_those_of_the_layer(self):
        for member in EVERY:
            layer, module = quantized_of(member, 5, 7, num_layers=2, bidirectional=True)
            counts = []
            for m in (layer, module):
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    m(X)
                counts.append(counter.get_total_flops())
            assert counts[0] == counts[1] > 0
