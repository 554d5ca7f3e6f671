"""What makes a job's rows: gradients, or a metric of `relevance` in their place."""

import numpy as np
import pytest

import gradindex
from gradindex import relevance
from gradindex.job import GradientRows
from gradindex.relevance.metric_rows import MetricRows
from tests.jobs import digits_job
from tests.seams.row_maker import RowMakerSuite


class TestGradients(RowMakerSuite):
    def make(self):
        return GradientRows()


class TestGradientMetric(RowMakerSuite):
    def make(self):
        return relevance.spec("GC")


class TestHiddenMetric(RowMakerSuite):
    def make(self):
        return relevance.spec("cos-last")


class TestFisherMetric(RowMakerSuite):
    def make(self):
        return relevance.spec("cos-FK", {"damping": 0.1})


def test_a_metric_comes_back_from_an_index_header():
    spec = relevance.spec("RIF", {"damping": 0.1, "layers": ("a",)})
    assert spec == {"name": "cos-IF", "damping": 0.1, "layers": ["a"]}
    again = relevance.rows_of(spec.to_json())
    assert type(again) is MetricRows
    assert again == spec
    assert relevance.rows_of(None) is None
    assert relevance.rows_of(relevance.spec("FK").to_json()) == {"name": "FK", "damping": None}
    assert relevance.rows_of({"name": "FK"}) == {"name": "FK", "damping": "study"}  # from before there was another rule
    assert relevance.rows_of({"name": "cos-last"}) == {"name": "cos-last"}
    with pytest.raises(ValueError, match="Unknown metric"):
        relevance.rows_of({"name": "cosine"})


def test_a_job_takes_only_what_makes_rows():
    job = digits_job()
    with pytest.raises(TypeError, match=r"relevance\.spec"):
        gradindex.Job(job.model, job.loss_fn, job.dataset, metric={"name": "cos-x"})


def test_a_job_is_given_another_metric_only_if_it_is_another():
    job = digits_job().with_metric(relevance.spec("cos-x"))
    assert job.with_metric(relevance.spec("cos-x")) is job
    assert job.with_metric(None).metric is None
    x = job.source.take(np.arange(3)).x
    np.testing.assert_allclose(job.engine.gradients(x, np.zeros(3, int)).gradients, x.reshape(3, -1))


def test_a_job_pickled_with_a_plain_mapping_gets_its_metric_back():
    job = digits_job()
    object.__setattr__(job, "metric", {"name": "cos-x"})  # as earlier versions pickled it
    again = job.with_metric(relevance.rows_of(job.metric))
    assert again.engine.metric == "cos-x"
