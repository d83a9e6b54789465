"""What the fused layers and cells have in common: all of nn.RNNBase but its list of weights."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import _checks
from fusedlstm._frozen import Frozen
from fusedlstm._layers import with_weight_dropout
from fusedlstm._recognized import Recognized, refuse_gradients_by_hooks, warn_of_quantization
from fusedlstm._run import run
from fusedlstm._run_cell import run_cell
from fusedlstm._sizes import Sizes
from fusedlstm._stack import run_short
from fusedlstm._usual import draws_masks, kept, run_plain, run_usual, states_of_usual
from fusedlstm._variants import Option, Variants, Varied, check_variants, parameters_of
from fusedlstm.cells import CELLS

# torch.fx.symbolic_trace records calls of these as one node each, as it does for PyTorch's layers.
torch.fx.wrap("run")
torch.fx.wrap("run_cell")


class _Freezable(nn.Module):
    """What layers and cells do about being frozen (`fusedlstm.freeze`)."""

    # Its name is no subclass's own.
    _fused_frozen: Frozen | None = None

    def _apply(self, fn, recurse: bool = True):
        result = super()._apply(fn, recurse)
        if self._fused_frozen is not None:
            freeze_one(self)
        return result

    def _replicate_for_data_parallel(self):
        replica = nn.Module._replicate_for_data_parallel(self)
        if self._fused_frozen is not None:
            replica._fused_frozen = Frozen()
        return replica

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:
        if self._fused_frozen is None:
            return super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, unexpected, errors)
        errors.append(
            f"Expected {prefix.removesuffix('.') or 'a layer'} as it was before fusedlstm.freeze, got it frozen for "
            "inference; call fusedlstm.unfreeze(model) first, and fusedlstm.freeze(model) afterwards."
        )

    def extra_repr(self) -> str:
        return super().extra_repr() + ", frozen" * (self._fused_frozen is not None)


class _WithVariants(_Freezable):
    """What layers and cells have of the variants of their recurrence, and the parameters of these."""

    recurrent_dropout, zoneout = Option(), Option()
    layer_norm, layer_norm_eps, peephole = Option(), Option(), Option()
    # What these have; see `Option`. An instance has its own only where they are not these.
    _fused_recurrent_dropout, _fused_recurrent_dropout_per_step, _fused_zoneout = Variants()[:3]
    _fused_layer_norm, _fused_layer_norm_eps, _fused_peephole = Variants()[3:]

    def reset_parameters(self) -> None:
        """As torch.nn's; gains become one, and the bias of a norm of c zero, as those of nn.LayerNorm."""
        super().reset_parameters()
        for name, tensor in self.named_parameters(recurse=False):
            if name.startswith(("gain", "bias_c")):
                _initialize(name, tensor, self.hidden_size)

    def extra_repr(self) -> str:
        own, defaults = Variants.of(self)._asdict(), Variants._field_defaults
        return super().extra_repr() + "".join(
            f", {name}={value}" for name, value in own.items() if value != defaults[name]
        )


class FusedLayer(_WithVariants, nn.RNNBase):
    """A stack of layers of one cell: PyTorch's constructor and parameters, other kernels below.

    Args:
        weight_dropout: of DropConnect on every weight_hh, see `FusedLSTM`.
        **options: variants of the recurrence, by the names that `Variants` has for them, see `FusedLSTM`; the others
            are nn.RNNBase's.
    """

    weight_dropout, recurrent_dropout_per_step = Option(), Option()
    _fused_weight_dropout = 0.0

    def __init__(self, mode: str, *args, weight_dropout: float = 0.0, **options) -> None:
        variants = _variants_among(options)
        super().__init__(mode, *args, **options)
        if weight_dropout := _checks.checked_probability("weight_dropout", weight_dropout):
            self._fused_weight_dropout = weight_dropout
        check_variants(variants, mode.lower(), self.proj_size).set_in(self)
        for names in self._all_weights:
            names += _add_parameters(self, variants, names[0].removeprefix("weight_ih"), self.weight_hh_l0)

    def extra_repr(self) -> str:
        p = self._fused_weight_dropout
        return super().extra_repr() + (f", weight_dropout={p}" if p else "")

    def flatten_parameters(self) -> None:
        """Does nothing: parameters are separate tensors, and are used as they are."""

    # nn.RNNBase keeps a list of its weights, and weak references to them, beside the parameters.
    # Both go stale, and break deepcopy and swap_tensors; here the list is made when asked for, and what is written
    # to it is written to the attributes of these names.

    @property
    def _flat_weights(self) -> _FlatWeights:
        weights = _FlatWeights([getattr(self, name, None) for name in self._flat_weights_names])
        weights.module = self
        return weights

    @_flat_weights.setter
    def _flat_weights(self, tensors) -> None:
        names = self._flat_weights_names
        if len(tensors) != len(names):
            raise ValueError(f"Expected {len(names)} tensors in _flat_weights, one for each name, got {len(tensors)}")
        for name, tensor in zip(names, tensors):
            if tensor is getattr(self, name, None):
                continue
            if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter) and name in self._parameters:
                raise TypeError(
                    f"Expected a Parameter for {name} in _flat_weights, got {type(tensor).__name__}; for a tensor "
                    f"computed anew for each call: del module.{name}, then module.{name} = tensor"
                )
            setattr(self, name, tensor)

    def _init_flat_weights(self) -> None:
        pass

    def _update_flat_weights(self) -> None:
        pass

    def __setattr__(self, name: str, value) -> None:
        if isinstance(value, nn.Module) and name == "_flat_weights":
            value = [*value]  # nn.Module would keep an nn.ParameterList as a child, which the property hides
        nn.Module.__setattr__(self, name, value)

    __setstate__ = nn.Module.__setstate__

    def __getstate__(self):
        return self.__dict__.copy()

    def __prepare_scriptable__(self) -> nn.RNNBase:
        """What torch.jit.script takes in place of this module."""
        return _scriptable(self)

    qconfig = Recognized(warn_of_quantization)
    ft_compute_sample_grad = Recognized(refuse_gradients_by_hooks)


class _FlatWeights(tuple):
    """The weights of `module` as they are now, None where one is missing. An item is set in the module, not in here."""

    module: FusedLayer

    def __setitem__(self, index, value) -> None:
        weights = list(self.module._flat_weights)
        weights[index] = value
        self.module._flat_weights = weights


class FusedCell(_WithVariants, nn.RNNCellBase):
    """One step of one layer.

    Args:
        **options: variants of the recurrence, see `FusedLSTMCell`; the others are nn.RNNCellBase's.
    """

    _fused_cell: str  # its name, of fusedlstm.cells

    def __init__(self, *args, **options) -> None:
        variants = _variants_among(options)
        super().__init__(*args, **options)
        check_variants(variants, self._fused_cell, 0).set_in(self)
        _add_parameters(self, variants, "", self.weight_hh)

    def __prepare_scriptable__(self) -> nn.RNNCellBase:
        """What torch.jit.script takes in place of this module."""
        return _scriptable(self)

    qconfig = Recognized(warn_of_quantization)
    ft_compute_sample_grad = Recognized(refuse_gradients_by_hooks)


def _variants_among(options: dict) -> Variants:
    """Those among the options of a constructor, which then has the others."""
    return Variants(**{name: options.pop(name) for name in Variants._fields if name in options})


def _add_parameters(module: FusedLayer | FusedCell, variants: Variants, suffix: str, like: Tensor) -> list[str]:
    """Gives one direction of one layer what its variants have; their names, which end in the suffix."""
    kinds = parameters_of(variants, _sizes_of(module))
    for kind, length in kinds.items():
        setattr(module, kind + suffix, nn.Parameter(like.new_empty(length)))
        _initialize(kind, getattr(module, kind + suffix), module.hidden_size)
    return [kind + suffix for kind in kinds]


def _initialize(name: str, tensor: Tensor, hidden_size: int) -> None:
    """Initial values of a parameter that a variant adds."""
    if name.startswith("gain"):
        nn.init.ones_(tensor)
    elif name.startswith("bias_c"):
        nn.init.zeros_(tensor)
    else:
        bound = hidden_size**-0.5 if hidden_size > 0 else 0
        nn.init.uniform_(tensor, -bound, bound)


# Functions and not methods: converted subclasses of PyTorch's layers have methods of any name.


def run_layers(module: FusedLayer, input: Tensor | PackedSequence, hx, *rows_and_returns):
    """The layers of a module, on the arguments of its forward; further ones in the order of `run`."""
    if (results := run_usual(_run_usual, module, input, hx, rows_and_returns)) is not None:
        return results
    frozen, names = module._fused_frozen, module._flat_weights_names
    if frozen is not None:
        _refuse_variants_of_frozen(module)
    layers = packing = varied = None
    sizes = (frozen and frozen.sizes) or _sizes_of(module)
    if frozen is None:
        weights = _parameters(module, names)
    else:
        weights, layers = frozen.of_call(module, names, sizes, input, hx, *rows_and_returns)
    if module._fused_weight_dropout and module.training:
        weights = with_weight_dropout(weights, sizes, module._fused_weight_dropout)
    if module._fused_recurrent_dropout or module._fused_zoneout or module._fused_layer_norm or module._fused_peephole:
        varied = _varied_of(module, sizes)
    if isinstance(input, PackedSequence):
        # Tracers look into a call's arguments, and fail to rebuild this class from what they find.
        input, *packing = input
    return _without_gradients(run, frozen, layers)(
        sizes.cell, input, hx, weights, sizes, module.batch_first, module.dropout, module.training, *rows_and_returns,
        packing=packing, frozen=layers, varied=varied,
    )  # fmt: skip


def _run_usual(module: FusedLayer, own, input, hx, others):
    """What a module with its plain recurrence returns for a usual call, see `run_usual`, and in training for one that
    `run_short` serves; else None."""
    if "_fused_zoneout" in own or "_fused_layer_norm" in own or "_fused_peephole" in own:
        return None
    if (frozen := own.get("_fused_frozen")) is not None:
        return frozen.run_usual(own, input, hx, others)
    if torch.is_grad_enabled():
        return _run_short(own, input, hx, others)
    return run_plain(own, input, hx, others)


def _run_short(own, input, hx, others):
    """What a module returns for a call that `run_short` serves, to which the way by `run` takes long; else None."""
    name, weights = _SHORT.get(own["mode"]), kept(own["_parameters"], own["_flat_weights_names"])
    if name is None or weights is None or draws_masks(own) or torch.is_inference_mode_enabled():
        return None
    states = states_of_usual(input, hx, others, False, parameters=weights)
    if states is None or states[1] is not None:
        return None
    x, hx = input.transpose(0, 1) if own["batch_first"] else input, [] if hx is None else [hx]
    D = 2 if own["bidirectional"] else 1
    sizes = Sizes(name, own["input_size"], own["hidden_size"], 0, own["num_layers"], D, own["bias"])
    if (results := run_short(x, hx, weights, sizes)) is None:
        return None
    output, (last,) = results
    return output.transpose(0, 1) if own["batch_first"] else output, last


# By the mode of a layer: the cells that `run_short` serves.
_SHORT = {name.upper(): name for name, cell in CELLS.items() if cell.run_step is not None}


def _refuse_variants_of_frozen(module: FusedLayer | FusedCell) -> None:
    if not (module._fused_zoneout or module._fused_layer_norm or module._fused_peephole):
        return
    variants = Variants.of(module)
    if variants.serve(training=False):
        name = next(name for name in variants.in_use() if name != "recurrent_dropout")
        raise RuntimeError(
            f"{type(module).__name__} is frozen for inference: expected the plain recurrence, got "
            f"{name}={getattr(variants, name)}; call fusedlstm.unfreeze(model) first"
        )


def _varied_of(module: FusedLayer | FusedCell, sizes) -> Varied | None:
    """The variants with which this call of a module runs."""
    variants = check_variants(Variants.of(module), sizes.cell, sizes.proj_size)
    if not variants.serve(module.training):
        return None
    kinds = parameters_of(variants, sizes)
    names = list(kinds)
    if kinds and isinstance(module, FusedLayer):
        names = [name for names in module._all_weights for name in names if name.rpartition("_l")[0] in kinds]
    return Varied(variants, kinds, _parameters(module, names), module.training)


def run_step(module: FusedCell, input: Tensor, hx):
    """The step of a module."""
    frozen, varied = module._fused_frozen, None
    if frozen is None:
        own = module.__dict__
        if (
            "_fused_recurrent_dropout" in own or "_fused_zoneout" in own or "_fused_layer_norm" in own
            or "_fused_peephole" in own
        ):  # fmt: skip
            varied = _varied_of(module, _sizes_of(module))
        return run_cell(module._fused_cell, input, hx, _parameters(module, _STEP_NAMES), varied=varied)
    _refuse_variants_of_frozen(module)
    sizes = frozen.sizes or _sizes_of(module)
    weights, layers = frozen.of_call(module, _STEP_NAMES, sizes, input, hx)
    return _without_gradients(run_cell, frozen, layers)(sizes.cell, input, hx, weights, frozen=layers and layers[0])


def _without_gradients(run, frozen, layers):
    """`run` as a frozen module calls it with its parameters; graphs have weights without gradients instead."""
    if frozen is None or layers or torch.compiler.is_compiling():
        return run
    return torch.no_grad()(run)


def freeze_one(module: FusedLayer | FusedCell) -> None:
    """Freezes a module with its present weights, also if it is frozen."""
    names = module._flat_weights_names if isinstance(module, FusedLayer) else _STEP_NAMES
    frozen = Frozen()
    frozen.make(module, names, _sizes_of(module))
    module._fused_frozen = frozen


_STEP_NAMES = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"]


def _sizes_of(module: FusedLayer | FusedCell) -> Sizes:
    """Those of a cell are of the layer that it is a step of."""
    if isinstance(module, FusedCell):
        return Sizes(module._fused_cell, module.input_size, module.hidden_size, 0, 1, 1, module.bias)
    return Sizes(
        module.mode.lower(), module.input_size, module.hidden_size, module.proj_size, module.num_layers,
        2 if module.bidirectional else 1, module.bias,
    )  # fmt: skip


def _parameters(module: nn.Module, names) -> list[Tensor]:
    """The module's tensors of these names, read at each call.

    A list kept across calls would miss parametrizations, functional_call and deleted parameters.
    """
    found = kept(module._parameters, names)
    return [getattr(module, name) for name in names] if found is None else found


def _scriptable(module: nn.Module) -> nn.Module:
    """The module as PyTorch's own, with the same parameters: TorchScript compiles nothing else."""
    from fusedlstm.convert import plain_type, revert

    if isinstance(found := plain_type(module), str):
        raise NotImplementedError(
            f"torch.jit.script: Expected a layer that fusedlstm.revert takes, got {type(module).__name__}: {found}"
        )
    plain = revert(module)
    warnings.warn(
        f"torch.jit.script takes {type(plain).__name__} for {type(module).__name__}, and leaves it in the model that "
        "holds the layer: fusedlstm.convert(model) afterwards, if the model is still in use",
        stacklevel=2,
    )
    return plain
