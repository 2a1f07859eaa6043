"""The hosts of a run meet before JAX is started on them.

JAX aborts a process whose peers do not come, without saying which. So the hosts first call
the roll over plain TCP: process 0 collects a report from each, and either all of them go on
or all of them end with the same sentence.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import time
from collections import Counter
from typing import Any

from etils import epath

from var_jax.checkpoint.files import one_line
from var_jax.paths import resolve

#: So many differences between the processes are named.
_SHOWN = 8


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
            marker = resolve(workdir) / f".roll-call-{time.time_ns()}"
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
    hosts = {process: report["host"] for process, report in reports.items()}
    return find_disagreement({p: r["agree"] for p, r in reports.items()}, hosts)


def find_disagreement(given: dict[int, dict[str, Any]], hosts: dict[int, str]) -> str | None:
    """A sentence about what is not equal on all processes; None if all is.

    Args:
      given: values by name, of each process; a name that is missing is a difference too.
      hosts: host name of each process.
    """
    found = []
    for key in sorted(set().union(*given.values())):
        values = {p: v.get(key, "not given") for p, v in sorted(given.items())}
        usual, count = Counter(values.values()).most_common(1)[0]
        odd = [p for p, v in values.items() if v != usual]
        if odd:
            found.append(
                f"the {key} is {values[odd[0]]} on process {odd[0]} ({hosts[odd[0]]}) but {usual} "
                f"on {count} of {len(given)} processes"
            )
    if not found:
        return None
    more = f"; and {len(found) - _SHOWN} more differ" if len(found) > _SHOWN else ""
    text = "; ".join(found[:_SHOWN])
    return f"{text[0].upper()}{text[1:]}{more}; make all hosts equal."


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
    """JSON objects, one per line, over a socket."""

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
