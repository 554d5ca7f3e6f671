"""The pages of the review and of the map, clicked and keyed through in a real browser."""

from tests.review.kit import samples, wrong_job
from tests.serve.jobs import NAMES


def pictures_job():
    x, *_ = samples()
    return wrong_job(class_names=NAMES, render=lambda i: x[i].reshape(8, 8))
