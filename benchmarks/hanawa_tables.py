"""The study's tables beside ours: which intervals meet, as lines, Markdown and counts; results of runs merged."""

import json
from pathlib import Path

import numpy as np
import record
from hanawa_cases import CASES

from gradindex import relevance
from gradindex.evaluation import Result

RESULTS = Path(__file__).parent / "results"
PAPER = json.loads((RESULTS / "hanawa_paper.json").read_text(encoding="utf-8"))
BEHIND = ("dot-x", "dot-last", "dot-all", "GD", "IF", "FK")
COUNTED = ("vehicle-logreg", "vehicle-mlp", "segment-logreg", "segment-mlp")
OTHERS = ("segment-logreg-924", "segment-mlp-924", "mnist-logreg", "mnist-cnn")
FORMS = {"IF": ("IF", "cos-IF", "l2-IF"), "FK": ("FK", "cos-FK", "l2-FK")}


def study_of(case):
    """Return the name that the study's tables have for a case."""
    return CASES[case].study or case


def paper(case):
    """Return the study's tables for a case, test to metric to (mean, deviation)."""
    return PAPER["cases"][study_of(case)]


def rows_of(case, test):
    """Return the study's rows of a test; of randomization, which it has once, for both of our forms."""
    return paper(case).get(test.removesuffix(" (fixed)"), {})


def names(case):
    return [n for n in relevance.METRICS if not (CASES[case].kind == "logreg" and n.split("-")[-1] in ("last", "all"))]


def file_of(case, suffix=""):
    return RESULTS / f"hanawa_{case}{suffix}.json"


def load(case, suffix=""):
    """Return the content of a result file."""
    return json.loads(file_of(case, suffix).read_text(encoding="utf-8"))


def save(result, case, suffix):
    """Write a result with its command, machine and date."""
    content = {"about": record.about(), **result.to_dict()}
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    file_of(case, suffix).write_text(text + "\n", encoding="utf-8")


def compare(case, result, label=""):
    print(f"\n{case}{label}: accuracy {np.mean(result['accuracy'].get('class', [np.nan])):.3f}")
    for test, rows in result["summary"].items():
        print(f"  {test:18}{'ours':>14}{'paper':>14}  meet (± 2 std)")
        for name, ours in rows.items():
            theirs = rows_of(case, test).get(name)
            cell, meet = "–", ""
            if theirs:
                cell = f"{theirs[0]:.2f} ± {theirs[1]:.2f}"
                meet = "yes" if meets(ours, theirs) else "no"
            print(f"  {name:18}{ours['mean']:>7.2f} ± {ours['std']:.2f}{cell:>14}  {meet}")
    print_orders(case, result["summary"])


def print_orders(case, summary):
    theirs = {test: {n: {"mean": row[0]} for n, row in rows.items()} for test, rows in paper(case).items()}
    for whose, lines in (("ours", order(summary)), ("the paper's", order(theirs))):
        for line in lines:
            print(f"  order, {whose}: {line}")


def order(summary):
    """Return, test by test, what is ahead of GC, and what should be far behind it and is not, in words.

    Expected: GC first (to .005) in the class and subclass tests, dot metrics, GD, IF and FK at least .1 behind.
    """
    lines = []
    for test in ("class", "subclass"):
        rows = {name: row["mean"] for name, row in summary.get(test, {}).items()}
        if "GC" not in rows or len(rows) < 2:
            continue
        ahead = [f"{name} {mean:.2f}" for name, mean in rows.items() if mean > rows["GC"] + 0.005]
        near = [f"{n} {mean:.2f}" for n, mean in rows.items() if n in BEHIND and mean > rows["GC"] - 0.1]
        first = f"GC {rows['GC']:.2f} is first" if not ahead else f"ahead of GC {rows['GC']:.2f}: {', '.join(ahead)}"
        rest = f"less than .1 behind: {', '.join(near)}" if near else "dot metrics, GD, IF, FK far behind where run"
        lines.append(f"{test}: {first}; {rest}")
    return lines


def meets(ours, theirs):
    """Return whether two means ± 2 deviations meet; tables have two digits."""
    return abs(ours["mean"] - theirs[0]) <= 2 * (ours["std"] + theirs[1]) + 0.005


def markdown(cases, suffix):
    """Print saved results as one table a test: ours / the paper's, bold where the intervals do not meet."""
    results = {case: load(case, suffix) for case in cases if file_of(case, suffix).is_file()}
    tests = dict.fromkeys(test for result in results.values() for test in result["summary"] if "index" not in test)
    for test in tests:
        print(f"\n| {test}, ours / paper | {' | '.join(results)} |\n|{'---|' * (len(results) + 1)}")
        for name in relevance.METRICS:
            cells = []
            for case, result in results.items():
                ours, theirs = result["summary"].get(test, {}).get(name), rows_of(case, test).get(name)
                cell = (
                    "–"
                    if ours is None
                    else f"{ours['mean']:.2f} ± {ours['std']:.2f} / {theirs[0]:.2f} ± {theirs[1]:.2f}"
                )
                cells.append(cell if ours is None or meets(ours, theirs) else f"**{cell}**")
            if any(cell != "–" for cell in cells):
                print(f"| {name} | {' | '.join(cells)} |")
    for case, result in results.items():
        print(f"\n{case}")
        print_orders(case, result["summary"])


def counted(summary, case, names=None, tests=None):
    """Return how many intervals of these metrics and tests (None: all) meet the study's, and how many there are."""
    found = [
        meets(summary[test][name], theirs)
        for test, rows in paper(case).items()
        for name, theirs in rows.items()
        if name in summary.get(test, {}) and (names is None or name in names) and (tests is None or test in tests)
    ]
    return {"meet": sum(found), "of": len(found)}


def total(counts):
    counts = list(counts)
    return {what: sum(one[what] for one in counts) for what in ("meet", "of")}


def meeting():
    """Return the counts over saved results, models' accuracies beside the study's, and how far a FAISS index is off."""
    exact = {case: load(case) for case in (*COUNTED, *OTHERS) if file_of(case).is_file()}
    found = {
        how: {
            name: total(counted(load(case, suffix)["summary"], case, forms) for case in COUNTED)
            for name, forms in FORMS.items()
        }
        for how, suffix in (("exact", ""), ("single", "_single"))
    }
    found["all"] = total(counted(exact[case]["summary"], case) for case in COUNTED)
    found["tests"] = [
        {"test": test, **total(counted(exact[case]["summary"], case, tests=[test]) for case in COUNTED)}
        for test in ("class", "top-10 class", "subclass", "top-10 subclass", "randomization")
    ]
    found["cases"] = [case_row(case, result) for case, result in exact.items()]
    apart = [
        abs(row["mean"] - result["summary"][test.removesuffix(" (index)")][name]["mean"])
        for result in (exact[case] for case in COUNTED)
        for test, rows in result["summary"].items()
        if test.endswith(" (index)")
        for name, row in rows.items()
    ]
    found["index_off"] = max(apart)
    return found


def case_row(case, result):
    """Return a case's sizes, its models' test accuracies beside the study's, and how many of its intervals meet."""
    one = {"case": case, "train": CASES[case].train, "queries": result["meta"]["queries"]}
    for labels, theirs in PAPER["accuracy"][study_of(case)].items():
        one[labels] = {"ours": float(np.mean(result["accuracy"][labels])), "paper": theirs[0]}
    return one | counted(result["summary"], case)


def seeds(meta):
    """Return the seeds of a result, also of a merged one."""
    return sorted({seed for part in meta.get("parts", [meta]) for seed in part["seeds"]})


def merge(case, paths, suffix):
    """Write results of several seeds, tests or metrics as one; each test and metric keeps its own repeats.

    Among `paths` may be what was merged before.
    """
    result = merged([Result.from_json(Path(path).read_text(encoding="utf-8")) for path in paths])
    save(result, case, suffix)
    compare(case, result.to_dict(), suffix)


def merged(parts):
    """Return several results as one."""
    parts = sorted(parts, key=lambda part: seeds(part.meta))
    values, accuracy, seen = {}, {}, set()
    for part in parts:
        for test, rows in part.values.items():
            for name, found in rows.items():
                values.setdefault(test, {}).setdefault(name, []).extend(found)
        for labels, found in part.accuracy.items():
            for seed, one in zip(seeds(part.meta), found, strict=True):
                if (labels, seed) not in seen:
                    seen.add((labels, seed))
                    accuracy.setdefault(labels, []).append(one)
    for test, rows in values.items():
        values[test] = {name: rows[name] for name in relevance.METRICS if name in rows}
    meta = {
        "metrics": [name for name in relevance.METRICS if any(name in rows for rows in values.values())],
        "repeats": max(len(found) for rows in values.values() for found in rows.values()),
        "queries": parts[0].meta["queries"],
        "parts": [meta for part in parts for meta in part.meta.get("parts", [part.meta])],
    }
    null = {test: merged_null(parts, test, rows) for test, rows in values.items()}
    return Result(values, accuracy, meta, {test: rows for test, rows in null.items() if rows})


def merged_null(parts, test, rows):
    """Return a test's null intervals; none if a part of it was written without them, so that it cannot be judged.

    The mean over all repeats is that of the parts' means. Each part's null distribution is taken for normal: a single
    part's interval stays as it is, several add as variances do.
    """
    found = {}
    for name in rows:
        having = [part for part in parts if name in part.values.get(test, {})]
        if any(name not in part.null.get(test, {}) for part in having):
            return {}
        intervals = np.array([part.null[test][name] for part in having])
        if len(having) == 1:
            found[name] = intervals[0].tolist()
            continue
        weights = np.array([len(part.values[test][name]) for part in having])
        weights = weights / weights.sum()
        centre = float(weights @ intervals.mean(axis=1))
        half = float(np.linalg.norm(weights * np.diff(intervals, axis=1)[:, 0] / 2))
        found[name] = [centre - half, centre + half]
    return found
