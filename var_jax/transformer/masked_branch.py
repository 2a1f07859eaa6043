"""A second end for a transformer, which reads a part of a level and fills in the rest (HMAR).

HMAR, arXiv 2506.04421, section 3.3: the first blocks are shared with next-scale prediction, the
last ones exist twice. The branch's tokens read what next-scale prediction reads and, beside it,
their own code where it is known, or a learned vector where it is masked.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from var_jax.pyramid import ScalePyramid
from var_jax.transformer.layers import init_std
from var_jax.transformer.var import VAR

#: The branch's own parts of a transformer.
_OWN = ("blocks", "final_adaln")


@dataclasses.dataclass(frozen=True)
class MaskedBranch:
    """The last `depth` blocks and the last norm of a transformer once more, and the mask embedding.

    Nothing is dropped of the blocks (drop path), since most of them do not train.

    Attributes:
      transformer: whose embeddings, condition and earlier blocks it shares.
      depth: number of its own blocks.

    Raises:
      ValueError: the transformer has fewer blocks, or one of its levels sees another one, whose
        keys the branch does not have.
    """

    transformer: VAR
    depth: int

    def __post_init__(self) -> None:
        var = self.transformer
        if not 0 < self.depth <= var.depth:
            raise ValueError(
                f"masked_blocks is {self.depth}, but the transformer has {var.depth} blocks; give "
                "a number from 1 to that."
            )
        for k in range(var.pyramid.num_levels):
            if var.context.window(k) != (k, k):
                raise ValueError(
                    f"Level {k} sees the levels {var.context.window(k)}, but a masked branch reads "
                    "one level alone; choose a context in which it sees itself only, such as "
                    "own_scale."
                )

    def _blocks(self, depth: int) -> VAR:
        """The transformer with so many blocks."""
        return self.transformer.clone(depth=depth, drop_path_rate=0.0)

    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Parameters at initialisation, in the boxes that hold their logical axis names."""
        var, (own_key, mask_key) = self._blocks(self.depth), jax.random.split(key)
        asked = var.conditioning()
        given = asked.read({f.name: jnp.zeros((1, *f.shape), f.dtype) for f in asked.fields})
        inputs = jnp.zeros((1, var.pyramid.length, var.code_dim))
        made = var.init(own_key, inputs, given)["params"]
        normal = nn.initializers.normal(init_std(var.width))
        mask = nn.with_logical_partitioning(normal, ("embed",))(mask_key, (var.width,))
        return {"mask_embedding": mask, **{name: made[name] for name in _OWN}}

    def start_from(self, shared: Any, seed: int) -> dict[str, Any]:
        """Parameters that go on from the end which the transformer has, on the host.

        Args:
          shared: the transformer's, on the host.
          seed: of the mask embedding, which is as at initialisation.
        """
        width = self.transformer.width
        mask = np.random.default_rng(seed).standard_normal(width) * init_std(width)
        last = jax.tree.map(lambda x: np.array(x[-self.depth :]), shared["blocks"])
        norm = jax.tree.map(np.array, shared["final_adaln"])
        return {"mask_embedding": mask.astype(np.float32), "blocks": last, "final_adaln": norm}

    def hidden(
        self,
        params: Any,
        shared: Any,
        inputs: Float[jax.Array, "B n D"],
        own: Float[jax.Array, "B n D"],
        masked: Bool[jax.Array, "B n"],
        given: Any,
        keys: jax.Array | None = None,
        *,
        pyramid: ScalePyramid | None = None,
        levels: range | None = None,
    ) -> Float[jax.Array, "B n C"]:
        """Hidden states of tokens of whole levels, of which a part is masked.

        Args:
          params, shared: of the branch; of the transformer.
          inputs: what next-scale prediction reads; rows of level 0 are not used.
          own: what each token's code adds by itself, see `codecs.own_level`; not read where masked.
          masked: which tokens are to be filled in; those of level 0, which reads no codes, are
            taken for known.
          given, keys, pyramid, levels: see `VAR.__call__`.
        """
        pyramid = self.transformer.pyramid if pyramid is None else pyramid
        levels = range(pyramid.num_levels) if levels is None else levels
        fine = pyramid.level_ids[pyramid.tokens(levels)] > 0
        masked = (masked & fine)[..., None]
        embedding = jnp.where(masked, params["mask_embedding"].astype(jnp.float32), 0.0)
        # One projection of the sum is the sum of two.
        inputs = inputs + jnp.where(masked, 0.0, own)
        over: dict[str, Any] = dict(pyramid=pyramid, levels=levels)
        count = self.transformer.depth
        stream, _ = self._blocks(count).apply(
            {"params": shared},
            inputs,
            given,
            keys,
            extra=embedding,
            runs=(tuple(range(count - self.depth)),) if count > self.depth else (),
            normalize=False,
            **over,
        )
        last = {"params": {**shared, **{name: params[name] for name in _OWN}}}
        return self._blocks(self.depth).apply(last, None, given, keys, stream=stream, **over)[0]
