"""TorchScript: a trace holds the fused operators; a script, compiled from Python, PyTorch's own modules."""

import io
from pathlib import Path

import pytest
import torch
from family import every
from forked_python import run_python
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fusedlstm
from fusedlstm import FusedLSTM, convert

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:torch.jit.trace records:UserWarning")
class TestTrace:
    @every
    def test_sizes_stay_dynamic(self, member):
        module = member.layer(3, 4, num_layers=2)
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

    @every
    def test_a_frozen_trace_can_be_saved(self, member):
        module, x = member.layer(3, 4).eval(), torch.randn(5, 2, 3)
        file = io.BytesIO()
        torch.jit.save(torch.jit.freeze(torch.jit.trace(module, x)), file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(x)[0], module(x)[0])


def test_a_trace_warns_of_converters_and_of_nothing_else():
    """In a process of its own, since pytest has warning filters of its own."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(fusedlstm.__file__).parent.parent)!r})\n"
        "import torch, fusedlstm\n"
        "torch.jit.trace(fusedlstm.FusedLSTM(3, 4), torch.randn(5, 2, 3))"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("fusedlstm.revert(model)") == 1
    assert "TracerWarning" not in result.stderr


class Model(nn.Module):
    """Both kinds of layer, one of them in two places."""

    def __init__(self, member):
        super().__init__()
        self.layers = member.plain(3, 4, num_layers=2, bidirectional=True)
        self.cell = member.plain_step(8, 8)
        self.same_cell = self.cell

    def forward(self, x):
        output = self.layers(x)[0]
        return self.same_cell(output[1], self.cell(output[0]))


class TestScript:
    @every
    def test_compiles_pytorchs_own_modules_of_the_same_parameters(self, member):
        model, x = convert(Model(member)), torch.randn(5, 2, 3)
        expected = model(x)
        with pytest.warns(UserWarning, match=r"fusedlstm\.convert\(model\)"):
            scripted = torch.jit.script(model)
        torch.testing.assert_close(scripted(x), expected)
        assert {p.data_ptr() for p in scripted.parameters()} == {p.data_ptr() for p in model.parameters()}

    @pytest.mark.filterwarnings("ignore:torch.jit.script takes:UserWarning")
    @every
    def test_the_model_can_be_converted_again(self, member):
        model, x = convert(Model(member)), torch.randn(5, 2, 3)
        expected, parameters = model(x), list(model.parameters())
        torch.jit.script(model)
        assert type(model.layers) is member.plain.func and model.cell is model.same_cell
        convert(model)
        assert type(model.layers) is member.layer.func and type(model.cell) is member.one_step.func
        assert all(now is before for now, before in zip(model.parameters(), parameters))
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)

    @pytest.mark.parametrize("attribute", ["layer", "one_step"])
    @every
    def test_a_subclass_is_refused_with_what_to_do(self, member, attribute):
        kind = getattr(member, attribute).func

        class Own(kind):
            pass

        name = kind.__name__.removeprefix("Fused")
        with pytest.raises(NotImplementedError, match=rf"got Own: a subclass of \w+; derive it from nn\.{name}"):
            torch.jit.script(nn.Sequential(Own(3, 4)))
