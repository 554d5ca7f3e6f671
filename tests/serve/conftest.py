"""A service over 240 digits, in this process, and helpers that start one as a command."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serve.browsing import WAIT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def served_path(tmp_path_factory):
    import gradindex
    from tests.serve.jobs import pictures_job

    path = tmp_path_factory.mktemp("serve") / "index"
    gradindex.build(pictures_job(), path).verify(queries=20)
    return path


@pytest.fixture(scope="session")
def whitened_path(tmp_path_factory):
    import gradindex
    from tests.serve.jobs import pictures_job

    path = tmp_path_factory.mktemp("whitened") / "index"
    gradindex.build(pictures_job(), path, sketch=gradindex.Landmark(landmarks=64, dims=32)).whiten()
    return path


@pytest.fixture(scope="session")
def whitened(whitened_path):
    import gradindex
    from tests.serve.jobs import pictures_job

    return gradindex.load(whitened_path, pictures_job())


@pytest.fixture(scope="session")
def index(served_path):
    import gradindex
    from tests.serve.jobs import pictures_job

    return gradindex.load(served_path, pictures_job())


@pytest.fixture(scope="module")
def client(index):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from gradindex.serve import Settings, create_app

    settings = Settings(hosts=("testserver",), max_body=200_000, max_queries=16, max_k=100)
    with TestClient(create_app(index, settings), raise_server_exceptions=False) as client:
        yield client


@contextlib.contextmanager
def running(path, *options, job="tests.serve.jobs:pictures_job", env=None):
    """Run `gradindex serve` on a free port; yield its address and process, and stop it by its own id."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gradindex", "serve", str(path), job, "--port", "0", *map(str, options)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
    )
    try:
        for line in process.stderr:
            if found := re.search(r"http://[^ ]+", line):
                break
        else:
            raise RuntimeError("the service did not start")
        yield found.group(), process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
        process.stderr.close()


@pytest.fixture(scope="module")
def browser():
    tools = pytest.importorskip(
        "playwright.sync_api", reason="the page is tested with playwright: pip install playwright"
    )
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("the page is tested in Chromium: apt-get install chromium")
    with tools.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A fresh page; anything that it loads from elsewhere, or that breaks its own policy, fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(WAIT)
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.said = said
    yield page
    context.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in asked), asked
    assert not [text for text in said if "status of 4" not in text], said
