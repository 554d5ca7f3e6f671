"""How an index comes to be, is opened and is changed, for users: functions that return an `Index` or what was done."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gradindex import relevance
from gradindex.ann import build as indexing
from gradindex.data.names import Tree
from gradindex.defaults import INDEX, SEED, with_given
from gradindex.errors import FinishedError, MismatchError
from gradindex.index.index import Index
from gradindex.job import Job
from gradindex.lifecycle import add as adding
from gradindex.lifecycle import build as building
from gradindex.lifecycle import compact as compacting
from gradindex.lifecycle import repair as repairing
from gradindex.lifecycle import whiten as whitening
from gradindex.lifecycle.header import check_job
from gradindex.lifecycle.options import BuildOptions
from gradindex.lifecycle.repair import Repair
from gradindex.runtime.log import log
from gradindex.runtime.progress import progress_bar
from gradindex.sketch import Sketch
from gradindex.store import Store
from gradindex.store.location import Location, locate

if TYPE_CHECKING:
    from gradindex.distributed.options import Ray


def build(
    job: Job,
    out: str | Location,
    *,
    metric: str | None = None,
    metric_options: Mapping[str, Any] | None = None,
    options: BuildOptions | None = None,
    sketch: Sketch | None = None,
    index: str | None = None,
    index_memory: int | None = None,
    seed: int | None = None,
    batch_size: int | None = None,
    shard_rows: int | None = None,
    row_type: str | None = None,
    overwrite: bool | None = None,
    progress: bool | None = None,
    whiten: bool | None = None,
    calibrate: tuple[Tree, Tree] | None = None,
    engine: "Ray | None" = None,
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
    metric
        A cosine or dot metric of `gradindex.relevance.METRICS` whose rows are indexed in the place of gradients;
        `Index.explain` then ranks by it. None: gradients, and the kernels ``grad_cos``, ``grad_dot`` and
        ``grad_asym_dot``.
    metric_options
        Options of the metric, see `gradindex.relevance.base.Options`, such as ``{"damping": 1e-3}``.
    options
        How to build; None: `gradindex.BuildOptions()`, which says what each of them does.
    sketch, index, index_memory, seed, batch_size, shard_rows, row_type, overwrite, progress, whiten, calibrate
        The same, one by one: what is given takes the place of what `options` says.
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
    if metric is not None:
        job = replace(job, metric=relevance.spec(metric, metric_options))
    elif metric_options:
        raise ValueError("metric_options are those of a metric: give metric=… with them.")
    place = locate(out)
    options = with_given(
        options or BuildOptions(),
        sketch=sketch,
        index=index,
        index_memory=index_memory,
        seed=seed,
        batch_size=batch_size,
        shard_rows=shard_rows,
        row_type=row_type,
        overwrite=overwrite,
        progress=progress,
        whiten=whiten,
        calibrate=calibrate,
    )
    if options.whiten and metric is not None:
        raise ValueError("Rows of a metric are not whitened: leave out whiten, or metric.")
    try:
        built, summary = building.build(job, place, options, engine)
    except FinishedError:
        opened = Index.open(place, job)
        if not _finish(opened, options):  # killed before that
            raise
        return opened
    log.info("%s", summary)
    opened = Index.open(place, job)
    if opened.store.header.seal != built.seal:
        raise MismatchError(f"{place} was built, and another process replaced it at once.")
    opened.summary = summary
    _finish(opened, options)
    return opened


def _finish(index: Index, options: BuildOptions) -> bool:
    """Whiten and calibrate an index that was built, where that is wanted and not there yet; whether anything was."""
    whiten = options.whiten and not index.is_whitened
    if whiten:
        index.whiten(progress=options.progress)
    calibrate = options.calibrate is not None and index.calibration() is None
    if options.calibrate is not None and calibrate:
        index.calibrate(*options.calibrate, progress=options.progress)
    return whiten or calibrate


def open(path: str | Location, job: Job | None = None) -> Index:
    """Open the index at `path`; raises like `gradindex.load`.

    Parameters
    ----------
    path
        A directory or URL made by `build`.
    job
        The job it was built from; needed only for new queries and exact scores.
    """
    index = Index.open(path, job)
    if job is not None:
        check_job(index.store, job)
    return index


def add(
    path: str | Location,
    job: Job,
    *,
    batch_size: int | None = None,
    shard_rows: int | None = None,
    progress: bool | None = None,
) -> Index:
    """Add to an index the samples of its job that it does not have yet: those behind the last one that it has.

    They are embedded into a part of the store, shard by shard, and added to a copy of the FAISS index; then one
    exclusive write makes all of them visible. Killed before that, the same call continues; called again
    afterwards, it finds nothing to add. Indexes that are open keep answering as before.

    Parameters
    ----------
    path
        Directory or URL of the index.
    job
        The job it was built from, with a dataset that is longer now: the same samples first (see `Job.extended`), and
        columns for all of them.
    batch_size
        Samples at once; None: as in the build.
    shard_rows
        Rows of a shard; None: as in the build.
    progress
        Show a progress bar; None: only on a terminal.

    Returns
    -------
    Index
        With all samples, and a `summary` of what was done.

    Raises
    ------
    FileNotFoundError
        If there is no index.
    MismatchError
        If the model is another one, the dataset is shorter than the index, or another process added other samples
        meanwhile.
    DamagedIndexError
        If the index is damaged.
    ValueError
        If data, losses or gradients are not finite (the message names the ids), or rows are those of IF or FK.
    """
    job, summary = adding.add(path, job, batch_size=batch_size, shard_rows=shard_rows, progress=progress)
    whitening.follow(path, progress=progress)
    index = Index.open(path, job)
    index.summary = summary
    return index


def compact(path: str | Location, *, progress: bool | None = None) -> int:
    """Rewrite a store without the rows that were removed, and its parts as one.

    Ids keep their meaning: they stay the positions of samples in the dataset, which keeps its removed samples. The new
    shards and their FAISS index are written beside the old ones; then one exclusive write puts them in their place, and
    the old ones are deleted. Killed before that, the same call continues; killed in the middle of the deletion,
    `gradindex.repair` or the next compaction deletes the rest. Indexes that are open keep answering as before.

    Parameters
    ----------
    path
        Directory or URL of the index.
    progress
        Show a progress bar; None: only on a terminal.

    Returns
    -------
    int
        How many rows were left out.

    Raises
    ------
    FileNotFoundError
        If there is no index.
    DamagedIndexError
        If the index is damaged.
    MismatchError
        If another process compacted it meanwhile.
    """
    left_out = compacting.compact(path, progress=progress)
    whitening.follow(path, progress=progress)
    return left_out


def repair(path: str | Location, job: Job | None = None, *, progress: bool | None = None) -> Repair:
    """Mend an index in place.

    Contents of all files are compared with their manifests. Damaged or missing shards are embedded again (their
    rows are the same bits where the header says that the device is deterministic), a damaged or missing FAISS index is
    built from the store, and files that belong to nothing, such as those of killed builds, are removed; so is a last
    change that removes what is no id, which no reader ever accepted. Do not run it beside a build of the same index.
    Errors of the machine (permissions, an unreachable file system, too many open files) end it: they are no damage.

    Parameters
    ----------
    path
        Directory of the index.
    job
        The job it was built from; needed only where shards are damaged.
    progress
        Show a progress bar; None: only on a terminal.

    Raises
    ------
    FileNotFoundError
        If there is no index.
    DamagedIndexError
        If the header or the list of removed samples is damaged: then only a new build helps.
    ValueError
        If shards are damaged and no job is given; names them.
    MismatchError
        If the job is not that of the index.
    OSError
        If a file cannot be read; it is not damaged then.
    """
    done = repairing.repair(path, job, progress=progress)
    return replace(done, whitened=whitening.repair(path))


def index_store(store: Store, index: str = INDEX, *, seed: int = SEED, progress: bool | None = None) -> Index:
    """Build (or replace) the FAISS index of a complete store, and open it without a job; see `build`.

    Raises
    ------
    ValueError
        If FAISS does not know `index`, or cannot train it on so few rows.
    """
    with progress_bar("Indexing", len(store), show=progress) as advance:
        indexing.build(store, index, seed, advance)
    return Index(store)
