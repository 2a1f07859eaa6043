"""Contrastive student forcing (SAR, arXiv 2512.06421): a model also reads what it drew itself.

Teacher forcing shows a model true levels only, while in sampling each level is drawn after levels
that are nearly right. Here the last level is predicted a second time after the model's own
prediction of the level before. It should then be what the model predicts after the true one, not
the true codes: those belong to another context.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from var_jax.codecs.base import Lesson
from var_jax.heads.categorical import CategoricalSampling
from var_jax.network import Network
from var_jax.objectives.base import Aux, split_keys
from var_jax.objectives.curriculum import Curriculum, TrainedLevels
from var_jax.objectives.level_weights import LevelWeights, UniformWeights
from var_jax.objectives.likelihood import BesideLikelihood, Likelihood
from var_jax.pyramid import ScalePyramid
from var_jax.tokenizer.vqvae import VQVAE

TARGETS = ("predictions", "codes")
#: Tells the draws of the second pass from those of the first.
_STUDENT_STREAM = 1


@dataclasses.dataclass(frozen=True)
class StudentForcing(BesideLikelihood):
    """The likelihood, and `strength` times the mean loss of the last level after a drawn one.

    The second pass reads a sequence of the first and the last level only, so positions and context
    must serve levels that stand alone, as FlexVAR's do. No gradient reaches the first pass through
    what it draws.

    Attributes:
      network, tokenizer, from_images, weights, curriculum, trained: see `Likelihood`.
      strength: sigma; 0 is the likelihood.
      targets: of the second pass, of TARGETS: what the first pass predicts of the last level, or
        its true codes.
      top_k, top_p: the level before the last is drawn with these filters; top_k=1 takes the most
        likely codes, which are also what the last level's are compared with.
    """

    network: Network
    tokenizer: VQVAE
    from_images: bool = False
    weights: LevelWeights = UniformWeights()
    curriculum: Curriculum | None = None
    trained: TrainedLevels | None = None
    strength: float = 0.01
    targets: str = "predictions"
    top_k: int = 1
    top_p: float = 0.0

    #: Three of the whole pyramid, three of its last level, which has a third of the tokens.
    passes = 4

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise ValueError(
                f"Unknown targets {self.targets!r} of student forcing; choose one of "
                f"{', '.join(TARGETS)}."
            )
        pyramid = self.likelihood.pyramid
        if pyramid.num_levels < 2 or len(self.likelihood.levels) < pyramid.num_levels:
            raise ValueError(
                "Student forcing reads the last two levels after a pass over all of them; give two "
                "levels or more, and a curriculum that trains all levels of its pyramids."
            )

    @property
    def likelihood(self) -> Likelihood:
        """Of the first pass."""
        return Likelihood(
            self.network,
            self.tokenizer,
            self.from_images,
            self.weights,
            self.curriculum,
            self.trained,
        )

    def at(self, step: int) -> StudentForcing:
        """See `NetworkObjective`."""
        return dataclasses.replace(self, trained=self.likelihood.at(step).trained)

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        plain = self.likelihood
        forced = plain.forward(params, frozen, batch, keys)
        value, aux = plain.total(*plain.score(params, forced), step)
        if not self.strength:
            return value, aux
        hidden = jax.lax.stop_gradient(forced.hidden)
        loss = self.student_loss(params, frozen, batch, forced.lesson, hidden, keys)
        value = value + self.strength * loss
        return value, Aux({**aux.metrics, "loss": value, "student_loss": loss})

    def student_loss(
        self,
        params: Any,
        frozen: Any,
        batch: Any,
        lesson: Lesson,
        hidden: Float[jax.Array, "B L C"],
        keys: jax.Array | None,
    ) -> jax.Array:
        """The mean loss of the last level after the drawn one before it.

        Args:
          params, frozen, batch, keys: see `Likelihood.per_token`; without keys (None) the most
            likely codes are taken.
          lesson, hidden: of the first pass.
        """
        pyramid = self.likelihood.pyramid
        last = pyramid.num_levels - 1
        if keys is not None:
            keys = jax.vmap(jax.random.fold_in, (0, None))(keys, _STUDENT_STREAM)
        draw_keys, network_keys, head_keys = split_keys(keys, 3)

        def predicted(level: int, settings: CategoricalSampling) -> jax.Array:
            rows = hidden[:, pyramid.level(level)]
            chosen = settings.at(level, pyramid)
            fixed = jax.lax.stop_gradient(params)
            return self.network.sample(fixed, (rows,), (1.0,), draw_keys, chosen)[0]

        greedy = CategoricalSampling(top_k=1, top_p=0.0)
        drawing = greedy if keys is None else CategoricalSampling(self.top_k, self.top_p)
        drawn = predicted(last - 1, drawing)
        targets = lesson.targets[:, pyramid.level(last)]
        if self.targets == "predictions":
            targets = predicted(last, greedy)
        inputs = self.student_inputs(frozen, lesson, drawn)
        ends = ScalePyramid((pyramid.shapes[0], pyramid.shapes[last]), grid=pyramid.grid)
        blank = jnp.zeros((inputs.shape[0], ends.sizes[0], inputs.shape[-1]), inputs.dtype)
        after, _ = self.network.hidden(
            params,
            jnp.concatenate([blank, inputs], 1),
            self.likelihood.given(frozen, batch),
            network_keys,
            pyramid=ends,
        )
        part = ends.part(range(1, 2))
        return self.network.loss(params, after[:, ends.level(1)], targets, head_keys, part)[
            0
        ].mean()

    def student_inputs(
        self, frozen: Any, lesson: Lesson, drawn: jax.Array
    ) -> Float[jax.Array, "B n D"]:
        """What the last level reads where the level before it is a drawn one.

        Args:
          frozen: see `Likelihood`.
          lesson: whose targets the levels before are.
          drawn: targets of the last level but one, [B, n, ...].
        """
        pyramid, codec = self.likelihood.pyramid, self.tokenizer.codec
        codec_params = {"params": frozen["tokenizer"].get("codec", {})}
        *before, _, _ = pyramid.split(lesson.targets)
        carry = None
        for level, target in enumerate([*before, drawn]):
            carry, following = codec.apply(
                codec_params, carry, level, target, pyramid, method="advance"
            )
        return following
