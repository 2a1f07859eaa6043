import pytest

from var_jax.context import BlockCausal, OwnScale
from var_jax.objectives.level_cycle import LevelCycle
from var_jax.pyramid import ScalePyramid

PYRAMID = ScalePyramid.from_patch_nums((1, 2, 3, 4))


def test_coarse_levels_train_often_and_together_fine_ones_once_and_alone():
    cycle = LevelCycle(PYRAMID, OwnScale(), first=2, repeats=3)
    levels = [list(cycle.at(step).levels) for step in range(10)]
    assert levels == [*[[0, 1]] * 3, [2], [3], *[[0, 1]] * 3, [2], [3]]
    assert {cycle.at(step).pyramid for step in range(10)} == {PYRAMID}


def test_all_levels_are_one_kind_of_step():
    cycle = LevelCycle(PYRAMID, OwnScale(), first=4, repeats=2)
    assert {cycle.at(step).levels for step in range(5)} == {range(4)}


def test_levels_that_see_others_cannot_train_alone():
    with pytest.raises(ValueError, match=r"Level 2 sees the levels \(0, 2\).*first is 2"):
        LevelCycle(PYRAMID, BlockCausal(), first=2)
    assert LevelCycle(PYRAMID, BlockCausal(), first=4).at(9).levels == range(4)
    for first, repeats in ((0, 8), (5, 8), (2, 0)):
        with pytest.raises(ValueError, match=f"got {first} and {repeats}"):
            LevelCycle(PYRAMID, OwnScale(), first, repeats)
