"""Defaults that several parts share, each standing here alone. Light, so that ``gradindex --help`` may read it."""

from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Options = TypeVar("Options", bound=DataclassInstance)

NEIGHBOURS = 10
"""Proponents and opponents of a query, and the k of recall@k."""
RERANK = 50
"""Candidates of each side that are evaluated exactly: recall@10 of .999 in benchmarks/lookup.py."""
QUERIES = 200
"""Stored samples that are drawn as queries of an audit, and of a curve of recall against latency."""
SEED = 0
"""Of projections, of FAISS's training sample, and of what is drawn."""
INDEX = "auto"
"""The FAISS index: chosen by the number of rows."""
SKETCH_DIM = 1024
"""Numbers of a stored row."""
LANDMARKS, LANDMARK_DIMS, LANDMARK_RESIDUAL = 1024, 256, 0
"""Training samples of a `gradindex.Landmark` sketch, the coordinates kept, and numbers for what they leave out."""
WHITENED_LANDMARKS, WHITENED_DIMS, WHITENED_BITS = 2048, 1024, 8
"""Landmarks of rows that are made to be whitened, and numbers of a whitened row."""
BUDGET = "5%"
"""Of the training samples, what is chosen for a validation set."""
INFLUENTIAL = 10
"""Samples that are named as those that influence themselves most."""
REPORTED, REPORTED_INFLUENTIAL = 8, 12
"""Neighbours of each side of a query, and self-influential samples, in a report: whole lines of its page."""
REVIEWED = 50
"""Lines of each kind that a review shows: about an hour's looking."""
REVIEWED_SERVED = 10_000
"""Lines of each kind that the service's page pages through."""
MAPPED = 3000
"""Samples on a map: more than fit side by side on a screen, few enough to wait for t-SNE."""
PERSISTENCE = 0.9
"""Of rank-biased overlap: the first ten places have 86 % of the weight (Webber, Moffat and Zobel 2010, eq. 21)."""
REPEATS = 10
"""Models that a test of metrics trains, as many as Hanawa et al. (2021)."""
LABELS = "own"
"""Of the model randomization test: how its queries are labelled; see `gradindex.evaluation.evaluate`."""
FISHER, SOLVER = "true", "auto"
"""Of the metrics IF and FK: which Fisher matrix, and how it is inverted; see `gradindex.relevance.base.Options`."""
MEASURED_SECONDS = 60.0
"""How long a job is measured before a build of many rows is planned."""
BLOCK_ROWS = 16384
"""Stored rows that are read, compared or encoded at once: 64 MiB of 1,024 float32 numbers. One number
for all, as FAISS may round otherwise where it gets more or fewer."""


def with_given(options: "Options", **keywords: object) -> "Options":
    """Return options (a dataclass) with the keywords that are not None in the place of their own."""
    return replace(options, **{name: value for name, value in keywords.items() if value is not None})
