"""RobusTok's latent perturbation against its public code, which knows one level."""

import jax
import jax.numpy as jnp
import numpy as np
from family.case import nchw, nhwc

from var_jax.codecs.perturbed_vq import PerturbedVQ
from var_jax.pyramid import ScalePyramid
from var_jax.quantizers.nearest import ranked_codes, unit
from var_jax.quantizers.perturbation import Replacements


def codec(case, i):
    """Of a case's number, and its parameters; codes are of length 1 there."""
    config, chosen = case.config, case.config["cases"][i]
    module = PerturbedVQ(
        ScalePyramid(((config["h"], config["w"]),)),
        config["V"],
        config["C"],
        phi_ratio=0.0,
        normalize_codes=config["codebook_norm"],
        token_rate=chosen["alpha"],
        num_nearest=chosen["delta"],
    )
    return module, {"codebook": directions(case, case.outputs["codebook"])}


def directions(case, x):
    return unit(jnp.asarray(x)) if case.config["codebook_norm"] else jnp.asarray(x)


def drawn(case, i):
    """The tokens of the first examples take the codes that the case has drawn."""
    config, chosen = case.config, case.config["cases"][i]
    shape = (config["B"], config["h"] * config["w"])
    replaced = case.outputs["uniform"].reshape(shape) <= chosen["alpha"]
    first = np.arange(config["B"]) < int(config["B"] * chosen["beta"])
    return Replacements(
        jnp.asarray(replaced & first[:, None]), jnp.asarray(case.outputs[f"pick{i}"].reshape(shape))
    )


def check_case(case, i):
    module, params = codec(case, i)
    z = jnp.asarray(nhwc(case.outputs["z"]))
    cotangent = nhwc(case.outputs["cotangent"])

    @jax.jit
    def run(z, drawn):
        def total(z):
            variables, features = {"params": params}, directions(case, z)
            made = module.apply(variables, features, drawn, method="quantize_replaced")
            return (made.features * cotangent).sum(), made

        grad, made = jax.grad(total, has_aux=True)(z)
        vectors = directions(case, z).reshape(-1, z.shape[-1])
        ranked = ranked_codes(
            vectors, params["codebook"], module.num_nearest, module.normalize_codes
        )
        return grad, made, ranked

    grad, made, ranked = run(z, drawn(case, i))
    case.equal(ranked, f"case{i}_nearest")
    case.close(nchw(made.features), f"case{i}_perturbed")
    case.close(nchw(grad), f"case{i}_grad_z")
    # Loss and targets are of the codes that were not perturbed.
    expected = case.outputs["vq_loss"] + case.outputs["commit_loss"]
    np.testing.assert_allclose(made.loss, expected, rtol=1e-4)
    code = params["codebook"][made.targets].reshape(z.shape)
    case.close(nchw(code), "z_q")


def check_all(case):
    for i in range(len(case.config["cases"])):
        check_case(case, i)


CHECKS = {"perturbation": check_all}
