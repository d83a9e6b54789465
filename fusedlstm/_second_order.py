"""Double backward: the gradients of `lstm_layer_backward` for its arguments.

They are those of the sum of <cotangent, gradient> over all gradients that it returns. The same sum, seen from the
layer's results, is that of <incoming gradient, tangent>: how the results change when the layer's arguments move along
the cotangents. With s for the state (h, c) after each step, F for the step, and arguments (x, s before, weights):

* tangents of the states, in the order of the steps: s' = DF (x', s' before, weights'). They are the gradients for the
  incoming gradients.
* adjoints of the tangents, in the opposite order: what `lstm_layer_backward` finds for the states.
* adjoints of the states: each step adds the gradient of <adjoint, DF (x', s' before, weights')> for x, s before and
  weights; what goes to s before flows on as any gradient of a state does, by `lstm_layer_backward`.

So only the tangents need a loop in Python, of a few small operations a step, and no graph. The gradients that the
steps add do not depend on one another: the steps are rows of one batch of one step, of which the reference is
differentiated, a block at a time. The graph of a block is the only one, whatever T is.
"""

from __future__ import annotations

from itertools import repeat

import torch
from torch import Tensor
from torch.nn.functional import linear

from fusedlstm import reference
from fusedlstm.reference import DIFFERENTIABLE, as_list, leaf, listed

# Values of gates in a block of steps: the graph of a block keeps about fifteen times as many.
BLOCK = 2**20


def second_order(layer, incoming, results, cotangents, asked) -> list:
    """Gradients for `incoming` and for `layer`, of the sum of <cotangent, gradient>.

    Args:
        layer: the arguments of `lstm_layer`.
        incoming: d_output, d_h_n, d_c_n, d_cell_states; None where there is none.
        results: output, gates and cell_states that `lstm_layer` returned.
        cotangents: for each result of `lstm_layer_backward`; None for zeros.
        asked: whether to return a gradient for each of `incoming` and of `layer`.

    Returns:
        As many as `asked`, lists where the layer's arguments are lists; None where nothing was asked or nothing flows.
    """
    batch_sizes, lengths, reset = layer[8:11]
    is_ensemble = layer[1].dim() == 4
    steps = layer[0].size(int(is_ensemble)) if batch_sizes is None else batch_sizes.size(0)
    # Gradients of third order need a graph of all; batched ones cannot be written into memory that is not batched.
    # lengths together with reset: only by calling the operator.
    needs_graph = torch.is_grad_enabled() or any(map(_is_batched, (*incoming, *layer[:-1], *results, *cotangents)))
    if needs_graph or steps <= 1 or not (lengths is None or reset is None):
        return _by_reference(layer, incoming, cotangents, asked)
    if all(d is None for d in incoming) or not any(map(listed, cotangents)):
        return [_nothing(argument) for argument in (*incoming, *layer)]
    if is_ensemble:
        return _by_members(layer, incoming, results, cotangents, asked)
    with torch.autocast(layer[0].device.type, enabled=False):
        by_steps = _by_steps if batch_sizes is None else _by_steps_packed
        return by_steps(layer, incoming, results, cotangents, asked)


def _by_reference(layer, incoming, cotangents, asked) -> list:
    """`second_order` by differentiating the reference twice."""
    keep_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        arguments = [leaf(a) if need else a for a, need in zip((*incoming, *layer), asked)]
        needs = [len(listed(u)) > 0 for u in cotangents]
        gradients = reference.lstm_layer_backward(*arguments, None, None, None, needs)
    pairs = (pair for parts in zip(gradients, cotangents) for pair in zip(*map(as_list, parts)))
    moved = [(gradient, u) for gradient, u in pairs if u is not None and gradient.requires_grad]
    wanted = [tensor for argument, need in zip(arguments, asked) if need for tensor in listed(argument)]
    found = repeat(None)
    if moved and wanted:
        gradients, directions = zip(*moved)
        found = iter(torch.autograd.grad(gradients, wanted, directions, create_graph=keep_graph, allow_unused=True))

    def taken(argument, need):
        if isinstance(argument, list):
            return [taken(tensor, need) for tensor in argument]
        return next(found) if need and argument is not None else None

    return [taken(argument, need) for argument, need in zip(arguments, asked)]


def _by_members(layer, incoming, results, cotangents, asked) -> list:
    """`second_order` of an ensemble, one member after another."""
    found = []
    for m in range(layer[1].size(0)):
        others = (reference.of_member(tensors, m) for tensors in (incoming, results, cotangents))
        found.append(second_order(reference.member(layer, m), *others, asked))

    def stacked(members):
        if isinstance(members[0], list):
            return list(map(stacked, zip(*members)))
        return None if members[0] is None else torch.stack(members)

    return list(map(stacked, zip(*found)))


def _by_steps(layer, incoming, results, cotangents, asked) -> list:
    """`second_order` of dense data from the tangents and adjoints of all states: no graph over time."""
    asks_incoming, asks_layer = asked[: len(incoming)], asked[len(incoming) :]
    directions = [_Direction(layer, results, cotangents, d) for d in range(layer[1].size(0))]
    found = [_nothing(argument) for argument in (*incoming, *layer)]
    if any(asks_incoming):
        tangents = zip(_side_by_side([one.tangents_of_results() for one in directions]), incoming, asks_incoming)
        found[: len(incoming)] = [tangent.to(d.dtype) if need else None for tangent, d, need in tangents]
    if not any(asks_layer):
        return found

    # The part of the states' adjoints that comes through the gates of the next step: the gradient for the "input" of
    # a layer whose weight_ih is weight_hh, with columns of its own for each direction.
    backward = torch.ops.fusedlstm.lstm_layer_backward.default
    weight_hh = layer[4]
    as_input = [results[0], *layer[1:3], list(torch.block_diag(*weight_hh).chunk(len(weight_hh))), *layer[4:]]
    through_gates = backward(*incoming, *as_input, *results, [place == 0 for place in DIFFERENTIABLE])[0]

    needs = [asks_layer[place] for place in DIFFERENTIABLE]
    to_states, to_input, to_weights, to_reset_state = zip(
        *(one.contributions(incoming, through_gates, needs) for one in directions)
    )
    d_output, to_h_0, to_c_0, d_cell_states = _side_by_side(to_states)
    del directions, through_gates, to_states  # as large as all h and c, several times
    flowed = backward(d_output.to(layer[0].dtype), None, None, d_cell_states, *layer, *results, needs)
    added = [sum(to_input), to_h_0, to_c_0, *map(list, zip(*to_weights)), *map(torch.stack, zip(*to_reset_state))]
    for place, need, *parts in zip(DIFFERENTIABLE, needs, flowed, added):
        if need:
            sums = [(a + b).to(a.dtype) for a, b in zip(*map(as_list, parts))]
            found[len(incoming) + place] = sums if isinstance(parts[0], list) else sums[0]
    return found


def _side_by_side(directions) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All h, one h, one c and all c of each direction, arranged as the operators' output, h_n, c_n and cell_states."""
    all_h, h, c, all_c = zip(*directions)
    return torch.cat(all_h, -1), torch.stack(h), torch.stack(c), torch.stack(all_c).flatten(1, 2)


class _Direction:
    """One direction of a layer: its states (h, c) and their tangents, `states_dot`, in float32 or float64.

    States are [T + 1, B, features]: those before and after step t at t and t + 1, in the reverse direction at t + 1
    and t. A sequence begins with the state at `first` and ends with the one at `last`: one place for all, or with
    lengths one each, [B]. At steps that are not run the gates, and so all that is computed from them, are zeros.
    """

    def __init__(self, layer, results, cotangents, d: int):
        self.input, h_0, c_0, *weights, _, lengths, reset, reset_h, reset_c, _ = layer
        output, gates, cell_states = results
        T, B = self.input.shape[:2]
        self.d, self.dtype, self.features = d, cell_states.dtype, (h_0.size(-1), c_0.size(-1))
        self.sequences = torch.arange(B, device=self.input.device)
        self.first, self.last, self.runs = 0, T, None
        if lengths is not None:
            self.last = lengths.clamp(max=T)
            self.runs = (torch.arange(T, device=lengths.device)[:, None] < lengths).unsqueeze(-1)
        if d == 1:
            self.first, self.last = self.last, self.first
        self.reset = None if reset is None else reset.unsqueeze(-1)
        self.gates = gates[d].unflatten(0, (T, B))
        steps = max(1, BLOCK // max(1, B * gates.size(-1)))
        self.blocks = self._in_order([slice(t, min(t + steps, T)) for t in range(0, T, steps)])

        self.weights = [self._own(kind) for kind in weights]
        self.reset_state = self._own(reset_h), self._own(reset_c)
        self.states = self._states(output, cell_states, self.first, h_0, c_0)

        self.input_dot, h_0_dot, c_0_dot, *weights_dot, reset_h_dot, reset_c_dot = cotangents
        self.weights_dot = [self._own(kind) for kind in weights_dot]
        self.reset_state_dot = self._own(reset_h_dot), self._own(reset_c_dot)
        self.states_dot = self._states(None, None, self.first, h_0_dot, c_0_dot)
        for block in self.blocks:
            self._move(block)

    def tangents_of_results(self):
        """Of output, h_n, c_n and cell_states, as `_side_by_side` takes them."""
        h, c = self.states_dot
        at_end = self.last, self.sequences
        return self._of_run(self._after(h)), h[at_end], c[at_end], self._of_run(self._after(c))

    def contributions(self, incoming, through_gates, needs):
        """What the steps add to the gradients for all states, for the input, the five weights and the reset state.

        Those for the states are as `_side_by_side` takes them, those for the initial state as the single ones.
        """
        adjoints = self._adjoints(incoming, through_gates)
        to_states = [torch.zeros_like(states) for states in adjoints]
        to_reset_state = [torch.zeros_like(states[0]) for states in adjoints]
        to_input = torch.zeros_like(self.input, dtype=self.dtype) if needs[0] else 0
        to_weights = [0] * len(self.weights)
        weights = [[] if w is None else [w] for w in self.weights]
        asked = [False] * len(incoming) + [needs[0], True, True, *needs[3:8]] + [False] * 6

        for block in self.blocks:
            rows = [self._of_run(self.input, block), *self._entering(self.states, self.reset_state, block)]
            rows_dot = (
                self._of_run(self.input_dot, block),
                *self._entering(self.states_dot, self.reset_state_dot, block),
            )
            d_h, d_c = (_as_batch(self._of_run(self._after(states), block)) for states in adjoints)
            found = _by_reference(
                [*map(_as_batch, rows), *weights, None, None, None, None, None, False],
                [d_h, None, None, d_c],
                [*map(_as_batch, rows_dot), *self.weights_dot, None, None],
                asked,
            )[len(incoming) :]
            if needs[0]:
                to_input[block] = found[0].view_as(rows[0])
            for k in range(2):
                added = found[1 + k].view_as(rows[1 + k])
                if self.reset is not None:
                    to_reset_state[k] += added.where(self.reset[block], 0).sum(0)
                    added = added.masked_fill(self.reset[block], 0)
                self._before(to_states[k])[block] = added
            for k, kind in enumerate(found[3:8]):
                if needs[3 + k] and kind:
                    to_weights[k] += kind[0]

        h, c = to_states
        at_start = self.first, self.sequences
        return (self._after(h), h[at_start], c[at_start], self._after(c)), to_input, to_weights, to_reset_state

    def _move(self, block: slice):
        """Add to the tangents of the states what the steps of a block make of those before and of the arguments'."""
        w_ih, w_hh, _, _, w_hr = self.weights
        w_ih_dot, w_hh_dot, b_ih_dot, b_hh_dot, w_hr_dot = self.weights_dot
        i, f, g, o, tanh_c, h_by_c = self._cells(block)
        h, c = self._entering(self.states, self.reset_state, block)
        # How c changes with the sums of i, f and g, and h (before its projection) with that of o.
        by_sums = torch.cat([g * i * (1 - i), c * f * (1 - f), i * (1 - g * g), tanh_c * o * (1 - o)], -1)

        sums_dot = torch.zeros_like(by_sums)
        rows = self._of_run(self.input, block), self._of_run(self.input_dot, block), h
        for x, w in zip(rows, (w_ih_dot, w_ih, w_hh_dot)):
            if x is not None and w is not None:
                sums_dot += linear(x, w)
        for b_dot in (b_ih_dot, b_hh_dot):
            if b_dot is not None:
                sums_dot += b_dot
        projected_dot = None if w_hr_dot is None else linear(o * tanh_c, w_hr_dot)

        after_h, after_c = map(self._after, self.states_dot)
        for t in self._in_order(range(block.start, block.stop)):
            k = t - block.start
            h, c = self._entering(self.states_dot, self.reset_state_dot, t)
            i_dot, f_dot, g_dot, o_dot = (torch.addmm(sums_dot[k], h, w_hh.t()) * by_sums[k]).chunk(4, -1)
            c = torch.addcmul(i_dot + f_dot + g_dot, f[k], c)
            h = torch.addcmul(o_dot, h_by_c[k], c)
            if w_hr is not None:
                h = linear(h, w_hr)
            if projected_dot is not None:
                h += projected_dot[k]
            after_h[t] += h
            after_c[t] += c

    def _adjoints(self, incoming, through_gates):
        """The gradients of first order for all states."""
        d_output, d_h_n, d_c_n, d_cell_states = incoming
        adjoints = self._states(d_output, d_cell_states, self.last, d_h_n, d_c_n)
        h, c = map(self._after, adjoints)
        before_h, before_c = map(self._before, adjoints)
        through_gates = through_gates[..., self._columns()]
        before_h += through_gates if self.reset is None else through_gates.masked_fill(self.reset, 0)
        w_hr = self.weights[-1]
        for block in reversed(self.blocks):
            _, f, _, _, _, h_by_c = self._cells(block)
            if self.reset is not None:
                f = f.masked_fill(self.reset[block], 0)
            through_h = (h[block] if w_hr is None else h[block] @ w_hr) * h_by_c
            for t in reversed(self._in_order(range(block.start, block.stop))):
                k = t - block.start
                before_c[t].addcmul_(f[k], c[t] + through_h[k])
        return adjoints

    def _cells(self, block: slice):
        """i, f, g, o, tanh(c) and how h, before its projection, changes with c: at the steps of a block."""
        i, f, g, o = self.gates[block].to(self.dtype).chunk(4, -1)
        tanh_c = self._after(self.states[1])[block].tanh()
        return i, f, g, o, tanh_c, o * (1 - tanh_c * tanh_c)

    def _entering(self, states, reset_state, at):
        """(h, c) before step or steps `at`, after resets."""
        entering = [self._before(kind)[at] for kind in states]
        if self.reset is None:
            return entering
        return [
            before.masked_fill(self.reset[at], 0) if replaced is None else replaced.where(self.reset[at], before)
            for before, replaced in zip(entering, reset_state)
        ]

    def _states(self, output, cell_states, place, h, c):
        """States that are those of the steps that are run, and to which (h, c) are added at `place`."""
        T, B = self.input.shape[:2]
        if output is not None:
            output = output[..., self._columns()]
        if cell_states is not None:
            cell_states = cell_states[self.d].unflatten(0, (T, B))
        found = []
        for steps, one, features in zip((output, cell_states), (h, c), self.features):
            states = torch.zeros((T + 1, B, features), dtype=self.dtype, device=self.input.device)
            if steps is not None:
                self._after(states).copy_(self._of_run(steps))
            if one is not None:
                states[place, self.sequences] += self._own(one)
            found.append(states)
        return found

    def _before(self, states):
        """The states before each step, [T, B, features], in the order of time."""
        return states[self.d : self.d + self.input.size(0)]

    def _after(self, states):
        return states[1 - self.d : 1 - self.d + self.input.size(0)]

    def _of_run(self, rows, block=slice(None)):
        """Rows of steps, with zeros where they are not run."""
        if rows is None:
            return None
        rows = rows[block].to(self.dtype)
        return rows if self.runs is None else rows.where(self.runs[block], 0)

    def _in_order(self, steps):
        """Steps, or blocks of them, in the order in which this direction runs them."""
        return steps[::-1] if self.d == 1 else steps

    def _columns(self):
        """This direction's part of the features of an output."""
        return slice(self.d * self.features[0], (self.d + 1) * self.features[0])

    def _own(self, of_directions):
        """This direction's tensor of a list or a stack of them."""
        if of_directions is None or len(of_directions) == 0 or of_directions[self.d] is None:
            return None
        return of_directions[self.d].to(self.dtype)


def _by_steps_packed(layer, incoming, results, cotangents, asked) -> list:
    """`_by_steps` of packed data: the same sequences side by side, with lengths."""
    input, h_0, _, *weights, batch_sizes, _, _, _, _, allow_tf32 = layer
    d_output, d_h_n, d_c_n, d_cell_states = incoming
    output, gates, cell_states = results
    T, B = batch_sizes.size(0), h_0.size(1)
    rows, lengths = (index.to(input.device) for index in reference.dense_rows(batch_sizes, B))

    def dense(tensor, dim=0):
        if tensor is None:
            return None
        sizes = [*tensor.shape[:dim], T * B, tensor.size(-1)]
        tensor = tensor.new_zeros(sizes).index_copy(dim, rows, tensor)
        return tensor.unflatten(0, (T, B)) if dim == 0 else tensor

    found = _by_steps(
        [dense(input), *layer[1:3], *weights, None, lengths, None, None, None, allow_tf32],
        [dense(d_output), d_h_n, d_c_n, dense(d_cell_states, 1)],
        [dense(output), dense(gates, 1), dense(cell_states, 1)],
        [dense(cotangents[0]), *cotangents[1:]],
        asked,
    )

    for place in (0, len(incoming)):  # as d_output and input
        if found[place] is not None:
            found[place] = found[place].flatten(0, 1)[rows]
    if found[3] is not None:  # as d_cell_states
        found[3] = found[3][:, rows]
    return found


def _as_batch(rows):
    """Rows of several steps, [steps, B, features], as one step of a larger batch."""
    return None if rows is None else rows.flatten(0, 1).unsqueeze(0)


def _is_batched(argument) -> bool:
    """Whether is_grads_batched=True, or torch.func.vmap, has made a batch of tensors of it."""
    functorch = torch._C._functorch
    return any(functorch.is_legacy_batchedtensor(t) or functorch.is_batchedtensor(t) for t in listed(argument))


def _nothing(argument):
    return [None] * len(argument) if isinstance(argument, list) else None
