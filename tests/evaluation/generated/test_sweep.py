import json

import pytest

from var_jax.evaluation.generated import sweep

TERMS = {"cfg": (1.0, 1.5, 2.0), "top_p": (0.9, 0.96)}


def scores(combination, folder=None):
    fid = 3 + (combination["cfg"] - 1.5) ** 2 + 10 * (0.96 - combination["top_p"])
    return {
        "fid": fid,
        "inception_score": 100 * combination["cfg"],
        "precision": 0.5 + 0.1 * combination["cfg"],
        "recall": 0.7 - 0.1 * combination["cfg"],
        "kid": None,
        "num_samples": 50,
        "reference": "ref.npz",
        "evaluator": "stub",
    }


def test_terms():
    assert sweep.parse_terms("cfg=1.0,1.5,2.0 top_p=0.9,0.96") == TERMS
    assert sweep.parse_terms("top_k=0,900 cfg_schedule=linear,constant") == {
        "top_k": (0, 900),
        "cfg_schedule": ("linear", "constant"),
    }
    for text, message in {
        "cfg": "has the term 'cfg'",
        "cgf=1": "has the term 'cgf=1'; give each of cfg, top_k",
        "cfg=1 cfg=2": "at most once",
        "cfg=a": "takes numbers",
        "cfg=1,1.0": "twice",
        " ": "empty",
    }.items():
        with pytest.raises(ValueError, match=message):
            sweep.parse_terms(text)


def test_every_combination_has_its_folder():
    found = sweep.combinations(TERMS)
    assert len(found) == 6 and found[1] == {"cfg": 1.0, "top_p": 0.96}
    names = [sweep.folder_name(c) for c in found]
    assert len(set(names)) == 6 and names[1] == "cfg1_top_p0.96"


def test_table_picture_and_json_grow_and_a_stopped_sweep_keeps_what_it_has(tmp_path):
    calls = []

    def run(combination, folder):
        calls.append(folder)
        return None if len(calls) == 4 else scores(combination)

    assert sweep.run_sweep(tmp_path, TERMS, run) is None
    assert len(json.loads((tmp_path / "sweep.json").read_text())["runs"]) == 3
    rows = sweep.run_sweep(tmp_path, TERMS, scores)
    saved = json.loads((tmp_path / "sweep.json").read_text())
    assert saved["runs"] == rows and len(rows) == 6
    assert calls[0] == tmp_path / "cfg1_top_p0.9"
    table = (tmp_path / "sweep.md").read_text()
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == "| cfg | top_p | FID | IS | precision | recall |" and len(lines) == 8
    assert [line for line in lines if "**" in line] == [lines[5]] and "| **3** |" in lines[5]
    assert "50 samples per row, against ref.npz; stub." in table
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")
