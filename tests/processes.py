"""Commands on several processes of this machine: a small pod."""

import atexit
import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import threading

from ports import free_port

ROOT = pathlib.Path(__file__).parents[1]
#: The commands of one session of tests share what they compile.
PROGRAMS = tempfile.mkdtemp(prefix="var_jax-programs-")
atexit.register(shutil.rmtree, PROGRAMS, ignore_errors=True)


@dataclasses.dataclass
class Pod:
    """A command that runs on several processes.

    Attributes:
      children: its processes.
      outputs: what each has written so far.
    """

    children: list[subprocess.Popen]
    outputs: list[list[str]]
    readers: list[threading.Thread]

    def wait_for(self, text: str, process: int = 0) -> None:
        """Blocks until a process has written a line with the text, or has ended."""
        seen = 0
        while self.children[process].poll() is None:
            lines = self.outputs[process][seen:]
            if any(text in line for line in lines):
                return
            seen += len(lines)
            self.readers[process].join(0.01)
        raise AssertionError(f"No line with {text!r}:\n{''.join(self.outputs[process])[-3000:]}")

    def end(self) -> list[str]:
        """Waits for all processes; their outputs. Fails if one of them did."""
        for child, reader in zip(self.children, self.readers, strict=True):
            child.wait()
            reader.join()
        texts = ["".join(lines) for lines in self.outputs]
        codes = [child.returncode for child in self.children]
        assert not any(codes), f"{codes}\n" + "\n".join(text[-3000:] for text in texts)
        return texts


def start(processes: int, devices: int, module: str, *arguments: object) -> Pod:
    """Starts `python -m module arguments` on processes of so many CPU devices each."""
    pod = Pod([], [], [])
    coordinator = f"--coordinator=localhost:{free_port()}"
    for i in range(processes):
        joining = [coordinator, f"--num_processes={processes}", f"--process_id={i}"]
        child = subprocess.Popen(
            [
                sys.executable,
                *("-u", "-m", module, *map(str, arguments)),
                *(joining if processes > 1 else ["--single_host"]),
            ],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "JAX_COMPILATION_CACHE_DIR": PROGRAMS,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines: list[str] = []
        reader = threading.Thread(target=lambda c=child, to=lines: to.extend(c.stdout))
        reader.start()
        pod.children.append(child)
        pod.outputs.append(lines)
        pod.readers.append(reader)
    return pod


def run(processes: int, devices: int, module: str, *arguments: object) -> list[str]:
    """Runs it to its end; see `start`."""
    return start(processes, devices, module, *arguments).end()
