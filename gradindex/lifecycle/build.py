"""Building an index on disk, shard by shard, and opening it again."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from gradindex import relevance
from gradindex.ann import factory
from gradindex.compute.blocks import embedding_batch_size
from gradindex.data.columns import as_columns
from gradindex.distributed.options import Ray
from gradindex.errors import DamagedIndexError, FinishedError, IndexExistsError, MismatchError
from gradindex.gradients import in_double
from gradindex.index.index import Index
from gradindex.job import Job
from gradindex.lifecycle.embed_shards import embed_missing
from gradindex.lifecycle.summary import BuildSummary, count_paths, peak_bytes
from gradindex.runtime import forking, threads
from gradindex.runtime.interrupts import explain_full_disk, stop_on_sigterm
from gradindex.runtime.log import log
from gradindex.runtime.progress import progress_bar
from gradindex.sketch import CountSketch, Identity, Sketch
from gradindex.sketch.hashing import check_seed
from gradindex.store import Header, Store
from gradindex.store import replace as store_replace
from gradindex.store.location import Location, exists, locate
from gradindex.store.shard import SHARD_BYTES
from gradindex.store.store import HEADER, model_differences


def build(
    job: Job,
    out: str | Location,
    *,
    sketch: Sketch | None = None,
    metric: str | None = None,
    metric_options: Mapping[str, Any] | None = None,
    index: str = "auto",
    index_memory: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    shard_rows: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    engine: Ray | None = None,
) -> Index:
    """Embed a job's dataset into a store at `out`, build its FAISS index, and open it.

    An interrupted build of the same job is continued: published shards are kept, and its batch size, shard size
    and threads with them, so that the finished index has the bytes of an uninterrupted build. SIGTERM stops a
    build cleanly (``SystemExit(143)``). Several builders may share one directory. The index that is returned
    carries a `summary` of what was done.

    Parameters
    ----------
    job
        Model, loss and dataset.
    out
        A directory, new or holding an unfinished build of the same job; or a URL that fsspec knows, such as
        ``s3://bucket/index``.
    sketch
        The projection; ``CountSketch(1024)`` by default, none for a metric's rows of at most 1,024 numbers.
    metric
        A cosine or dot metric of `gradindex.relevance.METRICS` whose rows are indexed in the place of gradients;
        `Index.explain` then ranks by it. None: gradients, and the kernels ``grad_cos``, ``grad_dot`` and
        ``grad_asym_dot``.
    metric_options
        Options of the metric, see `gradindex.relevance.base.Options`, such as ``{"damping": 1e-3}``.
    index
        ``'auto'`` (exact up to 100,000 rows, then ``IVF…,SQ8`` on the folded sketch) or a FAISS factory string.
    index_memory
        Bytes that an index chosen by ``'auto'`` may take, see `gradindex.choose_index`; None: as many as it likes.
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
    engine
        None: this process does everything. A `gradindex.Ray`: its workers embed, and add to inverted lists; the files
        are the same. All of them must see `out`.

    Raises
    ------
    IndexExistsError
        If `out` holds a finished index, or something that is no index.
    MismatchError
        If `out` holds an unfinished build of something else.
    ValueError
        If FAISS does not know `index`, or none fits `index_memory`; if there is no such metric or it is no inner
        product; if the dataset is empty, or data, losses or gradients are not finite (the message names the ids).
    OSError
        If the disk is full; what is published is kept.
    """
    out = locate(out)
    forking.settle(job.backend)
    if metric is not None:
        job = replace(job, metric=relevance.spec(metric, metric_options))
    elif metric_options:
        raise ValueError("metric_options are those of a metric: give metric=… with them.")
    sketch = sketch or _default_sketch(job)
    replaced = overwrite and store_replace.begin(out)
    target = store_replace.aside(out) if replaced else out
    wanted = header(job, sketch, check_seed(seed), batch_size, shard_rows, begun(target))
    index, _ = factory.plan(wanted, index, memory=index_memory)  # a mistake here should not cost an embedding
    if replaced:
        with store_replace.replacement(Path(out), wanted) as new:
            summary = _fill(job, new, index, progress, engine)
        return _opened(new.header, out, job, summary)
    store = Store.create(out, wanted)
    if not store.missing() and factory.exists(store):
        same = not store.state.number and factory.saved_factory(store) == index
        raise (FinishedError if same else IndexExistsError)(
            f"{out} already holds an index of {len(store)} samples. Open it with gradindex.load, give another "
            "directory, or overwrite it (overwrite=True, --overwrite)."
        )
    return _opened(store.header, out, job, _fill(job, store, index, progress, engine))


def index_store(store: Store, index: str = "auto", *, seed: int = 0, progress: bool | None = None) -> Index:
    """Build (or replace) the FAISS index of a complete store, and open it without a job; see `build`.

    Raises
    ------
    ValueError
        If FAISS does not know `index`, or cannot train it on so few rows.
    """
    with progress_bar("Indexing", len(store), show=progress) as advance:
        factory.build(store, index, seed, advance)
    return Index(store)


def load(path: str | Location, job: Any = None, *, engine: Ray | None = None, **options: Any) -> Any:
    """Open what was saved at `path`.

    Parameters
    ----------
    path
        A directory or URL made by `build`, or a directory made by `GradientSimilarity.save`.
    job
        For an index: the job it was built from; needed only for new queries and exact scores. For an
        explainer: its predictor.
    engine
        None: this process searches. A `gradindex.Ray`: its workers do, each a part of the rows; close the index
        (`close`, or a ``with`` block) to let them go.
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
    from gradindex.interop.alibi import MANIFEST, GradientSimilarity

    place = locate(path)
    if isinstance(place, Path) and exists(place / MANIFEST):
        return GradientSimilarity.load(place, job, **options)
    if engine is not None:
        from gradindex.distributed.index import ClusterIndex

        return ClusterIndex.connect(place, job, engine)
    index = Index.open(path, job)
    if job is not None:
        check_job(index.store, job)
    return index


def check_job(store: Store, job: Job, *, longer: bool = False) -> None:
    """Raise MismatchError unless the job's model, parameters and number of samples are the store's.

    With `longer`, the job may have more samples.
    """
    saved, rows = store.header, store.state.positions
    if saved.backend == "none":
        raise MismatchError(f"{store.path} was made from arrays; it has no job, and can only be searched by vectors.")
    job = job.with_metric(relevance.rows_of(saved.metric))
    differences = model_differences(saved, header(job, CountSketch(), 0, 1, 1))
    if len(job.source) != rows and not (longer and len(job.source) > rows):
        added = f" ({rows - saved.rows} of them were added)" if rows > saved.rows else ""
        differences.append(f"the dataset has {len(job.source)} samples, the index {rows}{added}")
    if differences:
        raise MismatchError(f"{store.path} was built from something else: {'; '.join(differences)}.")


def _default_sketch(job: Job) -> Sketch:
    """Return no projection for short rows of a metric, which would only lose by one."""
    short = job.metric is not None and job.engine.size <= CountSketch().dim
    return Identity() if short else CountSketch()


def begun(path: Location) -> Header | None:
    """Return the header of an unfinished build at `path`, if there is one."""
    if not exists(path / HEADER):
        return None
    try:
        store = Store(path, Header.read(path / HEADER))
        return store.header if store.missing() else None
    except DamagedIndexError:  # or replaced at this moment; whoever continues it reads it again, and says so
        return None


def header(
    job: Job,
    sketch: Sketch,
    seed: int,
    batch_size: int | None,
    shard_rows: int | None,
    before: Header | None = None,
) -> Header:
    """Return the header of a build; what is not asked for is as in the build that was begun `before`."""
    engine = job.engine
    if before is not None:
        batch_size, shard_rows = batch_size or before.batch_size, shard_rows or before.shard_rows
    fitting = embedding_batch_size(job)  # decides the paths that the header reports, too
    dim = sketch.bind(engine.parameters, seed).width
    return Header(
        rows=len(job.source),
        shard_rows=shard_rows or max(1, SHARD_BYTES // (2 * dim)),
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
        columns=sorted(as_columns(job.columns, len(job.source))),
        threads=before.threads if before and engine.backend == "torch" else threads.count(engine.backend),
        deterministic=engine.deterministic,
        metric=None if job.metric is None else job.metric.to_json(),
    )


def _refuse_zeros(job: Job, store: Store) -> None:
    """Raise ValueError if all gradients are zero: there is nothing to compare."""
    if job.metric is None and not store.norms.any():
        raise ValueError(
            f"The gradients of all {len(store)} samples are zero. Does the loss compare the samples of a batch with "
            "each other (contrastive losses do)? Of ONE sample, which is what gradients are taken of, it then says "
            "nothing: compare each sample with a fixed set of others instead."
        )


def _opened(built: Header, out: Location, job: Job, summary: BuildSummary) -> Index:
    """Return the index that was built, with what others changed since; raises MismatchError if it was replaced."""
    log.info("%s", summary)
    index = Index.open(out, job)
    if index.store.header.seal != built.seal:
        raise MismatchError(f"{out} was built, and another process replaced it at once.")
    index.summary = summary
    return index


def _fill(job: Job, store: Store, index: str, progress: bool | None, engine: Ray | None) -> BuildSummary:
    """Embed what is missing and build the index, here or on the workers of an engine."""

    def state() -> str:
        return f"{store.header.shards - len(store.missing())} of {store.header.shards} shards are published"

    with stop_on_sigterm(), explain_full_disk(state), ExitStack() as until_done:
        began = time.perf_counter()
        workers = None
        if engine is not None:
            from gradindex.distributed.build import Workers

            workers = until_done.enter_context(Workers(engine, job, store))
        embedded = workers.embed_missing(progress) if workers else embed_missing(job, store, progress)
        middle = time.perf_counter()
        _refuse_zeros(job, store)
        with progress_bar("Indexing", len(store), show=progress) as advance:
            factory.build(store, index, store.header.seed, advance, workers.add if workers else factory.add)
    if zeros := int((store.norms == 0).sum()):
        log.warning("%d samples have a gradient of zero; their cosine with anything is 0", zeros)
    if (rounded := in_double.share_rounded(job, store.columns["loss"], store.header.batch_size)) >= 0.05:
        log.warning(
            "rounding changes the gradients of about %.0f %% of the samples by more than 5 %%, as the model is sure "
            "of them: have the model return logits, and wrap the loss in gradindex.InDouble",
            100 * rounded,
        )
    return BuildSummary(
        rows=len(store),
        embedded=embedded,
        embedding_seconds=middle - began,
        indexing_seconds=time.perf_counter() - middle,
        peak_bytes=peak_bytes(),
        store_bytes=store.bytes,
        index_bytes=factory.load(store).bytes,
        paths=count_paths(job.engine.paths),
    )


__all__ = ["MismatchError", "build", "check_job", "index_store", "load"]
