"""How many of our intervals meet the study's, counted over the saved results of `hanawa.py` and `hanawa_single.py`.

    python benchmarks/hanawa_meet.py --out benchmarks/results/hanawa_meet.json

An interval is a mean over repeats ± 2 standard deviations, of one metric in one test. Nothing is computed anew but the
counts, and how far answers through a FAISS index are from the exact ones.
"""

import argparse
import json

import hanawa
import record

TABLES = ("vehicle-logreg", "vehicle-mlp", "segment-logreg", "segment-mlp")
FORMS = {"IF": ("IF", "cos-IF", "l2-IF"), "FK": ("FK", "cos-FK", "l2-FK")}


def summaries(suffix):
    """Return the saved summaries of the four cases of Vehicle and Segment."""
    files = (hanawa.RESULTS / f"hanawa_{case}{suffix}.json" for case in TABLES)
    return {
        case: json.loads(file.read_text(encoding="utf-8"))["summary"] for case, file in zip(TABLES, files, strict=True)
    }


def count(suffix, names):
    """Return how many intervals of these metrics meet the study's, and how many there are."""
    found = []
    for case, summary in summaries(suffix).items():
        for test, theirs in hanawa.paper(case).items():
            found += [hanawa.meets(summary[test][name], theirs[name]) for name in names if name in theirs]
    return {"meet": sum(found), "of": len(found)}


def through_index():
    """Return the largest difference of a mean through a FAISS index from that of exact answers."""
    apart = []
    for summary in summaries("").values():
        for test in [test for test in summary if test.endswith(" (index)")]:
            exact = summary[test.removesuffix(" (index)")]
            apart += [abs(row["mean"] - exact[name]["mean"]) for name, row in summary[test].items()]
    return max(apart)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record.add_out(parser)
    options = parser.parse_args()
    found = {
        how: {name: count(suffix, forms) for name, forms in FORMS.items()}
        for how, suffix in (("exact", ""), ("single", "_single"))
    }
    found["index_off"] = through_index()
    print(json.dumps(found, indent=1))
    if options.out:
        record.write(options.out, found)


if __name__ == "__main__":
    main()
