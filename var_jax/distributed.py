"""Starting on many hosts: roll call, checks before any long work, and stopping together.

JAX aborts a process whose peers do not come, without saying which. So the hosts first call
the roll over plain TCP: process 0 collects a report from each, and either all of them go on
or all of them end with the same sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import glob
import json
import os
import pathlib
import platform
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from var_jax import checkpoint_files
from var_jax.checkpoint_files import CheckpointError, one_line

#: Port of JAX's coordination service; the roll call uses the next one.
COORDINATOR_PORT = 8482


class PreflightError(RuntimeError):
    """The hosts cannot start together; the message is one sentence."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of one run.

    Attributes:
      coordinator: 'host:port' of process 0.
      num_processes: how many there are.
      process_id: which one this is, from 0.
      hosts: their host names, where known.
    """

    coordinator: str
    num_processes: int
    process_id: int
    hosts: tuple[str, ...] = ()

    def name(self, process_id: int) -> str:
        """Such as 'process 3 (t1v-n-0-w-3)'."""
        host = f" ({self.hosts[process_id]})" if process_id < len(self.hosts) else ""
        return f"process {process_id}{host}"


def initialize(
    *,
    workdir: epath.PathLike | None = None,
    data_paths: Sequence[epath.PathLike] = (),
    agree: dict[str, str] | None = None,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    skip: bool = False,
    deadline_seconds: float = 300.0,
) -> Cluster | None:
    """Joins all hosts of the run and checks that they can work together; call it first.

    On a Cloud TPU (VM or GKE, any number of slices) the hosts find each other. Elsewhere
    coordinator, num_processes and process_id say so, or JAX's own detection (Slurm, Open
    MPI) does. One host alone is checked too, without a network.

    Args:
      workdir: every host must be able to write there and see what process 0 writes.
      data_paths: every host must be able to read them.
      agree: values that must be the same on all hosts, such as a hash of the config.
      coordinator: 'host:port' of process 0; the port after it is used as well.
      num_processes: number of processes.
      process_id: which one this is.
      skip: do not join other hosts even if there are some (each runs by itself).
      deadline_seconds: for all hosts to come, and again for their devices to come up.

    Returns:
      The cluster, or None for one process alone.

    Raises:
      PreflightError: a host is missing, or something is wrong on one of them.
    """
    given = (coordinator, num_processes, process_id)
    if any(x is not None for x in given) and any(x is None for x in given):
        raise PreflightError(
            "Give all of coordinator, num_processes and process_id, or none of them; got "
            f"{coordinator!r}, {num_processes!r} and {process_id!r}."
        )
    report = _local_report(workdir, data_paths, agree or {})
    cluster = None
    if not skip:
        cluster = Cluster(*given) if coordinator is not None else detect_cluster()
    if cluster is None or cluster.num_processes == 1:
        if report["problem"]:
            raise PreflightError(report["problem"])
        cluster = None
        if not skip:
            _join_by_jax(deadline_seconds)
    else:
        roll_call(cluster, report, workdir, deadline_seconds)
        with _deadline(
            deadline_seconds + 30,
            f"JAX's coordination service at {cluster.coordinator} did not connect all "
            f"{cluster.num_processes} processes within {deadline_seconds:.0f} s although all of "
            "them are there; is its port open between the hosts?",
        ):
            jax.distributed.initialize(
                cluster.coordinator,
                cluster.num_processes,
                cluster.process_id,
                initialization_timeout=int(deadline_seconds),
            )
    _check_devices(cluster, deadline_seconds)
    return cluster


def _join_by_jax(deadline_seconds: float) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=int(deadline_seconds))
    except ValueError as error:
        # What JAX says where it detects no cluster: this is one process alone.
        if "should be defined" not in str(error) and "must be defined" not in str(error):
            raise


def detect_cluster() -> Cluster | None:
    """The hosts of the Cloud TPU that this process runs on; None elsewhere."""
    if not _has_tpu_chips():
        return None
    hostnames = os.environ.get("TPU_WORKER_HOSTNAMES")
    if hostnames is not None and "TPU_WORKER_ID" in os.environ:
        # GKE says all of it in the environment.
        return _cluster_of_slices(
            hostnames.split(","), int(os.environ["TPU_WORKER_ID"]), os.environ
        )
    if os.environ.get("TPU_SKIP_MDS_QUERY"):
        return None
    endpoints = _instance_attribute("worker-network-endpoints")
    worker = _instance_attribute("agent-worker-number")
    if endpoints is None or worker is None:
        return None
    # Each endpoint is a host name, or name:id:address.
    hosts = [e.split(":")[-1] for e in endpoints.split(",")]
    variables = dict(os.environ)
    for line in (_instance_attribute("tpu-env") or "").splitlines():
        key, _, value = line.partition(":")
        variables.setdefault(key.strip(), value.strip().strip("'"))
    return _cluster_of_slices(hosts, int(worker), variables)


def _cluster_of_slices(hosts: Sequence[str], worker: int, variables: Any) -> Cluster:
    num_slices = int(variables.get("MEGASCALE_NUM_SLICES") or 1)
    slice_id = int(variables.get("MEGASCALE_SLICE_ID") or 0)
    first = (variables.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    return Cluster(
        f"{first}:{COORDINATOR_PORT}",
        num_slices * len(hosts),
        slice_id * len(hosts) + worker,
        tuple(hosts) if num_slices == 1 else (),
    )


def _has_tpu_chips() -> bool:
    google = "0x1ae0"
    for file in glob.glob("/sys/bus/pci/devices/*/vendor"):
        with contextlib.suppress(OSError):
            if pathlib.Path(file).read_text().strip() == google:
                return True
    return False


def _instance_attribute(key: str) -> str | None:
    host = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/instance/attributes/{key}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return None


def _local_report(
    workdir: epath.PathLike | None, data_paths: Sequence[epath.PathLike], agree: dict[str, str]
) -> dict[str, Any]:
    problem = None
    try:
        if workdir is not None:
            checkpoint_files.probe_writable(checkpoint_files.absolute(workdir))
        for path in data_paths:
            _probe_readable(checkpoint_files.absolute(path))
    except (CheckpointError, PreflightError) as error:
        problem = str(error)
    versions = {"python": platform.python_version(), **checkpoint_files.package_versions()}
    return {
        "host": socket.gethostname(),
        "problem": problem,
        "agree": {**{f"version of {name}": v for name, v in versions.items()}, **agree},
    }


def _probe_readable(path: epath.Path) -> None:
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            with path.open("rb") as file:
                file.read(1)
    except Exception as error:
        raise PreflightError(
            f"Cannot read the data at {path}: {one_line(error)}; check that it exists there and "
            "that you may read it."
        ) from error


def roll_call(
    cluster: Cluster,
    report: dict[str, Any],
    workdir: epath.PathLike | None = None,
    deadline_seconds: float = 300.0,
) -> None:
    """Returns on all processes once each has come and none has a problem.

    Args:
      cluster: of two or more processes.
      report: 'host', 'problem' (None or a sentence) and 'agree', values that must be equal.
      workdir: a file that process 0 puts there must be seen by the others.
      deadline_seconds: for all of them to come.

    Raises:
      PreflightError: on all processes that came, with the same sentence.
    """
    host, port = cluster.coordinator.rsplit(":", 1)
    if cluster.process_id == 0:
        problem = _hold_roll_call(cluster, int(port) + 1, report, workdir, deadline_seconds)
    else:
        problem = _answer_roll_call(cluster, (host, int(port) + 1), report, deadline_seconds)
    if problem is not None:
        raise PreflightError(problem)


def _hold_roll_call(cluster, port, report, workdir, deadline_seconds) -> str | None:
    """Process 0's part: the sentence that all processes end with, or None."""
    end = time.monotonic() + deadline_seconds
    reports = {0: report}
    lines: dict[int, _Line] = {}
    problem = marker = None
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(_listen(port))
        while len(reports) < cluster.num_processes and time.monotonic() < end:
            server.settimeout(max(0.01, end - time.monotonic()))
            with contextlib.suppress(OSError, ValueError):
                connection, _ = server.accept()
                line = stack.enter_context(_Line(connection, timeout=10))
                answer = line.receive()
                process = answer.pop("process")
                if process in reports:
                    other = reports[process]["host"]
                    problem = (
                        f"Both {other} and {answer['host']} run as process {process}; each host "
                        "must start the command once, with its own process number."
                    )
                    line.send({"problem": problem})
                    continue
                reports[process], lines[process] = answer, line
        problem = problem or _find_problem(cluster, reports, deadline_seconds)
        if problem is None and workdir is not None:
            marker = checkpoint_files.absolute(workdir) / f".roll-call-{time.time_ns()}"
            marker.write_text("seen")
            for line in lines.values():
                line.send({"marker": str(marker)})
            blind = [p for p, line in sorted(lines.items()) if not line.receive()["seen"]]
            marker.unlink()
            if blind:
                names = ", ".join(f"process {p} ({reports[p]['host']})" for p in blind)
                problem = (
                    f"{names} cannot see what process 0 writes to {workdir}; the workdir must be "
                    "one place that all hosts share, such as gs://bucket/run."
                )
        for line in lines.values():
            with contextlib.suppress(OSError):
                line.send({"problem": problem})
    return problem


def _find_problem(
    cluster: Cluster, reports: dict[int, dict[str, Any]], deadline_seconds: float
) -> str | None:
    missing = [p for p in range(cluster.num_processes) if p not in reports]
    if missing:
        names = ", ".join(cluster.name(p) for p in missing[:8])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        return (
            f"{len(missing)} of {cluster.num_processes} processes did not come within "
            f"{deadline_seconds:.0f} s: {names}{more}; start the same command on all hosts "
            "(on a TPU VM with --worker=all) and look at the log of the missing ones."
        )
    for process, report in sorted(reports.items()):
        if report["problem"]:
            return f"On process {process} ({report['host']}): {report['problem']}"
    for key in sorted(set().union(*(r["agree"] for r in reports.values()))):
        values = {p: r["agree"].get(key) for p, r in reports.items()}
        usual, count = Counter(values.values()).most_common(1)[0]
        odd = [p for p, v in sorted(values.items()) if v != usual]
        if odd:
            return (
                f"The {key} is {values[odd[0]]} on process {odd[0]} ({reports[odd[0]]['host']}) "
                f"but {usual} on {count} of {cluster.num_processes} processes; make all hosts "
                "equal."
            )
    return None


def _answer_roll_call(cluster, address, report, deadline_seconds) -> str | None:
    """The part of the other processes."""
    end = time.monotonic() + deadline_seconds
    reason = "no answer"
    while time.monotonic() < end:
        try:
            connection = socket.create_connection(address, timeout=5)
        except OSError as error:
            reason = one_line(error)
            time.sleep(min(0.5, max(0.0, end - time.monotonic())))
            continue
        # Process 0 may wait as long again for hosts that come after this one.
        with _Line(connection, timeout=2 * deadline_seconds + 10) as line:
            try:
                line.send({"process": cluster.process_id, **report})
                while True:
                    answer = line.receive()
                    if "marker" not in answer:
                        return answer["problem"]
                    line.send({"seen": epath.Path(answer["marker"]).exists()})
            except (OSError, ValueError) as error:
                return f"{cluster.name(0)} ended during the roll call ({one_line(error)})."
    return (
        f"{cluster.name(0)} did not answer at {address[0]}:{address[1]} within "
        f"{deadline_seconds:.0f} s ({reason}); start the same command on all hosts, and see that "
        "the port is open between them."
    )


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server(("", port), backlog=1024, reuse_port=False)
    except OSError as error:
        raise PreflightError(
            f"Process 0 cannot listen on port {port} ({one_line(error)}); another run on "
            f"{socket.gethostname()} may still hold it: end that first."
        ) from error


class _Line:
    """JSON objects, one a line, over a socket."""

    def __init__(self, connection: socket.socket, timeout: float) -> None:
        connection.settimeout(timeout)
        self._connection = connection
        self._reader = connection.makefile("r", encoding="utf-8")

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *unused: Any) -> None:
        self._reader.close()
        self._connection.close()

    def send(self, message: dict[str, Any]) -> None:
        self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        return json.loads(self._reader.readline())


def _check_devices(cluster: Cluster | None, deadline_seconds: float) -> None:
    """Brings the devices up and compares their number between the hosts."""
    with _deadline(
        deadline_seconds,
        f"The devices of {socket.gethostname()} did not come up within {deadline_seconds:.0f} s; "
        f"{_holders_sentence()}",
    ):
        try:
            devices = jax.devices()
        except RuntimeError as error:
            raise PreflightError(
                f"The devices of {socket.gethostname()} cannot be used: {one_line(error)}; "
                f"{_holders_sentence()}"
            ) from error
    if _has_tpu_chips() and devices[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
        raise PreflightError(
            f"{socket.gethostname()} has TPU chips but JAX runs on its CPU; install jax[tpu], or "
            f"set JAX_PLATFORMS=cpu if that is meant; {_holders_sentence()}"
        )
    if cluster is None:
        return
    counts = Counter(d.process_index for d in devices)
    usual = Counter(counts.values()).most_common(1)[0][0]
    for process in range(cluster.num_processes):
        if counts[process] != usual:
            raise PreflightError(
                f"{cluster.name(process)} has {counts[process]} devices where the others have "
                f"{usual}; restart that host, or recreate the slice."
            )


def _holders_sentence() -> str:
    """Which processes of this host have TPU chips open."""
    holders = set()
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(("/dev/accel", "/dev/vfio/")):
                holders.add(int(link.split("/")[2]))
    holders.discard(os.getpid())
    if holders:
        return f"the chips are held by process id {', '.join(map(str, sorted(holders)))}: end it."
    return "no other process of this host holds a chip."


@contextlib.contextmanager
def _deadline(seconds: float, message: str) -> Iterator[None]:
    """Ends this process with the message if the body, which may be stuck in C++, takes longer."""

    def give_up() -> None:
        print(message, file=sys.stderr, flush=True)
        faulthandler.dump_traceback()
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class StopSignal:
    """Whether the run has been asked to stop (SIGTERM, preemption notice), alike on all hosts.

    One process: a signal handler. Several: the coordination service carries the notice of
    any host to all of them and names one step at which they all stop, so that they can save
    together. A second signal ends a single process at once.
    """

    def __init__(self, signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT)) -> None:
        self._signals = signals
        self._previous: dict[signal.Signals, Any] = {}
        self._received: signal.Signals | None = None
        self._shared = False

    def __enter__(self) -> StopSignal:
        # With a coordination service SIGTERM is its own; a handler here would take it away.
        self._shared = jax.distributed.is_initialized()
        if not self._shared and threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._handle) for s in self._signals}
        return self

    def __exit__(self, *unused: Any) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; every process calls it once a step, in step order."""
        if self._shared:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._received is not None

    def _handle(self, number: int, frame: Any) -> None:
        self._received = signal.Signals(number)
        logging.warning("%s: stopping after this step.", self._received.name)
        self._restore()

    def _restore(self) -> None:
        restore: Callable[..., Any] = signal.signal
        for number, handler in self._previous.items():
            restore(number, handler)
        self._previous = {}
