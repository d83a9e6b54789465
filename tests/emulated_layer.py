"""One layer of any cell on the emulated GPU: its tensors, and calls of the library's own host code (cuda/host/layer.h).

Tensors have names: states are h_0 and c_0, reset_h and reset_c, h_n and c_n, and a gradient is d_ before the name.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from emulator import Memory
from layers import draw, flat

from benchmarks.cases import Case
from fusedlstm import reference
from fusedlstm.cells import LSTM, Cell

H200 = "H200"
STATES = ("h_0", "c_0", "reset_h", "reset_c")
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
EVERYTHING = ("input", *STATES, *PARAMETERS)


@dataclass
class Layer:
    """A problem: sizes, row states, tensors. All tensors of `dtype` unless said otherwise.

    Input rows that are not run are NaN: nothing may depend on them.
    """

    T: int
    B: int
    H: int
    cell: Cell = LSTM
    dtype: torch.dtype = torch.float32
    features: int = 6
    directions: int = 1
    proj_size: int = 0
    bias: bool = True
    lengths: list | None = None
    packed: bool = False  # lengths, sorted, as packed rows
    resets: bool = False
    reset_states: bool = False  # else resets go to zeros
    allow_tf32: bool = False
    batch_first: bool = False
    seed: int = 0
    t: dict = field(default_factory=dict, repr=False)

    def __post_init__(self):
        case = Case(
            "emulated", self.T, self.B, self.features, self.H, bidirectional=self.directions == 2,
            proj_size=self.proj_size, bias=self.bias, resets=self.resets,
            variable="packed" if self.packed else "" if self.lengths is None else "lengths",
        )  # fmt: skip
        generator = torch.Generator().manual_seed(self.seed)
        drawn = draw(
            case, self.cell, lengths=self.lengths, reset_state=self.reset_states, dtype=self.dtype, generator=generator
        )  # fmt: skip
        layer, incoming = drawn.layer, drawn.incoming
        self.t |= {name: getattr(layer, name) for name in ("input", *PARAMETERS)}
        self.t |= dict(zip(self.initial + self.reset_state, [*layer.initial, *layer.reset_state]))
        self.t |= dict(zip([f"d_{name}" for name in ("output", *self.last, "carried")], flat(incoming)))
        if self.resets:
            self.t["reset"] = layer.reset
        for b, length in enumerate([] if self.packed else self.lengths or []):
            self.t["input"][length:, b] = float("nan")

    @property
    def initial(self):
        return [f"{state}_0" for state in self.cell.states]

    @property
    def reset_state(self):
        return [f"reset_{state}" for state in self.cell.states]

    @property
    def last(self):
        return [f"{state}_n" for state in self.cell.states]

    @property
    def R(self):
        return self.proj_size or self.H

    @property
    def acc(self):
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    @property
    def rows(self):
        return sum(self.lengths) if self.packed else self.T * self.B

    @property
    def outer(self):
        """The sizes of input and output but for their features."""
        return (self.rows,) if self.packed else (self.T, self.B)

    @property
    def batch_sizes(self):
        return torch.tensor([sum(n > t for n in self.lengths) for t in range(self.T)]) if self.packed else None

    def reference(self):
        """Float64 results and gradients, named as `forward` and `backward` name theirs."""

        def leaf(x):
            return x.double().detach().requires_grad_()

        given = {name: leaf(self.t[name]) for name in STATES if name in self.t}
        given["input"] = leaf(self.t["input"])
        lists = {name: [leaf(w) for w in self.t[name]] for name in PARAMETERS}
        lengths = None if self.packed or self.lengths is None else torch.tensor(self.lengths)
        reset_state = [given[name] for name in self.reset_state if name in given]
        output, last, saved, carried = reference.layer(
            self.cell, given["input"], [given[name] for name in self.initial], *lists.values(),
            self.batch_sizes, lengths, self.t.get("reset"), reset_state,
        )  # fmt: skip
        out = {"output": output, **dict(zip(self.last, last)), "saved": saved, "carried": carried}
        loss = sum((out[n] * self.t[f"d_{n}"].double()).sum() for n in out if f"d_{n}" in self.t)
        leaves = given | {f"{name}[{d}]": w for name, each in lists.items() for d, w in enumerate(each)}
        grads = torch.autograd.grad(loss, list(leaves.values()))
        return {n: v.detach() for n, v in out.items()} | {f"d_{n}": v for n, v in zip(leaves, grads)}


def _ensemble(layers):
    """One `Layer` whose tensors have the members in front."""
    ensemble = replace(layers[0], t={})
    for name, own in layers[0].t.items():
        all_own = [one.t[name] for one in layers]
        ensemble.t[name] = list(map(torch.stack, zip(*all_own))) if isinstance(own, list) else torch.stack(all_own)
    if layers[0].lengths is not None and not layers[0].packed:
        ensemble.t["lengths"] = torch.tensor([one.lengths for one in layers])
    return ensemble


def apart(tensor, start_at=0):
    """A copy amid memory that holds nothing else: what lies past its end is not by chance another tensor."""
    margin = 4096 // tensor.element_size()
    memory = tensor.new_empty(tensor.numel() + 2 * margin)
    return memory[margin + start_at :][: tensor.numel()].view(tensor.shape).copy_(tensor)


class Emulated:
    """Runs a `Layer` by the host code of the emulated module `emu`, on the plan that FUSEDLSTM_PLAN=`request` asks for.

    Or a list of layers of the same sizes, and of the same lengths if they are packed: an ensemble, which runs in one
    launch where there is a kernel for it. Its results have the members as one more dimension in front.
    """

    def __init__(self, emu, layer, request, device=H200):
        self.members = () if isinstance(layer, Layer) else (len(layer),)
        self.layer = layer if isinstance(layer, Layer) else _ensemble(layer)
        self.emu, self.request, self.device = emu, request, device
        self.dtype = _name(self.layer.dtype)
        self.memory = Memory(emu)
        self.fallback = emu.Fallback(device, 0)
        self.host = emu.Host(self.fallback, request)
        self.parameters_start_at = 0  # so many elements after a multiple of 16 bytes

    def problem(self, backward):
        layer = self.layer
        return self.emu.Problem(
            cell=layer.cell.name, T=layer.T, B=layer.B, H=layer.H, proj_size=layer.proj_size,
            directions=layer.directions, members=math.prod(self.members), dtype=self.dtype,
            allow_tf32=layer.allow_tf32, backward=backward,
        )  # fmt: skip

    def plan(self, backward):
        return self.emu.make_plan(self.problem(backward), self.device, self.request)

    def view(self, tensor, name, initialised=True):
        """A view of a tensor that kernels may touch."""
        pointer = self.memory.pointer(tensor, name, initialised=initialised)
        return self.emu.View(pointer, _name(tensor.dtype), tensor.shape, tensor.stride())

    def new(self, name, *shape, dtype=None, zero=False):
        """Memory for a result: NaN, or zeros where the kernels leave rows that do not run."""
        dtype, shape = dtype or self.layer.dtype, (*self.members, *shape)
        tensor = torch.zeros(shape, dtype=dtype) if zero else torch.full(shape, float("nan"), dtype=dtype)
        return tensor, self.view(tensor, name, initialised=zero)

    def arguments(self):
        """The layer as the library's binding hands it on."""
        layer, a = self.layer, self.emu.Layer()
        a.cell = layer.cell.name
        a.dtype, a.allow_tf32 = self.dtype, layer.allow_tf32
        a.is_ensemble, a.members = bool(self.members), math.prod(self.members)
        a.steps, a.batch, a.rows, a.features = layer.T, layer.B, layer.rows, layer.features
        a.hidden, a.proj, a.directions = layer.H, layer.proj_size, layer.directions
        if layer.packed:
            self.batch_sizes = layer.batch_sizes  # the host reads it, the kernels do not
            a.batch_sizes = self.batch_sizes.data_ptr()
        elif layer.lengths is not None:
            a.lengths = self.memory.pointer(layer.t.get("lengths", torch.tensor(layer.lengths)), "lengths")
        if "reset" in layer.t:
            a.reset = self.memory.pointer(layer.t["reset"], "reset")
        a.input = self.view(self.arranged(layer.t["input"]), "input")
        a.initial, a.reset_state = ([self.view(layer.t[name], name) for name in names if name in layer.t]
                                    for names in (layer.initial, layer.reset_state))  # fmt: skip
        for name in PARAMETERS:
            setattr(a, name, [self.view(apart(w, self.parameters_start_at), name) for w in layer.t[name]])
        return a

    def arranged(self, rows):
        """Values of all time steps as they lie in memory."""
        if not self.layer.batch_first:
            return rows
        return rows.transpose(-3, -2).contiguous().transpose(-3, -2)

    def new_results(self, training):
        """Memory for what the forward pass gives: tensors by name, and the struct of their views."""
        layer, D, H = self.layer, self.layer.directions, self.layer.H
        idle = layer.lengths is not None and not layer.packed
        results, out = self.emu.ForwardResults(), {}
        out["output"], results.output = self.new("output", *layer.outer, D * layer.R, zero=idle)
        sizes = [layer.R] + [H] * (len(layer.last) - 1)
        new = [self.new(name, D, layer.B, size) for name, size in zip(layer.last, sizes)]
        out |= {name: tensor for name, (tensor, _) in zip(layer.last, new)}
        results.last = [view for _, view in new]
        if training:
            kept = D, layer.rows
            out["saved"], results.saved = self.new("saved", *kept, layer.cell.saved * H, zero=idle)
            out["carried"], results.carried = self.new(
                "carried", *kept, layer.cell.carried * H, zero=idle, dtype=layer.acc
            )
        return out, results

    def forward(self, training=True):
        with self.memory:
            out, results = self.new_results(training)
            self.host.run_forward(self.arguments(), results)
        return out

    def incoming(self, out):
        """What the backward pass is given beside the layer: results of the forward pass, gradients of all results."""
        layer, incoming = self.layer, self.emu.Incoming()
        for name in ("output", "saved", "carried"):
            setattr(incoming, name, self.view(out[name], name))
        if layer.t["d_output"] is not None:
            incoming.d_output = self.view(self.arranged(layer.t["d_output"]), "d_output")
        incoming.d_last = [self.view(layer.t[f"d_{name}"], f"d_{name}") for name in layer.last]
        if "d_carried" in layer.t:
            incoming.d_carried = self.view(layer.t["d_carried"], "d_carried")
        return incoming

    def new_gradients(self, wanted):
        """As new_results, of the backward pass."""
        layer, found, grads, lead = self.layer, self.emu.Gradients(), {}, len(self.members)

        def new(name, argument):
            return self.new(f"d_{name}", *argument.shape[lead:])

        def states(names):
            views = []
            for name in names:
                view = self.emu.View()
                if name in wanted and name in layer.t:
                    grads[f"d_{name}"], view = new(name, layer.t[name])
                views.append(view)
            return views

        found.initial, found.reset_state = states(layer.initial), states(layer.reset_state)
        if "input" in wanted:
            grads["d_input"], found.input = new("input", layer.t["input"])
        for name in PARAMETERS:
            if name in wanted:
                results = [new(name, parameter) for parameter in layer.t[name]]
                setattr(found, name, [view for _, view in results])
                grads |= {f"d_{name}[{d}]": gradient for d, (gradient, _) in enumerate(results)}
        return grads, found

    def backward(self, out, wanted=("input", *STATES)):
        """Gradients from the results of `forward(training=True)`, for the wanted arguments that it has.

        By default those that follow from the recurrence; those of parameters are sums over all rows, and less exact.
        """
        with self.memory:
            grads, found = self.new_gradients(wanted)
            self.host.run_backward(self.arguments(), self.incoming(out), found)
        return grads


def _name(dtype):
    return str(dtype).removeprefix("torch.")
