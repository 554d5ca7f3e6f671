"""Products of the Hessian of the mean training loss with vectors, PyTorch: forward over reverse mode."""

import warnings
from typing import Any

import numpy as np
import torch
from torch.func import grad, jvp, vmap

from gradindex.job import Job
from gradindex.relevance.base import Rows
from gradindex.relevance.curvature import Product

_BATCH = 1024


def hessian_product(job: Job) -> Product:
    """Return the function (k, P) -> (k, P) that multiplies rows with the Hessian."""
    engine: Any = job.engine
    source = job.source

    def product(rows: Rows) -> Rows:
        total = np.zeros(rows.shape)
        vectors = torch.as_tensor(rows.astype(engine.dtype), device=engine.device)
        for batch in source.blocks(_BATCH):
            x, y = engine._tensors(batch.x), engine._targets(batch.y)
            engine._look(x, y)
            with engine._inference(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)  # torch's own
                total += _block(engine, x, y, vectors).double().cpu().numpy()
        return total / len(source)

    return product


def _block(engine: Any, x: Any, y: Any, vectors: torch.Tensor) -> torch.Tensor:
    weights = engine._weights()

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return engine._sample_losses(values, x, y).sum()

    def one(vector: torch.Tensor) -> torch.Tensor:
        tangents = {p.name: vector[place].reshape(p.shape).to(weights[p.name].dtype) for p, place in engine.slices()}
        _, change = jvp(grad(loss), (weights,), (tangents,))
        return torch.cat([change[p.name].flatten() for p in engine.parameters])

    return vmap(one)(vectors)
