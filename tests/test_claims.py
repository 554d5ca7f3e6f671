"""Every figure that a page quotes stands in a result file that a script wrote; one that is off by a digit is found."""

import re
import sys
from pathlib import Path

import pytest

import gradindex

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import claims  # noqa: E402

TABLE = claims.claims()
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in claims.pages()}
STUDIES = [name for name in PAGES if name.startswith("benchmarks/studies/")]
CLAIMS = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
DIGIT = re.compile(r"\d")


def other_digits(text):
    """The text with each of its digits changed, one at a time."""
    return [text[: m.start()] + str((int(m.group()) + 1) % 10) + text[m.end() :] for m in DIGIT.finditer(text)]


@pytest.mark.parametrize("name", TABLE)
def test_a_claim_is_what_its_file_holds(name):
    claim = TABLE[name]
    assert claim.figure == claims.right_figure(claim)
    wrong = [claims.Claim(**{**vars(claim), "figure": figure}) for figure in other_digits(claim.figure)]
    assert wrong and all(one.figure != claims.right_figure(one) for one in wrong)


@pytest.mark.parametrize("name", TABLE)
def test_a_claim_names_what_measured_it(name):
    claim = TABLE[name]
    script = re.search(r"python (benchmarks/\w+\.py)", claim.command).group(1)
    assert (ROOT / script).exists()
    assert re.fullmatch(r"2\d{3}-\d\d-\d\d", claim.date)
    found = claims.document(claim.result.strip("`").partition(": ")[0])
    if isinstance(found, dict) and "about" in found:
        about = found["about"]
        given = "".join(f"{name}={value} " for name, value in about["environment"].items())
        assert about["command"] in claim.command
        assert claim.command.strip("`").removesuffix(about["command"]) in ("", given)
        assert about["date"] == claim.date
        assert about["machine"]["cores"] > 0 and about["versions"]["gradindex"]


def test_floors_are_read():
    assert claims.meets(0.98, "≥ 98 %") and not claims.meets(0.97, "≥ 98 %")
    assert claims.meets(0, "≤ 0") and not claims.meets(1, "≤ 0") and claims.meets(5, "")
    low = claims.Claim("a", "", "0.9", "≥ 1,000", "", "`gradients.json: threads`", "")
    assert claims.right_figure(low) == "**2.0**"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_quotes_what_the_files_hold(page):
    assert claims.corrected(PAGES[page], TABLE) == PAGES[page]


@pytest.mark.parametrize("page", PAGES)
def test_a_figure_that_is_off_by_a_digit_is_found(page):
    """The last digit of every quoted figure, and of some number in every table, is changed."""
    text = PAGES[page]
    for pattern in (claims.LINKED, claims.NAMED):
        for match in pattern.finditer(text):
            at = match.start() + re.match(rf"\[?(?:\*\*)?(?:{claims.NUMBER})", match.group()).end() - 1
            wrong = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
            assert claims.corrected(wrong, TABLE) == text, match.group()
    for match in claims.TABLE.finditer(text):
        body = match.group(2).split("\n", 2)[2]
        compared = [cell for row in claims.rows_of(match.group(1)) for cell in row if cell and DIGIT.search(cell)]
        cell = compared[-1].replace("**", "")
        at = text.rindex(cell, match.start(), match.end()) + len(cell) - 1
        at -= len(cell) - 1 - max(i for i, letter in enumerate(cell) if letter.isdigit())
        wrong = text[:at] + str((int(text[at]) + 1) % 10) + text[at + 1 :]
        assert body and claims.corrected(wrong, TABLE) == text, cell


def test_every_figure_of_the_readme_is_a_claim_or_a_constant_of_the_code():
    """Numbers outside code and links. What is no figure is compared with the code that it speaks of."""
    checks = gradindex.SearchOptions().rerank
    text = re.sub(r"```.*?```", "", PAGES["README.md"], flags=re.S)
    text = claims.LINKED.sub("", text)
    text = re.sub(r"^\[[^\]]*\]: \S+$", "", text, flags=re.M)
    text = re.sub(r"`[^`]*`|\[[^\]]*\d{4}\]|\]\([^)]*\)|float16|recall@10|Apache-2\.0|\(Python 3\.11, Linux", "", text)
    constants = {f"{gradindex.CountSketch().dim:,}", str(checks), "60,000", "1,022"}
    left = set(re.findall(claims.NUMBER, text)) - constants
    assert not left
    assert len(claims.LINKED.findall(PAGES["README.md"])) >= 5


@pytest.mark.parametrize("page", STUDIES)
def test_every_table_of_a_study_comes_from_a_file(page):
    text = claims.TABLE.sub("", PAGES[page])
    assert not [line for line in text.splitlines() if line.startswith("|")]


def test_every_result_file_is_quoted():
    quoted = CLAIMS + "".join(PAGES[page] for page in STUDIES)
    by_script = [f"hanawa_{case}{suffix}.json" for case, suffix in hanawa_cases(quoted)]
    files = {path.name for path in (ROOT / "benchmarks" / "results").iterdir()}
    assert not {name for name in files if name not in quoted and name not in by_script}


def hanawa_cases(text):
    for source in re.findall(r"<!-- from hanawa.py (.*?) --test", text):
        cases, _, suffix = source.removeprefix("--cases ").partition(" --suffix ")
        yield from ((case, suffix) for case in cases.split())


@pytest.mark.parametrize("page", [*PAGES, "benchmarks/README.md"])
def test_no_figure_is_by_hand(page):
    text = (ROOT / page).read_text(encoding="utf-8").lower()
    assert not re.findall(r"by hand|with a draft|earlier version|earlier run|a version before|timed apart", text)


@pytest.mark.parametrize("page", [*STUDIES, "benchmarks/README.md"])
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for path, anchor in re.findall(r"\]\((?!http)([^)#\s]*)(?:#([^)]*))?\)", text):
        assert ((ROOT / page).parent / path).exists(), path
        assert not anchor or anchor in TABLE, anchor


def test_every_study_is_reached():
    for page in STUDIES:
        assert f"studies/{Path(page).name}" in CLAIMS
