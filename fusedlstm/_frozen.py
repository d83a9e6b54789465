"""What a frozen layer or cell keeps: its weights as the kernels read them, made once for many calls."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fusedlstm import _checks
from fusedlstm._run import by_kind
from fusedlstm.ops import OPERATORS


class Frozen:
    """The weights of one module, as `fusedlstm.freeze` leaves them. Made in the first call, and anew in that of a copy.

    sizes: of the layers.
    weights: the values that all calls run with, without gradients, in the order of the module's names.
    layers: of each layer its weights as the CPU's kernels read them: bytes, for this process alone. None where the
        weights are not on the CPU.
    """

    sizes: _checks.Sizes | None = None
    weights: list[Tensor | None]
    layers: list[Tensor] | None

    # A copy has other tensors, and a pickle may be read on another machine.
    def __reduce__(self):
        return Frozen, ()

    def _make(self, module: nn.Module, names, sizes: _checks.Sizes) -> None:
        own = module._parameters
        # Of parametrized weights these do not exist, and the versions are those of the originals.
        self._named = [(name, own[name]) for name in names if name in own]
        # Tensors of inference mode have no version.
        self._versions = [(weight, weight._version) for weight in module.parameters() if not weight.is_inference()]
        self.weights, self.layers = _weights_of(module, names), None
        given = [weight for weight in self.weights if weight is not None]
        if all(weight.is_cpu for weight in given):
            each, freeze = len(given) // sizes.num_layers, OPERATORS[sizes.cell].freeze
            layers = (given[first : first + each] for first in range(0, len(given), each))
            self.layers = [freeze(*by_kind(layer, sizes.directions, sizes.bias, sizes.proj_size)) for layer in layers]
        self.sizes = sizes

    def of_call(self, module: nn.Module, names, sizes: _checks.Sizes, input, *others):
        """The weights for a call on these arguments, and `layers` or None.

        Args:
            names: of the module's weights.
            sizes: of the module's layers, or of its cell as one.

        Raises:
            RuntimeError: the module is in training mode, an argument asks for gradients, or a weight has changed.
        """
        if module.training:
            raise RuntimeError(
                f"{type(module).__name__} is frozen for inference: expected evaluation mode, got training mode; call "
                "model.eval(), or fusedlstm.unfreeze(model) to train"
            )
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in _tensors((input, *others))):
            raise RuntimeError(
                f"{type(module).__name__} is frozen for inference: expected arguments without gradients, got one that "
                "requires them; call it under torch.no_grad(), or fusedlstm.unfreeze(model) first"
            )
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if is_traced or not isinstance(input, (Tensor, PackedSequence)):  # of torch.fx
            return _weights_of(module, names), None
        if self.sizes is None:
            self._make(module, names, sizes)
        self._check(module)
        return self.weights, self.layers

    def _check(self, module) -> None:
        """A weight that is no longer what it was would otherwise have no effect."""
        own = module._parameters
        for name, weight in self._named:
            if own.get(name) is not weight:
                _refuse_change(module, f"another {name}")
        for weight, version in self._versions:
            if weight._version != version:
                _refuse_change(module, "one that was written to since")


def _weights_of(module, names) -> list[Tensor | None]:
    with torch.no_grad():
        weights = [getattr(module, name) for name in names]
        return [None if weight is None else weight.detach() for weight in weights]


def _tensors(arguments):
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        elif isinstance(argument, tuple):
            yield from _tensors(argument)


def _refuse_change(module, got: str):
    raise RuntimeError(
        f"{type(module).__name__} is frozen: expected the weights that it was frozen with, got {got}; call "
        "fusedlstm.unfreeze(model), change them, and fusedlstm.freeze(model)"
    )
