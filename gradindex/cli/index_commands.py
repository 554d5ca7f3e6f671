"""The commands that make an index and ask it: `build`, `explain`, `verify`, `tune`, `info` and `repair`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from gradindex.cli import engines, inputs, sketches
from gradindex.cli.console import err, out
from gradindex.cli.options import FILE, JobName, Json, Out
from gradindex.defaults import INDEX, NEIGHBOURS, QUERIES, RERANK, SEED
from gradindex.kernels import KernelName
from gradindex.search.options import Measure
from gradindex.words import Reduce

KernelOption = Annotated[
    KernelName | None,
    typer.Option(help="Which kernel; white_… need `whiten`.  [default: grad_cos, or the index's own metric]"),
]
Rerank = Annotated[int, typer.Option(min=0, help="Candidates of each side evaluated exactly; 0 for none.")]


def build(
    job: JobName,
    out_path: Out,
    sketch: sketches.SketchOption = None,
    dim: sketches.Dim = None,
    landmarks: sketches.Landmarks = None,
    dims: sketches.Dims = None,
    residual: sketches.Residual = None,
    metric: Annotated[
        str | None, typer.Option(help="Index the rows of this relevance metric, such as cos-last, not gradients.")
    ] = None,
    metric_option: Annotated[
        list[str] | None, typer.Option(help="KEY=VALUE for the metric, such as damping=0.001 or layers=2,4.")
    ] = None,
    index: Annotated[str, typer.Option(help="'auto' or a FAISS factory string.")] = INDEX,
    index_memory: Annotated[
        int | None, typer.Option(min=1, help="Bytes that an index chosen by 'auto' may take.  [default: any]")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the projection.")] = SEED,
    whiten: Annotated[
        bool, typer.Option("--whiten", help="Whiten the rows, too; landmark rows, if no sketch is given.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples at once.  [default: fits memory]")] = None,
    shard_rows: Annotated[int | None, typer.Option(min=1, help="Rows of a shard.  [default: 128 MiB]")] = None,
    row_type: Annotated[
        str | None, typer.Option(help="Numbers of a row: 'int8', 'float16' or 'int4'.  [default: by the sketch]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where to compute.  [default: where the model is]")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is already there.")] = False,
    engine: engines.EngineOption = None,
    address: engines.Address = None,
    workers: engines.Workers = None,
    resources: engines.Resources = None,
    working_dir: engines.WorkingDir = None,
    as_json: Json = False,
) -> None:
    """Embed a job's dataset into OUT and index it; continues an interrupted build."""
    from gradindex.cli.tables import info_table
    from gradindex.errors import FinishedError
    from gradindex.index import opening
    from gradindex.lifecycle.options import BuildOptions
    from gradindex.loading import load

    try:
        options = BuildOptions(
            sketch=sketches.sketch_of(sketch, dim, landmarks, dims, residual),
            index=index,
            index_memory=index_memory,
            seed=seed,
            batch_size=batch_size,
            shard_rows=shard_rows,
            row_type=row_type,
            overwrite=overwrite,
            whiten=whiten,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    made = inputs.job_of(job, device)
    try:
        index_ = opening.build(
            made,
            out_path,
            metric=metric,
            metric_options=inputs.metric_options(metric_option or []),
            options=options,
            engine=engines.engine_of(engine, address, workers, resources, working_dir),
        )
    except FinishedError:  # the last build was stopped in its last moment, or its end was not seen
        index_ = load(out_path, made)
    if as_json:
        summary = None if index_.summary is None else index_.summary.to_json()
        typer.echo(json.dumps(describe(index_) | {"summary": summary}))
        return
    out.print(info_table(describe(index_)))
    out.print(str(index_.summary or "All of it was there already; nothing was left to do."), highlight=False)
    out.print(f"Next: gradindex explain {out_path} {job} --ids 0", highlight=False, soft_wrap=True)


def explain(
    path: Out,
    job: JobName,
    rows: Annotated[
        Path | None,
        typer.Option(
            "--rows",
            "--queries",
            help="FILE.npz with inputs x and, optionally, labels y; of texts, a .txt or .jsonl file.",
            **FILE,
        ),
    ] = None,
    ids: Annotated[str | None, typer.Option("--ids", help="Training rows as queries, such as 3,14.")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many proponents and opponents.")] = NEIGHBOURS,
    kernel: KernelOption = None,
    rerank: Rerank = RERANK,
    recall: Annotated[
        float | None, typer.Option(min=0, max=1, help="Check as much as this recall takes; needs `calibrate` first.")
    ] = None,
    certify: Annotated[
        bool, typer.Option("--certify", help="Check rows until the answer is proved; for indexes of landmark rows.")
    ] = False,
    max_checks: Annotated[
        int | None, typer.Option(min=1, help="With --certify: give up after so many for a query and side.")
    ] = None,
    where: inputs.WhereOption = None,
    reduce: Annotated[
        Reduce, typer.Option(help="'each' query by itself, or all as one: their mean, sum or max.")
    ] = Reduce.EACH,
    against: Annotated[
        Path | None, typer.Option(help="FILE.npz of a contrast set, whose mean is taken off.", **FILE)
    ] = None,
    measures: Annotated[
        list[Measure] | None,
        typer.Option("--candidates-from", help="Evaluate and show the neighbours by this measure, too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the training samples most and least similar to each query, or to a set of queries."""
    from gradindex.ann import selection
    from gradindex.cli.tables import explanation_tables, proofs_line, recall_line, whitened_line
    from gradindex.loading import load
    from gradindex.search.options import SearchOptions

    if (rows is None) == (ids is None):
        raise typer.BadParameter("Give either --rows FILE.npz or --ids 3,14.")
    wanted = None if ids is None else inputs.ids_of(ids)
    loaded = inputs.job_of(job)
    index = load(path, loaded)
    x, y = (None, None) if rows is None else inputs.read_queries(rows, loaded)
    chosen = selection.parse(index.store, where or [])
    options = SearchOptions(
        k=k,
        kernel=kernel,
        rerank=rerank,
        recall=recall,
        certify=certify,
        max_checks=max_checks,
        candidates_from=tuple(measures or ()),
    )
    contrast = None if against is None else inputs.read_rows(against)
    result = index.explain(x, y, ids=wanted, where=chosen, options=options, reduce=reduce, against=contrast)
    if as_json:
        typer.echo(result.to_json())
        return
    names = [f"sample {i}" for i in wanted] if wanted is not None else None
    if reduce is not Reduce.EACH:
        names = [f"{reduce} of {result.meta['params']['queries']} queries"]
    for table in explanation_tables(result, names, loaded.class_names, width=out.width):
        out.print(table, crop=False)  # rather a line that wraps than one without its end
    if line := whitened_line(result):
        out.print(line, highlight=False, markup=False)
    if certify:
        out.print(proofs_line(result), highlight=False, markup=False)
    if recall is not None:
        out.print(recall_line(result), highlight=False, markup=False)


def verify(
    path: Out,
    job: JobName,
    queries: Annotated[int, typer.Option(min=1, help="Training samples drawn as queries.")] = QUERIES,
    k: Annotated[int, typer.Option("-k", min=1, help="recall@k.")] = NEIGHBOURS,
    kernel: KernelOption = None,
    rerank: Rerank = RERANK,
    seed: Annotated[int, typer.Option(min=0, help="Draws the queries.")] = SEED,
    min_recall: Annotated[float, typer.Option(min=0, max=1, help="Exit with 1 below this recall.")] = 0.0,
    rows: Annotated[
        Path | None,
        typer.Option("--rows", help="FILE.npz with held-out queries x and labels y.", **FILE),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop comparing rows after so long; recalls are then upper limits.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the audit into this file.", **FILE)] = None,
    recall: Annotated[
        float | None, typer.Option(min=0, max=1, help="Whether answers hold this recall, with --rows; see `calibrate`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Audit the index: recall and rank correlation against the exact kernel."""
    from gradindex.cli.tables import audit_table
    from gradindex.loading import load

    index = load(path, inputs.job_of(job))
    with err.status("Computing the exact kernel over the training set"):
        x, y = (None, None) if rows is None else inputs.read_rows(rows)
        audit = index.verify(
            queries=queries,
            k=k,
            kernel=kernel,
            rerank=rerank,
            seed=seed,
            x=x,
            y=y,
            max_seconds=max_seconds,
            recall=recall,
        )
    if plot is not None:
        from gradindex import plots
        from gradindex.plots.page import save_figure

        save_figure(plots.plot_audit(audit, index.curve), plot, dpi=100)
    if as_json:
        typer.echo(json.dumps(audit.to_json()))
    else:
        out.print(audit_table(audit))
    if audit.recall < min_recall:
        raise ValueError(f"recall@{k} is {audit.recall:.4f}, below the {min_recall} asked for.")
    if min_recall and not audit.complete:
        raise ValueError(
            f"Only {audit.compared} of {audit.rows} rows could be compared, so recall@{k} is {audit.recall:.4f} at "
            f"most; whether it is {min_recall} is not known. Give more --max-seconds."
        )


def tune(
    path: Out,
    queries: Annotated[int, typer.Option(min=1, help="Stored rows drawn as queries.")] = QUERIES,
    k: Annotated[int, typer.Option("-k", min=1, help="recall@k.")] = NEIGHBOURS,
    seed: Annotated[int, typer.Option(min=0, help="Draws the queries.")] = SEED,
    as_json: Json = False,
) -> None:
    """Measure recall against latency at FAISS's settings, and keep the curve with the index."""
    from gradindex.loading import load

    curve = load(path).tune(queries=queries, k=k, seed=seed)
    if as_json:
        typer.echo(json.dumps(curve.to_json()))
    else:
        out.print(str(curve), highlight=False, markup=False)


def calibrate(
    path: Out,
    job: JobName,
    rows: Annotated[
        Path,
        typer.Option("--queries", "--rows", help="FILE.npz with held-out inputs x and, optionally, labels y.", **FILE),
    ],
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours will be asked for.")] = NEIGHBOURS,
    kernel: KernelOption = None,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Rows of each side that may be checked.  [default: 400, or 4 k]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure on held-out queries how far `explain --recall` has to check, and keep that with the index."""
    from gradindex.loading import load

    index = load(path, inputs.job_of(job))
    x, y = inputs.read_rows(rows)
    with err.status("Computing the exact kernel over the training set"):
        found = index.calibrate(x, y, k=k, kernel=kernel, candidates=candidates, progress=False)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    else:
        out.print(str(found), highlight=False, markup=False)


def info(
    path: Out,
    check: Annotated[bool, typer.Option("--check", help="Compare the sha256 of every file.")] = False,
    as_json: Json = False,
) -> None:
    """Say what an index holds."""
    from gradindex.cli.tables import info_table
    from gradindex.loading import load

    index = load(path)
    if check:
        index.check()
    found = describe(index) | ({"checked": "every file matches its sha256"} if check else {})
    if as_json:
        typer.echo(json.dumps(found))
    else:
        out.print(info_table(found))


def repair(
    path: Out,
    job: Annotated[
        str | None,
        typer.Argument(metavar="[MODULE:FUNCTION]", help="The job, needed only if shards are damaged."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Mend a damaged index: embed damaged shards again, rebuild the FAISS index, remove leftovers."""
    from gradindex.index import opening

    done = opening.repair(path, None if job is None else inputs.job_of(job))
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(done)))
    else:
        out.print(str(done), markup=False, highlight=False)


def describe(index: Any) -> dict[str, Any]:
    """Return what `gradindex info` tells about an index, JSON-ready."""
    from gradindex.compute import watch

    header, searcher = index.store.header, index.searcher
    norms = index.store.norms
    return {
        "path": str(index.store.path),
        "samples": len(index),
        "removed": 0 if index.store.alive is None else int((~index.store.alive).sum()),
        "shards": len(index.store.shards),
        "parts": len(index.store.state.parts),
        "sketch": header.sketch,
        "seed": header.seed,
        "dim": header.dim,
        "index": searcher.factory,
        "index_dim": searcher.dim,
        "store_bytes": index.store.bytes,
        "index_bytes": searcher.bytes,
        "zero_gradients": int((norms == 0).sum()),
        "median_norm": float(np.median(norms)),
        "compared": dataclasses.asdict(watch.of_store(index.store)),
        "whitened": index.white.to_json() if index.is_whitened else None,
        "metric": header.metric,
        "task": header.task,
        "backend": header.backend,
        "batch_size": header.batch_size,
        "parameters": [
            {key: parameter[key] for key in ("name", "shape", "path") if key in parameter}
            for parameter in header.parameters
        ],
        "columns": sorted(index.store.columns),
        "threads": header.threads,
        "deterministic": header.deterministic,
        "versions": header.versions,
    }
