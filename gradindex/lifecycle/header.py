"""What a build writes at the top of its store, and whether a job is the one that a store was built from."""

from dataclasses import asdict
from importlib import import_module

from gradindex import relevance
from gradindex.compute.blocks import embedding_batch_size
from gradindex.data.columns import as_columns
from gradindex.errors import DamagedIndexError, MismatchError
from gradindex.job import Job
from gradindex.lifecycle.options import WHITENED_SKETCH, BuildOptions
from gradindex.runtime import threads
from gradindex.sketch import CountSketch, Identity, Sketch
from gradindex.store import Header, Store
from gradindex.store.codes import RowType
from gradindex.store.location import Location, exists
from gradindex.store.shard import SHARD_BYTES
from gradindex.store.store import HEADER, model_differences


def header(job: Job, options: BuildOptions, before: Header | None = None) -> Header:
    """Return the header of a build; what is not asked for is as in the build that was begun `before`."""
    engine, seed = job.engine, options.seed
    sketch = options.sketch or default_sketch(job, options.whiten)
    batch_size, shard_rows, row_type = options.batch_size, options.shard_rows, options.row_type
    if before is not None:
        batch_size, shard_rows = batch_size or before.batch_size, shard_rows or before.shard_rows
        row_type = row_type or before.row_type
    kind = row_type_of(sketch, row_type)
    fitting = embedding_batch_size(job)  # decides the paths that the header reports, too
    dim = sketch.bind(engine.parameters, seed).width
    return Header(
        rows=len(job.source),
        shard_rows=shard_rows or max(1, SHARD_BYTES // kind.row_bytes(dim)),
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
        row_type=kind,
    )


def row_type_of(sketch: Sketch, wanted: str | None) -> RowType:
    """Return how a sketch's rows are kept.

    Raises
    ------
    ValueError
        If they are to be kept in 8 bits, but bound cosines: the bounds are those of float16.
    """
    if wanted is None:
        return RowType.BYTE if sketch.is_random else RowType.HALF
    if sketch.bounds_cosine and wanted != RowType.HALF:
        raise ValueError(
            f"Rows of landmarks prove answers by bounds of what float16 rounds, and are not kept as {wanted!r}: leave "
            "row_type out. Whitened rows of them take 8 bits."
        )
    return RowType(wanted)


def default_sketch(job: Job, whiten: bool = False) -> Sketch:
    """Return no projection for short rows of a metric, which would only lose by one; landmarks for whitened rows."""
    if whiten:
        return WHITENED_SKETCH
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


def check_job(store: Store, job: Job, *, longer: bool = False) -> None:
    """Raise MismatchError unless the job's model, parameters and number of samples are the store's.

    With `longer`, the job may have more samples.
    """
    saved, rows = store.header, store.state.positions
    if saved.backend == "none":
        raise MismatchError(f"{store.path} was made from arrays; it has no job, and can only be searched by vectors.")
    job = job.with_metric(relevance.rows_of(saved.metric))
    differences = model_differences(saved, header(job, BuildOptions(sketch=CountSketch(), batch_size=1, shard_rows=1)))
    if len(job.source) != rows and not (longer and len(job.source) > rows):
        added = f" ({rows - saved.rows} of them were added)" if rows > saved.rows else ""
        differences.append(f"the dataset has {len(job.source)} samples, the index {rows}{added}")
    if differences:
        raise MismatchError(f"{store.path} was built from something else: {'; '.join(differences)}.")
