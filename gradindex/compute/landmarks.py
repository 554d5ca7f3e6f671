"""The landmarks of a job: drawn, embedded, saved beside a store's shards, and found again."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gradindex.data.checks import check_batch, check_finite
from gradindex.data.source import Batch, Ids, rectangles
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.gradients.projector import Projector
from gradindex.job import Job
from gradindex.runtime.log import log
from gradindex.sketch import CountSketch, from_json
from gradindex.sketch.captured import record
from gradindex.sketch.landmark import LandmarkProjector, Whitening
from gradindex.store import Store, side_files

ASSET = "landmark"
_AT_ONCE = 256  # landmarks taken from the dataset at once
_EMBEDDED, _NARROW = 64, 64  # samples embedded at once for their norms alone, and numbers of their sketch, unused
_DRIFT = 4.0  # of coordinates, over what is seen of it among the landmarks themselves
_NORM_TOLERANCE = 1e-3  # of landmarks computed anew, on another machine perhaps


def bound(store: Store, job: Job, create: bool = False) -> Projector:
    """Return the projection that makes a store's rows.

    Parameters
    ----------
    store
        The store, finished or not.
    job
        Its job; landmarks' gradients are computed anew from the job's dataset.
    create
        Choose and save landmarks if there are none yet: for builders.

    Raises
    ------
    DamagedIndexError
        If the saved landmarks are missing (unless `create`) or damaged.
    MismatchError
        If the landmarks' gradients are not those of the build.
    """
    header = store.header
    projector = from_json(header.sketch).bind(job.engine.parameters, header.seed)
    if not isinstance(projector, LandmarkProjector):
        return projector
    if create and not side_files.exists(store.path, ASSET):
        ids = _drawn(projector, job)
        _save(store, projector, ids, whiten(projector, job, ids))
    return _load(store, projector, job)


def prepare(projector: Projector, job: Job) -> None:
    """Embed a projection's landmarks, drawn from the job's dataset; for others there is nothing to do."""
    if isinstance(projector, LandmarkProjector):
        whiten(projector, job, _drawn(projector, job))


def _drawn(projector: LandmarkProjector, job: Job) -> Ids:
    """Return the ids of a job's landmarks; where they are drawn by norm, from norms that are computed for it."""
    ids = projector.draw(len(job.source))
    if not projector.by_norm or len(ids) <= projector.options.landmarks:
        return ids
    norms = []
    narrow = CountSketch(_NARROW).bind(job.engine.parameters, projector.seed)
    for begin in range(0, len(ids), _AT_ONCE):
        batch = job.source.take(ids[begin : begin + _AT_ONCE])
        check_batch(batch)
        for rows, x, y in rectangles(batch.x, batch.y, _EMBEDDED):
            norms.append((batch.ids[rows], job.engine.embed(x, y, narrow).norms))
    order = np.concatenate([some for some, _ in norms])
    found = np.concatenate([some for _, some in norms])[np.argsort(order, kind="stable")]
    check_finite(ids, "gradient", found)
    return projector.choose(ids, found)


def whiten(projector: LandmarkProjector, job: Job, ids: Ids) -> Whitening:
    """Embed the landmarks `ids` of a job, and find the directions they span."""
    return projector.whiten(_adopt(projector, job, ids))


def _adopt(projector: LandmarkProjector, job: Job, ids: Ids) -> NDArray[np.float64]:
    """Embed the samples `ids` and make them the landmarks; return the norms of their covered parts."""

    def batches() -> Iterator[Batch]:
        for begin in range(0, len(ids), _AT_ONCE):
            batch = job.source.take(ids[begin : begin + _AT_ONCE])
            check_batch(batch)
            yield batch

    norms = projector.adopt(record(projector, job.engine, batches, len(ids)))
    check_finite(ids, "gradient", norms)
    return norms


def _save(store: Store, projector: LandmarkProjector, ids: Ids, found: Whitening) -> None:
    about = {"error": found.error, "forms": projector.forms}
    arrays: dict[str, NDArray[np.generic]] = {"ids": ids, "norms": found.norms, "whitening": found.matrix}
    side_files.write(store.path, store.header.seal, ASSET, arrays, about)
    skipped = [name for name, form in projector.forms.items() if form == "none"]
    log.info("%d landmarks, %d directions, ‖Δp‖ ≤ %.1e", len(ids), found.matrix.shape[1], found.error)
    if skipped:
        log.warning("no coordinates for parameters over the memory budget, only weaker bounds: %s", skipped)


def _load(store: Store, projector: LandmarkProjector, job: Job) -> LandmarkProjector:
    arrays, about = side_files.read(store.path, store.header.seal, ASSET, {"ids", "norms", "whitening"})
    ids, norms, matrix = arrays["ids"], arrays["norms"], arrays["whitening"]
    error = about.get("error")
    count = min(projector.options.landmarks, store.header.rows)
    fits = ids.shape == norms.shape == (count,) and matrix.ndim == 2 and len(matrix) == count
    fits = fits and ids.dtype.kind == "i" and bool((ids >= 0).all() and (ids < store.header.rows).all())
    if not fits or matrix.shape[1] > projector.coordinates or not isinstance(error, float) or not 0 < error < 1:
        raise DamagedIndexError(
            f"{side_files.manifest_path(store.path, ASSET)} is not of this sketch: expected {count} landmarks and at "
            f"most {projector.coordinates} directions, found arrays of shapes {ids.shape} and {matrix.shape}."
        )
    drift = 0.0
    if not projector.forms:  # not fresh from `prepare`
        now = _adopt(projector, job, ids)
        differs = np.abs(now - norms) > _NORM_TOLERANCE * (norms.max() + norms)
        if projector.forms != about.get("forms") or differs.any():
            raise MismatchError(
                f"The gradients of {int(differs.sum())} of {count} landmarks are not those that {store.path} was "
                "built with. Open it with the data and the loss of the build."
            )
        drift = _DRIFT * projector.drift(Whitening(matrix, norms, error))
    projector.use(Whitening(matrix, norms, error + drift))
    return projector
