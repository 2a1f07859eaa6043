"""Commands that only handle files leave their caller's process as it was."""

import pytest
from absl import logging

from launch import offline


@pytest.mark.parametrize("fails", [False, True])
def test_the_log_level_is_given_back(fails):
    within = []

    def main(args):
        within.append(logging.get_verbosity())
        if fails:
            raise ValueError("Wrong.")

    before = logging.get_verbosity()
    assert before != logging.ERROR
    if fails:
        with pytest.raises(SystemExit, match="2"):
            offline.run(offline.parser("launch.none", ""), main, [])
    else:
        offline.run(offline.parser("launch.none", ""), main, [])
    assert within == [logging.ERROR]
    assert logging.get_verbosity() == before
