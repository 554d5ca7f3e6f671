"""How costs grow with the number of rows: exponents of a power law, and a picture.

    python benchmarks/growth.py --built million.json --asked lookup_million.json [--picture FILE] --out growth.json

Reads what `million.py --out` and `lookup.py --million … --out` wrote in `benchmarks/results`. A cost of n rows is
fitted as c·n^e by least squares of the logarithms; e is 1 where twice the rows cost twice as much, 0 where they cost
nothing. Two sizes give the exponent between them, and no more.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import record

RESULTS = Path(__file__).parent / "results"
COSTS = {  # of a result's line, what it is called in the picture; seconds, milliseconds or bytes
    "embedding_seconds": "embedding, s",
    "indexing_seconds": "indexing, s",
    "verify_seconds": "verifying 20 queries, s",
    "open_seconds": "opening, s",
    "explain_p50_ms": "an explanation, recall=, ms",
    "index_ms": "a search, ms",
    "flat_ms": "a search of every row, ms",
}


def costs(built: list[dict[str, Any]], asked: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return the figures of each cost by the number of rows."""
    lines = [*built, *asked]
    found = {name: {int(line["rows"]): float(line[name]) for line in lines if line.get(name)} for name in COSTS}
    return {name: dict(sorted(figures.items())) for name, figures in found.items() if len(figures) > 1}


def exponent(figures: dict[int, float]) -> float:
    """Return e of the power law c·n^e that fits best."""
    return float(np.polyfit(np.log(list(figures)), np.log(list(figures.values())), 1)[0])


def draw(found: dict[str, dict[int, float]], path: Path) -> None:
    """Draw the costs over the rows, both by their logarithms, with their exponents."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, figures in found.items():
        label = f"{COSTS[name]}: n^{exponent(figures):.2f}"
        axes.loglog(list(figures), list(figures.values()), marker="o", markersize=4, label=label)
    axes.set(xlabel="rows", ylabel="seconds or milliseconds", title="What more rows cost")
    axes.grid(which="major", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def results_of(names: list[Path]) -> list[dict[str, Any]]:
    """Return the lines of some result files, which hold a list or one under `million`."""
    found: list[dict[str, Any]] = []
    for name in names:
        results = json.loads((name if name.exists() else RESULTS / name).read_text(encoding="utf-8"))["results"]
        found += results["million"] if isinstance(results, dict) else results
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--built", nargs="+", type=Path, required=True, help="result files of million.py")
    parser.add_argument("--asked", nargs="*", type=Path, default=[], help="result files of lookup.py --million")
    parser.add_argument("--picture", type=Path)
    record.add_out(parser)
    options = parser.parse_args()
    found = costs(results_of(options.built), results_of(options.asked))
    exponents = {name: exponent(figures) for name, figures in found.items()}
    for name, value in exponents.items():
        print(f"{COSTS[name]:32}n^{value:.2f}  {found[name]}")
    if options.picture:
        draw(found, options.picture)
    if options.out:
        record.write(options.out, {"costs": found, "exponents": exponents})


if __name__ == "__main__":
    main()
