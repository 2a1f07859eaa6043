"""What objectives ask of a network, in sentences where it is not so."""

from __future__ import annotations

from collections.abc import Iterable

from var_jax.heads.base import Head
from var_jax.heads.categorical import CategoricalHead
from var_jax.network import Network


def check_classes(network: Network, classes: Iterable[int], what: str) -> None:
    """Whether a network can be asked for classes.

    Args:
      network: whose conditioner is asked.
      classes: labels.
      what: the objective and its keys, for the error.

    Raises:
      ValueError: it is not asked by labels alone, or knows no such class.
    """
    fields = [field.name for field in network.transformer.conditioning().fields]
    if fields != ["label"]:
        raise ValueError(
            f"{what} names classes, but the model is asked by {', '.join(fields)}; choose a model "
            "of class labels."
        )
    count = network.transformer.num_classes
    bad = [label for label in classes if not 0 <= label < count]
    if bad:
        raise ValueError(f"{what} has the class {bad[0]}; the model's are 0..{count - 1}.")


def check_categorical(head: Head, what: str) -> None:
    """Raises ValueError unless a head gives the probability of every code, token by token.

    Args:
      head: of the network.
      what: the objective, for the error.
    """
    if not isinstance(head, CategoricalHead):
        raise ValueError(
            f"{what} reads the probability of every code of a token, which {type(head).__name__} "
            "does not give; choose model.head 'categorical', or another objective."
        )
