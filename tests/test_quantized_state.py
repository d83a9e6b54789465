"""What modules with int8 weights keep: state dicts, copies, casts, memory."""

import copy
import io
import pickle

import pytest
import torch
from family import LSTM, every
from quantized_layers import assert_equal, flat, models, quantized_of
from torch import nn

from fusedlstm import quantize, quantized


class TestState:
    @every
    @pytest.mark.parametrize("columns", [5, 260])
    def test_state_dicts_are_loaded_strictly_both_ways(self, member, columns):
        layer, module = quantized_of(member, columns, 7, bidirectional=True)
        _, other = quantized_of(member, columns, 7, bidirectional=True)
        x = torch.randn(3, 2, columns)
        assert not torch.equal(other(x)[0], module(x)[0])
        file = io.BytesIO()
        torch.save(module.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert_equal(flat(other(x)), flat(module(x)))
        with pytest.raises(RuntimeError, match=r"Missing key\(s\).*scale_ih_l0"):
            module.load_state_dict(layer.state_dict())
        with pytest.raises(RuntimeError, match=r"Unexpected key\(s\).*scale_ih_l0"):
            layer.load_state_dict(module.state_dict())

    def test_state_dicts_of_two_biases_are_refused(self):
        _, module = quantized_of(LSTM, 5, 7)
        state = module.state_dict()
        bias = state.pop("bias_gates_l0")
        state |= {"bias_ih_l0": bias, "bias_hh_l0": torch.zeros_like(bias)}
        with pytest.raises(
            RuntimeError, match=r'Missing key.*"bias_gates_l0".*\n.*Unexpected key.*"bias_ih_l0", "bias_hh_l0"'
        ):
            module.load_state_dict(state)

    @models
    def test_a_new_module_is_zeros_until_it_is_loaded(self, member, options):
        _, module = quantized_of(member, 5, 7, **options)
        new = type(module)(5, 7, **options, **({"nonlinearity": "relu"} if member.cell == "rnn_relu" else {})).eval()
        assert repr(new) == repr(module)
        x = torch.randn(3, 2, 5)
        assert not new(x)[0].any()
        new.load_state_dict(module.state_dict())
        assert_equal(flat(new(x)), flat(module(x)))

    def test_a_new_cell(self):
        module = quantize(nn.RNNCell(5, 7, nonlinearity="relu").eval())
        new = quantized.QuantizedRNNCell(5, 7, nonlinearity="relu").eval()
        new.load_state_dict(module.state_dict())
        assert torch.equal(new(torch.ones(2, 5)), module(torch.ones(2, 5)))
        assert quantized.QuantizedGRUCell(5, 7, False).eval()(torch.ones(2, 5)).shape == (2, 7)
        assert not quantized.QuantizedLSTMCell(5, 7).eval()(torch.ones(2, 5))[0].any()

    def test_constructors_refuse_what_the_fused_ones_do(self):
        with pytest.raises(ValueError, match="hidden_size must be greater than zero"):
            quantized.QuantizedLSTM(3, 0)
        with pytest.raises(ValueError, match="proj_size has to be smaller"):
            quantized.QuantizedLSTM(3, 4, proj_size=4)
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM"):
            quantized.QuantizedGRU(3, 4, proj_size=2)

    @pytest.mark.parametrize(
        "copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deep", "shallow", "pickle"]
    )
    def test_copies(self, copied):
        _, module = quantized_of(LSTM, 260, 7, num_layers=2)
        x = torch.randn(3, 2, 260)
        other = copied(module)
        assert type(other) is type(module)
        assert [tensor.dtype for tensor in other.buffers()] == [tensor.dtype for tensor in module.buffers()]
        assert_equal(flat(other(x)), flat(module(x)))
        is_shared = other.weight_ih_l0.data_ptr() == module.weight_ih_l0.data_ptr()
        assert is_shared == (copied is copy.copy)

    def test_share_memory(self):
        _, module = quantized_of(LSTM, 5, 7)
        assert all(tensor.is_shared() for tensor in module.share_memory().buffers())

    @pytest.mark.parametrize(
        "cast",
        [
            nn.Module.half,
            nn.Module.double,
            nn.Module.bfloat16,
            lambda m: m.to(torch.float16),
            lambda m: m.to("cpu", torch.float64),
            lambda m: m.type(torch.float16),
        ],
    )
    def test_casts_leave_the_weights_as_they_are(self, cast):
        _, module = quantized_of(LSTM, 5, 7)
        module.gain = nn.Parameter(torch.ones(1))
        module.head = nn.Linear(7, 2)
        model, x = nn.Sequential(module), torch.randn(3, 2, 5)
        before, expected = dict(module.named_buffers()), flat(module(x))
        cast(model)
        for name, tensor in module.named_buffers():
            assert tensor.dtype is before[name].dtype and torch.equal(tensor, before[name])
        assert module.gain.dtype is module.head.weight.dtype is not torch.float32
        assert_equal(flat(module(x)), expected)

    def test_repr(self):
        module = quantize(nn.Sequential(nn.LSTM(5, 7, 2, batch_first=True), nn.RNNCell(5, 7, False, "relu")).eval())
        assert repr(module[0]) == "QuantizedLSTM(5, 7, num_layers=2, batch_first=True, dtype=torch.int8)"
        assert repr(module[1]) == "QuantizedRNNCell(5, 7, bias=False, nonlinearity=relu, dtype=torch.int8)"

    @every
    @pytest.mark.parametrize("H", [64, 128, 256, 512, 640, 1024])
    def test_memory(self, member, H):
        layer = member.layer(H, H, device="meta").eval()
        sizes = [sum(t.nbytes for t in m.state_dict().values()) for m in (layer, quantize(copy.deepcopy(layer)))]
        assert 0.25 < sizes[1] / sizes[0] <= 0.28

    def test_flatten_parameters(self):
        _, module = quantized_of(LSTM, 5, 7)
        assert module.flatten_parameters() is None
