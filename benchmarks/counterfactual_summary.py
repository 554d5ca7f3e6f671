"""The banks' results side by side: how whitened rows do against the cosine, the exact matrix, peers and the ceiling.

    python benchmarks/counterfactual_summary.py --out benchmarks/results/counterfactual.json

Reads benchmarks/results/whitened_<bank>.json, which counterfactual.py wrote with all contenders. The Keras twin of a
bank is left out of medians.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import record

RESULTS = Path(__file__).parent / "results"
COSINE, WHITE, FISHER = "gradient cosine", "whitened", "exact Fisher"
SEVERAL = ("whitened along training", "whitened, three models")
OTHERS = ("EKFAC, dampings", "K-FAC, dampings", "gradient dot along training")
TWIN = "digits-cnn-keras"


def lds(result: dict[str, Any], kernel: str) -> float | None:
    found = result["kernels"].get(kernel)
    return None if found is None else float(found["lds"]["value"])


def ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None or b <= 0 else a / b


def best(result: dict[str, Any], kernels: tuple[str, ...]) -> float | None:
    found = [value for kernel in kernels if (value := lds(result, kernel)) is not None]
    return max(found, default=None)


def of_bank(result: dict[str, Any]) -> dict[str, Any]:
    """Return a bank's ratios; None where a kernel was not measured."""
    white, several = lds(result, WHITE), best(result, (*SEVERAL, WHITE))
    judged, ceiling = lds(result, "whitened, dampings"), result["ceiling"]
    return {
        "whitened": white,
        "cosine": lds(result, COSINE),
        "several": several,
        "whitened over cosine": ratio(white, lds(result, COSINE)),
        "several over cosine": ratio(several, lds(result, COSINE)),
        "over exact Fisher": ratio(white, lds(result, FISHER)),
        "lost by the damping rule": None if judged is None or white is None else judged - white,
        "several over the best other": ratio(several, best(result, OTHERS)),
        "share of the ceiling": None if not ceiling else ratio(several, ceiling["value"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    record.add_out(parser)
    options = parser.parse_args()
    banks = {}
    for path in sorted(RESULTS.glob("whitened_*.json")):
        saved = json.loads(path.read_text(encoding="utf-8"))
        result = saved.get("results", saved)
        if WHITE in result["kernels"]:
            banks[result["bank"]] = of_bank(result)
    counted = {name: one for name, one in banks.items() if name != TWIN}

    def values(name: str) -> list[float]:
        return [one[name] for one in counted.values() if one[name] is not None]

    names = [name for name in next(iter(counted.values())) if "over" in name or "share" in name]
    summary = {
        "banks": banks,
        "counted": len(counted),
        "median": {name: float(np.median(values(name))) for name in names},
        "worst": {name: min(values(name)) for name in names},
        "most lost by the damping rule": max(values("lost by the damping rule")),
        "ahead of all others on": sum(one > 1 for one in values("several over the best other")),
        "compared with others on": len(values("several over the best other")),
    }
    print(json.dumps(summary, indent=1))
    if options.out:
        record.write(options.out, summary)


if __name__ == "__main__":
    main()
