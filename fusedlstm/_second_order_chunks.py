"""Second order of a layer by chunks of its steps: what is needed at the same time does not grow with their number.

All that _second_order.py says goes by chunks of steps, each a layer of its own between the states of its neighbours.
First through the chunks in the order of the steps, for the tangents; only those of the state before each chunk are
kept. Then back: a chunk computes its tangents again, its adjoints, and its part of the gradients, and hands the
gradients for the state before it to its neighbour. As large as all steps are only the arguments and the results. A
chunk has `CHUNK` values of gates, whatever T is.

Between chunks, gradients for carried states pass through the operator's arguments and results: of 16-bit types, rounded
to them.
"""

from __future__ import annotations

import torch

from fusedlstm._arguments import BackwardArguments, Differentiable, Incoming, LayerArguments, differentiable
from fusedlstm._second_order_step import projected_dot, second_order, sums_dot
from fusedlstm.ops import OPERATORS
from fusedlstm.reference import dense_rows, listed, nothing

# Values of gates in a chunk of steps: it needs some dozens of tensors of so many values, or of a quarter.
CHUNK = 2**19


def by_chunks(cell, layer, incoming, results, cotangents, asked_incoming, asked):
    """`second_order` (see _second_order.py) of one layer of several steps: without a graph over time."""
    wide = results[2].dtype
    asks_last = [asked_incoming.last and d is not None for d in incoming.last]
    d_rows = [incoming.output, *incoming.last, incoming.carried]
    asks = [asked_incoming.output, *asks_last, asked_incoming.carried]
    tangents = [torch.zeros_like(d) if ask else None for d, ask in zip(d_rows, asks)]
    kinds = differentiable(layer)
    sums = [_zeros(kind, wide) if ask else nothing(kind) for kind, ask in zip(kinds, asked)]
    for d in range(layer.initial[0].size(0)):
        _Direction(cell, layer, incoming, results, cotangents, d).run(tangents, sums)

    to_output, *to_last, to_carried = tangents
    narrow = [_to(total, layer.input.dtype) for total in sums]
    return Incoming(to_output, to_last, to_carried), Differentiable(*narrow)


class _Direction:
    """One direction of a layer: its arguments, and the rows of its steps in the order in which it runs them.

    Tensors of S steps are [S, B, features], in `wide`: float32 or float64. States are lists, of h and those carried.
    """

    def __init__(self, cell, layer, incoming, results, cotangents, d: int):
        self.cell, self.d, self.dtype, self.wide = cell, d, layer.input.dtype, results[2].dtype
        self.allow_tf32 = layer.allow_tf32
        self.input, self.input_dot = layer.input, cotangents.input
        self.start, self.weights, self.reset_state = self._own(differentiable(layer))
        start_dot, self.weights_dot, self.reset_state_dot = self._own(cotangents)
        self.lists = [kind[d : d + 1] for kind in layer[2:7]]  # the weights as an operator's arguments
        end_adjoint = self._own_states(incoming.last)
        self.start_dot, self.end_adjoint = (
            [torch.zeros_like(state) if given is None else given for given, state in zip(states, self.start)]
            for states in (start_dot, end_adjoint)
        )

        self.batch_sizes, self.lengths, self.reset = layer.batch_sizes, layer.lengths, layer.reset
        self.B, H = self.start[-1].shape
        self.T = self.input.size(0) if self.batch_sizes is None else self.batch_sizes.size(0)
        self.sequences = torch.arange(self.B, device=self.input.device)
        if self.batch_sizes is not None:
            self.first_rows = [0, *self.batch_sizes.cumsum(0).tolist()]
            self.lengths = dense_rows(self.batch_sizes, self.B)[1].to(self.input.device)
        # The state that a sequence ends with is that before step `last`, or after all.
        self.last = torch.full_like(self.sequences, self.T) if self.lengths is None else self.lengths.clamp(max=self.T)
        # The reverse direction meets the padding first. Where a sequence begins it is reset, to the initial state.
        self.begins_by_reset = d == 1 and self.lengths is not None
        if self.begins_by_reset:
            steps = torch.arange(self.T, device=self.input.device)
            self.reset = steps[:, None] == self.T - self.last
            self.last = self.T * (self.last > 0)
            self.reset_state, self.reset_state_dot = self.start, self.start_dot

        output, saved, carried = results
        self.saved, self.states = self._of_all_rows(saved), self._of_states(output, carried)
        self.incoming = self._of_states(incoming.output, incoming.carried)
        steps = max(1, CHUNK // max(1, cell.gates * self.B * H))
        self.chunks = [range(k, min(k + steps, self.T)) for k in range(0, self.T, steps)]

    def run(self, tangents, sums):
        """Write the tangents of the results, and add the gradients for the layer's arguments; None: not asked."""
        to_output, *to_last, to_carried = tangents
        before, befores = self.start_dot, []
        for steps in self.chunks:
            befores.append(before)
            chunk = _Chunk(self, steps, before)
            before = [states[chunk.end] for states in chunk.states_dot]
            for to, states in zip(self._of_states(to_output, to_carried), chunk.states_dot):
                self.add(states[1:], to, steps)
        for to, end in zip(to_last, before):
            if to is not None:
                to[self.d] = end
        if not any(map(listed, sums)):
            return

        to_input, (to_start, to_weights, to_reset_state) = sums[0], self._own(sums)
        to_shared = [*to_weights, *(to_start if self.begins_by_reset else to_reset_state)]
        adjoint, flow = self.end_adjoint, [torch.zeros_like(state) for state in self.start]
        for steps, before in zip(reversed(self.chunks), reversed(befores)):
            if steps != chunk.steps:  # the last chunk is still at hand
                chunk = None  # its memory is for the next one
                chunk = _Chunk(self, steps, before)
            adjoint, flow = chunk.add_gradients(adjoint, flow, to_input, to_shared)
        for to, gradient in zip(to_start, flow):
            if to is not None:
                to += gradient

    def read(self, rows, steps: range):
        """The rows of some steps, with zeros where they are not run."""
        if rows is None:
            return None
        times = self._times(steps)
        if self.batch_sizes is None:
            dense = rows[times].to(self.wide)
            if self.lengths is not None:
                dense = dense.where(self._runs(times), 0)
        else:
            of_times, places = self._packed(rows, times)
            dense = torch.zeros(len(steps) * self.B, rows.size(-1), dtype=self.wide, device=rows.device)
            dense = dense.index_copy_(0, places, of_times.to(self.wide)).unflatten(0, (len(steps), self.B))
        return dense.flip(0) if self.d == 1 else dense

    def add(self, dense, to, steps: range):
        """Add to the rows of some steps in `to`, unless that is None."""
        if to is None:
            return
        times, dense = self._times(steps), dense.flip(0) if self.d == 1 else dense
        if self.batch_sizes is None:
            to[times] += dense
        else:
            of_times, places = self._packed(to, times)
            of_times += dense.flatten(0, 1)[places]

    def runs(self, steps: range):
        """Which sequences run each of some steps, [S, B, 1]; None: all."""
        if self.lengths is None:
            return None
        runs = self._runs(self._times(steps))
        return runs.flip(0) if self.d == 1 else runs

    def before(self, steps: range):
        """The states before the first of some steps."""
        if steps.start == 0:
            return self.start
        return [self.read(rows, range(steps.start - 1, steps.start))[0] for rows in self.states]

    def _runs(self, times: slice):
        times = torch.arange(times.start, times.stop, device=self.input.device)
        return (times[:, None] < self.lengths).unsqueeze(-1)

    def _times(self, steps: range) -> slice:
        return slice(self.T - steps.stop, self.T - steps.start) if self.d == 1 else slice(steps.start, steps.stop)

    def _packed(self, rows, times: slice):
        """Packed rows of some times, and their places among as many times B rows."""
        places = dense_rows(self.batch_sizes[times], self.B)[0].to(rows.device)
        return rows[self.first_rows[times.start] : self.first_rows[times.stop]], places

    def _of_states(self, output, carried) -> list:
        """This direction's part of each state of all steps."""
        width, count = self.start[0].size(-1), self.cell.carried
        h = None if output is None else output[..., self.d * width : (self.d + 1) * width]
        if carried is None or count == 0:
            return [h] + [None] * count
        return [h, *self._of_all_rows(carried).chunk(count, -1)]

    def _of_all_rows(self, rows):
        """This direction's part of [D, N, features]: by times, or packed."""
        if rows is None:
            return None
        return rows[self.d].unflatten(0, (self.T, self.B)) if self.batch_sizes is None else rows[self.d]

    def _own(self, kinds):
        """This direction's initial states, weights and reset states, None where there is none, of Differentiable."""
        _, initial, *weights, reset_state = kinds
        own = [self._wide(kind[self.d] if kind else None) for kind in weights]
        return self._own_states(initial), own, self._own_states(reset_state) or [None] * len(self.cell.states)

    def _own_states(self, states):
        return [self._wide(None if state is None else state[self.d]) for state in states]

    def _wide(self, tensor):
        return None if tensor is None else tensor.to(self.wide)


class _Chunk:
    """Some steps of a direction, with their states and tangents: [S + 1, B, features], step k between k and k + 1.

    At steps that are not run, states, what is saved, tangents and all gradients are zeros.
    """

    def __init__(self, direction: _Direction, steps: range, before_dot):
        self.direction, self.steps = direction, steps
        rows = direction.input, direction.input_dot, direction.saved, *direction.states
        self.input, self.input_dot, self.saved, *after = (direction.read(each, steps) for each in rows)
        self.states = [torch.cat([b.unsqueeze(0), a]) for b, a in zip(direction.before(steps), after)]
        self.reset = None if direction.reset is None else direction.reset[steps.start : steps.stop].unsqueeze(-1)
        # Where each sequence is in the states when it ends, or the chunk does.
        self.end = (direction.last - steps.start).clamp(0, len(steps)), direction.sequences
        self.states_dot = self._tangents(before_dot)

    def add_gradients(self, adjoint, flow, to_input, to_shared):
        """Add to the gradients for the input, and for the five weights and the reset state; None: not asked.

        Args:
            adjoint, flow: the gradients of first and of second order for the states at the end.

        Returns:
            Those for the states before the chunk.
        """
        direction = self.direction
        needs = [to is not None for to in (to_input, *to_shared)]
        adjoints = self._adjoints(adjoint)
        to_rows, to_befores, added = self._added_by_steps(adjoints, needs)
        to_states, to_reset_state = [torch.zeros_like(states) for states in adjoints], [None] * len(adjoints)
        for k, to_before in enumerate(to_befores):
            if self.reset is not None:
                to_reset_state[k] = to_before.where(self.reset, 0).sum(0)
                to_before = to_before.masked_fill(self.reset, 0)
            to_states[k][:-1] = to_before
            to_states[k][self.end] += flow[k]
        through_rows, through_states, *through = self._backward(to_states, needs)

        if to_input is not None:
            direction.add(to_rows + through_rows, to_input, self.steps)
        for to, *parts in zip(to_shared, [*added, *to_reset_state], through):
            for part in parts:
                if to is not None and part is not None:
                    to += part
        flow = [to[0] + through for to, through in zip(to_states, through_states)]
        return [kind[0].clone() for kind in adjoints], flow

    def _tangents(self, before_dot):
        """How the states change along the cotangents."""
        direction, cell = self.direction, self.direction.cell
        w_ih, w_hh, _, _, w_hr = direction.weights
        w_ih_dot, w_hh_dot, b_ih_dot, b_hh_dot, w_hr_dot = direction.weights_dot
        before = self._entered(self.states, direction.reset_state)
        # But for the part of h, which follows step by step.
        of_hidden = before[0], w_hh, None, w_hh_dot, b_hh_dot
        known = sums_dot(cell, (self.input, w_ih, self.input_dot, w_ih_dot, b_ih_dot), of_hidden)
        place = int(cell.is_apart)  # of the sums that take W_hh h

        moving, states_dot, runs = before_dot, [before_dot], direction.runs(self.steps)
        for k, (entered, after, saved) in enumerate(self._rows_of_steps(before)):
            moving = self._entering(moving, direction.reset_state_dot, k)
            sums = [None if part is None else part[k] for part in known]
            given = sums[place]
            sums[place] = moving[0] @ w_hh.t() if given is None else torch.addmm(given, moving[0], w_hh.t())
            moving, *_ = OPERATORS[cell.name].steps_second_order(
                entered, after, saved, *sums, moving, [None] * len(after), None
            )
            if w_hr is not None:
                moving[0] = projected_dot(cell, saved, after, moving[0], w_hr, w_hr_dot)
            if runs is not None:
                moving = [state.where(runs[k], 0) for state in moving]
            states_dot.append(moving)
        return list(map(torch.stack, zip(*states_dot)))

    def _adjoints(self, at_end):
        """The gradients of first order for all states."""
        direction, cell, adjoints = self.direction, self.direction.cell, []
        for states, rows, one in zip(self.states, direction.incoming, at_end):
            adjoint, given = torch.zeros_like(states), direction.read(rows, self.steps)
            if given is not None:
                adjoint[1:] = given
            adjoint[self.end] += one
            adjoints.append(adjoint)

        _, w_hh, _, _, w_hr = direction.weights
        entered = self._entered(self.states, direction.reset_state)
        nothing_moves = None, None, [None] * len(entered)
        arriving = [*zip(*map(torch.unbind, adjoints))]
        for k, (before, after, saved) in reversed([*enumerate(self._rows_of_steps(entered))]):
            d_h, *d_carried = arriving[k + 1]
            arrive = [d_h if w_hr is None else d_h @ w_hr, *d_carried]
            _, d_sums, d_before, _ = OPERATORS[cell.name].steps_second_order(
                before, after, saved, *nothing_moves, arrive, None
            )
            through_sums = d_sums[2 if cell.is_apart else 0] @ w_hh
            d_before[0] = through_sums.add_(d_before[0]) if cell.takes_h else through_sums
            for adjoint, d in zip(arriving[k], d_before):
                adjoint += d if self.reset is None else d.masked_fill(self.reset[k], 0)
        return adjoints

    def _rows_of_steps(self, entered):
        """For each step the states that it starts from, of all in `entered`, those after it, and what it saved."""
        after = (states[1:] for states in self.states)
        befores, afters = (map(list, zip(*map(torch.unbind, states))) for states in (entered, after))
        return zip(befores, afters, self.saved.unbind())

    def _added_by_steps(self, adjoints, needs):
        """What steps add: each to the gradients for its input and the states before it, all to the weights'."""
        direction = self.direction
        rows = self.input, *self._entered(self.states, direction.reset_state)
        rows_dot = self.input_dot, *self._entered(self.states_dot, direction.reset_state_dot)
        w_ih, w_hh, _, _, w_hr = direction.weights
        states = len(adjoints)
        found = second_order(
            direction.cell, [*map(_as_rows, rows)], (w_ih, w_hh, w_hr), _as_rows(self.saved),
            [_as_rows(states[1:]) for states in self.states], [_as_rows(states[1:]) for states in adjoints],
            [*map(_as_rows, rows_dot)], direction.weights_dot, [needs[0], *[True] * states, *needs[1:6]],
        )[states:]  # fmt: skip
        to_rows, *to_before = [None if to is None else to.view_as(x) for to, x in zip(found, rows)]
        return to_rows, to_before, found[1 + states :]

    def _backward(self, d_states, needs):
        """`<cell>_layer_backward` of the chunk as a layer, from the gradients for the states after each step.

        Gradients for the input, the states before the chunk, the weights and the reset state. `needs` are without those
        for the states, which are always found.
        """
        direction, cell = self.direction, self.direction.cell

        def of_operator(states):
            return [state.unsqueeze(0).to(direction.dtype) for state in states]

        def results(states):
            h, *carried = (each[1:] for each in states)
            carried = torch.cat(carried, -1) if carried else h[..., :0]
            return h.to(direction.dtype), carried.flatten(0, 1).unsqueeze(0)

        d_output, d_carried = results(d_states)
        output, carried = results(self.states)
        is_replaced = self.reset is not None and direction.reset_state[0] is not None
        call = BackwardArguments(
            Incoming(d_output, [None] * len(d_states), d_carried if cell.carried else None),
            LayerArguments(
                self.input.to(direction.dtype),
                of_operator(states[0] for states in self.states),
                *direction.lists,
                reset=None if self.reset is None else self.reset.squeeze(-1),
                reset_state=of_operator(direction.reset_state) if is_replaced else [],
                allow_tf32=direction.allow_tf32,
            ),
            output,
            self.saved.flatten(0, 1).unsqueeze(0).to(direction.dtype),
            carried,
            [needs[0], True, *needs[1:6], any(needs[6:])],
        )
        d_input, d_initial, *d_weights, d_reset_state = OPERATORS[cell.name].backward(*call.in_a_row())
        d_reset_state = [d.squeeze(0) for d in d_reset_state] or [None] * len(d_states)  # of size [0] where not needed
        return d_input, [d[0] for d in d_initial], *map(_only, d_weights), *d_reset_state

    def _entered(self, states, reset_state):
        """The states that all steps start from, after resets."""
        return self._entering([kind[:-1] for kind in states], reset_state, slice(None))

    def _entering(self, before, reset_state, k):
        """Of states before step k, or before all, those that it starts from."""
        if self.reset is None:
            return before
        return [
            kind.masked_fill(self.reset[k], 0) if replaced is None else replaced.where(self.reset[k], kind)
            for kind, replaced in zip(before, reset_state)
        ]


def _zeros(argument, dtype):
    """Zeros of the sizes of an argument, or of each of a list."""
    if isinstance(argument, list):
        return [_zeros(tensor, dtype) for tensor in argument]
    return torch.zeros_like(argument, dtype=dtype)


def _to(argument, dtype):
    """An argument, or each of a list, in `dtype`."""
    if isinstance(argument, list):
        return [_to(tensor, dtype) for tensor in argument]
    return None if argument is None else argument.to(dtype)


def _only(tensors):
    """The one tensor of a list; None of an empty one."""
    return tensors[0] if tensors else None


def _as_rows(steps):
    """Rows of several steps, [steps, B, features], as one batch."""
    return None if steps is None else steps.flatten(0, 1)
