"""One two-node Ray cluster on this machine, for all tests of this folder."""

import os

import pytest

os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # every listener on 127.0.0.1
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # 15 by default: beside other work they would hardly run


@pytest.fixture(scope="package")
def nodes():
    """The cluster, two nodes of one CPU each."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'gradindex[ray]'")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    cluster.add_node(**node)
    yield cluster
    cluster.shutdown()


@pytest.fixture
def address(nodes):
    """Where the cluster answers."""
    return nodes.address
