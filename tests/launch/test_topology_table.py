"""The table's choices and its page; no row is compiled here."""

from commands import import_command

topology_table = import_command("launch.topology_table")

GIB = 2**30


def test_page():
    row = {
        "model": "d30",
        "topology": "v5e:16x16",
        "chips": 256,
        "fsdp": 64,
        "images": 4.0,
        "remat": "full",
        "needs": 3 * GIB,
        "fits": True,
        "floors": {"compute": 0.15, "memory": 0.1, "links": 0.05, "network": 0.0},
        "utilisation": [0.8, 0.4],
        "chip_hours": [5000.0, 10000.0],
    }
    small = dict(row, topology="v5e:2x4", chips=8, fits=False, needs=40 * GIB, fsdp=8, images=128.0)
    lines = topology_table.render([row, small]).splitlines()
    assert lines[-2].startswith("| d30 | v5e:2x4 | 8 | 1 x 8 | 128 | full | needs 40 GiB: too much")
    assert lines[-1] == (
        "| d30 | v5e:16x16 | 256 | 4 x 64 | 4 | full | 3.0 | 150 | 100 | 50 | 40% to 80% "
        "| 5,000 to 10,000 |"
    )


def test_every_model_has_a_recipe():
    for model in ("d16", "d20", "d24", "d30", "d36"):
        assert topology_table.load_config(model).model.depth == int(model[1:])
