"""The page of what the source documents claim and what is here, made of `documents.toml` and the result files.

    python benchmarks/documents.py [--write]

`documents.toml` says of each claim where it stands, in our own words, whether it is so here, and by which tests,
commands, result files and figures. Without `--write` the page is compared with what it should be.
"""

import argparse
import re
import tomllib
from typing import Any

import claims

DATA = claims.HERE / "documents.toml"
PAGE = claims.ROOT / "examples" / "docs" / "pages" / "claims.md"
STATES = ("as there", "in part", "otherwise", "not repeated")
FIGURE = re.compile(r"\{([^{}]+):(\.\d[f%])\}")
PREFACE = """# What the papers claim

<!-- made by benchmarks/documents.py; change benchmarks/documents.toml -->

Every claim of the documents that this package follows, in our words, and what is here: {counts}. Figures come from
result files in `benchmarks/results`; those with a name are in the table of claims of `benchmarks/README.md`. MNIST and
other data are found through `GRADINDEX_DATA`. `FOLDER`, `PARTS` and `MODELS` stand for what you have.

## What is not repeated, and why

The data below were not at hand. They are read from files in their publishers' form, or fetched by the library that
knows where they are; tests run that on small files of the same form.

"""


def content() -> dict[str, Any]:
    """Return what `documents.toml` holds."""
    return tomllib.loads(DATA.read_text(encoding="utf-8"))


def page(found: dict[str, Any]) -> str:
    """Return the page."""
    table = claims.claims()
    every = found["claims"]
    counts = ", ".join(f"{sum(one['state'] == state for one in every)} {state}" for state in STATES)
    lines = [PREFACE.format(counts=f"of {len(every)}, {counts}")]
    lines.append("| what | why not | what is read | in its place | command | test |\n|---|---|---|---|---|---|\n")
    for one in found["missing"]:
        cells = [one[key] for key in ("what", "why", "reads", "instead")]
        lines.append(row(*cells, code(one["command"]), code(one["test"])))
    for document in found["documents"]:
        lines.append(
            f"\n## {document['title']}\n\n| section | claim | here | what is here | how to see it |\n{'|---' * 5}|\n"
        )
        for one in every:
            if one["document"] == document["key"]:
                lines.append(row(one["section"], one["claim"], one["state"], filled(one["ours"], table), evidence(one)))
    return "".join(lines)


def row(*cells: str) -> str:
    """Return a line of a table."""
    if any("|" in cell for cell in cells):
        raise ValueError(f"A cell holds a |, which would end it: {cells}.")
    return f"| {' | '.join(cells)} |\n"


def code(text: str) -> str:
    """Return a command, or the path of a test, as code."""
    return f"`{text}`"


def evidence(one: dict[str, Any]) -> str:
    """Return a claim's commands, result files and tests."""
    return "<br>".join(code(text) for kind in ("commands", "files", "tests") for text in one.get(kind, []))


def filled(text: str, table: dict[str, claims.Claim]) -> str:
    """Return a text with its figures: {name:.2f} of the table of claims, {file.json: path:.2f} of a result file."""

    def figure(match: re.Match[str]) -> str:
        name, form = match.groups()
        if ".json: " in name:
            return f"{claims.value_of(name):{form}}".replace("%", " %")
        return f"{table[name].value:{form}} (claim `{name}`)"

    return FIGURE.sub(figure, text)


def main() -> None:
    """Compare the page with what it should be, or write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the page")
    options = parser.parse_args()
    text = page(content())
    if options.write:
        PAGE.write_text(text, encoding="utf-8")
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        raise SystemExit(f"{PAGE.relative_to(claims.ROOT)} differs: type python benchmarks/documents.py --write")


if __name__ == "__main__":
    main()
