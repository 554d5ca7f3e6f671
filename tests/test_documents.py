"""The page of the documents' claims is made of its data; the tests, commands, files and figures it names are there."""

import ast
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import claims  # noqa: E402
import documents  # noqa: E402

FOUND = documents.content()
CLAIMS = FOUND["claims"]
NAMES = [f"{one['document']} {number}" for number, one in enumerate(CLAIMS)]
COMMANDS = sorted(
    {command for one in CLAIMS for command in one.get("commands", [])} | {m["command"] for m in FOUND["missing"]}
)


@cache
def functions(path):
    """The names of all functions of a file, those of its classes included."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@cache
def options(script):
    """The options that a script's file, or what it reads its options with, names."""
    texts = [(ROOT / script).read_text(encoding="utf-8")]
    if script.startswith("examples/"):
        texts.append((ROOT / "examples" / "data.py").read_text(encoding="utf-8"))
    else:
        texts.append((ROOT / "benchmarks" / "record.py").read_text(encoding="utf-8"))
    given = re.findall(r"\barguments\(__doc__, (.*)\)", texts[0])
    keywords = {f"--{name}" for line in given for name in re.findall(r"(\w+)=", line)}
    return {option for text in texts for option in re.findall(r"\"(--[a-z-]+)\"", text)} | keywords


def test_the_page_is_made_of_the_data():
    assert documents.PAGE.read_text(encoding="utf-8") == documents.page(FOUND)


def test_every_claim_of_the_audit_is_there():
    assert len(CLAIMS) == 124
    keys = [document["key"] for document in FOUND["documents"]]
    assert {one["document"] for one in CLAIMS} == set(keys) and len(keys) == len(set(keys))
    assert len({(one["document"], one["section"], one["claim"]) for one in CLAIMS}) == 124


@pytest.mark.parametrize("one", CLAIMS, ids=NAMES)
def test_what_a_claim_names_is_there(one):
    assert set(one) <= {"document", "section", "claim", "state", "ours", "tests", "commands", "files"}
    assert one["state"] in documents.STATES
    assert one.get("tests") or one.get("commands") or one.get("files"), "nothing shows it"
    for name in one.get("tests", []):
        path, _, function = name.partition("::")
        assert function in functions(path), name
    for name in one.get("files", []):
        assert (ROOT / "benchmarks" / "results" / name).is_file(), name
    for name, _ in documents.FIGURE.findall(one["ours"]):
        file = name.partition(": ")[0] if ".json: " in name else None
        assert name in claims.claims() if file is None else file in one["files"], name


@pytest.mark.parametrize("one", FOUND["missing"], ids=lambda one: one["what"])
def test_what_is_missing_has_a_loader_and_a_test(one):
    path, _, function = one["test"].partition("::")
    assert function in functions(path)
    assert one["command"] in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_a_script_with_those_options(command):
    words = shlex.split(command)
    assert words[0] == "python" and (ROOT / words[1]).is_file()
    assert {word for word in words[2:] if word.startswith("--")} <= options(words[1])
    if "--case" in words:
        text = (ROOT / words[1]).read_text(encoding="utf-8")
        assert f'"{words[words.index("--case") + 1]}": Case(' in text
    if "--cases" in words:
        import hanawa_cases

        cases = words[words.index("--cases") + 1 :]
        cases = cases[: next((i for i, word in enumerate(cases) if word.startswith("--")), len(cases))]
        assert set(cases) <= set(hanawa_cases.CASES)


def test_a_figure_is_the_files_and_another_is_seen(tmp_path, monkeypatch):
    table = claims.claims()
    text = documents.filled("{hanawa-fk-single:.0f} of {hanawa_meet.json: results.all.of:.0f}", table)
    value = claims.document("hanawa_meet.json")["results"]["single"]["FK"]["meet"]
    assert (
        text == f"{value} (claim `hanawa-fk-single`) of {claims.document('hanawa_meet.json')['results']['all']['of']}"
    )
    old = documents.PAGE.read_text(encoding="utf-8")
    at = max(match.start() for match in re.finditer(r"\d", old))
    wrong = tmp_path / "claims.md"
    wrong.write_text(old[:at] + str((int(old[at]) + 1) % 10) + old[at + 1 :], encoding="utf-8")
    monkeypatch.setattr(documents, "PAGE", wrong)
    monkeypatch.setattr(documents.claims, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["documents.py"])
    with pytest.raises(SystemExit, match=r"claims\.md differs: type python benchmarks/documents\.py --write"):
        documents.main()


def test_the_command_agrees_with_the_page():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "documents.py"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_no_state_is_claimed_that_its_words_deny():
    for one in CLAIMS:
        if one["state"] == "not repeated":
            assert "need" in one["ours"] or "network" in one["ours"] or "at hand" in one["ours"], one["claim"]
        else:
            assert not one["ours"].startswith("cannot be had"), one["claim"]
