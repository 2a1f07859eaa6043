"""What one GPU does with all this: kernels against float64, steps and samples, the quickstart.

    bash benchmarks/gpu.sh --official ~/VAR --json gpu.json

About ten minutes on an H100. Parts (--parts): kernels (benchmarks.check_kernels), each of --models
here and in the official PyTorch code (benchmarks.benchmark_official; a process each, since they
cannot share the memory), and quickstart (launch.quickstart). A part that fails does not stop the
others. The logs of all parts lie in --workdir.
"""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time
from typing import Any

from absl import flags

from launch import cli

PARTS = ("kernels", "models", "quickstart")

_PARTS = flags.DEFINE_multi_enum("parts", list(PARTS), list(PARTS), "What to do.")
_OFFICIAL = cli.define_path("official", None, "models: clone of FoundationVision/VAR.")
_MODELS = flags.DEFINE_list(
    "models",
    [
        "d16:train_step:48:both",
        "d16:sample:64:both",
        "d30:train_step:16:both",
        "d30:sample:32:both",
    ],
    "models: variant:what:images:side each, as in benchmark_official.",
)
_OPTIONS = {
    part: flags.DEFINE_multi_string(f"{part}_option", [], f"{part}: an option of its command.")
    for part in PARTS
}
_LIMIT = flags.DEFINE_integer("limit", 300, "Seconds after which one process is ended.", 1)
_WORKDIR = cli.define_path("workdir", "runs/gpu", "Directory of logs and the quickstart's run.")
_JSON = cli.define_path("json", None, "File for the results.")


def versions() -> dict[str, str]:
    """Of what computes, by importlib's metadata: importing would take the GPU's memory."""
    import importlib.metadata

    names = ("jax", "jaxlib", "jax-cuda13-plugin", "flax", "torch", "nvidia-cudnn-cu13")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {"python": sys.version.split()[0], **found, "device": _device()}


def _device() -> str:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "no GPU"


def run_module(name: str, command: list[str], workdir: pathlib.Path) -> dict[str, Any]:
    """Runs `python -m COMMAND` into WORKDIR/NAME.log: seconds, and 'failed' with the log's end."""
    log = workdir / f"{name}.log"
    start = time.perf_counter()
    with log.open("w") as file:
        try:
            status: Any = subprocess.run(
                [sys.executable, "-m", *command],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=_LIMIT.value,
            ).returncode
        except subprocess.TimeoutExpired:
            status = f"ended after {_LIMIT.value} s"
    found: dict[str, Any] = {"seconds": time.perf_counter() - start}
    print(f"== {name}: {found['seconds']:.0f} s", flush=True)
    if status:
        lines = log.read_text(errors="replace").splitlines()
        found["failed"] = f"status {status}: " + " | ".join(lines[-3:])[-400:]
        print("\n".join(lines[-12:]), flush=True)
    return found


def kernels(workdir: pathlib.Path) -> dict[str, Any]:
    path = workdir / "kernels.json"
    command = ["benchmarks.check_kernels", f"--json={path}", *_OPTIONS["kernels"].value]
    found = run_module("kernels", command, workdir)
    return {**found, **_read(path)}


def models(workdir: pathlib.Path) -> dict[str, Any]:
    results = {}
    for model in _MODELS.value:
        variant, what, batch_size, sides = model.split(":")
        for side in ("var_jax", "pytorch") if sides == "both" else (sides,):
            name = f"{variant}-{what}-{batch_size}-{side}"
            path = workdir / f"{name}.json"
            command = [
                "benchmarks.benchmark_official",
                f"--official={_OFFICIAL.value}",
                f"--config=configs/var_imagenet256.py:{variant}",
                f"--what={what}",
                f"--side={side}",
                f"--batch_size={batch_size}",
                "--dtype=bfloat16",
                # PyTorch decodes under autocast.
                "--tokenizer_dtype=bfloat16",
                "--remat=dots",
                f"--json={path}",
                *_OPTIONS["models"].value,
            ]
            results[name] = {**run_module(name, command, workdir), **_read(path)}
            print(describe({name: results[name]}), flush=True)
    return results


def quickstart(workdir: pathlib.Path) -> dict[str, Any]:
    folder = workdir / "quickstart"
    command = ["launch.quickstart", f"--workdir={folder}", *_OPTIONS["quickstart"].value]
    found = run_module("quickstart", command, workdir)
    return {
        **found,
        "stages": _read(folder / "seconds.json"),
        "scores": _read(folder / "scores" / "scores.json"),
    }


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def describe(results: dict[str, dict[str, Any]]) -> str:
    """One line per process of the part models."""
    import numpy as np

    lines = []
    for name, result in results.items():
        for what, values in result.items():
            if not isinstance(values, dict):
                continue
            for side in ("var_jax", "pytorch"):
                if side not in values:
                    continue
                times = 1e3 * np.array(values[side])
                rate = 1e3 * result["batch_size"] / np.median(times)
                use = "".join(f"{u:7.0%}" for u in values["utilisation"])
                lines.append(
                    f"{name:34s} {what:10s} {np.median(times):9.1f} +-{np.ptp(times) / 2:5.1f} ms"
                    f"{rate:9.1f} images/s {values['peak_bytes'][0] / 2**30:6.1f} GiB{use}"
                )
        if "failed" in result:
            lines.append(f"{name:34s} failed: {result['failed']}")
    return "\n".join(lines)


def main() -> None:
    if "models" in _PARTS.value and not _OFFICIAL.value:
        raise ValueError("--parts models needs --official, a clone of FoundationVision/VAR.")
    workdir = pathlib.Path(_WORKDIR.value).absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {"versions": versions()}
    for part in _PARTS.value:
        results[part] = globals()[part](workdir)
        if _JSON.value:
            pathlib.Path(_JSON.value).write_text(json.dumps(results, indent=1) + "\n")
    print(results["versions"])
    if "kernels" in results:
        print((workdir / "kernels.log").read_text())
    if "models" in results:
        print(describe(results["models"]))
    if "quickstart" in results:
        print(results["quickstart"])


if __name__ == "__main__":
    cli.run(main)
