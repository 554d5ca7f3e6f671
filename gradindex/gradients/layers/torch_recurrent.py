"""Rules of recurrent layers: the recurrence is run step by step, so that each step's gates are in view.

The input's share of the gates is one matrix product over all steps, as in torch's own layers; with it tapped,
δ of all steps arrives at once, and the weights' factors are δ with the inputs and δ with the states before.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gradindex.gradients.layers.torch_capture import Capture, NoRule, plain, rule
from gradindex.gradients.layers.torch_linear import bias_gradient
from gradindex.gradients.layers.torch_use import Outer

Call = dict[str, Any]
_ARGUMENTS = "input, hx, weights, biases, layers, dropout, train, bidirectional, batch_first"


@dataclass(frozen=True)
class Weights:
    """The weights of one direction of one layer; the biases may be None."""

    inputs: Tensor
    states: Tensor
    input_bias: Tensor | None = None
    state_bias: Tensor | None = None


Direction = Callable[[Capture, Tensor, tuple[Tensor, ...], Weights], tuple[list[Tensor], tuple[Tensor, ...]]]


@rule(_ARGUMENTS, torch.lstm)
def lstm(capture: Capture, function: Callable[..., Any], call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """i, f, g, o = gates; c' = σ(f)c + σ(i)tanh(g); h' = σ(o)tanh(c')."""

    def step(gates: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = gates.chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c

    output, (h, c) = _layers(capture, call, call["hx"], _joint(step))
    return output, h, c


@rule(_ARGUMENTS, torch.rnn_tanh, torch.rnn_relu)
def rnn(capture: Capture, function: Callable[..., Any], call: Call) -> tuple[Tensor, Tensor]:
    """Rule of h' = tanh(gates), or relu."""
    activation = torch.tanh if function == torch.rnn_tanh else torch.relu

    def step(gates: Tensor, h: Tensor) -> tuple[Tensor]:
        return (activation(gates),)

    output, (h,) = _layers(capture, call, (call["hx"],), _joint(step))
    return output, h


@rule(_ARGUMENTS, torch.gru)
def gru(capture: Capture, function: Callable[..., Any], call: Call) -> tuple[Tensor, Tensor]:
    """r, z = σ(gates); n = tanh(x's share + r·(h's share)); h' = (1−z)n + zh. The two shares have their own δ."""
    output, (h,) = _layers(capture, call, (call["hx"],), _gru_direction)
    return output, h


def _layers(
    capture: Capture, call: Call, initial: Sequence[Tensor], direction: Direction
) -> tuple[Tensor, list[Tensor]]:
    """Run all layers and directions; return the outputs and the last states, each (layers·directions, b, h)."""
    x, weights, directions = call["input"], call["weights"], 2 if call["bidirectional"] else 1
    each = 4 if call["biases"] else 2
    packed = not (isinstance(weights, tuple | list) and isinstance(call["biases"], bool))
    if packed or len(weights) != each * directions * call["layers"] or (call["train"] and call["dropout"]):
        raise NoRule
    steps = x.transpose(0, 1) if call["batch_first"] else x
    last: list[tuple[Tensor, ...]] = []
    for _ in range(call["layers"]):
        outputs = []
        for backwards in range(directions):
            number = len(last)
            own = Weights(*weights[each * number : each * (number + 1)])
            states = tuple(state[number] for state in initial)
            found, final = direction(capture, steps.flip(0) if backwards else steps, states, own)
            outputs.append(torch.stack(found[::-1] if backwards else found))
            last.append(final)
        steps = torch.cat(outputs, 2) if directions == 2 else outputs[0]
    return (steps.transpose(0, 1) if call["batch_first"] else steps), [torch.stack(s) for s in zip(*last, strict=True)]


def _joint(step: Callable[..., tuple[Tensor, ...]]) -> Direction:
    """Return the recurrence of a cell whose gates are the sum of the input's and the state's shares."""

    def run(
        capture: Capture, x: Tensor, states: tuple[Tensor, ...], w: Weights
    ) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        before: list[Tensor] = []
        bias = None if w.input_bias is None else plain(w.input_bias) + plain(w.state_bias)
        gates = _tap_inputs(capture, F.linear(x, plain(w.inputs), bias), x, w, {w.states: before, w.state_bias: None})
        outputs = []
        across = plain(w.states).t()
        for share in gates.unbind(0):
            before.append(states[0].detach())
            states = step(torch.addmm(share, states[0], across), *states)
            outputs.append(states[0])
        return outputs, states

    return run


def _gru_direction(
    capture: Capture, x: Tensor, states: tuple[Tensor, ...], w: Weights
) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    before: list[Tensor] = []
    gates = _tap_inputs(capture, F.linear(x, plain(w.inputs), plain(w.input_bias)), x, w, {})
    biases = torch.zeros_like(gates) if w.state_bias is None else plain(w.state_bias).expand_as(gates).clone()
    biases = _tap_states(capture, biases, w, before)
    (h,), outputs, across = states, [], plain(w.states).t()
    for share, bias in zip(gates.unbind(0), biases.unbind(0), strict=True):
        before.append(h.detach())
        from_x, from_h = share.chunk(3, 1), torch.addmm(bias, h, across).chunk(3, 1)
        r, z = torch.sigmoid(from_x[0] + from_h[0]), torch.sigmoid(from_x[1] + from_h[1])
        n = torch.tanh(from_x[2] + r * from_h[2])
        h = n + z * (h - n)
        outputs.append(h)
    return outputs, (h,)


def _tap_inputs(capture: Capture, gates: Tensor, x: Tensor, w: Weights, more: dict[Any, list[Tensor] | None]) -> Tensor:
    """Tap the input's share of the gates (T, b, ·); `more` are weights that have the same δ."""
    a = x.detach()
    uses: dict[Any, Any] = {
        w.inputs: lambda g, at: Outer(at.positions(g), at.positions(a)),
        w.input_bias: bias_gradient,
    }
    for tensor, before in more.items():
        uses[tensor] = bias_gradient if before is None else _with_states(before)
    return capture.tap(gates, uses, [a])


def _tap_states(capture: Capture, gates: Tensor, w: Weights, before: list[Tensor]) -> Tensor:
    return capture.tap(gates, {w.states: _with_states(before), w.state_bias: bias_gradient})


def _with_states(before: list[Tensor]) -> Callable[[Tensor, Any], Outer]:
    return lambda g, at: Outer(at.positions(g), at.positions(torch.stack(before)))
