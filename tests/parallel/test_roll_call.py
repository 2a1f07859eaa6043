"""The roll call, each process a thread."""

import pathlib
import threading

import pytest
from ports import free_port

from var_jax.parallel import roll_call
from var_jax.parallel.roll_call import Cluster, PreflightError


def report(host, problem=None, **agree):
    return {"host": host, "problem": problem, "agree": agree}


def call_the_roll(reports, num_processes=None, workdirs=None, seconds=20.0, ids=None):
    """Runs each process in a thread; what each ended with."""
    coordinator = f"localhost:{free_port()}"
    count = num_processes or len(reports)
    hosts = tuple(f"host-{i}" for i in range(count))
    ends = [None] * len(reports)

    def run(i):
        cluster = Cluster(coordinator, count, i if ids is None else ids[i], hosts)
        try:
            roll_call.roll_call(cluster, reports[i], workdirs and workdirs[i], seconds)
        except PreflightError as error:
            ends[i] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(reports))]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_all_present(tmp_path):
    reports = [report(f"h{i}", version="1") for i in range(5)]
    assert call_the_roll(reports, workdirs=[tmp_path] * 5) == [None] * 5
    assert list(tmp_path.iterdir()) == []


def test_missing_processes_are_named():
    ends = call_the_roll([report("h0"), report("h1")], num_processes=4, seconds=1.0)
    assert ends[0] == ends[1]
    assert "2 of 4 processes did not come" in ends[0]
    assert "process 2 (host-2), process 3 (host-3)" in ends[0]


def test_missing_process_0_is_named():
    cluster = Cluster(f"localhost:{free_port()}", 2, 1, ("host-0", "host-1"))
    with pytest.raises(PreflightError, match=r"process 0 \(host-0\) did not answer"):
        roll_call.roll_call(cluster, report("h1"), deadline_seconds=0.5)


def test_one_odd_host_is_named():
    reports = [report(f"h{i}", **{"version of jax": "0.10.2"}) for i in range(4)]
    reports[2]["agree"]["version of jax"] = "0.9.0"
    ends = call_the_roll(reports)
    assert set(ends) == {ends[0]}
    assert ends[0].startswith("The version of jax is 0.9.0 on process 2 (h2) but 0.10.2 on 3 of 4")


def test_all_settings_that_differ_are_named_and_those_that_one_host_lacks():
    reports = [report(f"h{i}", **{"setting config.seed": "0", "a": "1"}) for i in range(3)]
    reports[1]["agree"] = {"setting config.seed": "1", "a": "1", "setting config.x.y": "'p'"}
    ends = call_the_roll(reports)
    assert set(ends) == {
        "The setting config.seed is 1 on process 1 (h1) but 0 on 2 of 3 processes; the setting "
        "config.x.y is 'p' on process 1 (h1) but not given on 2 of 3 processes; make all hosts "
        "equal."
    }


def test_a_problem_of_one_host_ends_all():
    ends = call_the_roll([report("h0"), report("h1", problem="Cannot write to /x: full.")])
    assert ends == ["On process 1 (h1): Cannot write to /x: full."] * 2


def test_two_hosts_with_one_number():
    ends = call_the_roll([report("h0"), report("h1"), report("h2")], seconds=2.0, ids=[0, 1, 1])
    assert all("run as process 1" in end for end in ends)


def test_a_workdir_that_is_not_shared(tmp_path, monkeypatch):
    exists = type(tmp_path).exists
    monkeypatch.setattr(
        roll_call.epath, "Path", lambda p: Unseen(p) if ".roll-call" in str(p) else real(p)
    )
    real = pathlib.Path

    class Unseen:
        def __init__(self, path):
            del path

        def exists(self):
            return False

    assert exists(tmp_path)
    ends = call_the_roll([report("h0"), report("h1")], workdirs=[tmp_path] * 2)
    assert "process 1 (h1) cannot see what process 0 writes" in ends[0] and ends[0] == ends[1]
