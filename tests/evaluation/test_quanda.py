"""quanda's class detection on our explainer is our own class test."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import gradindex
from gradindex import relevance
from gradindex.evaluation import criteria

try:
    from quanda.metrics.downstream_eval import ClassDetectionMetric, SubclassDetectionMetric

    from gradindex.interop.quanda import GradindexExplainer
except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision of another build than torch
    pytest.skip(
        f"quanda cannot be imported ({error}): pip install 'gradindex[quanda]' in an environment of its own",
        allow_module_level=True,
    )


@pytest.fixture
def setting():
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 60)
    x = (random.normal(size=(3, 4))[y] + random.normal(size=(60, 4))).astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    return model, torch.as_tensor(x), torch.as_tensor(y)


@pytest.mark.parametrize("name", ["GC", "GD", "cos-last", "dot-x"])
def test_class_and_subclass_detection_are_our_tests(setting, name):
    model, x, y = setting
    train, queries = TensorDataset(x[:50], y[:50]), x[50:]
    predicted = model(queries).argmax(1)
    found = GradindexExplainer(model, train, metric=name).explain(queries, predicted)
    scores = relevance.metric(name, gradindex.Job(model, nn.functional.cross_entropy, train)).scores(queries)
    np.testing.assert_allclose(found, scores, rtol=1e-4, atol=1e-6)
    classes = ClassDetectionMetric(model, train)
    classes.update(explanations=found, test_labels=predicted)
    want = criteria.passes(scores, y[:50].numpy(), predicted.numpy()).mean()
    assert classes.compute()["score"] == pytest.approx(want)
    subclasses = SubclassDetectionMetric(model, train, y[:50])
    subclasses.update(explanations=found, test_subclasses=y[50:])
    want = criteria.passes(scores, y[:50].numpy(), y[50:].numpy()).mean()
    assert subclasses.compute()["score"] == pytest.approx(want)


def test_through_an_index(setting, tmp_path):
    model, x, y = setting
    train = TensorDataset(x[:50], y[:50])
    index = gradindex.build(gradindex.Job(model, nn.functional.cross_entropy, train), tmp_path / "i")
    found = GradindexExplainer(model, train, index=index, k=3).explain(x[50:], y[50:])
    exact = GradindexExplainer(model, train).explain(x[50:], y[50:])
    top = torch.topk(exact, 3, dim=1)
    np.testing.assert_allclose(torch.topk(found, 3, dim=1).values, top.values, rtol=1e-4)
    assert (found > torch.finfo(torch.float32).min).sum() == 3 * len(found)
    with pytest.raises(ValueError, match="The index has 50 samples, the dataset 49"):
        GradindexExplainer(model, TensorDataset(x[:49], y[:49]), index=index)
