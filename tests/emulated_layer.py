"""One LSTM layer on the emulated GPU: what the CUDA library does around its kernels, with CPU tensors.

The recurrence alone is of interest here. So the input is the contribution of the input projection itself
(`W_ih` is the identity), its gradient is `d_gates`, and the matrix products between the steps of STREAM are torch's.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from emulator import Memory

from fusedlstm import reference

H200 = "H200"


@dataclass
class Layer:
    """A problem: sizes, row states, tensors. All tensors of `dtype` unless said otherwise."""

    T: int
    B: int
    H: int
    dtype: torch.dtype = torch.float32
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
        g = torch.Generator().manual_seed(self.seed)
        D, B, H, R = self.directions, self.B, self.H, self.R

        def draw(*shape, scale=1.0):
            return (torch.randn(*shape, generator=g) * scale).to(self.dtype)

        self.t["x"] = draw(self.rows, 4 * H).float()  # already in the type of the sums, as the projection leaves it
        self.t["weight_hh"] = [draw(4 * H, R, scale=R**-0.5) for _ in range(D)]
        self.t["weight_hr"] = [draw(R, H, scale=H**-0.5) for _ in range(D)] if self.proj_size else []
        self.t["bias_ih"] = [draw(4 * H) for _ in range(D)] if self.bias else []
        self.t["bias_hh"] = [draw(4 * H) for _ in range(D)] if self.bias else []
        self.t["h_0"], self.t["c_0"] = draw(D, B, R, scale=0.5), draw(D, B, H)
        if self.resets:
            self.t["reset"] = torch.rand(self.T, B, generator=g) < 0.4
        if self.reset_states:
            self.t["reset_h"], self.t["reset_c"] = draw(D, B, R, scale=0.5), draw(D, B, H)
        self.t["d_output"] = draw(self.rows, D * R)
        self.t["d_h_n"], self.t["d_c_n"] = draw(D, B, R), draw(D, B, H)
        self.t["d_cell_states"] = draw(D, self.rows, H).to(self.acc)

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
    def batch_sizes(self):
        return torch.tensor([sum(n > t for n in self.lengths) for t in range(self.T)]) if self.packed else None

    def reference(self):
        """Float64 results and gradients, named as `forward` and `backward` name theirs."""

        def leaf(x):
            return x.double().detach().requires_grad_()

        dense = (self.rows,) if self.packed else (self.T, self.B)
        x = leaf(self.t["x"])
        given = {name: leaf(self.t[name]) for name in ("h_0", "c_0", "reset_h", "reset_c") if name in self.t}
        lengths = None if self.packed or self.lengths is None else torch.tensor(self.lengths)
        identity = [torch.eye(4 * self.H, dtype=torch.float64)] * self.directions
        output, h_n, c_n, gates, cells = reference.lstm_layer(
            x.view(*dense, -1), given["h_0"], given["c_0"], identity,
            *([w.double() for w in self.t[name]] for name in ("weight_hh", "bias_ih", "bias_hh", "weight_hr")),
            self.batch_sizes, lengths, self.t.get("reset"), given.get("reset_h"), given.get("reset_c"),
        )  # fmt: skip
        out = {"output": output.reshape(self.rows, -1), "h_n": h_n, "c_n": c_n, "gates": gates, "cell_states": cells}
        loss = sum((out[n] * self.t["d_" + n].double()).sum() for n in ("output", "h_n", "c_n", "cell_states"))
        names = ["x", *given]
        grads = torch.autograd.grad(loss, [x, *given.values()])
        return {n: v.detach() for n, v in out.items()} | {"d_" + n: v for n, v in zip(names, grads)}


def _ensemble(layers):
    """One `Layer` whose tensors have the members in front."""
    ensemble = replace(layers[0], t={})
    for name, own in layers[0].t.items():
        all_own = [one.t[name] for one in layers]
        ensemble.t[name] = list(map(torch.stack, zip(*all_own))) if isinstance(own, list) else torch.stack(all_own)
    if layers[0].lengths is not None and not layers[0].packed:
        ensemble.t["lengths"] = torch.tensor([one.lengths for one in layers])
    return ensemble


def apart(tensor):
    """A copy amid memory that holds nothing else: what lies past its end is not by chance another tensor."""
    margin = 4096 // tensor.element_size()
    memory = tensor.new_empty(tensor.numel() + 2 * margin)
    return memory[margin:-margin].view(tensor.shape).copy_(tensor)


class Emulated:
    """Runs a `Layer` through the launchers of the emulated module `emu`.

    Or, in one launch, a list of layers of the same sizes, and of the same lengths if they are packed: an ensemble, with
    the members as one more dimension in front of all results.
    """

    def __init__(self, emu, layer, request, device=H200):
        self.members = () if isinstance(layer, Layer) else (len(layer),)
        layer = layer if isinstance(layer, Layer) else _ensemble(layer)
        self.emu, self.layer, self.request, self.device = emu, layer, request, device
        self.dtype = str(layer.dtype).removeprefix("torch.")
        self.memory = Memory(emu)

    def problem(self, backward):
        layer = self.layer
        return self.emu.Problem(
            T=layer.T, B=layer.B, H=layer.H, proj_size=layer.proj_size, directions=layer.directions,
            members=math.prod(self.members), dtype=self.dtype, allow_tf32=layer.allow_tf32, backward=backward,
        )  # fmt: skip

    def plan(self, backward):
        return self.emu.make_plan(self.problem(backward), self.device, self.request)

    def put(self, tensor, name, initialised=True):
        """The pointer of a tensor that kernels may touch; 0 for None."""
        if tensor is None:
            return 0
        assert tensor.is_contiguous(), name
        return self.memory.pointer(tensor, name, initialised=initialised)

    def new(self, name, *shape, dtype=None, zero=False):
        """Memory for a result: NaN, or zeros where the kernels leave rows that do not run."""
        dtype, shape = dtype or self.layer.dtype, (*self.members, *shape)
        tensor = torch.zeros(shape, dtype=dtype) if zero else torch.full(shape, float("nan"), dtype=dtype)
        self.put(tensor, name, initialised=zero)
        return tensor

    def weights(self, transposed):
        """`weight_hh` of both directions as resident kernels read it: gate rows, or units, of padded K."""
        layer, padded = self.layer, []
        pitch = self.emu.weight_pitch(self.dtype, layer.H)
        for weight in layer.t["weight_hh"]:
            blocks = weight.view(*self.members, 4, layer.H, layer.H)
            blocks = blocks.movedim(-1, -3) if transposed else blocks
            padded.append(torch.nn.functional.pad(blocks, (0, pitch - layer.H)).contiguous())
        return tuple(self.put(w if w is None else apart(w), "weight_hh") for w in self.pair(padded))

    @staticmethod
    def pair(values):
        return tuple([*values, None, None][:2])

    def rows(self):
        layer, r = self.layer, self.emu.RowStates()
        r.T, r.B, r.N, r.H, r.R, r.D, r.M = (
            layer.T,
            layer.B,
            layer.rows,
            layer.H,
            layer.R,
            layer.directions,
            math.prod(self.members),
        )
        if layer.lengths is not None:
            r.lengths = self.put(layer.t.get("lengths", torch.tensor(layer.lengths)), "lengths")
        if layer.packed:
            sizes = layer.batch_sizes
            r.row_offsets = self.put(sizes.cumsum(0) - sizes, "row_offsets")
        for name in ("reset", "reset_h", "reset_c", "h_0", "c_0"):
            setattr(r, name, self.put(layer.t.get(name), name))
        return r

    def exchange(self, plan, rows):
        size = self.emu.exchange_bytes(plan, rows)
        return self.put(torch.zeros(size // 4, dtype=torch.int32), "exchange", False) if size else 0

    def forward(self, training=True):
        layer, D, H = self.layer, self.layer.directions, self.layer.H
        plan, idle = self.plan(backward=False), layer.lengths is not None and not layer.packed
        with self.memory:
            a = self.emu.ForwardArgs()
            a.rows, a.dtype = self.rows(), self.dtype
            x = layer.t["x"].to(layer.acc)
            a.pre_gates_stride_t, a.pre_gates_stride_b = layer.B * 4 * H, 4 * H
            if layer.batch_first:
                x = x.view(layer.T, layer.B, -1).transpose(0, 1).contiguous()
                a.pre_gates_stride_t, a.pre_gates_stride_b = 4 * H, layer.T * 4 * H
            a.pre_gates = (self.put(x, "pre_gates"),) * 2
            a.bias_ih = tuple(self.put(b, "bias_ih") for b in self.pair(layer.t["bias_ih"]))
            a.bias_hh = tuple(self.put(b, "bias_hh") for b in self.pair(layer.t["bias_hh"]))
            out = {
                "output": self.new("output", layer.rows, D * layer.R, zero=idle),
                "h_n": self.new("h_n", D, layer.B, layer.R),
                "c_n": self.new("c_n", D, layer.B, H),
            }
            if training:
                out["gates"] = self.new("gates", D, layer.rows, 4 * H, zero=idle)
                out["cell_states"] = self.new("cell_states", D, layer.rows, H, dtype=layer.acc, zero=idle)
            for name, tensor in out.items():
                setattr(a, name, tensor.data_ptr())
            if self.request == "stream":
                for d in range(D):
                    self.stream_forward(a, d)
            else:
                a.weight_hh = self.weights(transposed=False)
                a.exchange = self.exchange(plan, a.rows)
                self.emu.launch_forward(plan, a)
        return out

    def stream_forward(self, a, d):
        layer, acc = self.layer, self.layer.acc
        weight = layer.t["weight_hh"][d].to(acc)
        state = self.emu.ForwardStep()
        state.d = d
        h, c = self.new("h", layer.B, layer.R), self.new("c", layer.B, layer.H, dtype=acc)
        state.h, state.c = h.data_ptr(), c.data_ptr()
        hidden = self.new("hidden", layer.B, layer.H) if layer.proj_size else None
        state.hidden = hidden.data_ptr() if layer.proj_size else 0
        for step in range(-1, layer.T):
            state.step = step
            if step >= 0:
                state.sums = self.put(h.to(acc) @ weight.T, "sums")
            self.emu.launch_forward_step(a, state)
            if layer.proj_size:
                projected = hidden.to(acc) @ layer.t["weight_hr"][d].to(acc).T
                self.emu.launch_forward_projected(a, state, self.put(projected, "projected"))

    def backward(self, out):
        """Gradients from the results of `forward(training=True)`."""
        layer, D, H = self.layer, self.layer.directions, self.layer.H
        plan, idle = self.plan(backward=True), layer.lengths is not None and not layer.packed
        with self.memory:
            a = self.emu.BackwardArgs()
            a.rows, a.dtype = self.rows(), self.dtype
            a.gates, a.cell_states = self.put(out["gates"], "gates"), self.put(out["cell_states"], "cell_states")
            a.d_output = self.put(layer.t["d_output"], "d_output")
            a.d_output_stride_t, a.d_output_stride_b = layer.B * D * layer.R, D * layer.R
            for name in ("d_h_n", "d_c_n", "d_cell_states"):
                setattr(a, name, self.put(layer.t[name], name))
            grads = {
                "d_gates": self.new("d_gates", D, layer.rows, 4 * H, zero=idle),
                "d_h_0": self.new("d_h_0", D, layer.B, layer.R),
                "d_c_0": self.new("d_c_0", D, layer.B, H),
            }
            if layer.reset_states:
                grads["d_reset_h"] = self.new("d_reset_h", D, layer.B, layer.R, dtype=layer.acc, zero=True)
                grads["d_reset_c"] = self.new("d_reset_c", D, layer.B, H, dtype=layer.acc, zero=True)
            for name, tensor in grads.items():
                setattr(a, name, tensor.data_ptr())
            if self.request == "stream":
                for d in range(D):
                    self.stream_backward(a, d, grads["d_gates"][d])
            else:
                a.weight_hh = self.weights(transposed=True)
                a.exchange = self.exchange(plan, a.rows)
                self.emu.launch_backward(plan, a)
        grads["d_x"] = grads.pop("d_gates").to(torch.float64).sum(-3)
        return grads

    def stream_backward(self, a, d, d_gates):
        layer, acc = self.layer, self.layer.acc
        state = self.emu.BackwardStep()
        state.d = d
        state.d_h = self.new("d_h", layer.B, layer.R, dtype=acc).data_ptr()
        state.d_c = self.new("d_c", layer.B, layer.H, dtype=acc).data_ptr()
        d_projected = self.new("d_projected", layer.rows, layer.R, zero=True) if layer.proj_size else None
        state.d_projected = d_projected.data_ptr() if layer.proj_size else 0
        for step in range(layer.T + 1):
            state.step = step
            if step > 0:
                done = self.rows_of_step(d_gates, d, step - 1).to(acc) @ layer.t["weight_hh"][d].to(acc)
                state.sums = self.put(done, "sums")
            if layer.proj_size:
                self.emu.launch_backward_projected(a, state)
                if step < layer.T:
                    d_hidden = self.rows_of_step(d_projected, d, step).to(acc) @ layer.t["weight_hr"][d].to(acc)
                    state.d_hidden = self.put(d_hidden, "d_hidden")
            self.emu.launch_backward_step(a, state)

    def rows_of_step(self, per_row, d, step):
        """The rows of the step at this position of the backward pass, padded to the whole batch."""
        layer = self.layer
        t = layer.T - 1 - step if d == 0 else step
        if not layer.packed:
            return per_row[t * layer.B : (t + 1) * layer.B]
        sizes = layer.batch_sizes
        first = int(sizes[:t].sum())
        rows = per_row.new_zeros(layer.B, per_row.size(1))
        rows[: sizes[t]] = per_row[first : first + sizes[t]]
        return rows
