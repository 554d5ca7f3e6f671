"""The page, clicked through in a real browser."""

from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.jobs import digits
from tests.serve.browsing import WAIT, ids, settled, until
from tests.serve.conftest import running

pytest.importorskip("fastapi")

X, Y = digits()


@pytest.fixture(scope="module")
def address(served_path):
    with running(served_path) as (address, _):
        yield address


def test_from_the_gallery_to_a_neighbour_and_back(page, address, index):
    page.goto(address)
    settled(page)
    assert page.locator("#browse button[data-id]").count() == 24
    page.locator("#browse button[data-id='3']").click()
    settled(page)
    want = index.explain(ids=[3], k=10)
    assert ids(page, "proponents") == want.ordered_indices[0].tolist()
    assert ids(page, "opponents") == want.opponent_indices[0].tolist()
    first = page.locator("#proponents button").nth(1)
    assert f"{want.scores[0, 1]:.3f}" in first.inner_text()
    assert first.get_attribute("aria-label").startswith(f"proponent 2, sample {want.ordered_indices[0, 1]}, label")
    assert page.locator("#proponents img").first.evaluate("i => i.complete && i.naturalWidth") == 8
    assert "<b>odd</b>" in page.locator("#proponents").inner_text()  # a column, not HTML
    first.click()
    settled(page)
    assert f"#id={want.ordered_indices[0, 1]}" in page.url
    assert f"training sample {want.ordered_indices[0, 1]}" in page.locator("#query").inner_text()
    page.go_back()
    settled(page)
    assert ids(page, "proponents") == want.ordered_indices[0].tolist()


def test_every_option_changes_the_answer_and_the_link(page, address, browser, index):
    page.goto(f"{address}/#id=7")
    settled(page)
    page.locator("#kernel").select_option("grad_dot")
    page.locator("#k").fill("4")
    page.locator("#k").press("Enter")
    page.get_by_label("Proponents", exact=True).check()
    page.locator("#classes").get_by_label("eight").check()
    page.locator("#classes").get_by_label("three").check()
    page.get_by_label("Exact scores").uncheck()
    until(page, "document.querySelectorAll('#proponents button').length === 4")
    settled(page)
    want = index.explain(ids=[7], k=4, kernel="grad_dot", rerank=0, where={"label": [3, 8]})
    assert ids(page, "proponents") == want.ordered_indices[0].tolist()
    assert "≈" in page.locator("#proponents button").first.inner_text()
    assert not page.locator("#opponents").is_visible()
    stages = page.locator("#stages").inner_text()
    assert "search" in stages and "exact" not in stages
    other = browser.new_page()
    other.set_default_timeout(WAIT)
    other.goto(page.url)
    settled(other)
    assert ids(other, "proponents") == ids(page, "proponents")
    assert other.locator("#kernel").input_value() == "grad_dot"
    assert other.locator("#classes").get_by_label("eight").is_checked()
    other.close()
    page.get_by_label("Exact scores").check()
    until(page, "document.querySelector('#stages').innerText.includes('exact checks')")


def test_a_picture_of_ones_own(page, address, tmp_path, index):
    from PIL import Image

    pixels = (X[12].reshape(8, 8) * 255).round().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "mine.png")
    page.goto(address)
    settled(page)
    page.locator("#file").set_input_files(str(tmp_path / "mine.png"))
    until(page, "location.hash.includes('input=')")
    settled(page)
    want = index.explain((pixels / 255).astype(np.float32).reshape(1, 64), k=10)
    assert ids(page, "proponents") == want.ordered_indices[0].tolist()
    assert "your own" in page.locator("#query").inner_text()
    page.locator("#label").select_option("3")
    until(page, "document.querySelector('#query').innerText.includes('three')")
    labelled = index.explain((pixels / 255).astype(np.float32).reshape(1, 64), np.array([3]), k=10)
    assert ids(page, "proponents") == labelled.ordered_indices[0].tolist()
    page.reload()  # the link holds the picture
    until(page, "document.querySelector('#query').innerText.includes('three')")
    assert ids(page, "proponents") == labelled.ordered_indices[0].tolist()


# Makes the browser's own event, with a file in it, as a drop from the desktop or a paste does.
GIVE = """([kind, place, name, type, data]) => {
  const file = new File([Uint8Array.from(data)], name, { type });
  const transfer = new DataTransfer();
  transfer.items.add(file);
  const options = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
  const event = kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
  return !(document.querySelector(place) ?? document.body).dispatchEvent(event);
}"""


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_file_that_is_dropped_or_pasted(page, address, index, kind):
    import io

    from PIL import Image

    pixels, png, array = (X[12].reshape(8, 8) * 255).round().astype(np.uint8), io.BytesIO(), io.BytesIO()
    Image.fromarray(np.kron(pixels, np.ones((4, 4), np.uint8))).save(png, "PNG")
    np.save(array, X[12])
    page.goto(address)
    settled(page)
    assert "A PNG or JPEG picture, scaled to 8 × 8" in page.locator("#own-hint").inner_text()
    assert page.locator("#drop").evaluate("place => getComputedStyle(place).borderTopStyle") == "dashed"
    assert page.evaluate(GIVE, ["dragover", "#drop", "a.png", "image/png", []])  # the page takes it, not the browser
    assert page.locator("#own.over").count() == 1
    page.evaluate(GIVE, [kind, "#drop", "mine.png", "image/png", list(png.getvalue())])
    until(page, "location.hash.includes('input=p')")
    settled(page)
    assert page.locator("#own-note").inner_text() == "Scaled from 32 × 32 pixels."
    page.evaluate(GIVE, [kind, "#drop", "mine.npy", "", list(array.getvalue())])
    until(page, "location.hash.includes('input=j')")
    settled(page)
    want = index.explain(X[12:13], k=10)
    assert ids(page, "proponents") == want.ordered_indices[0].tolist()
    for data, said in (([1, 2, 3], "expected a PNG or JPEG picture or an array"), (array.getvalue()[:-8], "damaged")):
        page.evaluate(GIVE, [kind, "#drop", "bad.png", "image/png", list(data)])
        page.locator("#error").wait_for()
        until(page, f"document.querySelector('#error-text').innerText.includes('{said}')")
    assert page.evaluate(GIVE, ["drop", "main", "a.png", "image/png", []])  # beside the place nothing happens
    assert page.url.startswith(address)


def test_a_file_that_is_too_large_is_not_sent(page, served_path, browser):
    with running(served_path, "--max-body", 1000) as (address, _):
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(address)
        settled(page)
        sent = []
        page.on("request", lambda request: sent.append(request.url))
        page.evaluate(GIVE, ["drop", "#drop", "a.png", "image/png", [0] * 2000])
        until(page, "document.querySelector('#error-text').innerText.includes('2,000 bytes; at most 1,000 are taken')")
        assert not any("/v1/inputs" in url for url in sent)
        page.close()


def test_the_file_button_stands_beside_the_place_to_drop_and_is_reached_by_keys(page, address):
    page.goto(address)
    settled(page)
    page.locator("#random").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    assert page.locator("#file").get_attribute("accept") == "image/png,image/jpeg,.npy,.json"
    with page.expect_file_chooser():
        page.keyboard.press("Space")


def test_a_text_of_ones_own(browser, tmp_path):
    pytest.importorskip("transformers")
    import gradindex
    from tests.serve.jobs import words_job

    index = gradindex.build(words_job(), tmp_path / "index")
    with running(tmp_path / "index", job="tests.serve.jobs:words_job") as (address, _):
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(address)
        settled(page)
        page.locator("#text").fill("the cat sings a book")
        page.locator("#k").fill("3")
        page.locator("#send-text").click()
        until(page, "document.querySelectorAll('#proponents button').length === 3")
        settled(page)
        want = index.explain(text="the cat sings a book", k=3)
        assert ids(page, "proponents") == want.ordered_indices[0].tolist()
        assert "the cat sings a book" in page.locator("#query").inner_text()
        page.close()


def test_by_keyboard_alone(page, address):
    page.goto(address)
    settled(page)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#row").focus()
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    until(page, "document.querySelectorAll('#proponents button').length === 10")
    settled(page)
    assert "10 proponents and 10 opponents" in page.locator("#status").inner_text()
    page.locator("#proponents button").first.focus()
    page.keyboard.press("ArrowRight")
    second = ids(page, "proponents")[1]
    assert page.evaluate("document.activeElement.dataset.id") == str(second)
    page.keyboard.press("Enter")
    until(page, f"location.hash.includes('id={second}')")
    settled(page)
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button,input:not([type=file]),select,textarea')]"
        ".filter(e => e.offsetParent && !(e.labels?.length || e.ariaLabel || e.textContent.trim()))"
        ".map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.evaluate("[...document.querySelectorAll('img')].every(i => i.alt)")


def test_errors_are_said_and_can_be_left(page, address):
    page.goto(f"{address}/#id=99999")
    page.locator("#error").wait_for()
    assert "Ids [99999] are out of range for an index of 240 samples." in page.locator("#error").inner_text()
    page.locator("#home").click()
    settled(page)
    assert not page.locator("#error").is_visible()
    page.goto(f"{address}/#input=p%%%&k=3")
    page.locator("#error").wait_for()
    assert "damaged" in page.locator("#error").inner_text()


def test_while_it_waits_and_when_the_service_is_gone(page, address):
    page.route("**/v1/explain", lambda route: None)  # never answered
    page.goto(f"{address}/#id=3")
    until(page, "document.querySelectorAll('.ghost').length > 0")
    assert page.locator("main").get_attribute("aria-busy") == "true"
    page.unroute("**/v1/explain")
    page.route("**/v1/explain", lambda route: route.abort())
    page.locator("#k").fill("3")
    page.locator("#k").press("Enter")
    page.locator("#error").wait_for()
    assert "does not answer" in page.locator("#error").inner_text()
    page.unroute("**/v1/explain")
    page.said.clear()
    page.locator("#retry").click()
    until(page, "document.querySelectorAll('#proponents button').length === 3")


def test_a_token_is_asked_for(browser, served_path, tmp_path):
    (tmp_path / "token").write_text("correct horse\n")
    with running(served_path, "--token-file", tmp_path / "token") as (address, _):
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"{address}/#id=3&k=3")
        for given in ("wrong horse", "correct horse"):
            page.locator("#ask[open]").wait_for()
            page.locator("#token").fill(given)
            page.locator("#ask button").click()
        until(page, "document.querySelectorAll('#proponents button').length === 3")
        assert urlsplit(page.url).fragment == "id=3&k=3"
        page.close()


def test_an_index_of_a_metric_offers_its_metric_alone(browser, tmp_path):
    import gradindex
    from tests.serve.jobs import pictures_job

    index = gradindex.build(pictures_job(), tmp_path / "index", metric="cos-last")
    with running(tmp_path / "index") as (address, _):
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"{address}/#id=7&k=4&kernel=grad_dot")  # a link to another index
        settled(page)
        assert page.locator("#kernel option").all_inner_texts() == ["cos-last"]
        assert ids(page, "proponents") == index.explain(ids=[7], k=4).ordered_indices[0].tolist()
        assert "most similar by cos-last" in page.locator("#proponents h2").inner_text()
        assert "cos-last rows of 24 numbers" in page.locator("#about").inner_text()
        assert not page.locator("#error").is_visible()
        page.close()
