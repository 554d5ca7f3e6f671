"""Building an index on disk, shard by shard, and opening it again."""

import shutil
import time
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from gradindex import landmarks
from gradindex.embedding import Block, embed_rows, embedding_batch_size
from gradindex.errors import IndexExistsError, MismatchError
from gradindex.gradients.base import log
from gradindex.index import factory
from gradindex.index.index import Index
from gradindex.job import Job
from gradindex.progress import progress_bar
from gradindex.sketch import CountSketch, Sketch
from gradindex.sketch.hashing import check_seed
from gradindex.store import Header, Rows, Store
from gradindex.store.manifest import read_json
from gradindex.store.shard import normalise
from gradindex.store.store import HEADER, model_differences

_SHARD_BYTES = 128 << 20


def build(
    job: Job,
    out: str | Path,
    *,
    sketch: Sketch | None = None,
    index: str = "auto",
    seed: int = 0,
    batch_size: int | None = None,
    shard_rows: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Index:
    """Embed a job's dataset into a store at `out`, build its FAISS index, and open it.

    An interrupted build of the same job is continued: published shards are kept.

    Parameters
    ----------
    job
        Model, loss and dataset.
    out
        A directory, new or holding an unfinished build of the same job.
    sketch
        The projection; ``CountSketch(1024)`` by default.
    index
        ``'auto'`` (exact up to 100,000 rows, then ``IVF…,SQ8`` on the folded sketch) or a FAISS factory string.
    seed
        Seed of the projection and of FAISS's training sample.
    batch_size
        Samples at once; None finds a size that takes about 1 GiB, at most 128 (512 of small samples).
    shard_rows
        Rows of a shard; None: as many as 128 MiB hold.
    overwrite
        Replace an index that is already there. The new one is built beside it (in ``.<name>.building``) and takes
        its place when finished, so that a build that fails or is killed leaves the old one as it was.
    progress
        Show a progress bar; None: only on a terminal.

    Raises
    ------
    IndexExistsError
        If `out` holds a finished index, or something that is no index.
    MismatchError
        If `out` holds an unfinished build of something else.
    ValueError
        If FAISS does not know `index`, the dataset is empty, or data, losses or gradients are not finite (the
        message names the ids).
    """
    out = Path(out)
    sketch = sketch or CountSketch()
    header = _header(job, sketch, check_seed(seed), batch_size, shard_rows)
    factory.plan(header, index)  # a mistake here should not cost an embedding
    if overwrite:
        _undo(out)
    if overwrite and (out / HEADER).exists():
        aside = _beside(out, header)
        _fill(job, aside, index, progress)
        _replace(out, aside.path)
        return Index(Store.open(out), job)
    store = Store.create(out, header)
    if not store.missing() and factory.exists(store):
        raise IndexExistsError(
            f"{out} already holds an index of {len(store)} samples. Open it with gradindex.load, give another "
            "directory, or overwrite it (overwrite=True, --overwrite)."
        )
    _fill(job, store, index, progress)
    return Index(store, job)


def load(path: str | Path, job: Any = None, **options: Any) -> Any:
    """Open what was saved at `path`.

    Parameters
    ----------
    path
        A directory made by `build`, or by `GradientSimilarity.save`.
    job
        For an index: the job it was built from; needed only for new queries and exact scores. For an
        explainer: its predictor.
    **options
        For an explainer: see `GradientSimilarity.load`.

    Returns
    -------
    Index or GradientSimilarity
        Whichever was saved.

    Raises
    ------
    FileNotFoundError
        If there is neither.
    MismatchError
        If the index was built with another model, parameter set or number of samples; names the difference.
    DamagedIndexError
        If the index is incomplete or damaged.
    """
    from gradindex.explainer import MANIFEST, GradientSimilarity

    path = Path(path)
    if (path / MANIFEST).exists():
        return GradientSimilarity.load(path, job, **options)
    store = Store.open(path)
    if job is not None:
        check_job(store, job)
    return Index(store, job)


def check_job(store: Store, job: Job) -> None:
    """Raise MismatchError unless the job's model, parameters and number of samples are the store's."""
    saved = store.header
    differences = model_differences(saved, _header(job, CountSketch(), 0, 1, 1))
    if len(job.source) != saved.rows:
        differences.append(f"the dataset has {len(job.source)} samples, the index {saved.rows}")
    if differences:
        raise MismatchError(f"{store.path} was built from something else: {'; '.join(differences)}.")


def _header(job: Job, sketch: Sketch, seed: int, batch_size: int | None, shard_rows: int | None) -> Header:
    engine = job.engine
    fitting = embedding_batch_size(job)  # decides the paths that the header reports, too
    dim = sketch.bind(engine.parameters, seed).width
    return Header(
        rows=len(job.source),
        shard_rows=shard_rows or max(1, _SHARD_BYTES // (2 * dim)),
        dim=dim,
        sketch=sketch.to_json(),
        seed=seed,
        batch_size=batch_size or fitting,
        task=str(job.task),
        backend=engine.backend,
        parameters=[
            {**asdict(parameter), "shape": list(parameter.shape), "path": engine.paths[parameter.name]}
            for parameter in engine.parameters
        ],
        state=[[name, digest] for name, digest in engine.state_hashes().items()],
        versions={
            name: str(import_module(name).__version__) for name in ("gradindex", "numpy", "faiss", engine.backend)
        },
    )


def _fill(job: Job, store: Store, index: str, progress: bool | None) -> None:
    _embed(job, store, progress)
    with progress_bar("Indexing", len(store), show=progress) as advance:
        factory.build(store, index, store.header.seed, advance)


def _embed(job: Job, store: Store, progress: bool | None) -> None:
    header, missing = store.header, store.missing()
    if not missing:
        return
    projector = landmarks.bound(store, job, create=True)
    left = sum(header.span(number)[1] - header.span(number)[0] for number in missing)
    began = time.perf_counter()
    with progress_bar("Embedding", header.rows, header.rows - left, show=progress) as advance:
        for number in missing:
            blocks = []
            for block in embed_rows(job, projector, header.batch_size, *header.span(number)):
                blocks.append(block)
                advance(len(block.ids))
            store.write(number, _rows(blocks))
    seconds = time.perf_counter() - began
    zeros = int((store.norms == 0).sum())
    log.info("embedded %d samples in %.1f s (%.0f/s), paths %s", left, seconds, left / seconds, job.engine.paths)
    if zeros:
        log.warning("%d samples have a gradient of zero; their cosine with anything is 0", zeros)


def _rows(blocks: list[Block]) -> Rows:
    columns: dict[str, Any] = {"loss": [block.losses for block in blocks]}
    if all(block.labels is not None for block in blocks):
        columns["label"] = [block.labels for block in blocks]
    if all(block.predictions is not None for block in blocks):
        columns["prediction"] = [block.predictions for block in blocks]
    return Rows(
        np.concatenate([normalise(block.sketches).astype(np.float16) for block in blocks]),
        np.concatenate([block.norms for block in blocks]).astype(np.float32),
        np.concatenate([block.ids for block in blocks]),
        {name: np.concatenate(parts) for name, parts in columns.items()},
    )


def _beside(out: Path, header: Header) -> Store:
    """Return the store that is to replace `out`; an unfinished one of the same job is continued."""
    read_json(out / HEADER)  # replace an index, and nothing that is not one
    out = out.resolve()
    aside = out.with_name(f".{out.name}.building")
    try:
        return Store.create(aside, header)
    except MismatchError:
        shutil.rmtree(aside)
        return Store.create(aside, header)


def _replace(out: Path, new: Path) -> None:
    """Put the directory `new` in the place of `out`; see `_undo` for a kill between the renames."""
    out = out.resolve()
    old = _replaced(out)
    shutil.rmtree(old, ignore_errors=True)
    out.rename(old)
    new.rename(out)
    shutil.rmtree(old)


def _undo(out: Path) -> None:
    """Put the old index back where a replacement was killed between its two renames."""
    if not out.exists() and _replaced(out).exists():
        _replaced(out).rename(out.resolve())


def _replaced(out: Path) -> Path:
    out = out.resolve()
    return out.with_name(f".{out.name}.replaced")


__all__ = ["MismatchError", "build", "check_job", "load"]
