"""What layers with variants of the recurrence refuse, and what refuses them: each by the name of the option."""

import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from fusedlstm import FusedGRU, FusedLSTM, FusedRNN, convert, freeze, functional, quantize, revert
from fusedlstm._variants import Variants

BAD = {
    "one": ({"zoneout": 1.0}, ValueError, "zoneout: Expected a probability of at least 0 and below 1, got 1.0"),
    "negative": ({"recurrent_dropout": -0.1}, ValueError, "recurrent_dropout: Expected a probability"),
    "text": ({"zoneout": "a"}, TypeError, "zoneout: Expected a number, got str"),
    "three": ({"zoneout": (0.1, 0.1, 0.1)}, ValueError, "zoneout: Expected a probability, or one for each of"),
    "nan": ({"zoneout": (0.1, math.nan)}, ValueError, "zoneout: Expected a probability"),
    "flag": ({"layer_norm": 1}, TypeError, "layer_norm: Expected a bool, got int"),
    "eps": (
        {"layer_norm": True, "layer_norm_eps": 0.0},
        ValueError,
        "layer_norm_eps: Expected a finite number above 0",
    ),
    "endless eps": ({"layer_norm": True, "layer_norm_eps": math.inf}, ValueError, "layer_norm_eps: Expected a finite"),
    "eps of text": (
        {"layer_norm": True, "layer_norm_eps": "1"},
        TypeError,
        "layer_norm_eps: Expected a number, got str",
    ),
    "per step": ({"recurrent_dropout_per_step": True}, ValueError, "Expected recurrent_dropout with it, got"),
    "projection": ({"zoneout": 0.1, "proj_size": 3}, ValueError, "zoneout: Expected no projection with it, got proj"),
}


@pytest.mark.parametrize(("options", "error", "text"), BAD.values(), ids=BAD)
def test_bad_options(options, error, text):
    with pytest.raises(error, match=text):
        FusedLSTM(4, 6, **options)
    weights = FusedLSTM(4, 6, proj_size=options.pop("proj_size", 0)).all_weights
    with pytest.raises(error, match=text):
        functional.lstm(torch.randn(1, 1, 4), None, weights, **options)


def test_numbers_of_numpy():
    """As nn.LSTM takes them; in a full graph too."""
    p = np.float32(0.25)
    options = {"recurrent_dropout": p, "zoneout": (p, p), "layer_norm_eps": np.float64(1e-3), "layer_norm": True}
    module, x = FusedLSTM(4, 6, **options, weight_dropout=p, forget_bias=np.int64(1)), torch.randn(5, 3, 4)
    assert module.zoneout == (0.25, 0.25)
    assert {type(module.recurrent_dropout), type(module.layer_norm_eps)} == {float}
    found = []
    for run in (module, torch.compile(module, fullgraph=True, backend="eager")):
        torch.manual_seed(1)
        found.append(run(x)[0])
    torch.testing.assert_close(*found)


def test_options_of_other_cells():
    with pytest.raises(ValueError, match="peephole: Expected an LSTM, whose gates can see its cell, got gru"):
        FusedGRU(4, 6, peephole=True)
    with pytest.raises(ValueError, match="layer_norm: Expected an LSTM or a GRU, got rnn_tanh"):
        FusedRNN(4, 6, layer_norm=True)
    with pytest.raises(ValueError, match="zoneout: Expected a probability, or one for each of the states h, got 2"):
        FusedGRU(4, 6, zoneout=(0.1, 0.2))


def test_bad_parameters():
    module, x = FusedLSTM(4, 6, peephole=True), torch.randn(7, 3, 4)
    module.weight_ch_l0 = nn.Parameter(torch.zeros(6))
    with pytest.raises(RuntimeError, match=r"LSTM: Expected weight_ch_l0 of shape \[18\], .*, got \[6\]"):
        module(x)
    module.weight_ch_l0 = None
    with pytest.raises(TypeError, match="LSTM: Expected weight_ch_l0 to be a Tensor, got NoneType"):
        module(x)


def test_functional_without_parameters():
    """Says how many tensors there are of a layer, instead of taking weights for them."""
    for options, bias, text in (
        ({"peephole": True}, True, "LSTM: Expected 3 or 5 tensors in weights[0] with peephole, got 4"),
        ({"peephole": True}, False, "LSTM: Expected 3 or 5 tensors in weights[0] with peephole, got 2"),
        ({"layer_norm": True}, True, "LSTM: Expected 5 or 8 tensors in weights[0] with layer_norm, got 4"),
        ({"layer_norm": True, "peephole": True}, False, "Expected 6 or 9 tensors in weights[0] with layer_norm, peep"),
    ):
        with pytest.raises(ValueError, match=re.escape(text)):
            functional.lstm(torch.randn(7, 3, 4), None, FusedLSTM(4, 6, bias=bias).all_weights, **options)
    with pytest.raises(
        ValueError, match=re.escape("GRU: Expected 3 or 5 tensors in weights[0] with layer_norm, got 4")
    ):
        functional.gru(torch.randn(7, 3, 4), None, FusedGRU(4, 6).all_weights, layer_norm=True)


@pytest.mark.parametrize("asked", ["return_cell_states", "return_gates"])
def test_what_is_kept_is_refused(asked):
    with pytest.raises(ValueError, match="zoneout: Expected no return_cell_states and return_gates with it"):
        FusedLSTM(4, 6, zoneout=0.1)(torch.randn(7, 3, 4), **{asked: True})


def test_conversions():
    """A converted layer is plain; one with variants stays, is not frozen, and is not exported to ONNX."""
    assert Variants.of(convert(nn.LSTM(4, 6))) == Variants()
    module = nn.Sequential(FusedLSTM(4, 6, zoneout=0.1)).eval()
    with pytest.warns(UserWarning, match="its zoneout is 0.1, which PyTorch's layers have none of"):
        assert type(revert(module)[0]) is FusedLSTM
    text = "its zoneout is 0.1, which layers of int8 weights have none of"
    with pytest.warns(UserWarning, match=text), pytest.raises(ValueError, match=r"Expected a model with nn\.LSTM"):
        quantize(module)
    frozen = freeze(FusedLSTM(4, 6).eval())
    frozen.zoneout = (0.0, 0.0)
    with torch.no_grad():
        frozen(torch.randn(7, 3, 4))
    for name, value in (("zoneout", 0.1), ("layer_norm", True), ("peephole", True)):
        setattr(frozen, name, value)
        with torch.no_grad(), pytest.raises(RuntimeError, match=f"expected the plain recurrence, got {name}={value};"):
            frozen(torch.randn(7, 3, 4))
        setattr(frozen, name, Variants._field_defaults[name])
    with pytest.raises(ValueError, match="Expected layers with the plain recurrence to freeze, got FusedLSTM with zon"):
        freeze(module)


def test_onnx_is_refused():
    module = FusedLSTM(4, 6, zoneout=0.1).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Exception, match="Expected a model without zoneout, got one that has it"):
            torch.onnx.export(module, (torch.randn(7, 3, 4),), "/dev/null", dynamo=False)
