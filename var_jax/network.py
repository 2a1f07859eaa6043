"""A transformer and the head that reads it: what is trained, saved and sampled from as one."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from var_jax.heads.base import Head
from var_jax.transformer.denoiser import Denoiser
from var_jax.transformer.mar import MAR
from var_jax.transformer.masked_branch import MaskedBranch
from var_jax.transformer.var import VAR

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Network:
    """Modules whose parameters are {'transformer': ..., 'head': ...}.

    Attributes:
      transformer: from inputs and condition to hidden states: level by level, or of one level the
        tokens that are masked, or, a `Denoiser`, the velocity's of noisy ones.
      head: from hidden states to targets.
      masked: a second end, whose parameters are 'masked'; with a head like the first among them.
    """

    transformer: VAR | MAR | nn.Module
    head: Head
    masked: MaskedBranch | None = None

    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Parameters at initialisation, in the boxes that hold their logical axis names."""
        transformer_key, head_key = jax.random.split(key)
        var = self.transformer
        inputs = jnp.zeros((1, var.pyramid.length, var.code_dim))
        asked = var.conditioning()
        given = asked.read({f.name: jnp.zeros((1, *f.shape), f.dtype) for f in asked.fields})
        hidden = jnp.zeros((1, var.pyramid.length, var.width))
        params = {
            "transformer": var.init(transformer_key, inputs, given)["params"],
            "head": self.head.init(head_key, hidden)["params"],
        }
        if self.masked is not None:
            branch_key, key = jax.random.split(jax.random.fold_in(key, 1))
            head = self.head.init(key, hidden)["params"]
            params["masked"] = {**self.masked.init_params(branch_key), "head": head}
        return params

    @property
    def mar(self) -> MAR:
        """The transformer as one that fills in masked tokens; ValueError if it is none."""
        does = "fills in masked tokens of one level, as 'random_order' needs"
        return self._as(MAR, does, "'mar'")

    @property
    def denoiser(self) -> Denoiser:
        """The transformer as one that denoises entity after entity; ValueError if it is none."""
        does = "denoises, as 'flow_matching' and 'next_entity' need"
        return self._as(Denoiser, does, "'xar' or 'acdit'")

    def _as(self, kind: type[T], does: str, names: str) -> T:
        if not isinstance(self.transformer, kind):
            raise ValueError(
                f"{type(self.transformer).__name__} is no transformer that {does}; choose "
                f"model.transformer {names}, or another objective and decoder."
            )
        return self.transformer

    def hidden(self, params: Any, inputs: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        """A pass over levels; see `VAR.__call__`.

        Raises:
          ValueError: the transformer makes none.
        """
        if not isinstance(self.transformer, VAR):
            ways = ("flow_matching", "next_entity")
            if isinstance(self.transformer, MAR):
                ways = ("random_order", "random_order")
            raise ValueError(
                f"{type(self.transformer).__name__} does not draw level by level; choose "
                f"train.objective {ways[0]!r} and sampling.decoder {ways[1]!r}, or another "
                "model.transformer."
            )
        variables = {"params": params["transformer"]}
        return self.transformer.apply(variables, inputs, given, *args, **kwargs)

    def filled_in(self, params: Any, own: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        """A pass over the tokens of one level of which some are masked; see `MAR.__call__`.

        Raises:
          ValueError: the transformer makes none.
        """
        return self.mar.apply({"params": params["transformer"]}, own, given, *args, **kwargs)

    def denoised(self, params: Any, noisy: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        """A pass over noisy entities; see `Denoiser`.

        Raises:
          ValueError: the transformer makes none.
        """
        variables = {"params": params["transformer"]}
        return self.denoiser.apply(variables, noisy, given, *args, **kwargs)

    def loss(self, params: Any, *args: Any) -> Any:
        """The head's loss; see `Head.loss`."""
        return self.head.apply({"params": params["head"]}, *args, method="loss")

    def sample(self, params: Any, *args: Any) -> Any:
        """The head's draw; see `Head.sample`."""
        return self.head.apply({"params": params["head"]}, *args, method="sample")


def sampling_params(network: Network, params: Any) -> Any:
    """The parameters with the blocks' in the type that the blocks compute in.

    A block casts all of them at every use but `log_scale` and what its mixer names. Cast once, a
    bfloat16 model takes half the memory, and a level reads half the bytes.

    Args:
      network: whose blocks.
      params: see `Network`.
    """
    mixer = network.transformer.mixer
    kept = {"log_scale", *(mixer.float32_params if mixer else ())}

    def cast(path, x):
        names = {entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)}
        if "blocks" not in names or kept & names:
            return x
        return x.astype(network.transformer.dtype)

    owners = [name for name in ("transformer", "masked") if name in params]
    made = {name: jax.tree_util.tree_map_with_path(cast, params[name]) for name in owners}
    return {**params, **made}
