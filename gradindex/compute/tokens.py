"""Products of gradients with those of single tokens, compared with training steps before they are called exact.

Influence is linear in the loss of either side, and the losses of tokens add up to that of their text. So one pass in
forward mode along a gradient gives its products with the gradients of all tokens of a text, and of all texts in a
batch.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gradindex.compute.blocks import default_batch_size
from gradindex.compute.exact import gradient_blocks
from gradindex.compute.held_queries import dots
from gradindex.data.checks import check_finite
from gradindex.data.source import Batch, Ids, Source, leaves, rectangles
from gradindex.gradients.engine import Engine
from gradindex.gradients.parameter import Floats
from gradindex.gradients.paths import is_out_of_memory
from gradindex.gradients.signals import FORWARD
from gradindex.gradients.ways import STEPS, TOKENS, Truth, WayDiffers
from gradindex.runtime.log import log
from gradindex.runtime.stages import stage

# Tokens in a pass, those of a text for each direction counted: 200 MB of outputs where a model knows 50,000 tokens.
_POSITIONS = 1024
_MOST = 64  # texts, or directions, in a pass


@dataclass(frozen=True)
class TokenProducts:
    """Products of a gradient with those of the tokens of some texts, an array (t,) for each.

    `losses`, what each token gives to its text's loss (t,); `method` says how they were computed.
    """

    products: list[NDArray[np.float64]]
    losses: list[NDArray[np.float64]]
    method: str


@dataclass(frozen=True)
class QueryTokens:
    """Products of the gradients of a query's tokens with those of samples `ids` (n,): (n, t).

    `whole` (n,) are the products of the query's own gradient; `losses`, those of the samples by their ids; `method`
    says how the tokens' products were computed.
    """

    ids: Ids
    products: NDArray[np.float64]
    whole: NDArray[np.float64]
    losses: dict[int, float]
    method: str


_Result = TypeVar("_Result")


@stage("tokens")
def of_samples(
    engine: Engine, source: Source, ids: Ids, gradient: Floats, whole: NDArray[np.float64], lengths: NDArray[np.float64]
) -> TokenProducts:
    """Return the products of one gradient with those of all tokens of some samples.

    Parameters
    ----------
    engine, source
        The model, and the dataset that `ids` (n,) are positions in.
    ids
        Samples, each once.
    gradient
        A query's gradient (P,).
    whole, lengths
        Its exact products with the samples' gradients (n,), NaN where they are not known, and the norms of these (n,).

    Raises
    ------
    TypeError
        If the loss is not made of the losses of tokens.
    """
    batch = source.take(ids)
    direction = Truth(gradient, math.inf)

    def forward() -> TokenProducts:
        products, losses = _forward(engine, batch, gradient)
        known = np.isfinite(whole)
        sums = np.array([one.sum() for one in products])
        engine.ways.check_sums(TOKENS, sums[known], whole[known], direction.norm, lengths[known])
        passes = -(-len(batch) // _MOST)
        places = [(i, int(j)) for i, one in enumerate(losses) for j in np.flatnonzero(one)]
        _compare(engine, passes, [(batch, i, j, direction, float(products[i][j])) for i, j in places])
        return TokenProducts(products, losses, TOKENS)

    def steps() -> TokenProducts:
        found = [_by_steps(engine, _one(batch, i), gradient[None]) for i in range(len(batch))]
        return TokenProducts([products[0] for products, _ in found], [losses for _, losses in found], STEPS)

    return _first_that_works(engine, forward, steps)


@stage("tokens")
def of_query(engine: Engine, source: Source, one: Batch, gradient: Floats, ids: Ids, batch_size: int) -> QueryTokens:
    """Return the products of the gradients of a query's tokens with those of some samples.

    The gradient of each sample is formed, and forward mode goes along it once for all tokens.

    Parameters
    ----------
    engine, source
        The model, and the dataset that `ids` (n,) are positions in.
    one
        The query, a batch of one.
    gradient
        Its gradient (P,), by a training step.
    ids
        Samples, each once, ascending.
    batch_size
        Samples whose gradients are formed at once, at most.

    Raises
    ------
    TypeError
        If the loss is not made of the losses of tokens.
    """
    losses = engine.token_losses(one.x, one.y)
    most = min(batch_size, default_batch_size(engine), _MOST)
    size = int(np.clip(_POSITIONS // len(losses), 1, most))
    (_, x, y), *_ = rectangles(one.x, one.y)
    query, labelled = Truth(gradient, math.inf), np.flatnonzero(losses)

    def along(directions: Floats) -> NDArray[np.float64]:
        products: NDArray[np.float64] = engine.token_products(x, y, directions)[0][:, 0]
        return products

    def every(products_of: Callable[[Floats], NDArray[np.float64]], method: str) -> QueryTokens:
        found, whole, sample_losses = np.empty((len(ids), len(losses))), np.empty(len(ids)), dict[int, float]()
        begin = 0
        for block, formed in gradient_blocks(engine, source, ids, size):
            here = slice(begin, begin := begin + len(block))
            part = found[here] = products_of(formed.gradients)
            whole[here] = dots(gradient[None], formed.gradients)[0]
            sample_losses.update(zip(block.ids.tolist(), formed.losses.tolist(), strict=True))
            if method == STEPS:
                continue
            truths = [Truth(row, float(loss)) for row, loss in zip(formed.gradients, formed.losses, strict=True)]
            lengths = np.array([true.norm for true in truths])
            engine.ways.check_sums(TOKENS, part.sum(axis=1), whole[here], query.norm, lengths)
            places = [(i, int(j)) for i in range(len(block)) for j in labelled]
            _compare(engine, 1, [(one, 0, j, truths[i], float(part[i, j])) for i, j in places])
        return QueryTokens(ids, found, whole, sample_losses, method)

    return _first_that_works(
        engine,
        lambda: every(along, TOKENS),
        lambda: every(lambda directions: _by_steps(engine, one, directions)[0], STEPS),
    )


def _first_that_works(engine: Engine, forward: Callable[[], _Result], steps: Callable[[], _Result]) -> _Result:
    """Return products by forward mode, or, where that fails or disagrees with training steps, by such steps."""
    if engine.ways.usable(FORWARD) and engine.ways.usable(TOKENS):
        try:
            return forward()
        except WayDiffers as error:
            log.warning("%s, so a training step is taken for each token", error)
        except TypeError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            log.warning("no %s for this model, so a training step is taken for each token: %s", TOKENS, error)
    return steps()


def _forward(
    engine: Engine, batch: Batch, gradient: Floats
) -> tuple[list[NDArray[np.float64]], list[NDArray[np.float64]]]:
    """Return products (t,) of a gradient with those of the tokens of each sample, and the tokens' losses (t,)."""
    products: list[NDArray[np.float64]] = [np.empty(0)] * len(batch)
    losses = list(products)
    for rows, x, y in rectangles(batch.x, batch.y):
        tokens = max((int(np.prod(leaf.shape[1:])) for leaf in leaves(y) if not isinstance(leaf, list)), default=1)
        size = int(np.clip(_POSITIONS // max(1, tokens), 1, _MOST))
        for begin in range(0, len(rows), size):
            some = slice(begin, begin + size)
            part = Batch(batch.ids[rows], x, y).select(some)
            found, each = engine.token_products(part.x, part.y, gradient)
            check_finite(part.ids, "gradient", found)
            for row, product, loss in zip(rows[some], found, each, strict=True):
                products[row], losses[row] = product, loss
    return products, losses


_Compared = tuple[Batch, int, int, Truth, float]
"""A batch, the place of a sample in it, a token of that, a direction, and the product that was found."""


def _compare(engine: Engine, passes: int, places: list[_Compared]) -> None:
    """Compare some of the products that were found with those of training steps on one token, if that is due."""
    ways = engine.ways
    count = min(ways.due(TOKENS, passes), len(places))
    if not count:
        return
    chosen = np.random.default_rng(ways.compared).choice(len(places), count, replace=False).tolist()
    ways.check(
        TOKENS,
        (
            (direction, ways.token_truth(_one(batch, sample), token), product)
            for batch, sample, token, direction, product in (places[place] for place in sorted(chosen))
        ),
    )


def _one(batch: Batch, place: int) -> Batch:
    return batch.select(slice(place, place + 1))


def _token_gradients(engine: Engine, one: Batch, losses: NDArray[np.float64]) -> Iterator[tuple[int, Floats]]:
    """Yield the tokens that have a loss, with their gradients (P,): the loop that faster ways are compared with."""
    for token in np.flatnonzero(losses):
        yield int(token), engine.token_gradient(one.x, one.y, int(token)).gradients[0]


def _by_steps(engine: Engine, one: Batch, directions: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return products (n, t) of directions with the gradients of a sample's tokens, by a training step for each."""
    losses = engine.token_losses(one.x, one.y)
    out = np.zeros((len(directions), len(losses)))
    for token, gradient in _token_gradients(engine, one, losses):
        out[:, token] = dots(directions, gradient[None])[:, 0]
    return out, losses
