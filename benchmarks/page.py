"""The pages of the service over many rows: how soon they show something, and how soon a list of samples is there.

    OMP_NUM_THREADS=1 python benchmarks/page.py [--rows 1000000] [--repeats 7] [--out FILE]

Samples are eight random numbers each, the model is linear: what is measured is the service and its pages, not a model.
A server on this machine; Chromium opens each page anew. `paint` is the browser's first contentful paint, `settled`
when the page says that it is no longer busy, both from the start of the navigation; `list` is one page of the list of
all samples from its middle, `list of a class` the same of one class alone, over HTTP. Medians, in milliseconds.
"""

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import record

import gradindex

HERE = Path(__file__).resolve()
PAGES = "/", "/review", "/map"
LISTED = 48  # samples of one page of the list
_WAIT = 60  # seconds


def job() -> gradindex.Job:
    """Return a linear model of random samples; how many stands in the environment."""
    import torch

    rows = int(os.environ["PAGE_ROWS"])
    x = np.random.default_rng(0).standard_normal((rows, 8), np.float32)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 3)
    with torch.no_grad():
        y = model(torch.from_numpy(x)).argmax(1).numpy()
    return gradindex.Job(model, torch.nn.CrossEntropyLoss(), (x, y))


def serving(folder: str) -> tuple[subprocess.Popen[str], str]:
    """Start the service; return its process and address."""
    command = [sys.executable, "-m", "gradindex", "serve", folder, f"{HERE}:job", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http://[^ ]+", line):
            return process, found.group().rstrip("/")
    raise RuntimeError("The service did not start.")


def pages(address: str, repeats: int) -> dict[str, dict[str, float]]:
    """Return how soon each page paints and settles."""
    from playwright.sync_api import sync_playwright

    found: dict[str, dict[str, float]] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        for path in PAGES:
            paints, settled = [], []
            for _ in range(repeats + 1):  # the first one starts the browser's processes
                page = browser.new_page()
                began = time.perf_counter()
                page.goto(address + path)
                while page.evaluate("document.querySelector('main').getAttribute('aria-busy')") != "false":
                    if time.perf_counter() > began + _WAIT:
                        raise TimeoutError(f"{path} is still busy.")
                    page.wait_for_timeout(5)
                settled.append((time.perf_counter() - began) * 1e3)
                paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
                paints.append(float(page.evaluate(paint)))
                page.close()
            found[path] = {"paint": float(np.median(paints[1:])), "settled": float(np.median(settled[1:]))}
        browser.close()
    return found


def lists(address: str, rows: int, repeats: int) -> dict[str, float]:
    """Return how long a page of the list of samples takes."""
    found = {}
    for name, more in (("list", ""), ("list of a class", "&label=1")):
        times = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            url = f"{address}/v1/items?offset={rows // (2 if not more else 6)}&limit={LISTED}{more}"
            with urllib.request.urlopen(url, timeout=_WAIT) as answer:
                answer.read()
            times.append((time.perf_counter() - began) * 1e3)
        found[name] = float(np.median(times[1:]))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    record.add_out(parser)
    options = parser.parse_args()
    os.environ["PAGE_ROWS"] = str(options.rows)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/index"
        gradindex.build(job(), path, sketch=gradindex.CountSketch(64), progress=False)
        process, address = serving(path)
        try:
            results: dict[str, Any] = {"rows": options.rows, "pages": pages(address, options.repeats)}
            results |= lists(address, options.rows, options.repeats)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(_WAIT)
    print(results)
    if options.out:
        record.write(Path(options.out), results)


if __name__ == "__main__":
    main()
