"""Swap the recurrent layers inside a model for the fused ones, and back."""

from __future__ import annotations

import functools
import inspect
import types
import warnings

import torch
from torch import nn
from torch.nn.utils import parametrize

from fusedlstm._module import FusedCell, FusedLayer
from fusedlstm._variants import Variants
from fusedlstm.modules import FusedGRU, FusedGRUCell, FusedLSTM, FusedLSTMCell, FusedRNN, FusedRNNCell
from fusedlstm.quantized import Quantized

_FUSED = {
    nn.LSTM: FusedLSTM,
    nn.GRU: FusedGRU,
    nn.RNN: FusedRNN,
    nn.LSTMCell: FusedLSTMCell,
    nn.GRUCell: FusedGRUCell,
    nn.RNNCell: FusedRNNCell,
}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}


def convert(model: nn.Module, subclasses: bool = False) -> nn.Module:
    """Replace every nn.LSTM, nn.GRU, nn.RNN and their cells inside `model`, in place.

    The new modules hold the same Parameter objects (an optimizer made before goes on working),
    buffers, hooks, parametrizations, training flag and other attributes; a module that is used in
    two places stays one. What is left, one UserWarning for each call names, with path, type and reason:
    subclasses, which have code of their own; modules with a forward set on the instance; layers that
    TorchScript has compiled.

    Args:
        model: any module; if it is such a layer itself, the replacement is returned.
        subclasses: replace instances of subclasses too. Their new class, Fused<name>, derives from the
            subclass (isinstance stays true) with, say, FusedLSTM in the place of nn.LSTM: methods stay, and
            super().forward runs the fused layer. Still left are subclasses whose own forward does not
            call super().forward, and those that override a method which the fused class does not call.

    Returns:
        `model`, or its replacement.

    Raises:
        TypeError: `model` is not a module.

    Equivalent to:
        model.lstm = FusedLSTM(...); model.lstm.load_state_dict(old.state_dict())
    """
    return swap(model, "convert", lambda module, _: _retyped(module, _fused(module, subclasses)))


def revert(model: nn.Module) -> nn.Module:
    """Undo `convert`: every fused layer and cell becomes PyTorch's again.

    Converted subclasses become themselves again. Left, and named in a warning, are those that were derived from
    the fused classes.
    """
    return swap(model, "revert", lambda module, _: _retyped(module, plain_type(module)))


def swap(model: nn.Module, function: str, replacement) -> nn.Module:
    """Replace modules inside `model` in place, for a function of the package that its user calls; the model, or what
    replaces it.

    Args:
        function: its name, which begins the warning of what is left.
        replacement: replacement(module, path) gives what replaces a module, or the reason why it has to stay, or None
            for what is no recurrent layer. Called for all before any is replaced.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected model to be an nn.Module, got {type(model).__name__}")
    swapped: dict[nn.Module, nn.Module] = {}
    left = []
    modules = dict(model.named_modules())
    for path, module in modules.items():
        found = replacement(module, path)
        if isinstance(found, str):
            name = getattr(module, "original_name", type_of(module).__name__)  # TorchScript's types are all one
            left.append(f"\n  {path or 'the model itself'} ({name}): {found}")
        elif found is not None:
            swapped[module] = found
    for module in (*modules.values(), *swapped.values()):
        for child_name, child in module._modules.items():
            if child in swapped:
                module._modules[child_name] = swapped[child]
    if left:
        warnings.warn(f"fusedlstm.{function} left as they are:{''.join(left)}", stacklevel=3)
    return swapped.get(model, model)


def _retyped(module, found):
    return _with_type(module, found) if isinstance(found, type) else found


def _fused(module, subclasses) -> type | str | None:
    """The type that replaces the module's, or why it has to stay, or None for what is no recurrent layer."""
    cls = type_of(module)
    if isinstance(module, torch.jit.ScriptModule):
        return why_compiled(module, _FUSED)
    if not isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or isinstance(module, tuple(_PLAIN)):
        return None
    plain = next((base for base in cls.__mro__ if base in _FUSED), None)
    if plain is None:
        return f"fusedlstm replaces {_names(_FUSED)}"
    reason = why_instance(module) or ("" if cls is plain else _why_subclass(cls, plain))
    if reason:
        return reason
    if cls is plain:
        return _FUSED[plain]
    return (
        _fused_subclass(cls)
        if subclasses
        else f"a subclass of {_names([plain])}; convert(model, subclasses=True) replaces it"
    )


def plain_type(module) -> type | str | None:
    """The type that `convert` replaced, or why there is none, or None for what is no fused layer."""
    cls = type_of(module)
    if isinstance(module, torch.jit.ScriptModule):
        return why_compiled(module, _PLAIN)
    if isinstance(module, Quantized):
        return "its weights are int8; fusedlstm.dequantize(model) first"
    if not isinstance(module, tuple(_PLAIN)):
        return None
    if reason := why_instance(module):
        return reason
    if p := getattr(module, "_fused_weight_dropout", 0):
        return f"its weight_dropout is {p}, which PyTorch's layers have none of; set it to 0 first"
    if reason := why_varied(module):
        return f"{reason}, which PyTorch's layers have none of"
    if isinstance(cls, _InPlaceOfPlain):
        return cls.__bases__[0]
    if cls in _PLAIN:
        return _PLAIN[cls]
    fused = next(base for base in cls.__mro__ if base in _PLAIN)
    return (
        f"a subclass of {fused.__name__}; derive it from {_names([_PLAIN[fused]])} where it is to be reverted, and use "
        "convert(model, subclasses=True)"
    )


def why_compiled(module, types) -> str | None:
    is_concerned = module.original_name in {cls.__name__ for cls in types}
    return "compiled by TorchScript; replace it in the model that was compiled" if is_concerned else None


def why_instance(module) -> str:
    """Why this one module must keep its type, or "": what it has beside parameters, buffers and hooks."""
    if "forward" in vars(module):
        return "its forward was set on the instance, and is bound to it"
    written = vars(module).get("_flat_weights")  # nn.LSTM's list, which its forward runs with
    if written is not None:
        module._update_flat_weights()
        own = module._parameters
        if any(name in own and weight is not own[name] for name, weight in zip(module._flat_weights_names, written)):
            return "its _flat_weights hold other tensors than its parameters"
    return ""


def why_varied(module) -> str:
    """The first variant of the recurrence that a layer or cell has, in words; or ""."""
    if not isinstance(module, (FusedLayer, FusedCell)) or not (names := Variants.of(module).in_use()):
        return ""
    return f"its {names[0]} is {getattr(Variants.of(module), names[0])}"


# Of PyTorch's own methods, those that mean the same in a subclass of the fused class.
_SAME = {"__init__", "forward", "reset_parameters", "extra_repr", "all_weights", "_apply"}


@functools.cache
def _why_subclass(cls, plain) -> str:
    """Why instances of `cls` cannot run on top of the fused class, or ""."""
    order = cls.__mro__
    own, inherited = order[: order.index(plain)], plain.__mro__[: plain.__mro__.index(nn.Module)]
    methods = {
        name
        for base in inherited
        for name, value in vars(base).items()
        if isinstance(value, (types.FunctionType, property))
    }
    overridden = sorted({name for base in own for name in vars(base)} & (methods - _SAME))
    if overridden:
        caller = _FUSED[plain].__name__
        return f"a subclass of {_names([plain])} that overrides {', '.join(overridden)}, not called by {caller}"
    for base in own:
        if "forward" in vars(base) and not any(map(_calls_super_forward, vars(base).values())):
            return f"a subclass of {_names([plain])} whose forward does not call super().forward"
    return ""


def _calls_super_forward(value) -> bool:
    """Whether a function, or a code object, has `super` and `forward` among its names."""
    code = value if isinstance(value, types.CodeType) else getattr(inspect.unwrap(value), "__code__", None)
    if code is None:
        return False
    inner = (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
    return {"super", "forward"} <= {*code.co_names} or any(map(_calls_super_forward, inner))


class _InPlaceOfPlain(type):
    """Metaclass of `_fused_subclass`: leaves nn.LSTM out of the base classes, so that FusedLSTM is found there."""

    def mro(cls):
        return [base for base in super().mro() if base not in _FUSED]


@functools.cache
def _fused_subclass(cls) -> type:
    """Fused<name of cls>, which derives from `cls`, and has the fused class where that has PyTorch's."""
    plain = next(base for base in cls.__mro__ if base in _FUSED)
    metaclass = type(_InPlaceOfPlain.__name__, (_InPlaceOfPlain, type(cls)), {})
    attributes = {"__module__": cls.__module__, "__doc__": cls.__doc__, "__reduce_ex__": _reduce_ex}
    return metaclass(f"Fused{cls.__name__}", (cls, _FUSED[plain]), attributes)


def _reduce_ex(module, protocol):
    """For pickle and copy, which find `cls` by its name, but not the class made of it."""
    return _empty, type_of(module).__bases__[:1], *object.__reduce_ex__(module, 2)[2:]


def _empty(cls):
    fused = _fused_subclass(cls)
    return fused.__new__(fused)


def type_of(module) -> type:
    """The module's type, without the class that parametrizations put before it."""
    return type(module).__bases__[0] if parametrize.is_parametrized(module) else type(module)


def _names(types) -> str:
    return " and ".join(f"nn.{cls.__name__}" for cls in types)


def _with_type(module, new_type):
    """A module of `new_type` that shares all state of `module`."""
    new = new_type.__new__(new_type)
    # The containers are shared, not copied: what holds the old module still sees one set of
    # parameters and hooks. nn.LSTM's own list of weights is made again below.
    state = {
        k: v for k, v in module.__dict__.items() if k not in ("_flat_weights", "_flat_weight_refs", "_fused_frozen")
    }
    new.__dict__.update(state)
    if parametrize.is_parametrized(module):
        # The class that parametrize made has one property per parametrized tensor.
        properties = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
        new.__class__ = type(f"Parametrized{new_type.__name__}", (new_type,), properties)
    if isinstance(new, nn.RNNBase):
        new._init_flat_weights()
    return new
