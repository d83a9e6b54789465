"""The weights of modules with int8 weights, and the numbers that they compute."""

import copy
import json

import numpy as np
import pytest
import quantized_reference as reference
import torch
from family import LSTM, every, tensors_of
from quantized_layers import NAMES, assert_equal, flat, models, quantized_of, weights_of
from torch import nn
from torch.nn.utils.rnn import pack_sequence

from fusedlstm import FusedLSTM, FusedLSTMCell, dequantize, quantize


class TestWeights:
    @models
    @pytest.mark.parametrize("reduce_range", [False, True])
    def test_are_those_of_the_reference(self, member, options, reduce_range):
        layer, module = quantized_of(member, 5, 19, reduce_range=reduce_range, **options)
        state, gates = module.state_dict(), layer.weight_hh_l0.size(0) // 19
        assert not list(module.parameters())
        expected_names, weights = [], dict(layer.named_parameters())
        for name, weight in weights.items():
            kind, of = name.split("_", 1)
            if kind == "bias":
                if of.startswith("ih"):
                    expected_names.append(name.replace("ih", "gates"))
                    both = (weights[part].detach().numpy() for part in (name, name.replace("ih", "hh")))
                    found = state[expected_names[-1]].numpy()
                    np.testing.assert_array_equal(found, reference.bias(member.cell, *both), strict=True)
                continue
            q, scale = reference.quantized(weight.detach(), 64 if reduce_range else 127)
            parts = reference.packed(q, 1 if of.startswith("hr") else gates), scale, reference.sums(q)
            for part, value in zip(("weight", "scale", "sum"), parts):
                np.testing.assert_array_equal(state[f"{part}_{of}"].numpy(), value, strict=True)
                expected_names.append(f"{part}_{of}")
        assert sorted(state) == sorted(expected_names)

    def test_have_the_names_of_the_operator_in_its_order(self):
        _, module = quantized_of(LSTM, 5, 7, proj_size=3, bidirectional=True)
        parts = "weight_ih weight_hh scale_ih scale_hh sum_ih sum_hh bias_gates weight_hr scale_hr sum_hr".split()
        assert list(module.state_dict()) == [f"{part}_l0{end}" for end in ("", "_reverse") for part in parts]
        assert list(quantize(FusedLSTMCell(5, 7, bias=False).eval()).state_dict()) == parts[:6]

    def test_rows_of_zeros_and_halves(self):
        layer = nn.RNN(4, 2).eval()
        with torch.no_grad():
            layer.weight_ih_l0.copy_(torch.tensor([[127, 0.5, 1.5, -2.5], [0, 0, 0, 0]]))
        module = quantize(layer, reduce_range=False)
        assert module.scale_ih_l0.tolist() == [1, 0] and module.sum_ih_l0.tolist() == [127 + 0 + 2 - 2, 0, 127]
        assert module.weight_ih_l0[0, 0, 0, :3].tolist() == [[127, 0, 2, -2], [0] * 4, [0] * 4]

    @pytest.mark.parametrize("columns, dtype", [(258, torch.int16), (259, torch.int32)])
    def test_rows_of_the_largest_integers(self, columns, dtype):
        layer = nn.RNN(columns, 2).eval()
        with torch.no_grad():
            layer.weight_ih_l0.copy_(torch.tensor([[0.01], [-0.01]]))
        module, x = quantize(layer, reduce_range=False), torch.randn(3, 2, columns)
        assert module.sum_ih_l0.dtype is dtype
        assert module.sum_ih_l0.tolist() == [127 * columns, -127 * columns, 127]
        output, last = reference.layer("rnn_tanh", x.numpy(), [], [t.numpy() for t in module.buffers()])
        assert_equal(flat(module(x)), list(map(torch.from_numpy, (output, *last))))

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
        with pytest.raises(
            ValueError, match=f"finite values of float32 in {name} of 'second', got NaN or infinite ones"
        ):
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
