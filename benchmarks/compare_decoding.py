"""Ways to draw from one small model, scored by the classifier of its data set.

    for seed in 0 1; do
        python -m launch.train_classifier --checkpoint runs/quickstart/transformer \
            --seed $seed --output runs/quickstart/classifier$seed.npz
    done
    python -m launch.pair_codes --tokenizer runs/quickstart/tokenizer \
        --output runs/quickstart/pairs.npz
    python -m benchmarks.compare_decoding --checkpoint runs/quickstart/transformer \
        --judge runs/quickstart/classifier0.npz --reward runs/quickstart/classifier1.npz \
        --pairs runs/quickstart/pairs.npz

Label accuracy, Frechet distance from the held-out images and diversity are those of
`launch.score_small_set`, by the judge's classifier. Each row draws the same labels by one seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import flags, logging

from launch import cli
from var_jax.evaluation.report import markdown_table

_CHECKPOINT = cli.define_path("checkpoint", None, "Workdir of a transformer.")
_TOKENIZER = cli.define_path("tokenizer", None, "Its tokenizer; beside it by default.")
_JUDGE = cli.define_path("judge", None, "npz file of launch.train_classifier, which scores.")
_REWARD = cli.define_path("reward", None, "Another one, by which searches choose.")
_PAIRS = cli.define_path("pairs", None, "npz file of launch.pair_codes.")
_NUM = flags.DEFINE_integer("num_samples", 1000, "Images of each row.", 100)
_SEED = flags.DEFINE_integer("seed", 0, "Of the samples.", 0)
_JSON = cli.define_path("json", None, "File for the numbers.")

_KEY = 20260


def settings(
    cfg: float, num_levels: int, depth: int, reward_file: str | None, pairs: str | None
) -> dict[str, dict[str, Any]]:
    """Keys of config.sampling by what the table calls them.

    Args:
      cfg: strength of guidance.
      num_levels, depth: of the model.
      reward_file, pairs: files; None leaves out what needs them.
    """
    found: dict[str, dict[str, Any]] = {
        "no guidance": dict(cfg=0.0),
        f"linear, cfg {cfg:g}": dict(cfg=cfg),
        f"linear, cfg {2 * cfg:g}": dict(cfg=2 * cfg),
        f"constant, cfg {cfg:g}": dict(cfg=cfg, cfg_schedule="constant"),
        f"constant at levels 1..{num_levels - 2}": dict(
            cfg=cfg,
            cfg_schedule="constant",
            guidance=dict(kind="interval", first=1, last=num_levels - 2),
        ),
    }
    for beta in (0.1, 0.3, 1.0):
        found[f"linear, SSG {beta:g}"] = dict(cfg=cfg, guidance=dict(kind="ssg", beta=beta))
    rewards: dict[str, Any] = {"likelihood": "likelihood"}
    for kind in ("classifier", "feature_distance") if reward_file else ():
        rewards[kind.replace("_", " ")] = dict(kind=kind, file=reward_file)
    for name, reward in rewards.items():
        search = dict(kind="search", candidates=4)
        found[f"best of 4, {name}"] = dict(cfg=cfg, decoder=search, reward=reward)
    counts = tuple(np.linspace(8, 2, num_levels).astype(int).tolist())
    search = dict(kind="search", candidates=counts, cluster_levels=(1,))
    name = "classifier" if reward_file else "likelihood"
    found[f"candidates {counts}, {name}"] = dict(cfg=cfg, decoder=search, reward=rewards[name])
    thin = dict(kind="elastic_depth", num_blocks=max(depth - 1, 2), num_whole=num_levels // 2)
    found[f"{thin['num_blocks']} of {depth} blocks at fine levels"] = dict(cfg=cfg, decoder=thin)
    for delta in (2.0, 5.0):
        mark = dict(kind="green_list", key=_KEY, delta=delta)
        found[f"green list, delta {delta:g}"] = dict(cfg=cfg, processors=(mark,))
    for threshold in (1.0, 9.0) if pairs else ():
        mark = dict(kind="index_mark", key=_KEY, pairs=pairs, threshold=threshold)
        found[f"IndexMark, threshold {threshold:g}"] = dict(cfg=cfg, processors=(mark,))
    return found


def main() -> None:
    import var_jax
    from var_jax.evaluation.distances.frechet import frechet_distance
    from var_jax.evaluation.small_sets.rewards import read_classifier
    from var_jax.evaluation.small_sets.small_set import LabelledImages, within_class_deviation
    from var_jax.paths import write_json
    from var_jax.studies import small_set_run

    cli.on_one_host()
    model = var_jax.load(_CHECKPOINT.value, _TOKENIZER.value)
    loaded = model.transformer
    train, held_out = (
        small_set_run.real_images(loaded.config, split) for split in ("train", "val")
    )
    classifier = read_classifier(_JUDGE.value)[0]
    real, spread = classifier.statistics(held_out.images), within_class_deviation(train)
    labels = np.arange(_NUM.value) % model.num_classes
    transformer, cfg = loaded.network.transformer, loaded.config.sampling.cfg
    wanted = settings(
        cfg if isinstance(cfg, float) else 1.5,
        transformer.pyramid.num_levels,
        transformer.depth,
        _REWARD.value,
        _PAIRS.value,
    )
    rows: list[dict[str, Any]] = []
    for name, chosen in wanted.items():
        images = model.sample(labels, seed=_SEED.value, batch_size=100, **chosen)
        rows.append(
            {
                "setting": name,
                "accuracy": classifier.accuracy(images, labels),
                "frechet": float(frechet_distance(classifier.statistics(images), real)),
                "diversity": within_class_deviation(LabelledImages(images, labels)) / spread,
            }
        )
        logging.info("%s", rows[-1])
    if _JSON.value:
        write_json(_JSON.value, rows)
    shown = [
        (row["setting"], f"{100 * row['accuracy']:.1f}%", row["frechet"], row["diversity"])
        for row in rows
    ]
    print(markdown_table(("setting", "label accuracy", "Frechet", "diversity"), shown))


if __name__ == "__main__":
    flags.mark_flags_as_required(["checkpoint", "judge"])
    cli.run(main)
