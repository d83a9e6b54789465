"""The classes of the family beside FusedLSTM, each with torch.nn's own."""

from dataclasses import dataclass
from functools import partial

import pytest
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


GRU = Member("gru", *map(partial, (fusedlstm.FusedGRU, nn.GRU, fusedlstm.FusedGRUCell, nn.GRUCell)))
FAMILY = [GRU, _rnn("tanh"), _rnn("relu")]
family = pytest.mark.parametrize("member", FAMILY, ids=str)
