"""The table's choices and its page; no row is compiled here."""

import types

import pytest
from commands import import_command

topology_table = import_command("benchmarks.topology_table")

GIB = 2**30


@pytest.mark.parametrize(
    ("needs", "seconds", "taken"),
    [
        ((20, 9, 5), (1.0, 2.0, 3.0), "dots"),  # The cheapest does not fit.
        ((9, 7, 5), (3.0, 2.0, 2.5), "dots"),  # It fits, but moves more bytes than dots.
        ((9, 7, 5), (2.0, 3.0, 1.0), "none"),  # The search ends where it gets dearer.
        ((20, 19, 15.5), (1.0, 2.0, 3.0), None),  # 15.5 of 16 GiB leaves no room.
    ],
)
def test_the_cheapest_remat_that_fits_is_taken(monkeypatch, needs, seconds, taken):
    pytest.importorskip("libtpu")

    def plan(config, devices):
        i = topology_table.REMAT.index(config.model.remat)
        return types.SimpleNamespace(
            fits=needs[i] <= 16,
            peak_bytes=needs[i] * GIB,
            floor_seconds=seconds[i] / 2,
            serial_seconds=seconds[i],
            floors={},
            utilisation=lambda s: 1 / s,
            chip_hours=lambda steps, s: s,
            compile_seconds=0.0,
        )

    monkeypatch.setattr(topology_table.compile_for_tpu, "make_plan", plan)
    row = topology_table.make_row("d16", "v5e:2x2")
    assert (row["fits"], row["fsdp"]) == (taken is not None, 4)
    if taken:
        i = topology_table.REMAT.index(taken)
        assert (row["remat"], row["chip_hours"]) == (taken, [seconds[i] / 2, seconds[i]])
    else:
        assert row["needs"] == needs[-1] * GIB


def test_page():
    row = {
        "model": "d30",
        "topology": "v5e:16x16",
        "chips": 256,
        "devices": 256,
        "fsdp": 64,
        "images": 4.0,
        "remat": "full",
        "needs": 3 * GIB,
        "fits": True,
        "floors": {"compute": 0.15, "memory": 0.1, "links": 0.05, "network": 0.0},
        "utilisation": [0.8, 0.4],
        "chip_hours": [5000.0, 10000.0],
    }
    small = dict(row, topology="v5e:2x4", chips=8, devices=8, fits=False, needs=40 * GIB,
                 fsdp=8, images=128.0)  # fmt: skip
    lines = topology_table.render([row, small]).splitlines()
    assert lines[-2].startswith("| d30 | v5e:2x4 | 8 | 1 x 8 | 128 | full | needs 40 GiB: too much")
    assert lines[-1] == (
        "| d30 | v5e:16x16 | 256 | 4 x 64 | 4 | full | 3.0 | 150 | 100 | 50 | 40% to 80% "
        "| 5,000 to 10,000 |"
    )


def test_every_model_has_a_recipe():
    for model in ("d16", "d20", "d24", "d30", "d36"):
        assert topology_table.load_config(model).model.depth == int(model[1:])
