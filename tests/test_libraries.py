"""Programs that ask whether a layer is nn.LSTM: none is left to fail late or in silence where it can be known."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic

from fusedlstm import FusedLSTM, FusedLSTMCell, convert, revert

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")

KINDS = [(FusedLSTM, (3, 4)), (FusedLSTMCell, (3, 4))]


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 3), FusedLSTM(3, 4)).eval()


class TestQuantizeDynamic:
    @pytest.mark.parametrize(
        "spec", [None, {nn.LSTM}, {nn.LSTM, FusedLSTM}, {FusedLSTM: default_dynamic_qconfig}, {"1"}], ids=str
    )
    @pytest.mark.parametrize("inplace", [True, False])
    def test_warns_that_the_layer_stays(self, model, spec, inplace):
        with pytest.warns(UserWarning, match=r"leaves FusedLSTM in its dtype.*fusedlstm\.revert\(model\)"):
            quantized = quantize_dynamic(model, spec, inplace=inplace)
        assert type(quantized[1]) is FusedLSTM
        x = torch.randn(5, 2, 3)
        torch.testing.assert_close(quantized[1](x), model[1](x))

    def test_warns_of_cells(self):
        with pytest.warns(UserWarning, match="leaves FusedLSTMCell in its dtype"):
            quantize_dynamic(nn.Sequential(FusedLSTMCell(3, 4)))

    def test_quantizes_a_reverted_model_without_a_word(self, model):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*FusedLSTM")
            quantized = quantize_dynamic(revert(model))
        assert type(quantized[1]).__module__ == "torch.ao.nn.quantized.dynamic.modules.rnn"
        assert type(convert(model)[1]) is FusedLSTM  # the float model goes on


@pytest.mark.parametrize("kind, sizes", KINDS)
class TestRecognizedAttributes:
    def test_are_not_there_before(self, kind, sizes):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not hasattr(kind(*sizes), "qconfig") and not hasattr(kind(*sizes), "ft_compute_sample_grad")

    @pytest.mark.filterwarnings("ignore:torch.ao.quantization leaves:UserWarning")
    def test_are_kept_copied_converted_and_deleted(self, kind, sizes):
        module = kind(*sizes)
        module.qconfig = "mine"
        for other in (module, copy.deepcopy(module), revert(module), convert(revert(module))):
            assert other.qconfig == "mine"
        del module.qconfig
        assert not hasattr(module, "qconfig")

    def test_of_per_sample_gradients_by_hooks_are_refused(self, kind, sizes):
        """What Opacus' GradSampleModule sets on a layer for which it has no rule."""
        with pytest.raises(NotImplementedError, match=r"Opacus .* fusedlstm\.revert\(model\).*torch\.func\.vmap"):
            kind(*sizes).ft_compute_sample_grad = lambda *_: None
