"""Docstrings by pydoclint: what they say of arguments is true of the signature.

Three habits of this code are no mistakes in numpydoc's style, but pydoclint's codes DOC101, DOC103, DOC201 and DOC402:
one entry for several arguments (``x, y``), a summary that says what is returned instead of a section, and no entry for
an argument that needs none. What is left of them is that every documented argument exists, in the signature's order.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ACCEPTED = {"DOC101", "DOC201", "DOC402"}
pytestmark = pytest.mark.skipif(importlib.util.find_spec("pydoclint") is None, reason="pip install pydoclint")


def complaints(folder):
    """Return 'place: what is wrong' for every docstring in a folder that says what is not so."""
    done = subprocess.run(
        [sys.executable, "-m", "pydoclint.main", "--config", str(ROOT / "pyproject.toml"), "--quiet", str(folder)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode in (0, 1), done.stderr
    found, file = [], ""
    for line in (done.stdout + done.stderr).splitlines():
        if not (said := re.match(r"\s+(\d+): (DOC\d+): (.*)", line)):
            file = line.strip() or file
            continue
        number, code, text = said.groups()
        extra = unknown(text) if code == "DOC103" else [text]
        if code not in ACCEPTED and extra:
            found.append(f"{file}:{number}: {code} {extra}")
    return found


def unknown(text):
    """Return the arguments that a DOC103 finds in a docstring alone, those of an entry for several taken apart."""
    parts = [re.search(rf"Arguments in the {where}: \[(.*?)\]\.(?= |$)", text) for where in SIDES]
    signature, docstring = (part.group(1) if part else "" for part in parts)
    known = {name.lstrip("*") for name in re.findall(r"(?:^|, )(\*{0,2}\w+): ", signature)}
    return [name for name in re.findall(r"\w+", docstring) if name not in known]


SIDES = r"function signature but not in the docstring", r"docstring but not in the function signature"


def test_documented_arguments_exist():
    assert complaints(ROOT / "gradindex") == []


def test_a_wrong_docstring_is_found(tmp_path):
    (tmp_path / "wrong.py").write_text(
        '''
def area(width: int, height: int) -> int:
    """Return an area.

    Parameters
    ----------
    width, depth
        Of the rectangle.
    """
    return width * height


def swapped(a: int, b: int) -> None:
    """Do nothing.

    Parameters
    ----------
    b
        One.
    a
        Another.
    """
'''
    )
    found = complaints(tmp_path)
    assert found[0].endswith("wrong.py:2: DOC103 ['depth']")
    assert any("wrong.py:13: DOC104" in one for one in found)
