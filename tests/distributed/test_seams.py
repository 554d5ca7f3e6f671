"""The implementations that a cluster has of what this process does, too."""

import pytest

import gradindex
from gradindex.distributed.cluster_rows import ClusterRows
from gradindex.index.index import Index
from tests.jobs import digits_job
from tests.seams.executor import ExecutorSuite
from tests.seams.row_search import RowSearchSuite, make


@pytest.fixture(scope="module")
def options(nodes):
    """Two workers, so small that those of several tests fit the nodes at once."""
    return gradindex.Ray(address=nodes.address, workers=2, resources={"CPU": 0.25})


@pytest.fixture(scope="module")
def opened(tmp_path_factory, options):
    """An index on the cluster, with its job and without."""
    path = make(tmp_path_factory.mktemp("rows") / "i")
    with gradindex.load(path, digits_job(), engine=options) as one, gradindex.load(path, engine=options) as other:
        yield one, other


class TestClusterRows(RowSearchSuite):
    @pytest.fixture
    def index(self, opened):
        assert type(opened[0].rows) is ClusterRows
        return opened[0]

    @pytest.fixture
    def jobless(self, opened):
        return opened[1]

    def test_nothing_private_is_overridden(self, index):
        own = {name for name in vars(type(index)) if name.startswith("_") and not name.startswith("__")}
        assert not own & set(dir(Index))


class TestWorkers(ExecutorSuite):
    @pytest.fixture
    def begin(self, options):
        return options.workers_of
