"""Parts of a tree of parameters by patterns of their paths."""

import flax
import jax.numpy as jnp
import pytest

from var_jax import subsets

TREE = {"a": {"kernel": 1, "bias": -0.0}, "b": {"kernel": 3, "empty": {}}}


def test_what_is_taken_apart_is_put_together():
    trained, rest = subsets.split(TREE, ("*/kernel", "a/b*"))
    assert trained == {"a": TREE["a"], "b": {"kernel": 3}} and rest == {"b": {"empty": {}}}
    assert subsets.join(trained, rest) == TREE
    assert subsets.split(TREE, ()) == (TREE, {}) and subsets.join(TREE, {}) == TREE
    boxed = {"a": flax.linen.LogicallyPartitioned(jnp.zeros(2), ("embed",))}
    assert subsets.split(boxed, ("a",)) == (boxed, {})


def test_a_pattern_of_nothing_names_the_nearest():
    subsets.check_patterns(TREE, ("*/kernel", "a/*"), "it")
    with pytest.raises(ValueError, match="it has 'a/kernal', which matches no .* are a/kernel, "):
        subsets.check_patterns(TREE, ("b/*", "a/kernal"), "it")
