"""Starting on many hosts: who is there, checks before any long work, and stopping together."""

from __future__ import annotations

import contextlib
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
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from var_jax.checkpoint import files
from var_jax.checkpoint.files import CheckpointError, one_line
from var_jax.parallel.roll_call import Cluster, PreflightError, find_disagreement, roll_call
from var_jax.paths import resolve

__all__ = [
    "Cluster",
    "PreflightError",
    "StopSignal",
    "check_agreement",
    "check_one_host",
    "detect_cluster",
    "initialize",
]

#: Port of JAX's coordination service; the roll call uses the next one.
COORDINATOR_PORT = 8482


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
    heartbeat_seconds: float = 100.0,
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
      heartbeat_seconds: when one process has not been heard of for so long, JAX ends the others
        with a message that names it; start all of them again to resume.

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
                heartbeat_timeout_seconds=int(heartbeat_seconds),
            )
    _check_devices(cluster, deadline_seconds)
    return cluster


def check_agreement(values: dict[str, str]) -> None:
    """Compares values between the processes once they have joined; all of them must call it.

    Args:
      values: by what to call them in an error, such as 'number of images'.

    Raises:
      PreflightError: they differ; on all processes, with the same sentence.
    """
    if jax.process_count() == 1:
        return
    mine = json.dumps({"host": socket.gethostname(), "values": values}).encode()
    longest = int(multihost_utils.process_allgather(np.int32(len(mine))).max())
    texts = multihost_utils.process_allgather(np.frombuffer(mine.ljust(longest), np.uint8))
    reports = dict(enumerate(json.loads(text.tobytes()) for text in texts))
    problem = find_disagreement(
        {process: report["values"] for process, report in reports.items()},
        {process: report["host"] for process, report in reports.items()},
    )
    if problem is not None:
        raise PreflightError(problem)


def check_one_host() -> None:
    """Refuses a command that uses this host's devices alone where they do not come up alone.

    Raises:
      PreflightError: this host is one of several of a TPU slice.
    """
    cluster = None if os.environ.get("JAX_PLATFORMS") == "cpu" else detect_cluster()
    if cluster is not None and cluster.num_processes > 1:
        raise PreflightError(
            f"This command runs on one host, but {socket.gethostname()} is one of "
            f"{cluster.num_processes} hosts of a TPU slice, whose chips come up on all of them "
            "together only; run it on a machine by itself, or here on the CPU: JAX_PLATFORMS=cpu."
        )


def _join_by_jax(deadline_seconds: float) -> None:
    try:
        jax.distributed.initialize(initialization_timeout=int(deadline_seconds))
    except ValueError as error:
        # What JAX says where it detects no cluster: this is one process alone.
        if "should be defined" not in str(error) and "must be defined" not in str(error):
            raise


def detect_cluster() -> Cluster | None:
    """The hosts of the Cloud TPU that this process runs on; None elsewhere."""
    if not has_tpu_chips():
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


def has_tpu_chips(bus: str = "/sys/bus/pci/devices") -> bool:
    """Whether this machine has TPU chips, installed software aside.

    Args:
      bus: the folder in which Linux lists what is on the PCI bus.
    """
    google = "0x1ae0"
    # Disks and network cards of Google's virtual machines come from the same maker.
    storage, network = "0x01", "0x02"
    for device in pathlib.Path(bus).glob("*"):
        with contextlib.suppress(OSError):
            maker = (device / "vendor").read_text().strip()
            if maker == google and (device / "class").read_text()[:4] not in (storage, network):
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
            files.probe_writable(resolve(workdir))
        for path in data_paths:
            _probe_readable(resolve(path))
    except (CheckpointError, PreflightError) as error:
        problem = str(error)
    versions = {"python": platform.python_version(), **files.package_versions()}
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
    if has_tpu_chips() and devices[0].platform == "cpu" and not os.environ.get("JAX_PLATFORMS"):
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

    def __exit__(self, *unused: object) -> None:
        self._restore()

    def requested(self, step: int) -> bool:
        """Whether to stop after this step; every process calls it once a step, in step order."""
        if self._shared:
            return bool(multihost_utils.reached_preemption_sync_point(step))
        return self._received is not None

    def _handle(self, number: int, frame: object) -> None:
        self._received = signal.Signals(number)
        logging.warning("%s: stopping after this step.", self._received.name)
        self._restore()

    def _restore(self) -> None:
        restore: Callable[..., Any] = signal.signal
        for number, handler in self._previous.items():
            restore(number, handler)
        self._previous = {}
