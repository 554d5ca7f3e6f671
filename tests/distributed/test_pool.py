"""What the pool does when workers fail, with a Ray that is not there."""

from types import SimpleNamespace

import pytest

from gradindex.distributed import Ray
from gradindex.distributed.pool import Pool


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class RuntimeEnvSetupError(RayError):
    pass


class Actor:
    """Runs `start` and `work` when they are called, and keeps what they return or raise."""

    def __init__(self, cluster, start, work):
        self.alive, self.calls = True, []
        self.start = SimpleNamespace(remote=lambda: cluster.call(self, start))
        self.work = SimpleNamespace(remote=lambda task: cluster.call(self, lambda: work(task)))


class Cluster:
    """A connection whose actors answer at once, in the order they were asked."""

    def __init__(self, start=lambda: "node", work=lambda task: task, node_lives=True):
        self.start, self.work, self.lives = start, work, node_lives
        self.actors, self.answers = [], {}
        exceptions = SimpleNamespace(
            RayError=RayError, RayTaskError=RayTaskError, RuntimeEnvSetupError=RuntimeEnvSetupError
        )
        self.ray = SimpleNamespace(exceptions=exceptions, wait=self.wait, get=self.get)

    def spawn(self):
        self.actors.append(Actor(self, self.start, self.work))
        return self.actors[-1]

    def call(self, actor, function):
        ref = len(self.answers)
        try:
            self.answers[ref] = function()
        except Exception as error:
            self.answers[ref] = error
        return ref

    def wait(self, refs, num_returns, timeout):
        return [min(refs)], []

    def get(self, ref):
        if isinstance(self.answers[ref], Exception):
            raise self.answers[ref]
        return self.answers[ref]

    def kill(self, actor):
        actor.alive = False

    def node_lives(self, node):
        return self.lives

    def run(self, tasks=range(5), workers=2):
        pool = Pool(self, self.spawn, workers)
        return sorted(pool.run("work", tasks))


def sometimes(times, error):
    """Return a function that raises `error` so often, and then returns its argument."""
    left = [times]

    def work(task="node"):
        if task in ("node", 3) and left[0]:
            left[0] -= 1
            raise error
        return task

    return work


def test_every_task_is_done_once():
    cluster = Cluster()
    assert cluster.run(range(20), 3) == [(task, task) for task in range(20)]
    assert len(cluster.actors) == 3


@pytest.mark.parametrize("error", [RayTaskError(OSError("no")), RayError("gone")], ids=["raised", "died"])
def test_two_failures_are_forgiven(error):
    cluster = Cluster(work=sometimes(2, error))
    assert cluster.run() == [(task, task) for task in range(5)]
    assert len(cluster.actors) == (2 if isinstance(error, RayTaskError) else 4)


def test_the_third_failure_of_a_task_is_raised():
    with pytest.raises(OSError, match="no") as caught:
        Cluster(work=sometimes(3, RayTaskError(OSError("no")))).run()
    assert caught.value.__notes__ == ["Shard 3 failed 3 times; this is the last error."]


def test_a_task_that_kills_its_process_three_times_is_named():
    with pytest.raises(RuntimeError, match=r"Shard 3 ended its worker's process 3 times \(out of memory\?\): gone"):
        Cluster(work=sometimes(3, RayError("gone"))).run()


def test_lost_machines_say_nothing_against_a_task():
    cluster = Cluster(work=sometimes(8, RayError("gone")), node_lives=False)
    assert cluster.run() == [(task, task) for task in range(5)]


def test_workers_that_cannot_start():
    with pytest.raises(ImportError, match="no module") as caught:
        Cluster(start=sometimes(3, RayTaskError(ImportError("no module")))).run(workers=1)
    assert caught.value.__notes__ == ["3 workers could not start."]
    assert Cluster(start=sometimes(2, RayTaskError(ImportError("no module")))).run(workers=1)
    with pytest.raises(RuntimeError, match="10 workers were lost while they started, the last by: gone"):
        Cluster(start=sometimes(10, RayError("gone"))).run(workers=1)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"address": 3}, TypeError, "address must be None, 'auto' or 'host:port', got 3"),
        ({"workers": 0}, ValueError, "workers must be a positive integer, got 0"),
        ({"replicas": True}, ValueError, "replicas must be a positive integer, got True"),
        ({"resources": ["GPU"]}, TypeError, "resources must be a mapping"),
        ({"resources": {"GPU": -1}}, ValueError, r"resources\['GPU'\] must be a number of 0 or more, got -1"),
        ({"runtime_env": "."}, TypeError, "runtime_env must be a mapping"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        Ray(**options)


def test_resources_in_the_form_of_actors():
    options = Ray(resources={"GPU": 0.5, "memory": 1e9, "fast_disk": 1})
    want = {"num_cpus": 1, "num_gpus": 0.5, "memory": 1_000_000_000, "resources": {"fast_disk": 1}}
    assert options.actor_options() == want
