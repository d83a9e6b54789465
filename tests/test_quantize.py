"""fusedlstm.quantize: modules with int8 weights, the numbers that they compute, and the models that they are in."""

import copy
import json
import warnings

import numpy as np
import pytest
import quantized_reference as reference
import torch
from family import LSTM, every, tensors_of
from quantized_layers import NAMES, Output, assert_equal, flat, models, quantized_of, weights_of
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_sequence

import fusedlstm
from fusedlstm import FusedLSTM, FusedLSTMCell, convert, dequantize, freeze, quantize, quantized, revert, unfreeze


class TestWeights:
    @models
    @pytest.mark.parametrize("reduce_range", [False, True])
    def test_are_those_of_the_reference(self, member, options, reduce_range):
        layer, module = quantized_of(member, 5, 19, reduce_range=reduce_range, **options)
        state, gates = module.state_dict(), layer.weight_hh_l0.size(0) // 19
        assert not list(module.parameters())
        expected_names = []
        for name, weight in layer.named_parameters():
            kind, of = name.split("_", 1)
            if kind == "bias":
                torch.testing.assert_close(state[name], weight.detach(), rtol=0, atol=0)
                assert state[name].data_ptr() != weight.data_ptr()
                expected_names.append(name)
                continue
            q, scale = reference.quantized(weight.detach(), 64 if reduce_range else 127)
            parts = reference.packed(q, 1 if of.startswith("hr") else gates), scale, reference.sums(q)
            for part, value in zip(("weight", "scale", "sum"), parts):
                np.testing.assert_array_equal(state[f"{part}_{of}"].numpy(), value, strict=True)
                expected_names.append(f"{part}_{of}")
        assert sorted(state) == sorted(expected_names)

    def test_have_the_names_of_the_operator_in_its_order(self):
        _, module = quantized_of(LSTM, 5, 7, proj_size=3, bidirectional=True)
        parts = "weight_ih weight_hh scale_ih scale_hh sum_ih sum_hh bias_ih bias_hh weight_hr scale_hr sum_hr".split()
        assert list(module.state_dict()) == [f"{part}_l0{end}" for end in ("", "_reverse") for part in parts]
        assert list(quantize(FusedLSTMCell(5, 7, bias=False).eval()).state_dict()) == parts[:6]

    def test_rows_of_zeros_and_halves(self):
        layer = nn.RNN(4, 2).eval()
        with torch.no_grad():
            layer.weight_ih_l0.copy_(torch.tensor([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0]]))
        module = quantize(layer, reduce_range=False)
        assert module.scale_ih_l0.tolist() == [1, 0] and module.sum_ih_l0.tolist() == [127 + 0 + 2 - 2, 0, 127]
        assert module.weight_ih_l0[0, 0, 0, :3].tolist() == [[127, 0, 2, -2], [0] * 4, [0] * 4]

    @pytest.mark.parametrize("scale", [1e-38, 1e-42, 1e-44, 2.8e-45, 1e38])
    def test_at_the_ends_of_float32(self, scale):
        layer = nn.LSTM(4, 6).eval()
        with torch.no_grad():
            layer.weight_hh_l0.mul_(scale / layer.weight_hh_l0.abs().max())
        module = quantize(copy.deepcopy(layer), reduce_range=False)
        q, scales = reference.quantized(layer.weight_hh_l0.detach())
        np.testing.assert_array_equal(module.weight_hh_l0.numpy(), reference.packed(q, 4))
        np.testing.assert_array_equal(module.scale_hh_l0.numpy(), scales)
        assert module(torch.randn(3, 2, 4))[0].isfinite().all()

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
    def test_of_other_dtypes_are_taken_to_float32_first(self, dtype):
        layer = nn.GRU(4, 6, dtype=dtype).eval()
        assert_equal(
            list(quantize(copy.deepcopy(layer)).state_dict().values()),
            list(quantize(copy.deepcopy(layer).float()).state_dict().values()),
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e39])
    @pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_hh_l0", "weight_hr_l1"])
    def test_that_are_not_finite_are_refused_before_any_layer_is_replaced(self, name, value):
        model = nn.ModuleDict({"first": nn.LSTM(4, 6), "second": nn.LSTM(4, 6, 2, proj_size=2, dtype=torch.float64)})
        with torch.no_grad():
            getattr(model.second, name).view(-1)[3] = value
        with pytest.raises(ValueError, match=f"finite values of float32 in {name} of second, got NaN or infinite ones"):
            quantize(model.eval())
        assert type(model.first) is nn.LSTM

    def test_of_reduced_range_by_default_where_that_is_faster(self):
        layer = nn.LSTM(4, 6).eval()
        is_faster = json.loads(torch.ops.fusedlstm._cpu_info())["reduces_range"]
        found, expected = quantize(copy.deepcopy(layer)), quantize(copy.deepcopy(layer), reduce_range=is_faster)
        assert_equal(list(found.state_dict().values()), list(expected.state_dict().values()))
        assert found.sum_hh_l0[-1] == (64 if is_faster else 127)

    def test_of_full_range_are_safe_in_a_module_of_reduced_range(self):
        """What the kernels must know of the weights comes and goes with them."""
        layer = FusedLSTM(64, 16).eval()
        with torch.no_grad():
            layer.weight_ih_l0.fill_(1)
        full, reduced = (quantize(copy.deepcopy(layer), reduce_range=is_reduced) for is_reduced in (False, True))
        reduced.load_state_dict(full.state_dict())
        input = torch.rand(3, 2, 64)
        assert_equal(flat(reduced(input)), flat(full(input)))

    def test_that_do_not_fit_are_refused(self):
        layer = FusedLSTM(4, 6).eval()
        layer.weight_hh_l0 = nn.Parameter(torch.ones(24, 5))
        with pytest.raises(RuntimeError, match=r"weight_hh_l0 of shape \[24, 6\].*got \[24, 5\]"):
            quantize(layer)

    def test_of_the_meta_device(self):
        """A model built without memory, to be given a state dict."""
        with torch.device("meta"):
            empty = nn.Sequential(nn.LSTM(4, 6), nn.Linear(6, 2)).eval()
        full = quantize(nn.Sequential(nn.LSTM(4, 6), nn.Linear(6, 2)).eval())
        quantize(empty).load_state_dict(full.state_dict(), assign=True)
        x = torch.randn(3, 2, 4)
        assert_equal(flat(empty[0](x)), flat(full[0](x)))


class TestNumbers:
    @models
    def test_are_those_of_the_reference(self, member, options):
        """A stack in numpy, layer by layer."""
        layer, module = quantized_of(member, 5, 19, **options)
        x, batch_first = torch.randn(4, 3, 5), options.get("batch_first", False)
        hx = [torch.randn_like(state) for state in tensors_of(layer(x.transpose(0, 1) if batch_first else x)[1])]
        found = flat(module(x.transpose(0, 1) if batch_first else x, tuple(hx) if len(hx) > 1 else hx[0]))
        y, last, D = x.numpy(), [], 2 if options.get("bidirectional") else 1
        for place, weights in enumerate(weights_of(module)):
            initial = [state[place * D : (place + 1) * D].numpy() for state in hx]
            y, states = reference.layer(member.cell, y, initial, [weight.numpy() for weight in weights])
            last.append(states)
        expected = [y.swapaxes(0, 1) if batch_first else y, *map(np.concatenate, zip(*last))]
        assert_equal(found, list(map(torch.from_numpy, expected)))

    @models
    def test_are_near_those_of_the_layer(self, member, options):
        """And not those of rounded weights alone."""
        layer, module = quantized_of(member, 20, 40, **options)
        x = torch.randn(9, 8, 20)
        with torch.no_grad():
            output, expected, rounded = module(x)[0], layer(x)[0], dequantize(copy.deepcopy(module))(x)[0]
        assert 0 < (output - expected).abs().max() < 0.05
        assert not torch.equal(output, rounded)

    @models
    def test_of_every_way_to_call(self, member, options):
        """One sequence of a batch by itself gives the same bits, in whatever form it comes."""
        layer, module = quantized_of(member, 5, 7, **options)
        layer.requires_grad_(False)
        is_first, D = options.get("batch_first", False), 2 if options.get("bidirectional") else 1
        x = torch.randn(6, 4, 5)

        def arranged(x):
            return x.transpose(0, 1) if is_first and x.dim() == 3 else x

        y, *last = flat(module(arranged(x)))
        y = arranged(y)
        one, *last_of_one = flat(module(x[:, 2]))
        assert_equal([one, *last_of_one], [y[:, 2], *(state[:, 2] for state in last)])
        zeros = [torch.zeros_like(state) for state in last]
        zeros = tuple(zeros) if len(zeros) > 1 else zeros[0]
        assert_equal(flat(module(arranged(x), zeros)), [arranged(y), *last])
        lengths = torch.tensor([6, 3, 1, 4])
        padded, *last = flat(module(arranged(x), lengths=lengths))
        _, *last_of_packed = flat(module(pack_sequence([x[:n, b] for b, n in enumerate(lengths)], False)))
        assert_equal(last_of_packed, last)
        for b, n in enumerate(lengths):
            own = flat(module(x[:n, b]))
            assert_equal([arranged(padded)[:n, b], *(state[:, b] for state in last)], own)
        assert not arranged(padded)[3:, 1].any()
        for empty in (arranged(x[:, :0]), arranged(x[:0])):
            assert_equal(flat(module(empty)), flat(layer(empty)))
        if D == 1:
            reset = torch.zeros(6, 4, dtype=torch.bool)
            reset[3, 1] = True
            reset = reset.T if is_first else reset
            output, *last = flat(module(arranged(x), reset=reset))
            assert_equal([arranged(output)[3:, 1], *(s[:, 1] for s in last)], flat(module(x[3:, 1])))
            other = module(arranged(x))[1]
            output, *last = flat(module(arranged(x), reset=reset, reset_state=other))
            of_row = tuple(s[:, 1] for s in other) if isinstance(other, tuple) else other[:, 1]
            assert_equal([arranged(output)[3:, 1], *(s[:, 1] for s in last)], flat(module(x[3:, 1], of_row)))

    @every
    @pytest.mark.parametrize("bias", [True, False])
    def test_of_a_cell_are_those_of_a_layer_of_one_step(self, member, bias):
        cell, layer = member.one_step(5, 7, bias=bias).eval(), member.layer(5, 7, bias=bias).eval()
        layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
        cell, layer = quantize(cell), quantize(layer)
        assert type(cell).__name__ == f"Quantized{NAMES[member.cell]}Cell"
        x = torch.randn(3, 5)
        expected = layer(x[None])[1]
        found = cell(x)
        assert_equal(tensors_of(found), [state[0] for state in tensors_of(expected)])
        assert_equal(tensors_of(cell(x, found)), [s[0] for s in tensors_of(layer(x[None], expected)[1])])
        assert_equal(tensors_of(cell(x[1])), [state[0, 1] for state in tensors_of(expected)])
        assert all(t._base is None for t in tensors_of(found))  # tensors of their own
        assert [tuple(t.shape) for t in tensors_of(cell(x[:0]))] == [(0, 7)] * len(tensors_of(found))


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
        for name, weight in layer.named_parameters():
            found = getattr(back, name)
            assert isinstance(found, nn.Parameter)
            if name.startswith("weight"):
                q, scale = reference.quantized(weight.detach())
                weight = torch.from_numpy(q * scale[:, None])
            torch.testing.assert_close(found.detach(), weight.detach(), rtol=0, atol=0)
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
            RuntimeError, match=r"evaluation mode to quantize, got 1\.0 in training mode; call model\.eval"
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
        with pytest.warns(UserWarning, match="left"), pytest.raises(ValueError, match="got Own without any"):
            quantize(Own(3, 4).eval())
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
