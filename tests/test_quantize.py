"""fusedlstm.quantize and dequantize: what becomes of the models."""

import copy
import warnings

import pytest
import quantized_reference as reference
import torch
from family import every
from quantized_layers import NAMES, Output, assert_equal, flat, models, quantized_of
from torch import nn
from torch.nn.utils import parametrizations, prune

import fusedlstm
from fusedlstm import FusedLSTM, FusedLSTMCell, convert, dequantize, freeze, quantize, quantized, revert, unfreeze


class TestModels:
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 4, 2, batch_first=True, dropout=0.25))
            self.cells = nn.ModuleList([nn.GRUCell(4, 4), FusedLSTMCell(4, 4)])
            self.same = self.encoder[1]

    def test_there_and_back(self):
        model = self.Model().eval()
        assert quantize(model) is model
        lstm = model.encoder[1]
        assert type(lstm) is quantized.QuantizedLSTM and model.same is lstm and lstm.dropout == 0.25
        assert [type(cell).__name__ for cell in model.cells] == ["QuantizedGRUCell", "QuantizedLSTMCell"]
        assert type(model.encoder[0]) is nn.Linear and not lstm.training
        x = torch.randn(2, 5, 3)
        expected = lstm(x)[0]
        state = model.state_dict()
        assert quantize(model) is model and model.encoder[1] is lstm
        assert dequantize(model) is model
        lstm = model.encoder[1]
        assert type(lstm) is FusedLSTM and model.same is lstm and not lstm.training and lstm.dropout == 0.25
        torch.testing.assert_close(lstm(x)[0], expected, rtol=0, atol=0.01)
        assert lstm(x)[0].requires_grad
        again = quantize(model).state_dict()
        for name, value in state.items():
            torch.testing.assert_close(again[name], value, rtol=1e-6, atol=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            revert(dequantize(model))

    @models
    def test_dequantized_weights_are_the_rounded_ones(self, member, options):
        layer, module = quantized_of(member, 5, 7, **options)
        back = dequantize(copy.deepcopy(module))
        assert type(back) is type(layer) and repr(back) == repr(layer)
        assert back.state_dict().keys() == layer.state_dict().keys()
        expected, first = {}, reference.JOINED[member.cell] * 7
        for name, weight in layer.state_dict().items():
            if name.startswith("weight"):
                q, scale = reference.quantized(weight)
                expected[name] = torch.from_numpy(q * scale[:, None])
            elif name.startswith("bias_ih"):
                other = name.replace("ih", "hh")
                expected[name], expected[other] = weight.clone(), layer.state_dict()[other].clone()
                expected[name][:first] += expected[other][:first]
                expected[other][:first] = 0
        for name, weight in expected.items():
            found = getattr(back, name)
            assert isinstance(found, nn.Parameter)
            torch.testing.assert_close(found.detach(), weight, rtol=0, atol=0)
            assert found.data_ptr() not in {t.data_ptr() for t in module.buffers()}

    @every
    @pytest.mark.parametrize("attribute", ["layer", "plain", "one_step", "plain_step"])
    def test_a_layer_itself(self, member, attribute):
        module = quantize(getattr(member, attribute)(3, 4).eval())
        is_cell = attribute.endswith("step")
        assert type(module) is getattr(quantized, f"Quantized{NAMES[member.cell]}{'Cell' * is_cell}")
        assert type(dequantize(module)) is (member.one_step if is_cell else member.layer).func
        assert quantize(module) is module
        linear = nn.Linear(1, 1)
        assert dequantize(linear) is linear

    def test_what_it_refuses(self):
        for function in (quantize, dequantize):
            with pytest.raises(TypeError, match=r"Expected model to be an nn\.Module, got list"):
                function([FusedLSTM(5, 7)])
        for dtype in (torch.float16, torch.uint8, "int8", None):
            with pytest.raises(ValueError, match=f"Expected dtype torch.int8, got {dtype}"):
                quantize(FusedLSTM(5, 7).eval(), dtype)
        with pytest.raises(ValueError, match=r"Expected a model with nn\.LSTM.* to quantize, got Linear without any$"):
            quantize(nn.Linear(2, 2).eval())
        model = nn.Sequential(nn.LSTM(5, 7).eval(), nn.Sequential(nn.GRUCell(5, 7)))
        with pytest.raises(
            RuntimeError, match=r"evaluation mode to quantize, got '1\.0' in training mode; call model\.eval"
        ):
            quantize(model)
        assert type(model[0]) is nn.LSTM

    def test_filter(self):
        asked = []

        def takes(module, name):
            asked.append((type(module), name))
            return name.startswith("cells")

        model = quantize(self.Model().eval(), filter_fn=takes)
        assert asked == [(nn.LSTM, "encoder.1"), (nn.GRUCell, "cells.0"), (FusedLSTMCell, "cells.1")]
        assert type(model.encoder[1]) is nn.LSTM and type(model.cells[0]) is quantized.QuantizedGRUCell
        with pytest.raises(ValueError, match="got LSTM without any that filter_fn takes"):
            quantize(nn.LSTM(3, 4).eval(), filter_fn=lambda module, name: name == "encoder")

    def test_what_is_left_is_named_with_the_reason(self):
        class Own(nn.LSTM):
            pass

        patched, pruned = nn.LSTM(3, 4), prune.l1_unstructured(nn.GRU(3, 4), "weight_hh_l0", 0.5)
        patched.forward = lambda x: x
        written = nn.LSTM(3, 4)
        written._flat_weights[1] = torch.zeros(16, 4)
        buffer = FusedLSTM(3, 4)
        weight = buffer.weight_ih_l0.detach()
        del buffer.weight_ih_l0
        buffer.weight_ih_l0 = weight
        tagger = convert(Own(3, 4), subclasses=True)
        sine = nn.RNNCell(3, 4)
        sine.nonlinearity = "sin"
        model = {"own": Own(3, 4), "tagger": tagger, "patched": patched, "written": written, "pruned": pruned}
        model |= {"tensor": buffer, "empty": nn.LSTMCell(3, 0), "sine": sine, "plain": nn.LSTM(3, 4)}
        model = nn.ModuleDict(model).eval()
        with pytest.warns(UserWarning, match=r"fusedlstm\.quantize left as they are") as warned:
            quantize(model)
        is_own = "a type of its own; fusedlstm.quantize takes torch.nn's and the fused ones, and no subclasses"
        is_set = "is no parameter, and may be set anew for each call; make it one first"
        assert len(warned) == 1 and warned[0].filename == __file__
        assert str(warned[0].message).splitlines()[1:] == [
            f"  own (Own): {is_own}",
            f"  tagger (FusedOwn): {is_own}",
            "  patched (LSTM): its forward was set on the instance, and is bound to it",
            "  written (LSTM): its _flat_weights hold other tensors than its parameters",
            f"  pruned (GRU): its weight_hh_l0 {is_set}",
            f"  tensor (FusedLSTM): its weight_ih_l0 {is_set}",
            "  empty (LSTMCell): without weights, since input_size or hidden_size is 0",
            "  sine (RNNCell): Unknown nonlinearity: sin",
        ]
        assert type(model["plain"]) is quantized.QuantizedLSTM
        for filter_fn in (None, lambda module, name: True):
            with (
                pytest.warns(UserWarning, match="left"),
                pytest.raises(ValueError, match=r"got Own with none that can be: the warning says why$"),
            ):
                quantize(Own(3, 4).eval(), filter_fn=filter_fn)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            quantize(model, filter_fn=lambda module, name: False)

    @pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
    def test_compiled_by_torchscript(self):
        model = nn.Sequential(torch.jit.script(nn.LSTM(3, 4)), nn.LSTM(3, 4)).eval()
        with pytest.warns(UserWarning, match=r"0 \(LSTM\): compiled by TorchScript"):
            quantize(model)
        assert type(model[1]) is quantized.QuantizedLSTM

    @every
    def test_hooks_and_attributes(self, member):
        layer, calls = member.plain(3, 4).eval(), []
        handle = layer.register_forward_hook(lambda *_: calls.append("forward"))
        layer.register_forward_pre_hook(lambda *_: calls.append("pre"))
        layer.note = "mine"
        layer.register_buffer("mean", torch.ones(2), persistent=False)
        layer.head = nn.LSTM(4, 4).eval()
        layer.gain = nn.Parameter(torch.ones(1))
        names = layer.state_dict().keys()
        module = quantize(layer)
        x = torch.randn(5, 2, 3)
        module(x)
        assert calls == ["pre", "forward"] and module.note == "mine"
        assert "mean" not in module.state_dict() and dict(module.named_parameters()).keys() == {"gain"}
        assert type(module.head) is quantized.QuantizedLSTM
        back = dequantize(module)
        back(x)
        assert back.note == "mine" and type(back.head) is FusedLSTM
        handle.remove()
        back(x)
        assert calls == ["pre", "forward"] * 2 + ["pre"]
        assert back.state_dict().keys() == names and "mean" in dict(back.named_buffers())

    def test_parametrizations_are_computed_once(self):
        layer = parametrizations.weight_norm(FusedLSTM(3, 4), "weight_hh_l0").eval()
        expected = nn.LSTM(3, 4).eval()
        expected.load_state_dict({name: getattr(layer, name) for name in expected.state_dict()})
        calls = []
        layer.parametrizations.weight_hh_l0.register_forward_hook(lambda *_: calls.append(1))
        module = quantize(nn.Sequential(layer))[0]
        x = torch.randn(5, 2, 3)
        assert_equal(flat(module(x)), flat(quantize(expected)(x)))
        module(x)
        assert len(calls) == 1 and type(module) is quantized.QuantizedLSTM and "parametrizations" not in module._modules

    def test_of_frozen_layers(self):
        layer = FusedLSTM(3, 4).eval()
        module, expected = quantize(freeze(copy.deepcopy(layer))), quantize(layer)
        x = torch.randn(5, 2, 3)
        assert_equal(flat(module(x)), flat(expected(x)))
        assert "frozen" not in repr(dequantize(module))

    def test_freeze_convert_and_revert(self):
        model = nn.Sequential(FusedLSTM(3, 4), nn.LSTM(4, 4), nn.LSTM(4, 4)).eval()
        quantize(model, filter_fn=lambda module, name: name == "0")
        first = model[0]
        assert convert(model)[0] is first and freeze(model)[0] is first and unfreeze(model)[0] is first
        with pytest.warns(
            UserWarning, match=r"0 \(QuantizedLSTM\): its weights are int8; fusedlstm\.dequantize\(model\)"
        ):
            revert(model)
        assert model[0] is first and type(model[1]) is nn.LSTM
        assert freeze(first) is first and convert(first) is first

    def test_a_loaded_model_does_not_see_the_float_one(self):
        layer = FusedLSTM(3, 4).eval()
        module = quantize(layer)
        x = torch.randn(5, 2, 3)
        expected = flat(module(x))
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
        assert_equal(flat(module(x)), expected)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("is_before", [True, False])
def test_quantize_dynamic_of_the_other_modules(is_before):
    model, x = nn.Sequential(nn.LSTM(5, 7), Output(), nn.Linear(7, 2)).eval(), torch.randn(3, 2, 5)

    def others(model):
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear})

    both = quantize(others(model)) if is_before else others(quantize(copy.deepcopy(model)))
    assert type(both[0]) is quantized.QuantizedLSTM and "quantized.dynamic" in type(both[2]).__module__
    with torch.no_grad():
        torch.testing.assert_close(both(x), model(x), rtol=0, atol=0.05)


def test_quantized_layers_are_exported_by_name():
    assert {"quantize", "dequantize"} <= set(fusedlstm.__all__)
