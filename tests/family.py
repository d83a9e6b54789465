"""The classes of the family, each with torch.nn's own."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

import fusedlstm


@dataclass(frozen=True)
class Member:
    """One class of the family, by the cell that its layers run."""

    cell: str
    layer: partial
    plain: partial
    one_step: partial
    plain_step: partial

    def __str__(self):
        return self.cell

    def pair(self, *sizes, dtype=None, **options):
        """The same layers twice: ours and torch's."""
        plain, fused = self.plain(*sizes, **options, dtype=dtype), self.layer(*sizes, **options, dtype=dtype)
        fused.load_state_dict(plain.state_dict())
        return fused, plain

    def pair_of_cells(self, *sizes, dtype=None, **options):
        plain, fused = self.plain_step(*sizes, **options, dtype=dtype), self.one_step(*sizes, **options, dtype=dtype)
        fused.load_state_dict(plain.state_dict())
        return fused, plain


def _rnn(nonlinearity):
    classes = fusedlstm.FusedRNN, nn.RNN, fusedlstm.FusedRNNCell, nn.RNNCell
    return Member(f"rnn_{nonlinearity}", *(partial(c, nonlinearity=nonlinearity) for c in classes))


def tensors_of(result):
    """All tensors of what a layer or a cell returns, in their order. A PackedSequence may have None for its order."""
    if result is None or isinstance(result, torch.Tensor):
        return [result] if result is not None else []
    return [tensor for part in result for tensor in tensors_of(part)]


LSTM = Member("lstm", *map(partial, (fusedlstm.FusedLSTM, nn.LSTM, fusedlstm.FusedLSTMCell, nn.LSTMCell)))
GRU = Member("gru", *map(partial, (fusedlstm.FusedGRU, nn.GRU, fusedlstm.FusedGRUCell, nn.GRUCell)))
FAMILY = [GRU, _rnn("tanh"), _rnn("relu")]
EVERY = [LSTM, *FAMILY]
# For tests of what FusedLSTM is tested for in other places, and for those of every class.
family = pytest.mark.parametrize("member", FAMILY, ids=str)
every = pytest.mark.parametrize("member", EVERY, ids=str)

# Options of a layer of any member, and models of them all: member and options by name.
OPTIONS = {
    "plain": {},
    "no-bias": {"bias": False},
    "deep": {"num_layers": 2, "bidirectional": True},
    "batch-first": {"batch_first": True, "num_layers": 2, "dropout": 0.5},
}
MODELS = {f"{member}-{name}": (member, options) for member in EVERY for name, options in OPTIONS.items()}
