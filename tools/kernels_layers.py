"""The layers of a package for Hugging Face's `kernels`: what `kernelize` runs PyTorch's own layers and cells with.

`self` is the user's module of torch.nn. `kernels` binds the function to it, and takes classes that have nothing beside
it: no constructor, no methods. Arguments, results and errors are those of `functional`.

All can be compiled in a full graph: the cells always, the layers where `torch._dynamo.config.allow_rnn` is set. Else
torch.compile breaks its graph at every nn.LSTM, nn.GRU and nn.RNN, whatever their forward is.
"""

from torch import nn

from fusedlstm import functional


class LSTM(nn.Module):
    """For nn.LSTM."""

    can_torch_compile = True

    def forward(self, input, hx=None):
        return functional.lstm(
            input, hx, self.all_weights, bidirectional=self.bidirectional, batch_first=self.batch_first,
            dropout=self.dropout, training=self.training,
        )  # fmt: skip


class GRU(nn.Module):
    """For nn.GRU."""

    can_torch_compile = True

    def forward(self, input, hx=None):
        return functional.gru(
            input, hx, self.all_weights, bidirectional=self.bidirectional, batch_first=self.batch_first,
            dropout=self.dropout, training=self.training,
        )  # fmt: skip


class RNN(nn.Module):
    """For nn.RNN."""

    can_torch_compile = True

    def forward(self, input, hx=None):
        return functional.rnn(
            input, hx, self.all_weights, nonlinearity=self.nonlinearity, bidirectional=self.bidirectional,
            batch_first=self.batch_first, dropout=self.dropout, training=self.training,
        )  # fmt: skip


class LSTMCell(nn.Module):
    """For nn.LSTMCell."""

    can_torch_compile = True

    def forward(self, input, hx=None):
        return functional.lstm_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


class GRUCell(nn.Module):
    """For nn.GRUCell."""

    can_torch_compile = True

    def forward(self, input, hx=None):
        return functional.gru_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)


class RNNCell(nn.Module):
    """For nn.RNNCell."""

    can_torch_compile = True

    def forward(self, input, hx=None):
        return functional.rnn_cell(
            input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, nonlinearity=self.nonlinearity
        )
