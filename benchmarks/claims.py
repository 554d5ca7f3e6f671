"""Compare the figures of all pages with the result files that hold them; `--write` puts the files' figures in.

    python benchmarks/claims.py [--write]

The table of claims is in README.md beside this script. A claim's column "result" names a file of `results` and a path
in it, such as `lookup.json: results.index.checked.recall@10`. In a path `[key=value&key=value]` picks entries of a
list, `[0]` the first, `[*]` all of them, `{*pattern*}` entries of an object whose names match (there may be none);
`min`, `max`, `sum` or `len` before it makes one number of many. A figure has as many digits as it is shown with; `98
%` means .98.

Tables of the studies stand below a comment `<!-- from FILE ...: path; key:.3f; -; key -->`. Each entry that the path
leads to, file after file, is a row; each key a cell with its format, `-` one that is not compared. Below a comment
`<!-- from hanawa.py OPTIONS --test TEST -->` stands what that script prints with these options. Elsewhere a figure
links to its claim, or has (claim `name`) behind it.
"""

import argparse
import contextlib
import fnmatch
import io
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
NUMBER = r"[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?|[-−]?\.\d+"
FIGURE = re.compile(rf"(\*\*)?({NUMBER})( %)?(\*\*)?(.*)")
LINKED = re.compile(rf"\[(\*\*)?({NUMBER})( %)?(\*\*)?\]\(([^)\s]*README\.md)?#([a-z0-9-]+)\)")
NAMED = re.compile(rf"({NUMBER})( %)? \(claim `([a-z0-9-]+)`\)")
UNKNOWN = "NO CLAIM"
TABLE = re.compile(r"<!-- from ([^>]*?) -->\n\n?((?:\|.*\n)+)")


@dataclass(frozen=True)
class Claim:
    """A line of the table of claims."""

    name: str
    title: str
    figure: str
    floor: str
    command: str
    result: str
    date: str

    @property
    def value(self) -> float:
        """The number that the result file holds."""
        return value_of(self.result)


def claims() -> dict[str, Claim]:
    """Return the lines of the table by name."""
    found: dict[str, Claim] = {}
    for line in (HERE / "README.md").read_text(encoding="utf-8").splitlines():
        cells = cells_of(line)
        match = re.match(r'<a id="([a-z0-9-]+)"></a>(.*)', cells[0])
        if match:
            name, title = match.groups()
            if name in found or len(cells) != 6:
                raise ValueError(f"The line of claim {name!r} has {len(cells)} cells, or is there twice.")
            found[name] = Claim(name, title, *cells[1:])
    return found


def cells_of(line: str) -> list[str]:
    """Return the cells of a line of a table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


@cache
def document(name: str) -> Any:
    """Return a result file."""
    return json.loads((HERE / "results" / name).read_text(encoding="utf-8"))


def value_of(result: str) -> float:
    """Return the number that a cell such as `lookup.json: min results[*].recall` names."""
    file, _, path = result.strip("`").partition(": ")
    word, _, rest = path.partition(" ")
    function = {"min": min, "max": max, "sum": sum, "len": len}.get(word)
    values = list(look_up(document(file), rest if function else path))
    if function is not None:
        return function(values)
    (value,) = values
    return value


def look_up(value: Any, path: str) -> Iterator[Any]:
    """Yield what a path leads to."""
    steps = re.findall(r"\[([^\]]*)\]|\{([^}]*)\}|([^.\[\]{}]+)", path)
    yield from _follow(value, steps)


def _follow(value: Any, steps: list[tuple[str, str, str]]) -> Iterator[Any]:
    if not steps:
        yield value
        return
    (chosen, pattern, key), *rest = steps
    if key:
        yield from _follow(value[key], rest)
    elif pattern:
        for name, one in value.items():
            if fnmatch.fnmatchcase(name, pattern):
                yield from _follow(one, rest)
    elif chosen.isdigit():
        yield from _follow(value[int(chosen)], rest)
    else:
        wanted = [] if chosen == "*" else [part.partition("=") for part in chosen.split("&")]
        for one in value:
            if all(str(one[name]) == text for name, _, text in wanted):
                yield from _follow(one, rest)


def shown(value: float, like: str) -> str:
    """Return a number with the digits, the sign of a percentage and the leading zero that `like` has."""
    match = FIGURE.fullmatch(like)
    if match is None:
        raise ValueError(f"{like!r} is no figure.")
    _, digits, percent, _, rest = match.groups()
    number = value * 100 if percent else value
    mantissa, e, _ = digits.partition("e")
    places = len(mantissa.partition(".")[2])
    text = f"{number:.{places}e}" if e else f"{number:,.{places}f}"
    if "," not in digits:
        text = text.replace(",", "") if number < 10_000 else text
    if digits.lstrip("-−").startswith("."):
        text = text.replace("0.", ".", 1) if abs(number) < 1 else text
    return f"{text}{percent or ''}{rest}"


def meets(value: float, floor: str) -> bool:
    """Return whether a value is on the right side of `≥ 0.99` or `≤ 1e-5`; no floor is always met."""
    if not floor:
        return True
    sign, limit = floor.split(" ", 1)
    number = float(limit.removesuffix(" %").replace(",", "")) / (100 if limit.endswith(" %") else 1)
    return {"≥": value >= number, "≤": value <= number}[sign]


def right_figure(claim: Claim) -> str:
    """Return the figure that a claim's cell should show: bold below its floor."""
    text = shown(claim.value, claim.figure.replace("**", ""))
    return text if meets(claim.value, claim.floor) else f"**{text}**"


def rows_of(source: str) -> list[list[str | None]]:
    """Return the cells of a table that comes `from` somewhere; None for those that are not compared."""
    if source.startswith("hanawa.py "):
        return _printed(source.split()[1:])
    files, _, rest = source.partition(": ")
    path, *keys = rest.split("; ")
    entries = [entry for file in files.split() for entry in look_up(document(file), path)]
    return [[_cell(entry, key) for key in keys] for entry in entries]


def _cell(entry: Any, key: str) -> str | None:
    """Return what a key names in an entry, in its format; nothing where the entry lacks it."""
    if key == "-":
        return None
    name, _, form = key.partition(":")
    try:
        (value,) = look_up(entry, name)
    except KeyError:
        return ""
    return "" if value is None else f"{value:{form}}".replace("%", " %")


@cache
def _hanawa(options: tuple[str, ...]) -> str:
    sys.path.insert(0, str(HERE))
    import hanawa_tables

    arguments = argparse.ArgumentParser()
    arguments.add_argument("--cases", nargs="+")
    arguments.add_argument("--suffix", default="")
    found = arguments.parse_args(options)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        hanawa_tables.markdown(found.cases, found.suffix)
    return out.getvalue()


def _printed(options: list[str]) -> list[list[str | None]]:
    """Return the cells of one test's table: the words behind --test name it."""
    at = options.index("--test")
    title = " ".join(options[at + 1 :])
    text = _hanawa(tuple(options[:at]))
    block = text.partition(f"| {title}, ours / paper |")[2].partition("\n\n")[0]
    lines = [line for line in block.splitlines()[2:] if line.startswith("|")]
    return [list(cells_of(line)) for line in lines]


def pages() -> list[Path]:
    """Return the pages that quote figures."""
    guide = sorted((ROOT / "examples" / "docs" / "pages").glob("*.md"))
    return [ROOT / "README.md", ROOT / "examples" / "README.md", *guide, *sorted((HERE / "studies").glob("*.md"))]


def corrected(text: str, table: dict[str, Claim]) -> str:
    """Return a page with the figures that the result files hold."""

    def linked(match: re.Match[str]) -> str:
        digits, percent, path, name = match.group(2), match.group(3), match.group(5), match.group(6)
        if name not in table:
            return match.group() if path is None else f"[{UNKNOWN}]({path}#{name})"
        bold = match.group(1) or ""
        return f"[{bold}{shown(table[name].value, digits + (percent or ''))}{bold}]({path or ''}#{name})"

    def named(match: re.Match[str]) -> str:
        digits, percent, name = match.groups()
        figure = shown(table[name].value, digits + (percent or "")) if name in table else UNKNOWN
        return f"{figure} (claim `{name}`)"

    def tabled(match: re.Match[str]) -> str:
        head, rule, *lines = match.group(2).splitlines()
        wanted = rows_of(match.group(1))
        cells = [cells_of(line) for line in lines]
        if len(wanted) != len(cells):
            cells = [[cell or "-" for cell in row] for row in wanted]
        merged = [
            [_merge(a, b, match.group(1)) for a, b in zip(row, want, strict=True)]
            for row, want in zip(cells, wanted, strict=True)
        ]
        body = "".join(f"| {' | '.join(row)} |\n" for row in merged)
        between = "\n\n" if "-->\n\n" in match.group() else "\n"
        return f"<!-- from {match.group(1)} -->{between}{head}\n{rule}\n{body}"

    return TABLE.sub(tabled, NAMED.sub(named, LINKED.sub(linked, text)))


def _merge(cell: str, wanted: str | None, source: str) -> str:
    """Return what a cell of a page should hold; bold type is the page's own matter but where a script prints it."""
    if wanted is None or (cell.replace("**", "") == wanted and not source.startswith("hanawa.py")):
        return cell
    return wanted


def corrected_claims(text: str, table: dict[str, Claim]) -> str:
    """Return the page of claims with the figures and dates that the result files hold."""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines):
        match = re.match(r'\| <a id="([a-z0-9-]+)"></a>', line)
        if match:
            claim = table[match.group(1)]
            found = document(claim.result.strip("`").partition(": ")[0])
            date = found["about"]["date"] if isinstance(found, dict) and "about" in found else claim.date
            cells = [claim.floor, claim.command, claim.result, date]
            lines[number] = (
                f'| <a id="{claim.name}"></a>{claim.title} | {right_figure(claim)} | {" | ".join(cells)} |\n'
            )
    return "".join(lines)


def main() -> None:
    """Print the lines that differ from the result files, or write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the files' figures into the pages")
    options = parser.parse_args()
    table, wrong = claims(), 0
    for path in [HERE / "README.md", *pages()]:
        before = path.read_text(encoding="utf-8")
        after = corrected_claims(before, table) if path == HERE / "README.md" else corrected(before, table)
        for old, new in zip(before.splitlines(), after.splitlines(), strict=False):
            if old != new:
                wrong += 1
                print(f"{path.relative_to(ROOT)}\n  - {old}\n  + {new}")
        if options.write and before != after and UNKNOWN not in after:  # a claim that is not there is for you to mend
            path.write_text(after, encoding="utf-8")
    raise SystemExit(0 if options.write or not wrong else 1)


if __name__ == "__main__":
    main()
