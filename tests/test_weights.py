"""Weights of modules: every way to write, replace, tie, parametrize and prune them has its effect, or is an error."""

import copy

import pytest
import torch
from family import every
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune


def _set_weight(module, value):
    module.weight_hh_l0 = nn.Parameter(value)


def _write_data(module, value):
    module.weight_hh_l0.data.copy_(value)


def _replace_data(module, value):
    module.weight_hh_l0.data = value


def _write_numpy(module, value):
    module.weight_hh_l0.detach().numpy()[:] = value.numpy()


def _register(module, value):
    module.register_parameter("weight_hh_l0", nn.Parameter(value))


def _write_dict(module, value):
    module._parameters["weight_hh_l0"] = nn.Parameter(value)


def _load(module, value):
    module.load_state_dict(module.state_dict() | {"weight_hh_l0": value})


def _assign(module, value):
    module.load_state_dict(module.state_dict() | {"weight_hh_l0": value}, assign=True)


def _from_vector(module, value):
    nn.init.constant_(module.weight_hh_l0, 0)
    rest = [p.flatten() for name, p in module.named_parameters() if name != "weight_hh_l0"]
    vector = torch.cat([rest[0], value.flatten(), *rest[1:]])
    nn.utils.vector_to_parameters(vector, module.parameters())


def _noncontiguous(module, value):
    module.weight_hh_l0.data = value.t().contiguous().t()


def _optimizer(module, value):
    module.weight_hh_l0.grad = module.weight_hh_l0.detach() - value
    torch.optim.SGD([module.weight_hh_l0], lr=1.0).step()


def _flat_item(module, value):
    module._flat_weights[1] = nn.Parameter(value)


def _flat_items(module, value):
    module._flat_weights[1:2] = [nn.Parameter(value)]


def _flat_list(module, value):
    first, _, *last = module._flat_weights
    module._flat_weights = [first, nn.Parameter(value), *last]


def _flat_parameters(module, value):
    first, _, *last = module._flat_weights
    module._flat_weights = nn.ParameterList([first, nn.Parameter(value), *last])
    assert not module._modules


def _flat_computed(module, value):
    """As weight dropout does, which takes the parameter away and sets a tensor for each call."""
    del module.weight_hh_l0
    module._flat_weights[1] = value


@pytest.mark.parametrize(
    "change",
    [
        _set_weight, _write_data, _replace_data, _write_numpy, _register, _write_dict, _load,
        _assign, _from_vector, _noncontiguous, _optimizer,
        _flat_item, _flat_items, _flat_list, _flat_parameters, _flat_computed,
    ],
)  # fmt: skip
@every
def test_every_change_of_a_weight_is_seen(change, member):
    """The ways of changing a weight that programs use; several bump no version counter."""
    module, x = member.layer(3, 4, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        module(x)  # whatever a call might keep
    value = torch.randn_like(module.weight_hh_l0)
    change(module, value)
    expected = member.plain(3, 4, dtype=torch.float64)
    expected.load_state_dict(module.state_dict() | {"weight_hh_l0": value})
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], expected(x)[0], rtol=0, atol=1e-12)


@every
class TestFlatWeightsRefuse:
    """What can have no effect on the module is an error."""

    @pytest.mark.parametrize("write", [lambda m, w: m._flat_weights.__setitem__(1, w), lambda m, w: setattr(
        m, "_flat_weights", [w if name == "weight_hh_l0" else getattr(m, name) for name in m._flat_weights_names]
    )])  # fmt: skip
    def test_a_tensor_for_a_parameter(self, write, member):
        module, x = member.layer(3, 4), torch.randn(5, 2, 3)
        expected = module(x)[0]
        with pytest.raises(TypeError, match="Expected a Parameter for weight_hh_l0 in _flat_weights, got Tensor"):
            write(module, torch.zeros_like(module.weight_hh_l0).detach())
        assert torch.equal(module(x)[0], expected)

    def test_another_number_of_tensors(self, member):
        with pytest.raises(ValueError, match="Expected 4 tensors in _flat_weights, one for each name, got 3"):
            member.layer(3, 4)._flat_weights = [torch.zeros(1)] * 3

    def test_a_longer_list(self, member):
        with pytest.raises(AttributeError, match="append"):
            member.layer(3, 4)._flat_weights.append(torch.zeros(1))


@every
def test_the_same_flat_weights_may_be_written_back(member):
    """The idiom of libraries that replace parameters: torch.nn's list is made again."""
    module = member.layer(3, 4)
    del module.bias_hh_l0
    before = dict(module.named_parameters())
    module._flat_weights = [getattr(module, name, None) for name in module._flat_weights_names]
    assert dict(module.named_parameters()).items() == before.items()


@every
def test_tied_weights_get_both_gradients(member):
    module, plain = member.pair(4, 4, num_layers=2)
    x = torch.randn(3, 2, 4)
    for m in (module, plain):
        m.weight_hh_l1 = m.weight_hh_l0
    for m in (module, plain):
        m(x)[0].sum().backward()
    torch.testing.assert_close(module.weight_hh_l0.grad, plain.weight_hh_l0.grad)


@every
def test_deleted_parameter_is_noticed(member):
    module = member.layer(3, 4)
    del module.bias_hh_l0
    with pytest.raises(AttributeError, match="bias_hh_l0"):
        module(torch.randn(2, 1, 3))


@pytest.mark.parametrize(
    "parametrization",
    [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal],
)
@every
def test_parametrized_weight(parametrization, member):
    module = member.layer(3, 4)
    parametrization(module, "weight_hh_l0")
    module.eval()  # spectral_norm changes its buffers at each training call
    x = torch.randn(5, 2, 3)
    output = module(x)[0]
    output.sum().backward()
    originals = list(module.parametrizations.parameters())
    assert originals and all(p.grad is not None for p in originals)
    other = copy.deepcopy(module)  # torch.nn's layers refuse this after a forward
    torch.testing.assert_close(other(x)[0], output)
    parametrize.remove_parametrizations(module, "weight_hh_l0")
    torch.testing.assert_close(module(x)[0], output)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("hook", [nn.utils.weight_norm, nn.utils.spectral_norm])
@every
def test_old_normalisation_hooks(hook, member):
    module = hook(member.layer(3, 4), "weight_hh_l0")
    module(torch.randn(5, 2, 3))[0].sum().backward()
    original = module.weight_hh_l0_g if hook is nn.utils.weight_norm else module.weight_hh_l0_orig
    assert original.grad is not None


@every
def test_pruned_weight(member):
    module = member.layer(3, 4)
    prune.l1_unstructured(module, "weight_hh_l0", 0.5)
    module(torch.randn(5, 2, 3))[0].sum().backward()
    pruned = module.weight_hh_l0_mask == 0
    assert (module.weight_hh_l0_orig.grad[pruned] == 0).all()
    prune.remove(module, "weight_hh_l0")
    assert module(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


class _Counted(nn.Module):
    """A parametrization that counts how often it is computed."""

    computed = 0

    def forward(self, weight):
        self.computed += 1
        return weight.clone()


@every
def test_a_call_computes_a_parametrization_once(member):
    """PyTorch's layers do it more often, which a spectral norm in training sees (docs/replacing.md)."""
    module, counted = member.layer(3, 4), _Counted()
    parametrize.register_parametrization(module, "weight_hh_l0", counted)
    counted.computed = 0
    module(torch.randn(5, 2, 3))
    assert counted.computed == 1
