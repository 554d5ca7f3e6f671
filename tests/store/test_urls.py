"""URLs work or are refused: none becomes a directory called "s3:"."""

import os
import shutil
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

import gradindex
from gradindex import GradientSimilarity
from gradindex.cli.app import run
from gradindex.report import write_report
from gradindex.store.location import locate, on_disk
from gradindex.store.remote import RemotePath
from tests.jobs import digits, digits_job, trained

pytest.importorskip("fsspec")
JOB = "tests.jobs:digits_job"


@pytest.fixture(autouse=True)
def nothing_beside(tmp_path, monkeypatch):
    """Run in an empty directory, and find no directory there that is called like a protocol."""
    monkeypatch.setenv("GRADINDEX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield
    assert os.listdir(tmp_path / "cwd") == []


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return gradindex.build(digits_job(columns={"n": np.arange(240)}), tmp_path_factory.mktemp("urls") / "i")


@pytest.mark.parametrize(
    ("url", "below", "name", "parent"),
    [
        ("s3://b/i", "s3://b/i/x", "i", "s3://b"),
        ("zip://i::s3://b/a.zip", "zip://i/x::s3://b/a.zip", "i", "zip:/::s3://b/a.zip"),
        ("zip://a/i/::s3://b/a.zip", "zip://a/i/x::s3://b/a.zip", "i", "zip://a::s3://b/a.zip"),
        ("zip://::file:///a.zip", "zip://x::file:///a.zip", "", "zip:/::file:///a.zip"),
        ("zip::file:///a.zip", "zip://x::file:///a.zip", "", "zip:/::file:///a.zip"),
        ("simplecache::s3://b/i", "simplecache::s3://b/i/x", "i", "simplecache::s3://b"),
        (
            "filecache::zip://i::simplecache::s3://b/a.zip",
            "filecache::zip://i/x::simplecache::s3://b/a.zip",
            "i",
            "filecache::zip:/::simplecache::s3://b/a.zip",
        ),
    ],
)
def test_what_lies_below_a_chain(url, below, name, parent):
    path = locate(url)
    assert isinstance(path, RemotePath)
    assert str(path / "x") == below and (path / "x").name == "x"
    assert path.name == name
    assert str(path.parent) == parent or name == "" or "zip:/" in parent


def test_an_index_in_an_archive_and_behind_a_cache(index, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "a"), "zip", index.store.path.parent, "i")
    want = index.explain(ids=[3], k=4).ordered_indices
    for url in (
        f"zip://i::file://{archive}",
        f"simplecache::local://{index.store.path}",
        f"local://{index.store.path}",
    ):
        found = gradindex.load(url, digits_job())
        np.testing.assert_array_equal(found.explain(ids=[3], k=4).ordered_indices, want)
        assert str(found.store.path) == url


@pytest.mark.parametrize("protocol", ["local://", "memory://"])
def test_builds_behind_any_protocol(index, tmp_path, protocol):
    built = gradindex.build(index.job, f"{protocol}{tmp_path}/deep/new", shard_rows=100)
    built.remove([5])
    assert 5 not in built.explain(ids=[3], k=239).ordered_indices
    assert gradindex.load(str(built.store.path)).compact() == 1
    gradindex.load(str(built.store.path), index.job).check()


def test_a_cache_that_loses_exclusive_writes_is_refused(index, tmp_path):
    with pytest.raises(OSError, match="overwrites where a file should only be created if it is absent"):
        gradindex.build(index.job, f"simplecache::local://{tmp_path}/new")


def test_exports_to_a_url(index, tmp_path):
    done = gradindex.export(index.store.path, parquet=f"local://{tmp_path}/p", faiss=f"local://{tmp_path}/f/i.faiss")
    assert done.files == (f"local://{tmp_path}/f/i.faiss", f"local://{tmp_path}/p/000000.parquet")
    assert done.bytes == sum(Path(file.removeprefix("local://")).stat().st_size for file in done.files)
    assert pq.read_table(tmp_path / "p")["n"].to_pylist() == list(range(240))
    assert faiss.read_index(str(tmp_path / "f" / "i.faiss")).ntotal == 240


def test_reports_to_and_of_a_url(index, tmp_path, capsys):
    pytest.importorskip("jinja2")
    page = f"local://{tmp_path}/deep/r.html"
    (tmp_path / "deep").mkdir()
    code = run(["report", f"local://{index.store.path}", JOB, "--queries", "3", "-o", page])
    assert code == 0 and page in capsys.readouterr().out.replace("\n", "")
    assert "Training sample 3" in (tmp_path / "deep" / "r.html").read_text(encoding="utf-8")
    assert str(write_report(index, tmp_path / "r.html", ids=[3])) == str(tmp_path / "r.html")


def test_what_takes_no_url_says_so(index, tmp_path):
    x, y = digits()
    explainer = GradientSimilarity(trained(), index.job.loss_fn, backend="pytorch").fit(x[:9], y[:9])
    with pytest.raises(ValueError, match=r"GradientSimilarity.save takes a path on this machine, got s3://b/e"):
        explainer.save("s3://b/e")
    with pytest.raises(ValueError, match=r"GradientSimilarity.load takes a path on this machine, got s3://b/e"):
        GradientSimilarity.load("s3://b/e", trained())
    with pytest.raises(ValueError, match=r"a checkpoint takes a path on this machine, got s3://b/c.pt"):
        gradindex.Job(trained(), index.job.loss_fn, (x, y), checkpoints=[("s3://b/c.pt", 0.1)]).engine  # noqa: B018


def test_a_url_that_was_made_a_path():
    for path in (Path("s3://b/i"), Path("local:///x"), Path("memory://x")):
        with pytest.raises(ValueError, match=r"was a URL before it became a pathlib\.Path: give the URL as a string"):
            locate(path)
    assert locate(Path("a:b/c")) == Path("a:b/c").absolute() and on_disk("file:///x/y", "it") == Path("/x/y")
    with pytest.raises(ValueError, match="was a URL before"):
        gradindex.build(digits_job(), Path("s3://b/i"))


def test_file_urls_are_read_as_they_are_written(tmp_path):
    place = tmp_path / "a b%20?c#d"
    assert locate(place.as_uri()) == place and locate(place.as_uri().replace("file://", "file://localhost")) == place
    assert locate(place.as_uri().replace("file://", "FILE:")) == place
    with pytest.raises(ValueError, match="names a file of the machine 'server': type file:///PATH"):
        locate("file://server/share/i")


def test_paths_that_would_lead_elsewhere(tmp_path, monkeypatch):
    tmp_path = tmp_path / "here"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in ("~/i", Path("~/i"), b"~/i"):
        assert locate(path) == tmp_path / "home" / "i"
    assert locate("a~/i") == tmp_path / "a~" / "i"
    with pytest.raises(ValueError, match="The path is empty: name a directory"):
        gradindex.build(digits_job(), "")
    with pytest.raises(ValueError, match=r"'s3:/b/i' is a URL with one slash too few: type s3://b/i"):
        gradindex.build(digits_job(), "s3:/b/i")
    with pytest.raises(ValueError, match="is not UTF-8, which FAISS and Arrow need: rename it"):
        locate(os.fsencode(tmp_path) + b"/\xff")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "s3:").mkdir()
    assert locate("s3:/b") == tmp_path / "s3:" / "b"


def test_a_link_to_nothing_is_said(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"link to .*nowhere, which is not there. Make that directory first"):
        gradindex.build(digits_job(), tmp_path / "link")
