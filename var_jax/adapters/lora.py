"""LoRA (arXiv 2106.09685): the change of a weight is a product of two thin matrices."""

from __future__ import annotations

import dataclasses
import math
import string
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from var_jax import subsets
from var_jax.network import Network
from var_jax.transformer.layers import init_std

#: The axes of a weight that a product contracts: the first one, or these two.
_HEADS = ("heads", "head_dim")


@dataclasses.dataclass(frozen=True)
class LoRA:
    """W + alpha / rank A B for chosen weights W, `in` x `out`; A is random at first and B is zero.

    The weights of the blocks, stacked along a leading axis, have matrices of their own each. Of
    `qkv_kernel` one A serves queries, keys and values. The sum is made before a pass, not product
    by product in it: so it changes weights of any kind, and needs nothing of the model, but a
    training step computes the gradients of W on its way to those of A and B.

    Attributes:
      rank: columns of A and rows of B; should be far less than a weight's sizes.
      alpha: the factor on the product is alpha / rank, so that another rank wants no other
        learning rate.
      weights: patterns of the parameters W, see `subsets.split`; by default those of the blocks'
        attention and MLP.
    """

    rank: int = 16
    alpha: float = 16.0
    weights: tuple[str, ...] = ("*/attention/*kernel", "*/mlp/*kernel")

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"The rank of LoRA must be at least 1, got {self.rank}.")

    def init_params(self, network: Network, key: jax.Array) -> Any:
        """{'a': [in, rank], 'b': [rank, out]} in the place of each W, in boxes.

        Raises:
          ValueError: a pattern matches nothing, or a vector.
        """
        boxed = jax.eval_shape(network.init_params, key)
        subsets.check_patterns(boxed, self.weights, "The adapter's weights")
        chosen, _ = subsets.split(boxed, self.weights)
        made = {}
        for i, (path, weight) in enumerate(sorted(flatten_dict(chosen).items())):
            names, shape = weight.names, weight.value.shape
            stacked = int(names[0] == "layers")
            split = stacked + (2 if names[stacked:][:2] == _HEADS else 1)
            if len(shape) <= split:
                raise ValueError(
                    f"The adapter's weights name {'/'.join(path)}, which is no matrix; LoRA takes "
                    "matrices, such as '*kernel'."
                )
            std = init_std(math.prod(shape[stacked:split]))
            a = std * jax.random.normal(jax.random.fold_in(key, i), (*shape[:split], self.rank))
            b = jnp.zeros((*shape[:stacked], self.rank, *shape[split:]))
            made[*path, "a"] = nn.LogicallyPartitioned(a, (*names[:split], None))
            made[*path, "b"] = nn.LogicallyPartitioned(b, (*names[:stacked], None, *names[split:]))
        return unflatten_dict(made)

    def apply(self, params: Any, base: Any) -> Any:
        """See `Adapter`."""
        weights, matrices = flatten_dict(base, keep_empty_nodes=True), flatten_dict(params)
        for *path, name in matrices:
            if name == "a":
                weight, a = weights[*path,], matrices[*path, "a"]
                product = _product(a, matrices[*path, "b"], weight.ndim)
                weights[*path,] = weight + self.alpha / self.rank * product
        return unflatten_dict(weights)


def _product(a: jax.Array, b: jax.Array, ndim: int) -> jax.Array:
    """[..., in, r] x [..., r, out] -> [..., in, out] of so many axes, `in` and `out` being any."""
    stacked = a.ndim + b.ndim - 2 - ndim
    letters = string.ascii_lowercase
    outer, inner = letters[: a.ndim - 1], letters[:stacked]
    out = letters[a.ndim - 1 : ndim]
    rule = f"{outer}z,{inner}z{out}->{outer}{out}"
    return jnp.einsum(rule, a, b, precision=jax.lax.Precision.HIGHEST)
