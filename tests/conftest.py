"""Fixtures shared by all tests. Nothing global but the number of threads and the frameworks' noise."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models: more threads only wait for each other
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")


def pytest_xdist_auto_num_workers(config):
    """Two processes run the whole suite; files that are named run in this one, which starts sooner."""
    return 0 if config.args_source is pytest.Config.ArgsSource.ARGS else 2


FRAMEWORKS = ("pytorch", "tensorflow")


@pytest.fixture(params=FRAMEWORKS)
def kit(request):
    """One framework's models, losses and naive loop; see `oracles.Kit`."""
    from tests import oracles

    return oracles.kit(request.param)


@pytest.fixture
def torch_kit():
    """Torch's kit alone, for what does not depend on the framework."""
    from tests import oracles

    return oracles.kit("pytorch")


@pytest.fixture
def digits():
    """Scikit-learn's digits as (X_train, Y_train, X_test, Y_test), images (n, 8, 8) in [0, 1]."""
    from tests import oracles

    return oracles.digits()
