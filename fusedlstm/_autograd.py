"""The derivatives of the operators of layers, as autograd functions; and what calls them.

Written out instead of `torch.library.register_autograd`, which flattens lists of tensors by a general tree walk in
every call: that took longer than a whole small layer. Arguments here are the cell's name and the operator's, as one
tuple, then all that can have gradients, flat.

The functions of torch.func transforms (vjp, grad, jacrev) do the same in the form that those ask for. Calling them
takes longer, since PyTorch inspects their signatures each time.
"""

from __future__ import annotations

import functools

import torch
from torch.nn import Parameter

from fusedlstm import _transforms, reference
from fusedlstm._arguments import (
    BackwardArguments,
    Incoming,
    LayerArguments,
    by_kind,
    flat,
    flat_tensors,
    layer_arguments,
    list_sizes,
)
from fusedlstm._namespace import NAMESPACE
from fusedlstm._out_of_memory import raises_out_of_memory
from fusedlstm._private_torch import below_autograd, number_of_pass, plain_apply, will_run
from fusedlstm._second_order import second_order
from fusedlstm.cells import CELLS
from fusedlstm.ops import OPERATORS


class _Layer(torch.autograd.Function):
    """`<cell>_layer` with its derivative."""

    # No setup_context: with it, every call of apply inspects the signature, for 50 microseconds.
    @staticmethod
    def forward(ctx, name, layer, *tensors):
        with below_autograd():
            output, last, saved, carried = OPERATORS[name].layer(*layer)
        results = output, *last, saved, carried
        _Layer.keep(ctx, (name, layer, *tensors), results)
        return results

    @staticmethod
    def keep(ctx, inputs, results):
        ctx.name, layer, *tensors = inputs
        output, *_, saved, carried = results
        ctx.list_sizes, ctx.allow_tf32 = list_sizes(layer), layer.allow_tf32
        ctx.mark_non_differentiable(saved, *([] if CELLS[ctx.name].carried else [carried]))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, saved, carried, layer.batch_sizes, layer.lengths, layer.reset, *tensors)

    @staticmethod
    @raises_out_of_memory
    def backward(ctx, d_output, *d_others):
        *d_last, _, d_carried = d_others
        saved = ctx.saved_tensors  # to be asked for once: checkpoints count
        *kept, batch_sizes, lengths, reset = saved[:6]
        tensors = saved[6:]
        asked = asked_of(ctx, tensors)
        layer = layer_arguments(by_kind(tensors, ctx.list_sizes), batch_sizes, lengths, reset, ctx.allow_tf32)
        incoming = Incoming(d_output, d_last, d_carried)
        needs = list(map(any_of, by_kind(asked, ctx.list_sizes)))
        found = flat(gradients_of_layer(ctx.name, BackwardArguments(incoming, layer, *kept, needs)))
        return (None, None, *[gradient if ask else None for gradient, ask in zip(found, asked)])


class _Gradients(torch.autograd.Function):
    """`<cell>_layer_backward` with its derivative, for the incoming gradients and for the layer's arguments.

    Its arguments output, saved and carried are functions of the layer's arguments: what flows through them is counted
    there.
    """

    @staticmethod
    def forward(ctx, name, arguments, *tensors):
        with below_autograd():
            results = flat(OPERATORS[name].backward(*arguments.in_a_row()))
        _Gradients.keep(ctx, (name, arguments, *tensors), results)
        return results

    @staticmethod
    def keep(ctx, inputs, _):
        ctx.name, arguments, *tensors = inputs
        incoming, layer, output, saved, carried, ctx.needs = arguments
        ctx.states, ctx.list_sizes, ctx.allow_tf32 = len(incoming.last), list_sizes(layer), layer.allow_tf32
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(output, saved, carried, layer.batch_sizes, layer.lengths, layer.reset, *tensors)

    @staticmethod
    @raises_out_of_memory
    def backward(ctx, *flat_cotangents):
        saved = ctx.saved_tensors
        *results, batch_sizes, lengths, reset = saved[:6]
        incoming, tensors = _incoming_and_others(saved[6:], ctx.states)
        asked_incoming, asked_tensors = _incoming_and_others(asked_of(ctx, saved[6:]), ctx.states)
        layer = layer_arguments(by_kind(tensors, ctx.list_sizes), batch_sizes, lengths, reset, ctx.allow_tf32)
        cotangents = by_kind(flat_cotangents, ctx.list_sizes)
        cotangents = cotangents._make(u if need else _nothing(u) for u, need in zip(cotangents, ctx.needs))
        asked = list(map(any_of, by_kind(asked_tensors, ctx.list_sizes)))
        found_incoming, found = second_order(
            CELLS[ctx.name], layer, incoming, results, cotangents, Incoming(*map(any_of, asked_incoming)), asked
        )
        d_output, d_last, d_carried = found_incoming
        found = [d_output, *d_last, d_carried, *flat(found)]
        return (None, None, *[one if ask else None for one, ask in zip(found, ctx.needs_input_grad[2:])])


class _TransformedLayer(torch.autograd.Function):
    """`_Layer` for transforms of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name, layer, *tensors):
        output, last, saved, carried = OPERATORS[name].layer(*layer)
        return output, *last, saved, carried

    setup_context = _Layer.keep
    backward = _Layer.backward


class _TransformedGradients(torch.autograd.Function):
    """`_Gradients` for transforms of torch.func."""

    generate_vmap_rule = True

    @staticmethod
    def forward(name, arguments, *tensors):
        return flat(OPERATORS[name].backward(*arguments.in_a_row()))

    setup_context = _Gradients.keep
    backward = _Gradients.backward


# Under vmap, the rule in _vmap.py comes first, and what arrives here are plain tensors.
_apply_layer, _apply_gradients = map(plain_apply, (_Layer, _Gradients))


def _layer(apply, name, *arguments):
    layer = LayerArguments(*arguments)
    output, *last, saved, carried = apply(name, layer, *flat_tensors(layer))
    return output, last, saved, carried


# `<cell>_layer` of tensors of which some require gradients: what the operator does at the Autograd keys. To call it is
# the same as to call the operator, and faster: on the dispatcher's way there, all arguments and results are converted
# there and back.
LAYERS = {name: functools.partial(_layer, _apply_layer, name) for name in CELLS}
# The same under transforms of torch.func that take gradients.
TRANSFORMED_LAYERS = {name: functools.partial(_layer, _TransformedLayer.apply, name) for name in CELLS}


def gradients_of_layer(name, arguments: BackwardArguments):
    """What `<cell>_layer_backward` returns, in the backward of an autograd function."""
    if _transforms.need_reference():
        return reference.layer_backward(CELLS[name], *arguments.in_a_row())
    if _transforms.is_differentiating():
        return _differentiable(_TransformedGradients.apply, name, arguments)
    if _transforms.are_active():  # vmap, whose rule comes first, or a compiler
        return OPERATORS[name].backward(*arguments.in_a_row())
    if torch.is_grad_enabled():  # double backward
        return _differentiable(_apply_gradients, name, arguments)
    with below_autograd():
        return OPERATORS[name].backward(*arguments.in_a_row())


def _differentiable(apply, name, arguments: BackwardArguments):
    d_output, d_last, d_carried = arguments.incoming
    layer = arguments.layer
    found = apply(name, arguments, d_output, *d_last, d_carried, *flat_tensors(layer))
    return tuple(by_kind(found, list_sizes(layer)))


def _incoming_and_others(in_a_row, states) -> tuple[Incoming, tuple]:
    """What is given for each incoming gradient, and what follows."""
    d_output, *d_last, d_carried = in_a_row[: states + 2]
    return Incoming(d_output, d_last, d_carried), in_a_row[states + 2 :]


def asked_of(ctx, tensors, given_at=None) -> list[bool]:
    """Of the last arguments of an autograd function, tensors or None, those whose gradients this pass asks for.

    given_at: as of `asked_in_pass`.
    """
    if torch.compiler.is_compiling() or _transforms.are_active():
        return list(ctx.needs_input_grad[-len(tensors) :])
    return asked_in_pass(ctx, tensors, given_at)


def asked_in_pass(ctx, tensors, given_at=None) -> list[bool]:
    """The same outside of all that compiles the pass or transforms it, but for the older vmap, whose pass is like any.

    Without a look at the pass, torch.autograd.grad for the input alone would compute the gradients of all weights.
    Where it returns that of a parameter, all parameters that the pass comes to from there on are taken to be asked for,
    as nearly always they are: to be told of each would take longer than to compute it.

    Args:
        given_at: where the first tensor is a result of a step, the place from which on `tensors` are what it was given.
            A pass comes to that result for one of these: if for none of the others, then for parameters, which are not
            asked about then.
    """
    global _pass_for_parameters
    asked = list(ctx.needs_input_grad[-len(tensors) :])
    nodes = ctx.next_functions  # of the arguments that are tensors
    if len(nodes) < len(tensors):
        nodes = iter(nodes)
        nodes = [(None, 0) if tensor is None else next(nodes) for tensor in tensors]
    others = [place for place, tensor in enumerate(tensors) if asked[place] and type(tensor) is not Parameter]
    own_pass = number_of_pass()
    if given_at is not None:
        _ask(nodes, others, asked)
        if asked[0] and True not in [asked[place] for place in others if place >= given_at]:
            _pass_for_parameters = own_pass
    if own_pass != _pass_for_parameters:
        for place, tensor in enumerate(tensors):
            if asked[place] and type(tensor) is Parameter:
                will = will_run(nodes[place][0])
                if will is None:
                    _pass_for_parameters = own_pass
                    break
                asked[place] = will
    if given_at is None:
        _ask(nodes, others, asked)
    return asked


def _ask(nodes, places, asked) -> None:
    """Takes out of `asked` those of these places that the pass does not come to."""
    for place in reversed(places):
        if asked.count(True) == 1:
            break  # the pass would not come here for nothing; to be told so of a leaf takes long
        will = will_run(nodes[place][0])
        if will is not None:
            asked[place] = will


# The number of the last pass that is known to return gradients of parameters, see `asked_in_pass`.
_pass_for_parameters = -1


def any_of(needs) -> bool:
    return any(needs) if isinstance(needs, (list, tuple)) else needs


def _nothing(cotangents):
    return [None] * len(cotangents) if isinstance(cotangents, (list, tuple)) else None


def _layer_at_autograd_keys(name, *arguments):
    """`<cell>_layer` at the Autograd keys.

    AOTInductor's executor passes None for an empty list of tensors: accepted here, on the way.
    """
    layer = LayerArguments(*arguments)
    layer = LayerArguments(layer.input, *[tensors or [] for tensors in layer[1:7]], *layer[7:])
    layer = layer._replace(reset_state=layer.reset_state or [])
    if _requires_gradients(flat_tensors(layer)):
        return LAYERS[name](*layer)
    with below_autograd():
        return OPERATORS[name].layer(*layer)


def _gradients_at_autograd_keys(name, *arguments):
    """`<cell>_layer_backward` at the Autograd keys."""
    given = BackwardArguments.of(arguments)
    d_output, d_last, d_carried = given.incoming
    if _requires_gradients((d_output, *d_last, d_carried, *flat_tensors(given.layer))):
        return _differentiable(_apply_gradients, name, given)
    with below_autograd():
        return OPERATORS[name].backward(*arguments)


def _requires_gradients(tensors) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _quantized_layer(operator, *arguments):
    """`<cell>_layer_quantized` of tensors that require no gradients: the shorter way to the operator, as of LAYERS."""
    with below_autograd():
        return operator(*arguments)


QUANTIZED_LAYERS = {name: functools.partial(_quantized_layer, of.quantized) for name, of in OPERATORS.items()}


def _quantized_layer_at_autograd_keys(name, input, initial, weights, batch_sizes, lengths, reset, reset_state):
    """`<cell>_layer_quantized` at the Autograd keys, where graphs call it.

    It has no derivative. AOTInductor's executor passes None for an empty list of tensors; and lists are made anew here:
    out of one that is a constant of a frozen TorchScript graph, PyTorch takes the tensors when it calls the kernel.
    """
    initial, reset_state = initial or [], reset_state or []
    if _requires_gradients((input, *initial, *weights, *reset_state)):
        refuse_gradients_of_quantized()
    return QUANTIZED_LAYERS[name](input, initial, weights, batch_sizes, lengths, reset, reset_state)


def refuse_gradients_of_quantized():
    raise RuntimeError(
        "Quantized layers are for inference: expected arguments without gradients, got one that requires them; call "
        "the model under torch.no_grad()"
    )


_library_rules = torch.library.Library(NAMESPACE, "IMPL")
for _name, _operators in OPERATORS.items():
    _library_rules.impl(_operators.layer, functools.partial(_layer_at_autograd_keys, _name), "Autograd")
    _library_rules.impl(_operators.backward, functools.partial(_gradients_at_autograd_keys, _name), "Autograd")
    _library_rules.impl(_operators.quantized, functools.partial(_quantized_layer_at_autograd_keys, _name), "Autograd")
