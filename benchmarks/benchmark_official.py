"""Times a config here and in the official PyTorch code, in turn, on one device.

    python -m benchmarks.benchmark_official --official ~/VAR \
        --config configs/var_imagenet256.py:d16 --batch_size 2 --dtype float32 --json cpu.json

train_step: tokens in, updated weights out. end_to_end: the same from images there, and from
cached tokens here, which is how this project trains. sample: with guidance, decoded. encode,
decode: the tokenizer. Weights are random. The two take turns, and a timed run follows an untimed
one of its own, as steps follow steps: the first has to fetch the memory that the other gave back.
With a CUDA build of both, --dtype bfloat16 times them on the GPU (PyTorch under autocast, with the
fastest attention that it has installed). The utilisation, of both, is the training step's useful
operations over the time and over the measured rate of the device's matrix products.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import time
from collections.abc import Callable
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from benchmarks.compare_with_official import use_official
from benchmarks.rates import matrix_rate
from launch import cli

WHAT = ("train_step", "end_to_end", "sample", "encode", "decode")

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_OFFICIAL = cli.define_path("official", None, "Clone of FoundationVision/VAR.")
_WHAT = flags.DEFINE_multi_enum("what", list(WHAT), list(WHAT), "What to time.")
_BATCH = flags.DEFINE_integer("batch_size", 2, "Images.", 1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computation.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed runs of each, in turn.", 2)
_JSON = cli.define_path("json", None, "File for the results.")


class Official:
    """The official modules with random weights, on the GPU if there is one."""

    def __init__(self, config: ConfigDict, batch_size: int, dtype: str) -> None:
        import torch
        from models import build_vae_var

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._autocast = functools.partial(
            torch.autocast, self._device, torch.bfloat16, enabled=dtype == "bfloat16"
        )
        tokenizer, model, sampling = config.tokenizer, config.model, config.sampling
        torch.manual_seed(0)
        self._vae, self._var = build_vae_var(
            device=self._device,
            patch_nums=tuple(config.patch_nums),
            V=tokenizer.vocab_size,
            Cvae=tokenizer.code_dim,
            ch=tokenizer.channels,
            share_quant_resi=tokenizer.phi_sharing,
            num_classes=model.num_classes,
            depth=model.depth,
            shared_aln=model.get("shared_adaln", False),
        )
        # build_vae_var turns PyTorch's own initialisation off.
        for parameter in self._vae.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
        self._vae.eval().requires_grad_(False)
        self._guidance = dict(cfg=sampling.cfg, top_k=sampling.top_k, top_p=sampling.top_p)
        side = config.data.image_size
        self._labels = torch.arange(batch_size, device=self._device) % model.num_classes
        self._images = torch.rand(batch_size, 3, side, side, device=self._device) * 2 - 1
        with torch.no_grad():
            self._tokens = self._vae.img_to_idxBl(self._images)
        self._optimizer = torch.optim.AdamW(
            self._var.parameters(), lr=1e-6, betas=(0.9, 0.95), fused=self._device == "cuda"
        )
        self._clip = config.train.optimizer.get("clip_norm", 2.0)

    def _update(self, tokens: list[Any]) -> None:
        torch = self._torch
        self._var.train()
        inputs = self._vae.quantize.idxBl_to_var_input(tokens)
        with self._autocast():
            logits = self._var(self._labels, inputs)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), torch.cat(tokens, 1).flatten()
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._var.parameters(), self._clip)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def train_step(self) -> None:
        self._update(self._tokens)

    def end_to_end(self) -> None:
        with self._torch.no_grad():
            tokens = self._vae.img_to_idxBl(self._images)
        self._update(tokens)

    def sample(self) -> None:
        self._var.eval()
        with self._torch.inference_mode(), self._autocast():
            count = len(self._labels)
            self._var.autoregressive_infer_cfg(count, self._labels, **self._guidance)

    def encode(self) -> None:
        with self._torch.no_grad():
            self._vae.img_to_idxBl(self._images)

    def decode(self) -> None:
        with self._torch.no_grad():
            self._vae.idxBl_to_img(self._tokens, same_shape=True, last_one=True)

    def seconds(self, what: str) -> float:
        """Time of one run."""
        start = time.perf_counter()
        getattr(self, what)()
        if self._device == "cuda":
            self._torch.cuda.synchronize()
        return time.perf_counter() - start

    def forget_gradients(self) -> None:
        """Frees the optimizer's moments."""
        self._optimizer.state.clear()
        gc.collect()


def make_run(config: ConfigDict, what: str, batch_size: int) -> tuple[Callable[[], float], float]:
    """Compiles ours; each call runs it once and returns the seconds. Also the useful operations of
    a run, 0 where the model has no formula for them."""
    import jax

    from var_jax import build
    from var_jax.parallel import sharding
    from var_jax.plan import programs

    name = "train_step" if what == "end_to_end" else what
    program = getattr(programs, name)(config, build.make_mesh(config), batch_size)
    args = list(programs.made_arguments(program))
    with sharding.activate(program.mesh, program.preset):
        compiled = program.function.lower(*args).compile()

    def run() -> float:
        start = time.perf_counter()
        out = jax.block_until_ready(compiled(*args))
        if program.donates:
            args[0] = out[0]
        return time.perf_counter() - start

    return run, program.model_flops


def main() -> None:
    use_official(_OFFICIAL.value)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import numpy as np

    config = _CONFIG.value
    config.mesh.update(data=-1, fsdp=1, tensor=1)
    config.sharding = "replicated"
    config.model.update(dtype=_DTYPE.value, remat="none")
    config.model.num_classes = config.model.num_classes or 1000
    official = Official(config, _BATCH.value, _DTYPE.value)
    rate = matrix_rate(_DTYPE.value)
    results: dict[str, Any] = {"matrix_rate": rate}
    print(f"Matrix products: {rate / 1e12:.3f} TFLOP/s.")
    print(f"{'':12s}{'var_jax':>18s}{'PyTorch':>18s}   PyTorch / var_jax   utilisation", flush=True)
    for what in _WHAT.value:
        ours, flops = make_run(config, what, _BATCH.value)
        theirs = functools.partial(official.seconds, what)
        pairs = [[(run(), run())[1] for run in (ours, theirs)] for _ in range(_ROUNDS.value)]
        times = np.array(pairs)
        del ours
        if what != "train_step":
            official.forget_gradients()
        median, spread = np.median(times, 0), np.ptp(times, 0) / 2
        results[what] = {"var_jax": times[:, 0].tolist(), "pytorch": times[:, 1].tolist()}
        cells = "".join(f"{m:10.3f} +-{s:5.3f}" for m, s in zip(median, spread, strict=True))
        use = [flops / m / rate for m in median] if flops else []
        results[what]["utilisation"] = use
        percent = " and ".join(f"{u:.0%}" for u in use)
        print(f"{what:12s}{cells}   {median[1] / median[0]:17.2f}   {percent}", flush=True)
    if _JSON.value:
        from etils import epath

        epath.Path(_JSON.value).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "official"])
    cli.run(main)
