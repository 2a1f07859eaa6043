"""The command of editing on an untrained model of the smallest config."""

import numpy as np
import pytest
from commands import import_command, run_cases
from PIL import Image
from untrained import write_model

import var_jax
from var_jax.data.edit_pictures import fit, read_picture
from var_jax.pyramid import ScalePyramid

command = import_command("launch.edit")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Folder of the results, and the error of each case that had one."""
    folder = tmp_path_factory.mktemp("edits")
    write_model(folder / "model")
    rng = np.random.default_rng(0)
    for name, size in (("picture", 64), ("small", 16), ("tiny", 7)):
        Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(
            folder / f"{name}.png"
        )
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(0 * mask).save(folder / "empty.png")

    def case(name, *flags, image="picture", ending="npz"):
        model = f"--checkpoint={folder / 'model'}"
        return [
            model,
            f"--image={folder / image}.png",
            f"--output={folder / name}.{ending}",
            *(flag.replace("@", f"{folder}/") for flag in flags),
        ]

    cases = {
        "inside": case(
            "inside", "--mask=@mask.png", "--labels=3,-1", "--num_per_label=2", ending="png"
        ),
        "wider": case("wider", "--expand=0.25"),
        "mixed": case("mixed", "--mix_with=@picture.png", "--level=2"),
        "refined": case("refined", "--refine", "--num_per_label=2", image="small"),
        "empty": case("x", "--mask=@empty.png"),
        "two edits": case("x", "--mask=@mask.png", "--expand=0.25"),
        "ending": case("x", ending="jpg"),
        "label": case("x", "--labels=10"),
        "rule": case("x", "--rule=forcd"),
        "level": case("x", "--level=5"),
        "too small": case("x", "--refine", image="tiny"),
        "nothing": case("x", image="nothing"),
    }
    return folder, run_cases("launch.edit", cases)


def test_a_picture_has_a_row_for_each_label(outcome):
    folder, errors = outcome
    assert "inside" not in errors, errors
    grid = np.asarray(Image.open(folder / "inside.png"))
    assert grid.shape == (2 * 34 + 2, 4 * 34 + 2)
    rows = [grid[y : y + 32, 2:].reshape(32, -1, 34)[..., :32] for y in (2, 36)]
    source, mask, *made = rows[0].swapaxes(0, 1)
    np.testing.assert_array_equal(source, fit(read_picture(folder / "picture.png"), 32, 1)[..., 0])
    np.testing.assert_array_equal(rows[1][:, :2], rows[0][:, :2])
    np.testing.assert_array_equal(mask[:, :16], source[:, :16])
    assert (mask[:, 16:] == source[:, 16:] // 4 + 96).all()
    results = [*made, *rows[1].swapaxes(0, 1)[2:]]
    # What stays is the reconstruction in all of them, and what is drawn differs.
    for image in results[1:]:
        np.testing.assert_array_equal(image[:, :16], results[0][:, :16])
    assert len({x.tobytes() for x in results}) == 4


def test_edits_without_a_mask(outcome):
    folder, errors = outcome
    assert not errors.keys() & {"wider", "mixed", "refined"}, errors
    model, found = var_jax.load(folder / "model"), {}
    for name in ("wider", "mixed", "refined"):
        with np.load(folder / f"{name}.npz") as file:
            found[name] = dict(file)
    inside = ~found["wider"]["mask"]
    assert inside[8:24, 8:24].all() and inside.sum() == 16 * 16
    # What stays is the reconstruction: of the middle, and of all where nothing else is mixed in.
    for name, kept in (("wider", inside), ("mixed", np.ones_like(inside))):
        rebuilt = model.decode(model.encode(found[name]["source"][None]))
        difference = np.abs(found[name]["images"].astype(int) - rebuilt)
        assert difference[:, kept].max() <= 1
    # One level is the picture's, the others differ.
    assert len({image.tobytes() for image in found["refined"]["images"]}) == 2


@pytest.mark.parametrize(
    "case, message",
    [
        ("empty", "marks no pixel"),
        ("two edits", "--mask and --expand are different edits"),
        ("ending", "must end in .npz or .png"),
        ("label", "--labels has 10"),
        ("rule", "did you mean 'forced'"),
        ("level", "level is 5, but the pyramid has 4 levels"),
        ("too small", "--refine is for pictures of 8 to 31 pixels"),
        ("nothing", "nothing.png does not exist"),
    ],
)
def test_mistakes_are_sentences(outcome, case, message):
    assert message in outcome[1][case]


def test_the_levels_that_a_small_picture_fills():
    pyramid = ScalePyramid.from_patch_nums((1, 2, 3, 4))
    found = [
        command.filled_levels(np.zeros((size, 99, 3), np.uint8), pyramid, 16)
        for size in (16, 31, 32, 48, 63)
    ]
    assert found == [1, 1, 2, 3, 3]
