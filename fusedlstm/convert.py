"""Swap the LSTMs inside a model for the fused ones, and back."""

from __future__ import annotations

from torch import nn
from torch.nn.utils import parametrize

from fusedlstm.modules import FusedLSTM, FusedLSTMCell

_FUSED = {nn.LSTM: FusedLSTM, nn.LSTMCell: FusedLSTMCell}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}


def convert(model: nn.Module) -> nn.Module:
    """Replace every nn.LSTM and nn.LSTMCell inside `model`, in place.

    The new modules hold the same Parameter objects (an optimizer made before goes on working),
    buffers, hooks, parametrizations, training flag and other attributes; a module that is used in
    two places stays one. Only the exact types are replaced: a subclass has a forward of its own.

    Args:
        model: any module; if it is an LSTM itself, the replacement is returned.

    Returns:
        `model`, or its replacement.

    Raises:
        TypeError: `model` is not a module.

    Equivalent to:
        model.lstm = FusedLSTM(...); model.lstm.load_state_dict(old.state_dict())
    """
    return _swap(model, _FUSED)


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert`: every FusedLSTM and FusedLSTMCell becomes nn.LSTM and nn.LSTMCell again."""
    return _swap(model, _PLAIN)


def _swap(model, types):
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected model to be an nn.Module, got {type(model).__name__}")
    swapped: dict[nn.Module, nn.Module] = {}
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if child is not None and _type(child) in types:
                if child not in swapped:
                    swapped[child] = _with_type(child, types[_type(child)])
                module._modules[name] = swapped[child]
    if _type(model) in types:
        return _with_type(model, types[_type(model)])
    return model


def _type(module) -> type:
    """The module's type, without the class that parametrizations put before it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _with_type(module, new_type):
    """A module of `new_type` that shares all state of `module`."""
    new = new_type.__new__(new_type)
    # The containers are shared, not copied: what holds the old module still sees one set of
    # parameters and hooks. nn.LSTM's own list of weights is made again below.
    state = {k: v for k, v in module.__dict__.items() if k not in ("_flat_weights", "_flat_weight_refs")}
    new.__dict__.update(state)
    if parametrize.is_parametrized(module):
        # The class that parametrize made has one property per parametrized tensor.
        properties = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
        new.__class__ = type(f"Parametrized{new_type.__name__}", (new_type,), properties)
    if isinstance(new, nn.RNNBase):
        new._init_flat_weights()
    return new
