"""MAR's diffusion of single tokens: loss, times and samples.

Source of the numbers: LTH14/mar fe470ac.
"""

import jax
import jax.numpy as jnp
import numpy as np

from var_jax.fields import Field
from var_jax.heads.diffusion import DiffusionHead, DiffusionSampling, LevelDiffusion
from var_jax.heads.diffusion_schedule import cosine_kept, schedule, spaced_times
from var_jax.pyramid import ScalePyramid


def head_of(channels, width, net_width, net_depth):
    target = Field("latents", (channels,), "float32")
    return DiffusionHead(target, width, net_width, net_depth)


def read_params(state, depth):
    """Our parameters from those of `SimpleMLPAdaLN`."""

    def linear(name):
        weight, bias = state[f"{name}.weight"].T, state[f"{name}.bias"]
        if "adaLN" in name or name == "final_layer.linear":
            parts = 3 if "res_blocks" in name else 2
            return {
                "kernel": weight.reshape(len(weight), parts, -1),
                "bias": bias.reshape(parts, -1),
            }
        return {"kernel": weight, "bias": bias}

    def block(i):
        name = f"res_blocks.{i}"
        return {
            "scale": state[f"{name}.in_ln.weight"],
            "bias": state[f"{name}.in_ln.bias"],
            "up": linear(f"{name}.mlp.0"),
            "down": linear(f"{name}.mlp.2"),
            "adaln": linear(f"{name}.adaLN_modulation.1"),
        }

    return {
        "denoiser": {
            "latents": linear("input_proj"),
            "state": linear("cond_embed"),
            "time": {"up": linear("time_embed.mlp.0"), "out": linear("time_embed.mlp.2")},
            "blocks": jax.tree.map(lambda *x: np.stack(x), *map(block, range(depth))),
            "adaln": linear("final_layer.adaLN_modulation.1"),
            "out": linear("final_layer.linear"),
        }
    }


def by_official_name(params, depth):
    """{official name: our parameter} of the same tree."""
    net = params["denoiser"]
    found = {
        "input_proj": net["latents"],
        "cond_embed": net["state"],
        "time_embed.mlp.0": net["time"]["up"],
        "time_embed.mlp.2": net["time"]["out"],
        "final_layer.adaLN_modulation.1": net["adaln"],
        "final_layer.linear": net["out"],
    }
    for i in range(depth):
        block, name = jax.tree.map(lambda x, i=i: x[i], net["blocks"]), f"res_blocks.{i}"
        found[f"{name}.in_ln"] = {"kernel": block["scale"], "bias": block["bias"]}
        found[f"{name}.mlp.0"], found[f"{name}.mlp.2"] = block["up"], block["down"]
        found[f"{name}.adaLN_modulation.1"] = block["adaln"]
    own = {"kernel": "weight", "bias": "bias"}
    return {f"{n}.{own[k]}": x for n, layer in found.items() for k, x in layer.items()}


def of_net(state):
    start = "net."
    return {name.partition(start)[2]: x for name, x in state.items() if start in name}


def case_head(case):
    config = case.config
    head = head_of(config["channels"], config["z"], config["width"], config["depth"])
    return head, read_params(of_net(case.state()), config["depth"])


def check_loss(case):
    (head, params), outputs = case_head(case), case.outputs
    z, target, eps = (jnp.asarray(outputs[k])[None] for k in ("z", "target", "eps"))
    times, mask = jnp.asarray(outputs["t"])[None], outputs["mask"]
    kept = cosine_kept()[outputs["t"]][:, None]
    noisy = np.sqrt(kept) * outputs["target"] + np.sqrt(1 - kept) * outputs["eps"]
    case.close(noisy, "x_t")

    @jax.jit
    def run(params):
        def loss(params):
            terms = head.apply({"params": params}, z, target, times, eps, method="terms")
            error, bound = (x[0] for x in terms)
            return ((error + bound) * mask).sum() / mask.sum(), (error, bound)

        net = head.apply(
            {"params": params},
            noisy[None].astype("f4"),
            times,
            z,
            method=lambda head, *args: head.denoiser(*args),
        )
        return jax.value_and_grad(loss, has_aux=True)(params), [x[0] for x in net]

    ((loss, (error, bound)), grads), net = run(params)
    case.close(net[0], "net_eps")
    case.close(net[1], "net_variance")
    case.close(error, "loss_mse")
    case.close(bound, "loss_vb")
    case.close(loss, "loss_masked")
    case.close((error + bound).mean(), "loss_unmasked")
    (norms,) = case.grad_norms.values()
    largest = max(norms.values())
    found = by_official_name(grads, case.config["depth"])
    assert len(found) == len(norms)
    for name, expected in norms.items():
        norm = np.linalg.norm(found[name.partition("net.")[2]])
        assert abs(norm - expected) <= 1e-4 * expected + 1e-6 * largest, name


def check_times(case):
    outputs = case.outputs
    betas, count = schedule().betas, len(outputs["betas_head_tail"]) // 2
    case.close(np.concatenate([betas[:count], betas[-count:]]), "betas_head_tail", 1e-5)
    times = spaced_times(int(case.config["steps"]))
    case.equal(np.sort(outputs["sampling_timesteps"]), "sampling_timesteps")
    case.equal(times, "sampling_timesteps")
    case.close(schedule(times).betas, "sampling_betas", 1e-5)
    for name in outputs:
        if name.startswith("timesteps_"):
            case.equal(spaced_times(int(name.removeprefix("timesteps_"))), name)


def denoised(head, params, noise, step_noise, hiddens, weights, settings):
    """Latents [n, c] from given noise [n, c], and that of the steps [S, n, c]."""
    given = jnp.concatenate([jnp.asarray(step_noise), jnp.asarray(noise)[None]])

    @jax.jit
    def run(params, hiddens):
        return head.apply(
            {"params": params},
            lambda step: given[step][None],
            tuple(jnp.asarray(h)[None] for h in hiddens),
            weights,
            settings,
            method="denoise",
        )[0]

    return run(params, hiddens)


def level_settings(case, sampling):
    return sampling.at(0, ScalePyramid(((1, case.config["n"]),)))


def check_samples(case):
    (head, params), outputs, config = case_head(case), case.outputs, case.config
    sampling = DiffusionSampling(int(config["steps"]), config["temperature"])
    settings = level_settings(case, sampling)
    assert isinstance(settings, LevelDiffusion)
    # Theirs is in the order in which steps are made.
    steps = outputs["step_noise"][::-1]
    for name, states, weights in (
        ("sample_unguided", ("z",), (1.0,)),
        ("sample_guided", ("z", "z_uncond"), (config["cfg"], 1 - config["cfg"])),
    ):
        hiddens = [outputs[k] for k in states]
        found = denoised(head, params, outputs["noise"], steps, hiddens, weights, settings)
        case.close(found, name, 2e-4)


CHECKS = {"loss": check_loss, "times": check_times, "samples": check_samples}
