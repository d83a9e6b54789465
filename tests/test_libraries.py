"""Programs that ask whether a layer is torch.nn's: none is left to fail late or in silence where it can be known."""

import copy
import warnings

import pytest
import torch
from family import every
from torch import nn
from torch.ao.quantization import default_dynamic_qconfig, quantize_dynamic

from fusedlstm import convert, revert

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")


@pytest.fixture
def model(member):
    return nn.Sequential(nn.Linear(3, 3), member.layer(3, 4)).eval()


# What the layer's kind is named by, for quantize_dynamic to replace.
SPECS = {
    "all": lambda member: None,
    "plain": lambda member: {member.plain.func},
    "both": lambda member: {member.plain.func, member.layer.func},
    "configured": lambda member: {member.layer.func: default_dynamic_qconfig},
    "name": lambda member: {"1"},
}


@every
class TestQuantizeDynamic:
    @pytest.mark.parametrize("spec", SPECS)
    @pytest.mark.parametrize("inplace", [True, False])
    def test_warns_that_the_layer_stays(self, member, model, spec, inplace):
        kind = member.layer.func
        with pytest.warns(UserWarning, match=rf"leaves {kind.__name__} in its dtype.*fusedlstm\.revert\(model\)"):
            quantized = quantize_dynamic(model, SPECS[spec](member), inplace=inplace)
        assert type(quantized[1]) is kind
        x = torch.randn(5, 2, 3)
        torch.testing.assert_close(quantized[1](x), model[1](x))

    def test_warns_of_cells(self, member):
        with pytest.warns(UserWarning, match=f"leaves {member.one_step.func.__name__} in its dtype"):
            quantize_dynamic(nn.Sequential(member.one_step(3, 4)))

    def test_quantizes_a_reverted_model_without_a_word(self, member, model):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*Fused")
            quantized = quantize_dynamic(revert(model))
        if member.plain.func is not nn.RNN:  # which has no quantized form
            assert type(quantized[1]).__module__ == "torch.ao.nn.quantized.dynamic.modules.rnn"
        assert type(convert(model)[1]) is member.layer.func  # the float model goes on


@pytest.mark.parametrize("kind", ["layer", "one_step"])
@every
class TestRecognizedAttributes:
    def test_are_not_there_before(self, member, kind):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module = getattr(member, kind)(3, 4)
            assert not hasattr(module, "qconfig") and not hasattr(module, "ft_compute_sample_grad")

    @pytest.mark.filterwarnings("ignore:torch.ao.quantization leaves:UserWarning")
    def test_are_kept_copied_converted_and_deleted(self, member, kind):
        module = getattr(member, kind)(3, 4)
        module.qconfig = "mine"
        for other in (module, copy.deepcopy(module), revert(module), convert(revert(module))):
            assert other.qconfig == "mine"
        del module.qconfig
        assert not hasattr(module, "qconfig")

    def test_of_per_sample_gradients_by_hooks_are_refused(self, member, kind):
        """What Opacus' GradSampleModule sets on a layer for which it has no rule."""
        with pytest.raises(NotImplementedError, match=r"Opacus .* fusedlstm\.revert\(model\).*torch\.func\.vmap"):
            getattr(member, kind)(3, 4).ft_compute_sample_grad = lambda *_: None
