"""The implementations that need no cluster."""

import pytest

import gradindex
from gradindex.lifecycle.executor import ThisProcess
from gradindex.search.row_search import LocalRows
from tests.jobs import digits_job
from tests.seams.executor import ExecutorSuite
from tests.seams.row_search import RowSearchSuite, make


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return make(tmp_path_factory.mktemp("rows") / "i")


class TestLocalRows(RowSearchSuite):
    @pytest.fixture
    def index(self, built):
        found = gradindex.load(built, digits_job())
        assert type(found.rows) is LocalRows
        return found

    @pytest.fixture
    def jobless(self, built):
        return gradindex.load(built)


class TestThisProcess(ExecutorSuite):
    @pytest.fixture
    def begin(self):
        return ThisProcess
