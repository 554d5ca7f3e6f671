"""Files that are dropped onto the page of texts, and a service whose packages fail: what is said."""

import sys

import pytest

import gradindex
from tests.serve import jobs
from tests.serve.browsing import WAIT, settled, until
from tests.serve.conftest import running

pytest.importorskip("fastapi")
from gradindex.serve import create_app


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "index"
    gradindex.build(jobs.texts_job(), path)
    with running(path, "--max-body", 1000, job="tests.serve.jobs:texts_job") as (address, _):
        yield address


def test_only_texts_are_explained(page, address, tmp_path):
    page.set_default_timeout(WAIT)
    page.goto(address)
    settled(page)
    for name, data, said in (
        ("a.png", b"\x89PNG\r\n\x1a\n" + bytes(range(200)), "a.png is no text in UTF-8."),
        ("empty.txt", b"", "empty.txt is empty."),
        ("blank.txt", b" \n\t", "blank.txt holds no text."),
        ("long.txt", b"a" * 1001, "long.txt has 1,001 bytes; at most 1,000 are taken."),
    ):
        (tmp_path / name).write_bytes(data)
        page.locator("input[type=file]").set_input_files(str(tmp_path / name))
        until(page, f"document.querySelector('#error-text').innerText.includes('{said}')")
    (tmp_path / "good.txt").write_text("abcab", encoding="utf-8")
    page.locator("input[type=file]").set_input_files(str(tmp_path / "good.txt"))
    until(page, "document.querySelector('#proponents button') !== null")


def test_a_file_that_hides_a_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "uvicorn.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "uvicorn", raising=False)
    with pytest.raises(
        ImportError, match=r"No module named 'no_such_package', in .*uvicorn\.py\. If that file is yours"
    ):
        create_app(None)
    (tmp_path / "uvicorn.py").write_text("raise ModuleNotFoundError('gone', name='uvicorn')\n")
    with pytest.raises(ImportError, match=r"The service needs uvicorn, .* pip install 'gradindex\[serve\]'"):
        create_app(None)
