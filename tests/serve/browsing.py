"""What tests of the page do in a browser."""

import time

WAIT = 30_000  # milliseconds


def until(page, condition):
    """Wait for a condition in JavaScript; the page's own policy forbids playwright's way, which evaluates strings."""
    end = time.monotonic() + WAIT / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, condition
        page.wait_for_timeout(20)


def settled(page):
    until(page, "document.querySelector('main').getAttribute('aria-busy') === 'false'")


def ids(page, side):
    return [
        int(one) for one in page.locator(f"#{side} button[data-id]").evaluate_all("all => all.map(b => b.dataset.id)")
    ]
