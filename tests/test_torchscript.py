"""TorchScript: a trace holds the fused operators."""

import io

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fusedlstm import FusedLSTM

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
class TestTrace:
    def test_sizes_stay_dynamic(self):
        module = FusedLSTM(3, 4, 2)
        traced = torch.jit.trace(module, torch.randn(5, 2, 3))
        x = torch.randn(7, 3, 3)
        torch.testing.assert_close(traced(x)[0], module(x)[0])

    @pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True, "proj_size": 2}])
    @pytest.mark.parametrize("with_state", [False, True])
    def test_sizes_of_packed_input_stay_dynamic(self, options, with_state):
        class Packs(nn.Module):
            def __init__(self):
                super().__init__()
                self.lstm = FusedLSTM(3, 4, **options)

            def forward(self, x, lengths, *hx):
                packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
                output, (h_n, c_n) = self.lstm(packed, hx or None)
                return pad_packed_sequence(output)[0], h_n, c_n

        def inputs(T, B):
            lengths = torch.tensor([T]), torch.randint(1, T + 1, (B - 1,))
            rows = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
            state = torch.randn(rows, B, options.get("proj_size", 4)), torch.randn(rows, B, 4)
            return torch.randn(T, B, 3), torch.cat(lengths), *(state if with_state else ())

        model = Packs()
        traced = torch.jit.trace(model, inputs(5, 3), check_trace=False)
        for T, B in [(5, 3), (7, 4), (2, 1)]:
            arguments = inputs(T, B)
            torch.testing.assert_close(traced(*arguments), model(*arguments))

    def test_a_frozen_trace_can_be_saved(self):
        module, x = FusedLSTM(3, 4).eval(), torch.randn(5, 2, 3)
        file = io.BytesIO()
        torch.jit.save(torch.jit.freeze(torch.jit.trace(module, x)), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(x)[0], module(x)[0])
