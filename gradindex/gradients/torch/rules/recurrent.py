"""Rules of recurrent layers: the recurrence is run step by step, so that each step's gates are in view.

The input's share of the gates is one matrix product over all steps, as in torch's own layers; with it tapped,
δ of all steps arrives at once, and the weights' factors are δ with the inputs and δ with the states before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradindex.data.names import Tree
from gradindex.gradients.torch import matmul
from gradindex.gradients.torch.capture import Capture, Make, NoRule, plain, rule
from gradindex.gradients.torch.rules.linear import bias_gradient
from gradindex.gradients.torch.rules.lstm import Recurrence
from gradindex.gradients.torch.use import Outer

Call = dict[str, Any]
_ARGUMENTS = "input, hx, weights, biases, layers, dropout, train, bidirectional, batch_first"


@dataclass(frozen=True)
class Weights:
    """The weights of one direction of one layer; the biases may be None, and so may an LSTM's projection."""

    inputs: Tensor
    states: Tensor
    input_bias: Tensor | None = None
    state_bias: Tensor | None = None
    projection: Tensor | None = None


Found = tuple[Tensor, tuple[Tensor, ...]]  # outputs (T, b, h) and the last states
Direction = Callable[[Capture, Tensor, tuple[Tensor, ...], Weights], Found]


@rule(_ARGUMENTS, torch.lstm)
def lstm(capture: Capture, function: Callable[..., Tree], call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Rule of c' = σ(f)c + σ(i)tanh(g); h' = σ(o)tanh(c'), whose gates i, f, g, o are linear in x and h."""
    output, (h, c) = _layers(capture, call, call["hx"], _lstm_direction)
    return output, h, c


def _lstm_direction(capture: Capture, x: Tensor, states: tuple[Tensor, ...], w: Weights) -> Found:
    if w.projection is not None:
        return _projected_direction(capture, x, states, w)
    before: list[Tensor] = []
    share = _tap_inputs(capture, x, w, before)
    outputs, c = Recurrence.apply(share, plain(w.states), *states)
    before.append(torch.cat([states[0].detach()[None], outputs.detach()[:-1]]))
    return outputs, (outputs[-1], c)


def _projected_direction(capture: Capture, x: Tensor, states: tuple[Tensor, ...], w: Weights) -> Found:
    """Run an LSTM whose state is h = R(o·tanh(c)) (Sak et al. 2014): δ of each h is that of a zero added to it."""
    before: list[Tensor] = []
    raw: list[Tensor] = []
    gates = _tap_inputs(capture, x, w, before)
    across, down = plain(w.states).t(), plain(w.projection).t()
    zeros = capture.tap(gates.new_zeros(len(gates), gates.shape[1], down.shape[1]), {w.projection: _with_states(raw)})
    h, c, outputs, inner = *states, [states[0]], []
    for share, zero in zip(gates.unbind(0), zeros.unbind(0), strict=True):
        i, f, g, o = torch.addmm(share, h, across).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        inner.append(torch.sigmoid(o) * torch.tanh(c))
        h = torch.addmm(zero, inner[-1], down)
        outputs.append(h)
    before.append(torch.stack(outputs[:-1]).detach())
    raw.append(torch.stack(inner).detach())
    return torch.stack(outputs[1:]), (h, c)


@rule(_ARGUMENTS, torch.rnn_tanh, torch.rnn_relu)
def rnn(capture: Capture, function: Callable[..., Tree], call: Call) -> tuple[Tensor, Tensor]:
    """Rule of h' = tanh(gates), or relu."""
    activation = torch.tanh if function == torch.rnn_tanh else torch.relu

    def direction(capture: Capture, x: Tensor, states: tuple[Tensor, ...], w: Weights) -> Found:
        before: list[Tensor] = []
        outputs, across = [states[0]], plain(w.states).t()
        for share in _tap_inputs(capture, x, w, before).unbind(0):
            outputs.append(activation(torch.addmm(share, outputs[-1], across)))
        before.append(torch.stack(outputs[:-1]).detach())
        return torch.stack(outputs[1:]), (outputs[-1],)

    output, (h,) = _layers(capture, call, (call["hx"],), direction)
    return output, h


@rule(_ARGUMENTS, torch.gru)
def gru(capture: Capture, function: Callable[..., Tree], call: Call) -> tuple[Tensor, Tensor]:
    """r, z = σ(gates); n = tanh(x's share + r·(h's share)); h' = (1−z)n + zh. The two shares have their own δ."""
    output, (h,) = _layers(capture, call, (call["hx"],), _gru_direction)
    return output, h


def _gru_direction(capture: Capture, x: Tensor, states: tuple[Tensor, ...], w: Weights) -> Found:
    before: list[Tensor] = []
    gates = matmul.linear(x, plain(w.inputs), plain(w.input_bias))
    gates = capture.tap(gates, {w.inputs: _with_inputs(x), w.input_bias: bias_gradient}, [x])
    biases = torch.zeros_like(gates) if w.state_bias is None else plain(w.state_bias).expand_as(gates).clone()
    biases = capture.tap(biases, {w.states: _with_states(before), w.state_bias: bias_gradient})
    outputs, across = [states[0]], plain(w.states).t()
    for share, bias in zip(gates.unbind(0), biases.unbind(0), strict=True):
        h = outputs[-1]
        from_x, from_h = share.chunk(3, 1), torch.addmm(bias, h, across).chunk(3, 1)
        r, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
        n = torch.tanh(from_x[2] + r * from_h[2])
        outputs.append(n + z * (h - n))
    before.append(torch.stack(outputs[:-1]).detach())
    return torch.stack(outputs[1:]), (outputs[-1],)


def _layers(
    capture: Capture, call: Call, initial: Sequence[Tensor], direction: Direction
) -> tuple[Tensor, list[Tensor]]:
    """Run all layers and directions; return the outputs and the last states, each (layers·directions, b, ·)."""
    x, weights, directions = call["input"], call["weights"], 2 if call["bidirectional"] else 1
    packed = not (isinstance(weights, tuple | list) and isinstance(call["biases"], bool))
    if packed or (call["train"] and call["dropout"]):
        raise NoRule
    each = len(weights) // (directions * call["layers"])
    projected = each == (5 if call["biases"] else 3)
    steps = x.transpose(0, 1) if call["batch_first"] else x
    last: list[tuple[Tensor, ...]] = []
    for _ in range(call["layers"]):
        outputs = []
        for backwards in range(directions):
            number = len(last)
            some = list(weights[each * number : each * (number + 1)])
            projection = some.pop() if projected else None
            own = replace(Weights(*some), projection=projection)
            states = tuple(state[number] for state in initial)
            found, final = direction(capture, steps.flip(0) if backwards else steps, states, own)
            outputs.append(found.flip(0) if backwards else found)
            last.append(final)
        steps = torch.cat(outputs, 2) if directions == 2 else outputs[0]
    output = steps.transpose(0, 1) if call["batch_first"] else steps
    return output, [torch.stack(states) for states in zip(*last, strict=True)]


def _tap_inputs(capture: Capture, x: Tensor, w: Weights, before: list[Tensor]) -> Tensor:
    """Return the input's share of the gates (T, b, ·), biases included; its δ is that of the state's share.

    `before`, the states (T, b, h) before each step, may be filled in later.
    """
    bias = None if w.input_bias is None else plain(w.input_bias) + plain(w.state_bias)
    uses = {
        w.inputs: _with_inputs(x),
        w.states: _with_states(before),
        w.input_bias: bias_gradient,
        w.state_bias: bias_gradient,
    }
    return capture.tap(matmul.linear(x, plain(w.inputs), bias), uses, [x])


def _with_inputs(x: Tensor) -> Make:
    a = x.detach()
    return lambda g, at: Outer(at.positions(g), at.positions(a))


def _with_states(before: list[Tensor]) -> Make:
    return lambda g, at: Outer(at.positions(g), at.positions(before[0]))
