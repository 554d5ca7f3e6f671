"""The pages of the review and of the map, clicked and keyed through in a real browser."""

import csv
import json
import os
import shutil
import subprocess
import tarfile
import time
import urllib.request
from pathlib import Path

import pytest

import gradindex
from gradindex.cli.app import run
from gradindex.store import Store
from tests.review.kit import samples, wrong_job
from tests.serve.browsing import WAIT, settled, until
from tests.serve.conftest import running
from tests.serve.jobs import NAMES

pytest.importorskip("fastapi")
JOB = "tests.serve.test_review_page:pictures_job"


def pictures_job():
    x, *_ = samples()
    return wrong_job(class_names=NAMES, render=lambda i: x[i].reshape(8, 8))


def get(address, path):
    with urllib.request.urlopen(f"{address}{path}") as answer:
        return json.load(answer)


def make(address, what):
    urllib.request.urlopen(urllib.request.Request(f"{address}/v1/{what}", method="POST")).close()
    end = time.monotonic() + 120
    while (state := get(address, f"/v1/{what}")["making"]["state"]) == "running":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert state == "ready"


@pytest.fixture(scope="module")
def built(browser, tmp_path_factory):
    path = tmp_path_factory.mktemp("reviewed") / "index"
    gradindex.build(pictures_job(), path)
    return path


@pytest.fixture(scope="module")
def address(built):
    with running(built, "--review-top", 60, "--map-way", "pca", job=JOB) as (address, _):
        make(address, "review")
        make(address, "map")
        yield address


def opened(page, url):
    page.goto(url)
    settled(page)


def row(page, place):
    return page.locator("#rows > .row").nth(place)


def saved(page, sample, decision, by=""):
    until(page, f"document.querySelector('#status').innerText.includes('Sample {sample}: {decision}')")


def test_decided_undone_reloaded_exported_and_removed(page, address, built, tmp_path, capsys):
    opened(page, f"{address}/review")
    lines = get(address, "/v1/review/rows?kind=label&limit=4")["rows"]
    one, two, three, four = (line["id"] for line in lines)
    assert page.locator("#rows > .row").count() == 20
    first = row(page, 0)
    assert f"Sample {one}" in first.inner_text() and lines[0]["proposed_name"] in first.inner_text()
    assert "(estimate)" in first.inner_text()
    assert first.locator(".evidence a").count() == len(lines[0]["neighbours"]) == 5
    assert first.locator("img").first.evaluate("i => i.complete && i.naturalWidth") == 8
    page.locator("#reviewer").fill("Ada")
    page.locator("#reviewer").press("Tab")
    first.get_by_role("button", name="Keep").click()
    saved(page, one, "keep")
    assert row(page, 1).get_attribute("aria-current") == "true"  # on to the next
    page.keyboard.press("r")  # as proposed
    saved(page, two, f"relabel as {lines[1]['proposed_name']}")
    page.keyboard.press("x")
    saved(page, three, "remove")
    assert f"Next: sample {four}, label" in page.locator("#status").inner_text()
    page.keyboard.press("u")
    until(page, "document.querySelector('#status').innerText.startsWith('Undone')")
    assert page.locator("#status").inner_text() == f"Undone: sample {three} is open again."
    assert row(page, 2).evaluate("one => one === document.activeElement")
    assert row(page, 2).locator("[aria-pressed=true]").count() == 0
    page.keyboard.press("x")
    saved(page, three, "remove")
    row(page, 3).locator("select").select_option("7")
    row(page, 3).get_by_role("button", name="Relabel as").click()
    saved(page, four, "relabel as seven")
    page.reload()
    settled(page)
    assert page.url.endswith("#kind=label&at=4") and page.locator("#reviewer").input_value() == "Ada"
    for place, decision in enumerate(("keep", "relabel", "remove", "relabel")):
        pressed = row(page, place).locator("[aria-pressed=true]")
        assert pressed.get_attribute("data-decision") == decision
    assert "You: relabel as seven" in row(page, 3).inner_text()
    assert "4 of 60 decided" in page.locator("#kinds").inner_text()
    for form in ("csv", "jsonl"):
        with page.expect_download() as given:
            page.locator(f"#export-{form}").click()
        assert given.value.suggested_filename == f"decisions.{form}"
        given.value.save_as(tmp_path / f"decisions.{form}")
    with (tmp_path / "decisions.csv").open(newline="") as file:
        mine = {int(line["id"]): line for line in csv.DictReader(file) if line["reviewer"] == "Ada"}
    assert {i: line["decision"] for i, line in mine.items()} == {
        one: "keep", two: "relabel", three: "remove", four: "relabel",
    }  # fmt: skip
    assert mine[two]["new_label"] == str(lines[1]["proposed"]) and mine[four]["new_label"] == "7"
    path = shutil.copytree(built, tmp_path / "index")
    assert run(["remove", str(path), "--decisions", str(tmp_path / "decisions.jsonl"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] >= 1
    assert three in Store.open(path).state.removed.tolist()


def test_lists_pages_and_links(page, address):
    opened(page, f"{address}/review#kind=opponent&at=21")
    want = get(address, "/v1/review/rows?kind=opponent&offset=20&limit=20")["rows"]
    assert page.locator("#place").inner_text() == "21 to 40 of 60"
    assert page.evaluate("document.activeElement.querySelector('h3').innerText").startswith(f"Sample {want[1]['id']}")
    page.keyboard.press("p")
    page.keyboard.press("ArrowLeft")  # onto the page before
    until(page, "document.querySelector('#place').innerText === '1 to 20 of 60'")
    settled(page)
    assert page.url.endswith("#kind=opponent&at=19")
    page.keyboard.press("n")
    until(page, "document.querySelector('#place').innerText === '21 to 40 of 60'")
    settled(page)
    page.locator("#keys-on").uncheck()
    page.locator("main").focus()
    page.keyboard.press("n")
    assert page.url.endswith("at=20")
    page.locator("#kinds").get_by_label("Classes that confuse each other").check()
    until(page, "location.hash.startsWith('#kind=confusion')")
    settled(page)
    assert page.locator(".decide").count() == 0 and " and " in row(page, 0).locator("h3").inner_text()
    page.go_back()
    until(page, "document.querySelector('#place').innerText === '21 to 40 of 60'")


def test_either_one_of_a_pair_is_decided(page, address):
    opened(page, f"{address}/review#kind=duplicate")
    (line, *_) = get(address, "/v1/review/rows?kind=duplicate&limit=1")["rows"]
    other = line["neighbours"][0]["id"]
    page.keyboard.press("s")
    until(page, f"document.querySelector('.decide').ariaLabel === 'Decision on sample {other}'")
    page.keyboard.press("l")
    saved(page, other, "later")
    assert get(address, f"/v1/review/decisions/{other}")["standing"]["decision"] == "later"
    assert get(address, f"/v1/review/decisions/{line['id']}")["standing"] is None
    assert page.locator("#status").inner_text().count("relabel") == 0
    row(page, 0).focus()
    page.keyboard.press("r")  # no label is proposed, so one is asked for
    until(page, f"document.querySelector('#status').innerText === 'Choose a class for sample {other} first.'")
    assert page.evaluate("document.activeElement.tagName") == "SELECT"


def test_two_reviewers_see_that_they_differ(page, browser, address):
    opened(page, f"{address}/review#kind=label&at=40")
    context = browser.new_context()
    other = context.new_page()
    other.set_default_timeout(WAIT)
    opened(other, page.url)
    for one, person in ((page, "Cem"), (other, "Dora")):
        one.locator("#reviewer").fill(person)
        one.locator("#reviewer").press("Tab")
    sample = get(address, "/v1/review/rows?kind=label&offset=40&limit=1")["rows"][0]["id"]
    row(page, 0).get_by_role("button", name="Keep").click()
    saved(page, sample, "keep")
    until(other, "document.querySelector('.stands').innerText.includes('Cem: keep')")
    row(other, 0).get_by_role("button", name="Remove").click()
    saved(other, sample, "remove")
    assert "Cem decided otherwise: keep" in row(other, 0).inner_text()
    until(page, "document.querySelector('.stands').innerText.includes('Dora: remove')")
    assert "Cem decided otherwise: keep" in row(page, 0).inner_text()
    assert page.locator("#status").inner_text() == f"Dora decided on sample {sample}: remove."
    context.close()


def test_what_is_not_saved_is_said(page, address):
    opened(page, f"{address}/review#kind=label&at=50")
    page.route(
        "**/v1/review/decisions", lambda route: route.abort() if route.request.method == "POST" else route.continue_()
    )
    page.keyboard.press("k")
    until(page, "document.querySelector('#rows').innerText.includes('Not saved: The service does not answer')")
    assert row(page, 10).locator("[aria-pressed=true]").count() == 0
    page.unroute("**/v1/review/decisions")
    page.said.clear()
    page.keyboard.press("p")
    page.keyboard.press("k")
    until(
        page, "document.querySelectorAll('#rows .row')[10].querySelector('[data-decision=keep]').ariaPressed === 'true'"
    )


def test_read_only_offers_nothing_and_a_review_is_made_at_a_click(browser, built, tmp_path):
    path = shutil.copytree(built, tmp_path / "index")
    with running(path, "--read-only", "--review-top", 5, job=JOB) as (address, _):
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"{address}/review")
        page.locator("#make").click()
        page.locator("#rows .row").first.wait_for()
        assert "Reading the samples" not in page.locator("main").inner_text()
        assert page.locator(".decide button:visible, #undo:visible, #reviewer:visible").count() == 0
        assert "started with --read-only" in page.locator("#read-only").inner_text()
        page.keyboard.press("x")
        page.wait_for_timeout(300)
        assert get(address, "/v1/review/decisions")["entries"] == []
        page.close()


def test_points_of_the_map_are_chosen_by_mouse_and_by_keyboard(page, address, browser):
    opened(page, f"{address}/map")
    points = get(address, "/v1/map/points")
    assert page.locator("#legend li").all_inner_texts() == NAMES
    box = page.locator("#canvas").bounding_box()
    side, margin = box["width"] - 30, 15  # a border and what the page leaves around the points

    def at(x, y):
        return box["x"] + margin + x * side, box["y"] + margin + y * side

    page.mouse.move(*at(0.1, 0.1))
    page.mouse.down()
    page.mouse.move(*at(0.5, 0.4), steps=3)
    page.mouse.up()
    until(page, "location.hash.includes('box=')")
    settled(page)
    x0, y0, x1, y1 = map(float, page.url.rpartition("box=")[2].split(","))
    assert abs(x0 - 0.1) + abs(y0 - 0.1) + abs(x1 - 0.5) + abs(y1 - 0.4) < 0.02
    chosen = [
        i
        for i, x, y in zip(points["ids"], points["x"], points["y"], strict=True)
        if x0 <= x <= x1 and y0 <= y <= y1
    ]  # fmt: skip
    assert len(chosen) > 24
    until(page, "document.querySelectorAll('#chosen .card').length === 24")
    assert page.locator("#chosen-count").inner_text() == f"{len(chosen)} chosen."
    texts = page.locator("#chosen .card").all_inner_texts()
    assert all(f"#{i}" in text for i, text in zip(chosen[:24], texts, strict=True))
    assert page.locator("#chosen .card").first.get_attribute("href") == f"/#id={chosen[0]}"
    page.locator("#next").click()
    until(page, f"document.querySelector('#chosen .card').getAttribute('href') === '/#id={chosen[24]}'")
    other = browser.new_page()
    other.set_default_timeout(WAIT)
    opened(other, page.url)
    until(other, f"document.querySelector('#chosen-count').innerText === '{len(chosen)} chosen.'")
    other.close()
    page.locator("#canvas").focus()
    for key in ("ArrowRight", "ArrowDown", "+", "+"):
        page.keyboard.press(key)
    assert "samples in the frame" in page.locator("#status").inner_text()
    page.keyboard.press("Enter")
    until(page, f"!location.hash.includes('box={x0}')")
    settled(page)
    count = page.locator("#chosen-count").inner_text()
    page.keyboard.press("Escape")
    until(page, "!location.hash.includes('box=')")
    assert page.locator("#chosen").is_hidden()
    page.go_back()
    until(page, f"document.querySelector('#chosen-count').innerText === '{count}'")
    i, box = chosen[3], page.locator("#canvas").bounding_box()  # it was scrolled
    place = points["ids"].index(i)
    page.mouse.click(*at(points["x"][place], points["y"][place]))
    until(page, f"document.querySelector('#chosen .card[href=\"/#id={i}\"]') !== null")


def test_colours_of_the_map(page, address):
    def drawn():
        return page.evaluate("document.querySelector('#canvas').toDataURL()")

    opened(page, f"{address}/map")
    seen = {drawn()}
    for name in ("Self-influence", "Decision"):
        page.locator("#controls").get_by_label(name).check()
        until(page, "location.hash.includes('by=')")
        seen.add(drawn())
    assert len(seen) == 3 and page.url.endswith("#by=state")
    assert page.locator("#legend li").all_inner_texts() == ["Keep", "Relabel", "Remove", "Later", "open"]


def test_pictures_of_the_gallery(page, address, tmp_path):
    """Made anew by GRADINDEX_PICTURES=examples/pictures python -m pytest -n 0 tests/serve/test_review_page.py."""
    folder = Path(os.environ.get("GRADINDEX_PICTURES", tmp_path))
    page.set_viewport_size({"width": 1200, "height": 820})
    opened(page, f"{address}/review#kind=label&at=20")
    page.locator("#reviewer").fill("Ada")
    page.locator("#reviewer").press("Tab")
    row(page, 0).focus()
    for key, said in (("r", "relabel"), ("x", "remove"), ("k", "keep")):
        page.keyboard.press(key)
        until(page, f"document.querySelector('#status').innerText.includes(': {said}')")
    page.evaluate("document.querySelector('#list').scrollIntoView()")
    page.screenshot(path=folder / "page-review.png")
    opened(page, f"{address}/map#by=label&box=0.1,0.1,0.5,0.4")
    until(page, "document.querySelectorAll('#chosen .card').length > 0")
    page.screenshot(path=folder / "page-map.png")
    assert all((folder / f"page-{name}.png").stat().st_size > 10_000 for name in ("review", "map"))


@pytest.mark.parametrize("path", ["review#kind=label&at=0", "map#by=label&box=0.1,0.1,0.6,0.6"])
def test_on_a_narrow_dark_screen(page, address, path):
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 390, "height": 844})
    opened(page, f"{address}/{path}")
    page.wait_for_timeout(300)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
    if path.startswith("review"):
        sizes = (
            page.locator("#rows .row")
            .first.locator(".decide button")
            .evaluate_all("all => all.map(b => b.offsetHeight)")
        )
        assert min(sizes) >= 40  # wide enough for a finger


def test_every_text_comes_from_one_file(page, address):
    for name in ("review", "map"):
        opened(page, f"{address}/{name}")
        empty = page.evaluate("[...document.querySelectorAll('[data-text]')].filter(e => !e.textContent.trim()).length")
        assert empty == 0
        assert "undefined" not in page.locator("body").inner_text()
    page.route("**/strings.js", lambda route: route.fulfill(
        body=Path("gradindex/serve/static/strings.js").read_text().replace('review: "Review"', 'review: "Durchsicht"'),
        content_type="text/javascript"))  # fmt: skip
    opened(page, f"{address}/review")
    assert page.locator("nav").inner_text().split() == ["Explore", "Durchsicht", "Map"]


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core: the file that GRADINDEX_AXE names, or what npm fetches."""
    if given := os.environ.get("GRADINDEX_AXE"):
        return Path(given).read_text(encoding="utf-8")
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("accessibility is checked with axe-core: install npm, or let GRADINDEX_AXE name axe.min.js")
    folder = tmp_path_factory.mktemp("axe")
    done = subprocess.run([npm, "pack", "axe-core@4.10.3"], cwd=folder, capture_output=True, timeout=120)
    if done.returncode:
        pytest.skip("accessibility is checked with axe-core, which npm could not fetch")
    with tarfile.open(folder / "axe-core-4.10.3.tgz") as file:
        return file.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(
    "path", ["", "#id=3", "review#kind=label&at=0", "review#kind=duplicate", "map#by=label&box=0.1,0.1,0.6,0.6"]
)
def test_axe_finds_nothing_serious(page, address, axe, path, scheme):
    page.emulate_media(color_scheme=scheme)
    opened(page, f"{address}/{path}")
    page.wait_for_timeout(500)
    page.evaluate(axe)
    found = page.evaluate("axe.run().then(found => found.violations)")
    bad = [(one["id"], one["impact"], [node["html"][:150] for node in one["nodes"]][:3]) for one in found]
    assert [one for one in bad if one[1] in ("serious", "critical")] == []
    page.evaluate("document.querySelector('h1 a').textContent = ''")  # or it would find nothing whatever there is
    found = page.evaluate("axe.run().then(found => found.violations)")
    assert "link-name" in [one["id"] for one in found]
