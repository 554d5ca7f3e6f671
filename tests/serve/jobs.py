"""Jobs that a served index is opened with."""

import numpy as np

from tests.jobs import digits, digits_job

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def pictures_job():
    """The digits, with pictures, class names and a column of texts."""
    x, _ = digits()
    return digits_job(
        render=lambda i: x[i].reshape(8, 8),
        class_names=NAMES,
        columns={"writer": np.where(np.arange(len(x)) % 2, "<b>odd</b>", "even")},
    )
