"""What a frozen layer or cell keeps: its weights as the kernels read them, made once for many calls."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from fusedlstm._choice import is_plain
from fusedlstm._private_torch import count_of_dispatch_modes, function_of
from fusedlstm._sizes import Sizes
from fusedlstm._usual import as_returned, states_of_usual, time_major
from fusedlstm.ops import OPERATORS


class Frozen:
    """The weights of one module, as `fusedlstm.freeze` leaves them; of a copy, made in its first usual call.

    sizes: of the layers; None until they are made.
    weights: the values that usual calls run with, in the order of the module's names.
    layers: of each layer its weights as the CPU's kernels read them: bytes, for this process alone, the rows of one
        tensor. None where there is nothing to prepare: weights on another device, or that are no parameters and may be
        computed for each call.
    """

    sizes: Sizes | None = None
    weights: list[Tensor | None]
    layers: list[Tensor] | None
    # Where all weights are the module's parameters, the usual case, which every call asks for: of each its name, and
    # itself, PyTorch's count of writes to it, and its address.
    _usual: list[tuple] | None = None
    # What then runs all layers, and what it takes of them.
    _operator: Callable
    _whole: Tensor
    _count: int

    # A copy has other tensors, and a pickle may be read on another machine.
    def __reduce__(self):
        return Frozen, ()

    def make(self, module: nn.Module, names, sizes: Sizes) -> None:
        """Prepare the module's present weights, unless something watches or replaces operators now.

        Args:
            names: of the module's weights.
            sizes: of the module's layers, or of its cell as one.
        """
        if count_of_dispatch_modes() > 0:  # fake tensors might come of it
            return
        with torch.autocast("cpu", enabled=False):
            self.weights, self.layers = _weights_of(module, names), None
        given = [weight for weight in self.weights if weight is not None]
        is_known = sizes.cell in OPERATORS and sizes.hidden_size > 0  # of others a call says what is wrong
        if is_known and _are_kept(module, names) and _fit_together(given):
            operators, self._count = OPERATORS[sizes.cell], sizes.num_layers
            self._operator = function_of(operators.stack_frozen)
            self._whole = operators.freeze(given, self._count, sizes.directions)
            self.layers = [*self._whole]
            self._sources = _sources(module, names)
            self._marks = _marks_of(self._sources)
            parameters = [*map(module._parameters.get, names)]
            if not any(weight is None or weight.is_inference() for weight in parameters):
                self._usual = [(name, p, p._version, p.data_ptr()) for name, p in zip(names, parameters)]
        self.sizes = sizes

    def run_usual(self, own, input, hx, others):
        """What the module returns for a usual call, see _usual.py; else None."""
        if self._usual is None or own["training"]:
            return None
        states = states_of_usual(input, hx, others, torch.is_grad_enabled())
        if states is None or not _are_unchanged(own["_parameters"], self._usual):
            return None
        h, c = states
        return as_returned(own, self._operator(time_major(own, input), h, c, self._whole, self._count))

    def of_call(self, module: nn.Module, names, sizes: Sizes, input, *others):
        """The weights for a call on these arguments; and `layers`, or None where they do not serve it. The call is then
        one without gradients.

        Args:
            names, sizes: as of `make`.

        Raises:
            RuntimeError: the module is in training mode, an argument asks for gradients, or a weight has changed.
        """
        if module.training:
            raise RuntimeError(
                f"{type(module).__name__} is frozen for inference: expected evaluation mode, got training mode; call "
                "model.eval(), or fusedlstm.unfreeze(model) to train"
            )
        if torch.is_grad_enabled() and True in [tensor.requires_grad for tensor in _tensors((input, *others))]:
            raise RuntimeError(
                f"{type(module).__name__} is frozen for inference: expected arguments without gradients, got one that "
                "requires them; call it under torch.no_grad(), or fusedlstm.unfreeze(model) first"
            )
        if torch.compiler.is_compiling():
            return _weights_of(module, names), None
        # Tracers, and whatever watches or replaces operators, see the parameters.
        is_usual = (
            not torch.jit.is_tracing()
            and isinstance(input, (Tensor, PackedSequence))
            and count_of_dispatch_modes() == 0
        )
        if is_usual and self.sizes is None and is_plain(_tensors((input, *others))):
            self.make(module, names, sizes)
        if not is_usual or self.sizes is None or self.layers is None:
            return [getattr(module, name) for name in names], None
        self._check(module, names)
        return self.weights, self.layers

    def _check(self, module, names) -> None:
        """A weight that is no longer what it was would otherwise have no effect."""
        if self._usual is not None and _are_unchanged(module._parameters, self._usual):
            return
        sources = _sources(module, names)
        if len(sources) != len(self._sources) or not all(map(operator.is_, sources, self._sources)):
            _refuse_change(module, "another one")
        if _marks_of(sources) != self._marks:
            _refuse_change(module, "one that was written to since")


def _sources(module, names) -> list:
    """All that the weights of these names come from: parameters, or their parametrizations with what is in them."""
    own = module._parameters
    found = [own.get(name) for name in names]
    if "parametrizations" in module._modules:
        parts = module.parametrizations
        found += [*parts.parameters(), *parts.buffers(), *parts.modules()]
    return found


def _are_unchanged(own, usual) -> bool:
    """Whether the parameters `own` are still those of `usual`, and not written to. Every call asks; a loop of these few
    words takes half as long as functions of C that are mapped over all."""
    try:
        for name, parameter, version, address in usual:
            if own[name] is not parameter or parameter._version != version or parameter.data_ptr() != address:
                return False
    except KeyError:
        return False
    return True


def _marks_of(sources) -> list:
    """What changes when one of these is written to: PyTorch's count of writes, or the address. Tensors that were made
    in inference mode have no such count."""
    tensors = [source for source in sources if isinstance(source, Tensor)]
    counted = [tensor._version for tensor in tensors if not tensor.is_inference()]
    return counted + [tensor.data_ptr() for tensor in tensors]


def _are_kept(module, names) -> bool:
    """Whether every weight is a parameter or parametrized. Others may be set anew before each call, by hooks."""
    return all(name in module._parameters or parametrize.is_parametrized(module, name) for name in names)


def _fit_together(weights) -> bool:
    """Whether the kernels of the CPU take them: else a call says what is wrong with them."""
    first = weights[0]
    return all(
        type(weight) is Tensor and weight.is_cpu and weight.dtype is first.dtype and weight.is_floating_point()
        for weight in weights
    )


def _weights_of(module, names) -> list[Tensor | None]:
    with torch.no_grad():
        weights = [getattr(module, name) for name in names]
        return [None if weight is None else weight.detach() for weight in weights]


def _tensors(arguments) -> list[Tensor]:
    """Those of a call, in lists and tuples too."""
    found = []
    for argument in arguments:
        if isinstance(argument, Tensor):
            found.append(argument)
        elif isinstance(argument, (tuple, list)):
            found += _tensors(argument)
    return found


def _refuse_change(module, got: str):
    raise RuntimeError(
        f"{type(module).__name__} is frozen: expected the weights that it was frozen with, got {got}; call "
        "fusedlstm.unfreeze(model), change them, and fusedlstm.freeze(model)"
    )
