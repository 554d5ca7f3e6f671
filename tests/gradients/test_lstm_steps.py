"""The compiled backward pass of an LSTM's recurrence beside torch's operations and autograd."""

import pytest
import torch

from gradindex.gradients.torch.rules import lstm


def recurrence(steps, b, size, dtype):
    torch.manual_seed(steps)
    share, weights = torch.randn(steps, b, 4 * size, dtype=dtype), torch.randn(4 * size, size, dtype=dtype)
    h0, c0 = torch.randn(2, b, size, dtype=dtype)
    return share, weights / size**0.5, h0, c0


def by_autograd(share, weights, h, c):
    states = []
    for now in share:
        i, f, g, o = (now + h @ weights.t()).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        states.append(h)
    return torch.stack(states), c


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("steps", "b", "size"), [(1, 1, 1), (3, 5, 4), (7, 2, 33), (4, 64, 130)])
@pytest.mark.parametrize("way", ["_compiled", "_plain"])
def test_the_gradients_are_those_of_autograd(steps, b, size, dtype, way, monkeypatch):
    monkeypatch.setattr(lstm, "_compiled", getattr(lstm, way))
    given = recurrence(steps, b, size, dtype)
    share, h0, c0 = (one.clone().requires_grad_() for one in (given[0], *given[2:]))
    want_states, want_cell = by_autograd(share, given[1], h0, c0)
    # Not contiguous, as autograd may hand them on.
    to_states, to_cell = torch.randn(b, steps, size, dtype=dtype).transpose(0, 1), torch.randn(size, b, dtype=dtype).t()
    want = torch.autograd.grad((want_states, want_cell), (share, h0, c0), (to_states, to_cell))
    states, cell = lstm.Recurrence.apply(share, given[1], h0, c0)
    got = torch.autograd.grad((states, cell), (share, h0, c0), (to_states, to_cell))
    room = {"rtol": 1e-4, "atol": 2e-5} if dtype == torch.float32 else {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(states, want_states, **room)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, **room)
