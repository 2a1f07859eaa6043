"""The page of the family on TPU slices; no row is compiled here."""

import types

import pytest
from commands import import_command

family_on_tpu = import_command("benchmarks.family_on_tpu")


@pytest.mark.parametrize("size", family_on_tpu.REMAT)
def test_every_method_with_the_size_has_a_config(size):
    found = [m for m in family_on_tpu.METHODS if family_on_tpu.load_config(m, size) is not None]
    assert found[0] == "var" and len(found) > 3
    assert family_on_tpu.load_config("flowar", "d30") is None


def test_rows_have_the_batch_of_vars_recipe_and_are_given_as_parts_of_its(monkeypatch):
    pytest.importorskip("libtpu")
    asked = []

    def plan(config, devices, what, batch_size):
        asked.append((config.model.remat, len(devices), what, batch_size))
        other = "context" in config.model
        return types.SimpleNamespace(
            fits=True,
            program_flops=2e12,
            peak_bytes=3 * 2**30,
            memory_traffic=4e9,
            link_traffic={"all-gather": 1e9, "all-reduce": 5e8},
            floors={
                "compute": 0.010,
                "memory": 0.004 if other else 0.008,
                "links": 0.002,
                "network": 0.0,
            },
            compile_seconds=1.0,
        )

    monkeypatch.setattr(family_on_tpu.compile_for_tpu, "make_plan", plan)
    rows = [family_on_tpu.make_row(m, "d16", "v5e:2x2", "train") for m in ("hmar", "var")]
    recipe = family_on_tpu.load_config("var", "d16").train.batch_size
    assert asked == [("dots", 4, "train", recipe)] * 2
    assert family_on_tpu.make_row("var", "d16", "v5e:2x2", "sample")["images"] == 32
    page = family_on_tpu.render(rows)
    assert f"## d16 on v5e:2x2: training step, {recipe} images" in page
    var, hmar = page.splitlines()[-2:]
    assert var == "| var | 2.00 | 3.0 | 4.0 | 1.50 | 10.0 | 8.0 | 2.0 | 1.00 | 1.00 |"
    assert hmar == "| hmar | 2.00 | 3.0 | 4.0 | 1.50 | 10.0 | 4.0 | 2.0 | 1.00 | 0.80 |"
    rows[0] |= {"fits": False, "peak_bytes": None}
    assert "| hmar | 2.00 | does not fit |" in family_on_tpu.render(rows)
