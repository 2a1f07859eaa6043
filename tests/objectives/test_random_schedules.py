import collections

import pytest

from var_jax.objectives.random_schedules import RandomSchedules
from var_jax.pyramid import ScalePyramid

PAPER = ScalePyramid.for_image_size(256)


def test_schedules_are_those_of_the_paper():
    rule = RandomSchedules(PAPER, seed=3, num_draws=500)
    for pyramid in rule.draws:
        sides = pyramid.patch_nums
        assert sides[:2] == (1, 2) and sides == tuple(sorted(set(sides)))
        assert pyramid.length <= PAPER.length and pyramid.grid == PAPER.grid
        middle = [sum(low <= side <= high for side in sides) for low, high in ((3, 10), (11, 15))]
        assert middle[0] <= 5 and middle[1] <= 2 and sum(middle) + 2 <= len(sides) <= 10
    lengths = collections.Counter(pyramid.num_levels for pyramid in rule.draws)
    # Levels go where there are too many tokens, and the last one is among them.
    assert min(lengths) >= 5 and max(lengths) <= 10 and len(lengths) > 2
    assert any(pyramid.patch_nums[-1] < 16 for pyramid in rule.draws)


def test_what_a_step_trains_on_follows_from_seed_and_step():
    rule, same, other = (RandomSchedules(PAPER, seed, num_draws=4) for seed in (0, 0, 1))
    trained = [rule.at(step) for step in range(400)]
    assert trained == [same.at(step) for step in range(400)]
    assert trained != [other.at(step) for step in range(400)]
    counts = collections.Counter(levels.pyramid for levels in trained)
    assert set(counts) == {PAPER, *rule.draws} and len(counts) <= 5
    assert 5 < counts[PAPER] < 60 and min(counts[pyramid] for pyramid in rule.draws) > 40


def test_with_no_other_schedule_it_is_the_models_own():
    for rule in (RandomSchedules(PAPER, num_draws=0), RandomSchedules(PAPER, own_share=1.0)):
        assert {rule.at(step).pyramid for step in range(20)} == {PAPER}


@pytest.mark.parametrize("ranges", [((3, 3, 4),), ((1, 2, 4),), ((1, 3, 16),)])
def test_ranges_must_fit_between_the_models_sides(ranges):
    with pytest.raises(ValueError, match=r"ranges has \d sides"):
        RandomSchedules(PAPER, ranges=ranges)
