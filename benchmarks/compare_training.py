"""Trains one transformer here and in the official PyTorch code and draws both losses.

python -m benchmarks.compare_training --official ~/VAR --config configs/mnist5k.py \
    --tokenizer runs/quickstart/tokenizer --tokens runs/quickstart/tokens \
    --steps 200 --plot docs/loss_vs_official.png

Same weights, same batches in the same order, same schedule of learning rate and weight decay;
no dropout of labels or paths, whose random numbers differ. There it is the official trainer's
own step, parameter groups, schedule and clipping. Needs PyTorch (on the CPU) and matplotlib.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from ml_collections import config_flags

from benchmarks.official_clone import use_official
from launch import cli

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Python config file.")
_OFFICIAL = cli.define_path("official", None, "Clone of FoundationVision/VAR.")
_TOKENIZER = cli.define_path("tokenizer", None, "Workdir of a tokenizer.")
_TOKENS = cli.define_path("tokens", None, "Token cache that it made.")
_STEPS = flags.DEFINE_integer("steps", 200, "Steps of training.", 10)
_PLOT = cli.define_path("plot", None, "Picture to write.")
flags.mark_flags_as_required(["config", "official", "tokenizer", "tokens"])

#: Official names of our schedules.
_SCHEDULES = {"lin0": "lin0", "linear": "lin00", "cosine": "cos"}
#: Parameters that train.py exempts from weight decay, among those that a VAR has.
_NO_DECAY = ("pos_1LC", "pos_start", "lvl_embed", "ada_gss", "scale_mul")


class Log:
    """Takes what the official trainer logs; it computes the loss for `log_iters` only."""

    def __init__(self, steps: int) -> None:
        self.log_iters = range(steps)
        self.rows: list[dict[str, Any]] = []

    def update(self, **values: Any) -> None:
        self.rows.append(values)


def train_here(likelihood: Any, codec_params: Any, params: Any, optimizer: Any, batches: list):
    """Losses and gradient norms (before clipping) of each step."""
    import jax
    import jax.numpy as jnp

    from var_jax.train.state import TrainState
    from var_jax.train.step import make_train_step

    zero = jnp.zeros((), jnp.int32)
    params = jax.tree.map(jnp.asarray, params)
    state = TrainState(zero, params, optimizer.init(params), None, (), zero)
    step = jax.jit(make_train_step(likelihood, optimizer))
    losses, norms = [], []
    for batch in batches:
        state, metrics = step(state, {"tokenizer": {"codec": codec_params}}, batch)
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
    return np.array(losses), np.array(norms)


def train_there(likelihood: Any, codec_params: Any, params: Any, settings: Any, batches: list):
    """The same by the official modules, trainer, parameter groups and schedule."""
    import torch
    from models.quant import VectorQuantizer2
    from models.var import VAR
    from trainer import VARTrainer
    from utils import lr_control
    from utils.amp_sc import AmpOptimizer

    from var_jax.convert import official

    var, codec = likelihood.network.transformer, likelihood.codec
    patch_nums = var.pyramid.patch_nums
    quantizer = VectorQuantizer2(
        codec.vocab_size,
        codec.code_dim,
        using_znorm=codec.normalize_codes,
        v_patch_nums=patch_nums,
        quant_resi=codec.phi_ratio,
        share_quant_resi=codec.phi_sharing,
    )
    prefix = "quantize."
    tensors = official.codec_tensors(codec, codec_params)
    quantizer.load_state_dict(
        {n.removeprefix(prefix): torch.tensor(t.read()) for n, t in tensors.items()}
    )
    quantizer.requires_grad_(False)

    def cut(tokens):
        return list(tokens.split(list(var.pyramid.sizes), dim=1))

    # The batches hold tokens, so encoding them is only cutting them into levels.
    vae = types.SimpleNamespace(
        Cvae=codec.code_dim,
        vocab_size=codec.vocab_size,
        quantize=quantizer,
        img_to_idxBl=cut,
    )
    model = VAR(
        vae,
        num_classes=var.num_classes,
        depth=var.depth,
        embed_dim=var.width,
        num_heads=var.num_heads,
        mlp_ratio=var.mlp_ratio,
        shared_aln=var.shared_adaln,
        cond_drop_rate=0.0,
        attn_l2_norm=var.qk_norm,
        patch_nums=patch_nums,
        flash_if_available=False,
        fused_if_available=False,
    )
    tensors = official.network_tensors(likelihood.network, params)
    model.load_state_dict({name: torch.tensor(t.read()) for name, t in tensors.items()})
    # It prints with a keyword that the official start-up adds to `print`.
    lr_control.print = lambda *args, **kwargs: None
    names, weights, groups = lr_control.filter_params(model, nowd_keys=_NO_DECAY)
    adamw = torch.optim.AdamW(groups, lr=0.0, betas=(settings.b1, settings.b2), weight_decay=0)
    trainer = VARTrainer(
        device="cpu",
        patch_nums=patch_nums,
        resos=patch_nums,
        vae_local=vae,
        var_wo_ddp=model,
        var=model,
        var_opt=AmpOptimizer(0, adamw, names, weights, settings.clip_norm),
        label_smooth=0.0,
    )
    log = Log(len(batches))
    silent = types.SimpleNamespace(update=lambda **values: None)
    decay_end = settings.weight_decay_end
    for i, batch in enumerate(batches):
        lr_control.lr_wd_annealing(
            _SCHEDULES[settings.schedule],
            adamw,
            settings.learning_rate,
            settings.weight_decay,
            settings.weight_decay if decay_end is None else decay_end,
            i,
            settings.warmup_steps,
            len(batches),
            wp0=settings.warmup_factor,
            wpe=settings.end_factor,
        )
        trainer.train_step(
            it=i,
            g_it=i,
            stepping=True,
            metric_lg=log,
            tb_lg=silent,
            inp_B3HW=torch.from_numpy(batch["tokens"]).long(),
            label_B=torch.from_numpy(batch["label"]).long(),
            prog_si=-1,
            prog_wp_it=1,
        )
    return tuple(np.array([row[key] for row in log.rows]) for key in ("Lm", "tnm"))


def draw(path: str, ours: np.ndarray, theirs: np.ndarray) -> None:
    """Both curves above, their difference below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, sharex=True, figsize=(7, 5), height_ratios=(2, 1), layout="constrained"
    )
    above.plot(theirs, lw=4, alpha=0.4, label="official PyTorch trainer")
    above.plot(ours, lw=1, color="black", label="var_jax")
    above.set_ylabel("loss (nats per token)")
    above.legend()
    worst = np.abs(ours - theirs).max()
    above.set_title(f"Same weights, batches and schedule: largest difference {worst:.1e}")
    below.semilogy(np.maximum(np.abs(ours - theirs), 1e-9), color="black")
    below.set_ylabel("difference")
    below.set_xlabel("step")
    with epath.Path(path).open("wb") as file:
        figure.savefig(file, dpi=120)


def main() -> None:
    use_official(_OFFICIAL.value)
    import flax.linen as nn
    import jax

    from var_jax import build
    from var_jax.train.optim import make_optimizer

    config, steps = _CONFIG.value, _STEPS.value
    loaded = build.load_tokenizer(_TOKENIZER.value)
    with config.unlocked():
        build.use_tokenizer(config, loaded)
        config.token_cache = _TOKENS.value
        config.train.optimizer.warmup_steps = steps // 10
        source = build.training_source(config, "train", loaded.fingerprint)
        build.set_num_classes(config, source.num_classes)
    config.model.update(class_drop_rate=0.0, drop_path_rate=0.0)
    likelihood = build.objective(config, loaded, from_images=False)
    batch_size = config.train.batch_size
    pipeline = build.pipeline(config, source, batch_size, train=True)
    batches = list(pipeline.batches(stop_step=steps))
    settings = build.optimizer_config(config.train.optimizer, "train.optimizer", batch_size)
    params = jax.device_get(nn.unbox(likelihood.init_params(jax.random.key(config.seed))))
    codec_params = loaded.params["codec"]

    ours, our_norms = train_here(
        likelihood, codec_params, params, make_optimizer(settings, steps), batches
    )
    theirs, their_norms = train_there(
        likelihood, jax.device_get(codec_params), params, settings, batches
    )
    print(f"{steps} steps of {batch_size}: loss {theirs[0]:.4f} at first, {theirs[-1]:.4f} at last")
    print(f"largest difference of the loss: {np.abs(ours - theirs).max():.2e}")
    relative = np.abs(our_norms / their_norms - 1).max()
    print(f"largest relative difference of the gradient norm: {relative:.2e}")
    if _PLOT.value:
        draw(_PLOT.value, ours, theirs)


if __name__ == "__main__":
    cli.run(main)
