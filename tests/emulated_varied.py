"""Recurrences with variants on the emulated GPU, by the library's own host code (cuda/host/varied.h)."""

import contextlib

import emulator
import torch
from emulated_layer import H200, apart

from fusedlstm import _recurrence
from fusedlstm.cells import CELLS
from fusedlstm.reference_varied import RecurrenceArguments

PARAMETERS = "bias", "weight_ch", "gain", "gain_c", "bias_c"
KEPT = "saved", "normed", "scales"  # but for the states before each step


class EmulatedRecurrence:
    """The operators of a cell, as the binding of CUDA has them; results are NaN before kernels write them."""

    def __init__(self, cell, module=None):
        self.cell, self.emu = cell, module or emulator.module()
        self.fallback = self.emu.Fallback(H200, 0)
        self.products_with_tf32 = []  # of each product of all calls

    def recurrence(self, *arguments):
        """As `<cell>_recurrence`."""
        with self._call(arguments) as call:
            a, results = call.arguments, self.emu.VariedResults()
            T, B, H = *a.from_input.shape[:2], call.hidden
            output, results.output = call.new("output", T, B, H)
            last, results.last = call.new_each("last", [(B, H)] * len(a.initial))
            kept = []
            if a.keeps:
                normed, scales = a.gain is not None, a.gain is not None or a.gain_c is not None
                widths = H, max(self.cell.saved, 1) * H, normed * a.from_input.size(2), scales * 3
                widths += (H,) * (len(a.initial) - 1)
                kept, views = call.new_each("kept", [(T, B, width) if width else (0,) for width in widths])
                _set_kept(results, views)
            call.host.run_varied_forward(call.described(), results)
        return output, last, kept

    def backward(self, d_output, d_last, *arguments):
        """As `<cell>_recurrence_backward`."""
        *arguments, kept = arguments
        with self._call(arguments) as call:
            a, incoming, found = call.arguments, self.emu.VariedIncoming(), self.emu.VariedGradients()
            incoming.d_output = call.view(d_output, "d_output")
            incoming.d_last = [call.view(d, "d_last") for d in d_last]
            _set_kept(incoming, [call.view(tensor, "kept") for tensor in kept])
            is_apart = a.gain is not None if self.cell.name == "lstm" else self.cell.is_apart and a.gain is None
            from_input, found.from_input = call.new("d_from_input", *a.from_input.shape)
            from_hidden, found.from_hidden = call.new("d_from_hidden", *(a.from_input.shape if is_apart else (0,)))
            initial, found.initial = call.new_each("d_initial", [state.shape for state in a.initial])
            reset_state, found.reset_state = call.new_each("d_reset_state", [state.shape for state in a.reset_state])
            parameters = []
            for name in PARAMETERS:
                own = getattr(a, name)
                gradient, view = call.new(f"d_{name}", *((0,) if own is None else own.shape))
                parameters.append(gradient)
                setattr(found, name, view)
            call.host.run_varied_backward(call.described(), incoming, found)
        return from_input, from_hidden, initial, reset_state, parameters

    @contextlib.contextmanager
    def _call(self, arguments):
        call = _Call(self.cell, self.emu, self.fallback, RecurrenceArguments(*arguments))
        with call.memory:
            yield call
        self.products_with_tf32 += call.host.products_with_tf32
        assert call.host.live == 0, "a workspace was not given back"


class _Call:
    def __init__(self, cell, emu, fallback, arguments):
        self.cell, self.emu, self.arguments = cell, emu, arguments
        self.memory = emulator.Memory(emu)
        self.host = emu.Host(fallback, "")
        self.hidden = arguments.from_input.size(2) // cell.gates

    def view(self, tensor, name, initialised=True):
        """Of a tensor; of no tensor, or an empty one, none."""
        if tensor is None or tensor.numel() == 0:
            return self.emu.View()
        pointer = self.memory.pointer(tensor, name, initialised=initialised)
        return self.emu.View(pointer, str(tensor.dtype).removeprefix("torch."), tensor.shape, tensor.stride())

    def new(self, name, *shape):
        """A result and its view."""
        result = apart(torch.full(shape, float("nan"), dtype=self.arguments.from_input.dtype))
        return result, self.view(result, name, initialised=False)

    def new_each(self, name, shapes):
        pairs = [self.new(name, *shape) for shape in shapes]
        return [result for result, _ in pairs], [view for _, view in pairs]

    def described(self):
        """The recurrence as the library's binding hands it on."""
        given, r = self.arguments, self.emu.VariedRecurrence()
        r.cell, r.dtype = self.cell.name, str(given.from_input.dtype).removeprefix("torch.")
        r.allow_tf32, r.is_reverse, r.eps = given.allow_tf32, given.reverse, given.eps
        (r.steps, r.batch), r.hidden = given.from_input.shape[:2], self.hidden
        for name in ("from_input", "weight_hh", "mask", *PARAMETERS):
            tensor = getattr(given, name)
            setattr(r, name, self.view(None if tensor is None else apart(tensor), name))
        for name in ("initial", "reset_state", "zoneout"):
            setattr(r, name, [self.view(apart(tensor), name) for tensor in getattr(given, name)])
        for name in ("lengths", "reset"):
            tensor = getattr(given, name)
            if tensor is not None and tensor.numel():
                setattr(r, name, self.memory.pointer(tensor, name))
        return r


def _set_kept(of, views):
    of.before, (of.saved, of.normed, of.scales) = [views[0], *views[4:]], views[1:4]


def operators(module=None):
    """To be put in place of `_recurrence._OPERATORS`: the cells' operators on the emulated GPU, also of gradients."""
    return {name: EmulatedRecurrence(cell, module) for name, cell in CELLS.items()}


def run(cell, arguments):
    """As `_recurrence.run_recurrence` of a tensor on a GPU, whatever `_recurrence._OPERATORS` are."""
    output, last, _ = _recurrence._at_autograd_keys(cell.name, *arguments)
    return output, last
