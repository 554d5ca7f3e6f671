"""Two kernels side by side on the page, clicked through in a real browser."""

import pytest

from tests.serve.browsing import ids, settled, until
from tests.serve.conftest import running

pytest.importorskip("fastapi")


@pytest.fixture(scope="module")
def address(whitened_path):
    with running(whitened_path) as (address, _):
        yield address


def marked(page, side, mark):
    cards = page.locator(f"#{side} button[data-id]")
    return [
        int(one)
        for one in cards.evaluate_all(
            "(all, mark) => all.filter(b => b.querySelector('.again')?.textContent === mark).map(b => b.dataset.id)",
            mark,
        )
    ]


def in_order(found, others):
    return [i for i in found if i in set(others)]


def test_two_kernels_side_by_side(page, address, whitened):
    page.goto(f"{address}/#id=7")
    settled(page)
    assert page.locator("#other-answer").is_hidden()
    assert page.locator("#beside option").all_inner_texts() == [
        "nothing", "gradient inner product", "asymmetric gradient product", "whitened product", "whitened cosine",
    ]  # fmt: skip
    page.get_by_label("Side by side with").select_option("white_dot")
    until(page, "document.querySelectorAll('#other-opponents button').length === 10")
    settled(page)
    cos, white = whitened.explain(ids=[7], k=10), whitened.explain(ids=[7], k=10, kernel="white_dot")
    want = {
        "proponents": (cos.ordered_indices[0].tolist(), white.ordered_indices[0].tolist()),
        "opponents": (cos.opponent_indices[0].tolist(), white.opponent_indices[0].tolist()),
    }
    counts = []
    for side, (one, other) in want.items():
        assert ids(page, side) == one
        assert ids(page, f"other-{side}") == other
        assert marked(page, side, "in both") == in_order(one, other)
        assert marked(page, f"other-{side}", "in both") == in_order(other, one)
        counts.append(f"{len(set(one) & set(other))} of 10 {side}")
    assert 0 < len(set(want["proponents"][0]) & set(want["proponents"][1])) < 10
    assert page.locator("#shared").inner_text() == f"In both answers: {', '.join(counts)}."
    crossed = in_order(want["proponents"][1], want["opponents"][0])
    assert marked(page, "other-proponents", "opponent by the other kernel") == crossed
    first, second = page.locator("#answer .asked"), page.locator("#other-answer .asked")
    assert "The gradient cosine finds samples that are alike to the model." in first.inner_text()
    assert "The whitened product estimates which samples' removal" in second.inner_text()
    assert "without these the query's loss would be larger" in page.locator("#other-proponents h2").inner_text()
    score = page.locator("#other-proponents .score").first
    assert score.inner_text().startswith("≈") and score.get_attribute("title") == "estimated"
    boxes = [page.locator(f"#{side}").bounding_box() for side in ("proponents", "other-proponents")]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]


def test_the_link_keeps_both_and_going_back_leaves_them(page, address, browser, whitened):
    page.goto(f"{address}/#id=11&k=4")
    settled(page)
    page.locator("#beside").select_option("white_cos")
    until(page, "document.querySelectorAll('#other-proponents button').length === 4")
    settled(page)
    assert page.url.endswith("#id=11&beside=white_cos&k=4")
    other = browser.new_page()
    other.goto(page.url)
    until(other, "document.querySelectorAll('#other-proponents button').length === 4")
    settled(other)
    assert other.locator("#beside").input_value() == "white_cos"
    want = whitened.explain(ids=[11], k=4, kernel="white_cos")
    assert ids(other, "other-proponents") == want.ordered_indices[0].tolist()
    other.close()
    page.locator("#kernel").select_option("white_cos")  # the two change places
    until(page, "document.querySelector('#answer .asked').innerText.startsWith('The whitened cosine')")
    settled(page)
    assert page.locator("#beside").input_value() == "grad_cos"
    assert ids(page, "proponents") == want.ordered_indices[0].tolist()
    page.locator("#other-proponents button").nth(1).click()  # from either column
    until(page, "!location.hash.includes('id=11&')")
    settled(page)
    assert page.locator("#other-answer").is_visible()
    for _ in range(3):
        page.go_back()
    settled(page)
    until(page, "document.querySelector('#other-answer').hidden")
    assert page.locator("#other-answer button").count() == 0
    assert page.locator("#shared").is_hidden()


def test_what_cannot_be_checked_is_not_offered(page, address):
    page.goto(f"{address}/#id=7&k=3&certify=1")
    settled(page)
    exact, certify, why = (page.locator(f"#{one}") for one in ("exact", "certify", "estimated"))
    assert exact.is_enabled() and certify.is_checked() and why.is_hidden()
    page.locator("#kernel").select_option("white_dot")
    until(page, "document.querySelector('#answer .asked').innerText.includes('Estimated by whitened rows')")
    settled(page)
    assert not page.locator("#error").is_visible()  # although the link asks for a proof
    assert exact.is_disabled() and certify.is_disabled() and not exact.is_checked()
    assert "there is no exact value to check" in why.inner_text()
    assert exact.get_attribute("aria-describedby") == "estimated"
    page.locator("#beside").select_option("grad_cos")  # of which they hold
    until(page, "document.querySelectorAll('#other-proponents button').length === 3")
    settled(page)
    assert exact.is_enabled() and certify.is_checked() and "whitened product" in why.inner_text()
    assert "Proved" in page.locator("#other-answer .asked").inner_text()


def test_by_keyboard_and_stacked_on_a_narrow_dark_screen(page, address):
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme="dark")
    page.goto(f"{address}/#id=7&k=3")
    settled(page)
    page.locator("#kernel").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "beside"
    page.keyboard.press("w")
    until(page, "document.querySelectorAll('#other-opponents button').length === 3")
    settled(page)
    boxes = [page.locator(f"#{one}").bounding_box() for one in ("answer", "other-answer")]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] and boxes[0]["width"] == boxes[1]["width"]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    colour = "getComputedStyle(document.querySelector('.asked b')).color"
    assert page.evaluate(colour) == "rgb(230, 237, 243)"
    page.locator("#opponents button").last.focus()
    page.keyboard.press("ArrowRight")  # on into the other answer
    assert page.evaluate("document.activeElement.closest('section').id") == "other-proponents"
    label = page.evaluate("document.activeElement.ariaLabel")
    assert label.startswith("proponent 1, sample 7, label seven, score") and "in both" in label
    assert "By the whitened product: 3 proponents" in page.locator("#status").inner_text()


def test_arrow_keys_pass_over_a_side_that_is_hidden(page, address):
    page.goto(f"{address}/#id=7&k=3&beside=white_dot&side=proponents")
    settled(page)
    assert not page.locator("#opponents").is_visible() and not page.locator("#other-opponents").is_visible()
    assert "opponents" not in page.locator("#shared").inner_text()
    page.locator("#proponents button").last.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.closest('section').id") == "other-proponents"
    page.locator("#home").click()
    settled(page)
    assert not page.locator("#answers").is_visible() and not page.locator("#shared").is_visible()
