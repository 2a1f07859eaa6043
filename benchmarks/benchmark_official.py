"""Times a config here and in the official PyTorch code, in turn, on one device.

    python -m benchmarks.benchmark_official --official ~/VAR \
        --config configs/var_imagenet256.py:d16 --batch_size 2 --dtype float32 --json cpu.json

train_step: tokens in, updated weights out. end_to_end: the same from images there, and from
cached tokens here, which is how this project trains. sample: with guidance, decoded. encode,
decode: the tokenizer. Weights are random. The two take turns, and a timed run follows an untimed
one of its own, as steps follow steps: the first has to fetch the memory that the other gave back.
On a GPU, whose memory the two cannot share, each has a run of its own: --side var_jax and --side
pytorch. PyTorch is set as the official training sets it: TF32 products, cuDNN's search, fused
AdamW, autocast in bfloat16, the fastest attention that is installed, no torch.compile. The
utilisation, of both, is the training step's useful operations over the time and over the measured
rate of the device's matrix products.
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

from benchmarks.official_clone import use_official
from benchmarks.rates import matrix_rate
from launch import cli

SIDES = ("var_jax", "pytorch")
WHAT = ("train_step", "end_to_end", "sample", "encode", "decode")

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_OFFICIAL = cli.define_path("official", None, "Clone of FoundationVision/VAR.")
_WHAT = flags.DEFINE_multi_enum("what", list(WHAT), list(WHAT), "What to time.")
_BATCH = flags.DEFINE_integer("batch_size", 2, "Images.", 1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Computation.")
_SIDE = flags.DEFINE_enum("side", "both", ["both", *SIDES], "Whom to time.")
_REMAT = flags.DEFINE_enum(
    "remat", "none", ["none", "dots", "full"], "var_jax: what is computed again, as config.model's."
)
_TOKENIZER_DTYPE = flags.DEFINE_enum(
    "tokenizer_dtype",
    "float32",
    ["float32", "bfloat16"],
    "var_jax: of the autoencoder; under autocast PyTorch decodes samples in bfloat16.",
)
_TORCH_COMPILE = flags.DEFINE_bool("torch_compile", False, "PyTorch: compile the transformer.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed runs of each, in turn.", 2)
_JSON = cli.define_path("json", None, "File for the results.")


class Official:
    """The official modules with random weights, on the GPU if there is one."""

    def __init__(
        self, config: ConfigDict, batch_size: int, dtype: str, compiled: bool = False
    ) -> None:
        import torch
        from models import build_vae_var

        self._torch = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._autocast = functools.partial(
            torch.autocast, self._device, torch.bfloat16, enabled=dtype == "bfloat16"
        )
        tokenizer, model, sampling = config.tokenizer, config.model, config.sampling
        if self._device == "cuda":  # As utils/arg_util.py there.
            torch.set_float32_matmul_precision("high")
            torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
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
        self._forward = torch.compile(self._var) if compiled else self._var

    def _update(self, tokens: list[Any]) -> None:
        torch = self._torch
        self._var.train()
        inputs = self._vae.quantize.idxBl_to_var_input(tokens)
        with self._autocast():
            logits = self._forward(self._labels, inputs)
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

    def peak_bytes(self) -> int:
        """Most memory of the GPU that was in use since the last call; 0 on CPUs."""
        if self._device == "cpu":
            return 0
        peak = self._torch.cuda.max_memory_allocated()
        self._torch.cuda.reset_peak_memory_stats()
        return peak

    def forget_gradients(self) -> None:
        """Frees the optimizer's moments."""
        self._optimizer.state.clear()
        gc.collect()


def make_run(config: ConfigDict, what: str, batch_size: int) -> tuple[Callable[[], float], int]:
    """Compiles ours; each call runs it once and returns the seconds. Also the bytes it needs."""
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

    memory = compiled.memory_analysis()
    new = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return run, memory.argument_size_in_bytes + memory.temp_size_in_bytes + new


def useful_flops(config: ConfigDict, what: str, batch_size: int) -> float:
    """Useful operations of a run by the model's formula; 0 where there is none."""
    from var_jax import build
    from var_jax.plan.flops import forward_flops

    if what not in ("train_step", "end_to_end"):
        return 0.0
    return 3 * batch_size * forward_flops(build.network(config))


def main() -> None:
    sides = SIDES if _SIDE.value == "both" else (_SIDE.value,)
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import numpy as np

    config = _CONFIG.value
    config.mesh.update(data=-1, fsdp=1, tensor=1)
    config.sharding = "replicated"
    with config.unlocked():
        config.model.update(dtype=_DTYPE.value, remat=_REMAT.value)
        config.tokenizer.dtype = _TOKENIZER_DTYPE.value
    config.model.num_classes = config.model.num_classes or 1000
    official = None
    if "pytorch" in sides:
        use_official(_OFFICIAL.value)
        official = Official(config, _BATCH.value, _DTYPE.value, _TORCH_COMPILE.value)
    rate = matrix_rate(_DTYPE.value)
    results: dict[str, Any] = {"matrix_rate": rate, "batch_size": _BATCH.value}
    print(f"Matrix products: {rate / 1e12:.3f} TFLOP/s.")
    heads = "".join(f"{side:>18s}" for side in sides)
    print(f"{'':12s}{heads}   PyTorch / var_jax   utilisation", flush=True)
    for what in _WHAT.value:
        runs, peaks = [], []
        if "var_jax" in sides:
            ours, peak = make_run(config, what, _BATCH.value)
            runs.append(ours)
            peaks.append(peak)
            del ours
        if official:
            runs.append(functools.partial(official.seconds, what))
        times = np.array([[(run(), run())[1] for run in runs] for _ in range(_ROUNDS.value)])
        del runs
        if official:
            peaks.append(official.peak_bytes())
            if what != "train_step":
                official.forget_gradients()
        results[what] = {side: times[:, i].tolist() for i, side in enumerate(sides)}
        results[what]["peak_bytes"] = peaks
        flops = useful_flops(config, what, _BATCH.value)
        median, spread = np.median(times, 0), np.ptp(times, 0) / 2
        cells = "".join(f"{m:10.3f} +-{s:5.3f}" for m, s in zip(median, spread, strict=True))
        use = [flops / m / rate for m in median] if flops else []
        results[what]["utilisation"] = use
        ratio = f"{median[1] / median[0]:17.2f}" if len(sides) == 2 else " " * 17
        percent = " and ".join(f"{u:.0%}" for u in use)
        print(f"{what:12s}{cells}   {ratio}   {percent}", flush=True)
    if _JSON.value:
        from etils import epath

        epath.Path(_JSON.value).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "official"])
    cli.run(main)
