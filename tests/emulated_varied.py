"""Recurrences with variants on the emulated GPU, by the library's own host code (cuda/host/varied.h)."""

import contextlib

import emulator
import torch
from emulated_layer import H200, apart
from recurrences import results
from test_cuda_faults import SEEDS

from fusedlstm import _recurrence
from fusedlstm.cells import CELLS
from fusedlstm.reference_varied import RecurrenceArguments

PARAMETERS = "bias_ih", "bias", "weight_ch", "gain_ih", "gain", "gain_c", "bias_c"
NEEDED = "input", "weight_ih", "weight_hh"
KEPT = "entered", "saved", "normed_ih", "normed", "scales"  # but for the states before each step


class EmulatedRecurrence:
    """The operators of a cell, as the binding of CUDA has them; results are NaN before kernels write them."""

    def __init__(self, cell, module=None, request=""):
        self.cell, self.emu, self.request = cell, module or emulator.module(), request
        self.fallback = self.emu.Fallback(H200, 0)
        self.products_with_tf32 = []  # of each product of all calls
        self.warnings = []

    def recurrence(self, *arguments):
        """As `<cell>_recurrence`."""
        with self._call(arguments) as call:
            a, results = call.arguments, self.emu.VariedResults()
            T, B, H = *a.input.shape[:2], call.hidden
            output, results.output = call.new("output", T, B, H)
            last, results.last = call.new_each("last", [(B, H)] * len(a.initial))
            kept = []
            if a.keeps:
                norms, GH = a.gain is not None or a.gain_c is not None, len(a.weight_hh)
                widths = H, (a.mask is not None) * H, max(self.cell.saved, 1) * H
                widths += (a.gain_ih is not None) * GH, (a.gain is not None) * GH, norms * 4
                widths += (H,) * (len(a.initial) - 1)
                kept, views = call.new_each("kept", [(T, B, width) if width else (0,) for width in widths])
                _set_kept(results, views)
            call.host.run_varied_forward(call.described(), results)
        return output, last, kept

    def backward(self, d_output, d_last, *arguments):
        """As `<cell>_recurrence_backward`."""
        *arguments, kept, needs = arguments
        with self._call(arguments) as call:
            a, incoming, found = call.arguments, self.emu.VariedIncoming(), self.emu.VariedGradients()
            incoming.d_output = call.view(d_output, "d_output")
            incoming.d_last = [call.view(d, "d_last") for d in d_last]
            _set_kept(incoming, [call.view(tensor, "kept") for tensor in kept])
            needed = []
            for name, need in zip(NEEDED, needs):
                gradient, view = call.new(f"d_{name}", *(getattr(a, name).shape if need else (0,)))
                needed.append(gradient)
                setattr(found, name, view)
            initial, found.initial = call.new_each("d_initial", [state.shape for state in a.initial])
            reset_state, found.reset_state = call.new_each("d_reset_state", [state.shape for state in a.reset_state])
            parameters = []
            for name in PARAMETERS:
                own = getattr(a, name)
                gradient, view = call.new(f"d_{name}", *((0,) if own is None else own.shape))
                parameters.append(gradient)
                setattr(found, name, view)
            call.host.run_varied_backward(call.described(), incoming, found)
        return *needed, initial, reset_state, parameters

    @contextlib.contextmanager
    def _call(self, arguments):
        call = _Call(self, RecurrenceArguments(*arguments))
        with call.memory:
            yield call
        self.products_with_tf32 += call.host.products_with_tf32
        self.warnings += call.host.warnings
        assert call.host.live == 0, "a workspace was not given back"


class _Call:
    def __init__(self, of, arguments):
        self.cell, self.emu, self.arguments = of.cell, of.emu, arguments
        self.memory = emulator.Memory(of.emu)
        self.host = of.emu.Host(of.fallback, of.request)
        self.hidden = arguments.weight_hh.size(1)

    def view(self, tensor, name, initialised=True):
        """Of a tensor, all of which have the input's dtype, or are bools; of no tensor, or an empty one, none."""
        if tensor is None or tensor.numel() == 0:
            return self.emu.View()
        pointer = self.memory.pointer(tensor, name, initialised=initialised)
        dtype = str(self.arguments.input.dtype).removeprefix("torch.")
        return self.emu.View(pointer, dtype, tensor.shape, tensor.stride())

    def new(self, name, *shape):
        """A result and its view."""
        result = apart(torch.full(shape, float("nan"), dtype=self.arguments.input.dtype))
        return result, self.view(result, name, initialised=False)

    def new_each(self, name, shapes):
        pairs = [self.new(name, *shape) for shape in shapes]
        return [result for result, _ in pairs], [view for _, view in pairs]

    def described(self):
        """The recurrence as the library's binding hands it on."""
        given, r = self.arguments, self.emu.VariedRecurrence()
        r.cell, r.dtype = self.cell.name, str(given.input.dtype).removeprefix("torch.")
        r.allow_tf32, r.is_reverse, r.eps = given.allow_tf32, given.reverse, given.eps
        (r.steps, r.batch), r.hidden = given.input.shape[:2], self.hidden
        for name in (*NEEDED, "mask", *PARAMETERS):
            tensor = getattr(given, name)
            setattr(r, name, self.view(None if tensor is None else apart(tensor), name))
        for name in ("initial", "reset_state"):
            setattr(r, name, [self.view(apart(tensor), name) for tensor in getattr(given, name)])
        r.zoneout = [
            self.emu.Zoneout(self.view(apart(part), "zoneout"), part.dtype is torch.bool) for part in given.zoneout
        ]
        for name in ("lengths", "reset"):
            tensor = getattr(given, name)
            if tensor is not None and tensor.numel():
                setattr(r, name, self.memory.pointer(tensor, name))
        return r


def _set_kept(of, views):
    of.before = [views[0], *views[1 + len(KEPT) :]]
    for name, view in zip(KEPT, views[1:]):
        setattr(of, name, view)


def assert_same_bits_in_every_order(cell, arguments):
    """Results and gradients, whatever the order of threads, by the operators in `_recurrence._OPERATORS`."""
    found = []
    for seed in SEEDS:
        with emulator.options(emulator.module(), seed=seed):
            found.append(results(lambda a: run(CELLS[cell], a), arguments))
    for other in found[1:]:
        assert all(torch.equal(value, other[what]) for what, value in found[0].items())


def operators(module=None, request="stream"):
    """To be put in place of `_recurrence._OPERATORS`: the cells' operators on the emulated GPU, also of gradients.

    Args:
        module: the emulated module, if it is not the one of the sources as they are.
        request: as FUSEDLSTM_PLAN.
    """
    return {name: EmulatedRecurrence(cell, module, request) for name, cell in CELLS.items()}


def run(cell, arguments):
    """As `_recurrence.run_recurrence` of a tensor on a GPU, whatever `_recurrence._OPERATORS` are."""
    output, last, _ = _recurrence._at_autograd_keys(cell.name, *arguments)
    return output, last
