"""The backward step of an LSTM, in one pass over memory; as torch operations it takes a dozen.

On other devices than processors, and in half precision, torch's operations do the same.
"""

import numpy as np
from numpy.typing import NDArray

from gradindex.compiled.jit import compiled


@compiled()
def step_back(
    gates: NDArray[np.float32],
    before: NDArray[np.int64],
    squashed: NDArray[np.float32],
    to_state: NDArray[np.float32],
    from_next: NDArray[np.float32],
    cell: NDArray[np.float32],
    out: NDArray[np.float32],
) -> None:
    """Write the gradients of one step's gates, and carry that of its cell on to the step before.

    With c' = f·c + i·g and h' = o·tanh(c'), and i, f, o = σ(·), g = tanh(·).

    Parameters
    ----------
    gates
        i, f, g, o: (b, 4, h).
    before
        The cells c before this step, (b, h).
    squashed
        tanh(c'), (b, h).
    to_state
        The gradient of h' from this step's output, (b, h).
    from_next
        The gradient of h' from the step after, (b, h).
    cell
        The gradient of c' from the step after, (b, h); becomes that of c.
    out
        The gradients of what the gates are computed from, (b, 4, h).
    """
    # Loops of few arrays each: LLVM makes vectors of them only if it can compare all addresses.
    for n in range(len(gates)):
        i, f, g, o, tanh = gates[n, 0], gates[n, 1], gates[n, 2], gates[n, 3], squashed[n]
        now, later, dc, c = to_state[n], from_next[n], cell[n], before[n]
        of_i, of_f, of_g, of_o = out[n, 0], out[n, 1], out[n, 2], out[n, 3]
        for k in range(len(o)):
            of_o[k] = (now[k] + later[k]) * (o[k] * (1 - o[k]) * tanh[k])
        for k in range(len(o)):
            dc[k] += (now[k] + later[k]) * (o[k] * (1 - tanh[k] * tanh[k]))
        for k in range(len(o)):
            of_i[k] = dc[k] * (i[k] * (1 - i[k]) * g[k])
        for k in range(len(o)):
            of_g[k] = dc[k] * (i[k] * (1 - g[k] * g[k]))
        for k in range(len(o)):
            of_f[k] = dc[k] * (f[k] * (1 - f[k]) * c[k])
        for k in range(len(o)):
            dc[k] *= f[k]
