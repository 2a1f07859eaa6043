"""Distillation: a model learns the probabilities of another one, its teacher, beside the data.

The teacher may have any size, context or positions, of the same tokens. CoDe (arXiv 2411.17787)
trains so the small model that draws the fine levels after a large one's coarse ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from var_jax.network import Network
from var_jax.objectives.base import Aux, FrozenPart
from var_jax.objectives.checks import check_categorical
from var_jax.objectives.divergence import divergence
from var_jax.objectives.level_weights import LevelWeights, UniformWeights
from var_jax.objectives.likelihood import BesideLikelihood, summarise
from var_jax.tokenizer.vqvae import VQVAE

_TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model.

    Attributes:
      network: its modules.
      load: () -> its parameters, NumPy arrays.
    """

    network: Network
    load: Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Distillation(BesideLikelihood):
    """alpha T^2 KL(teacher || student) + (1 - alpha) cross entropy, per token, as a weighted sum.

    The probabilities of both are those at the temperature T in the first term. The teacher reads
    the same tokens as in evaluation, and the student as in training.

    Attributes:
      network, tokenizer, from_images, weights: see `Likelihood`.
      teacher: whose probabilities are learned.
      alpha: share of the divergence; 0 is the likelihood.
      temperature: T.
      first_level: tokens of the levels before it are read alone; their loss does not count.

    Raises:
      ValueError: heads that are not categorical, other levels, codes, classes or fields than the
        teacher's, no level that counts, or an alpha outside of [0, 1].
    """

    network: Network
    tokenizer: VQVAE
    teacher: Teacher
    from_images: bool = False
    weights: LevelWeights = UniformWeights()
    alpha: float = 0.5
    temperature: float = 1.0
    first_level: int = 0

    #: Forward and backward, and the teacher's.
    passes: ClassVar[int] = 4
    #: Whole pyramids.
    trained: ClassVar[None] = None

    def __post_init__(self) -> None:
        student, teacher = self.network, self.teacher.network
        for head in (student.head, teacher.head):
            check_categorical(head, "The objective 'distillation'")
        facts = {
            "levels": (n.transformer.pyramid.shapes for n in (student, teacher)),
            "codes": (n.head.vocab_size for n in (student, teacher)),
            "number of classes": (n.transformer.num_classes for n in (student, teacher)),
            "fields": (self._fields(n) for n in (student, teacher)),
        }
        for name, (ours, theirs) in facts.items():
            if ours != theirs:
                raise ValueError(
                    f"The teacher has the {name} {theirs}, the model {ours}; take one that was "
                    "trained on the same tokens and conditions."
                )
        levels = student.transformer.pyramid.num_levels
        if not 0 <= self.first_level < levels:
            raise ValueError(f"first_level is {self.first_level}; give one of 0..{levels - 1}.")
        if not (0 <= self.alpha <= 1 and self.temperature > 0):
            raise ValueError(
                f"alpha is {self.alpha} and temperature {self.temperature}; give an alpha in "
                "[0, 1] and a temperature above 0."
            )

    def frozen_parts(self) -> dict[str, FrozenPart]:
        """See `NetworkObjective`."""
        teacher = FrozenPart(self.teacher.network.init_params, True, self.teacher.load)
        return {**super().frozen_parts(), _TEACHER: teacher}

    def loss(
        self, params: Any, frozen: Any, stats: Any, batch: Any, keys: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """See `Objective.loss`."""
        forced = self.likelihood.forward(params, frozen, batch, keys)
        own, metrics = self.likelihood.score(params, forced)
        teacher = self.teacher.network
        asked = teacher.transformer.conditioning().read(batch)
        hidden, _ = teacher.hidden(frozen[_TEACHER], forced.lesson.inputs, asked)
        wanted, found = (
            network.head.apply({"params": p["head"]}, x)
            for network, p, x in (
                (teacher, frozen[_TEACHER], hidden),
                (self.network, params, forced.hidden),
            )
        )
        apart = divergence(wanted, found, self.temperature)
        pyramid = self.network.transformer.pyramid
        weights = self.weights.weights(pyramid) * (pyramid.level_ids >= self.first_level)
        loss = self.alpha * apart + (1 - self.alpha) * own
        value = (loss * jnp.asarray(weights, jnp.float32)).sum(-1).mean()
        means = {name: x.mean(0) for name, x in {**metrics, "divergence": apart}.items()}
        return value, Aux({"loss": value, **summarise(pyramid, means)})

    def _fields(self, network: Network) -> tuple[str, ...]:
        return tuple(field.name for field in network.transformer.conditioning().fields)
