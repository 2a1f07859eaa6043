"""Methods trained alike, seed by seed, and scored alike."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from var_jax import build, paths
from var_jax.evaluation.pictures import make_grid
from var_jax.pixels import encode_png
from var_jax.studies.comparison_report import write_report
from var_jax.studies.comparison_scores import Scorer, passed_over, trained

#: What a tokenizer's training reads; what a transformer's does not read.
_OF_TOKENIZER = ("seed", "patch_nums", "data", "tokenizer", "tokenizer_train")
_NOT_OF_TRAINING = ("sampling", "evaluation")


@dataclasses.dataclass(frozen=True)
class Method:
    """One of the compared.

    Attributes:
      name: in config.methods.
      config: its own, with its number of steps; the same for all seeds.
      tokenizer: the first method whose tokenizer is the same.
      training: the first method that is trained the same: they differ in sampling alone.
      models: keys of the config that name another method's run -> that method.
    """

    name: str
    config: ConfigDict
    tokenizer: str
    training: str
    models: Mapping[str, str]


def methods_of(config: ConfigDict) -> list[Method]:
    """The methods of a comparison, in order.

    Raises:
      ConfigError: see `build.comparison_settings`.
    """
    settings = build.comparison_settings(config)
    found: list[Method] = []
    tokenizers: dict[str, str] = {}
    trainings: dict[str, str] = {}
    for name in settings.methods:
        own = config.methods[name].copy_and_resolve_references().unlock()
        build.set_num_classes(own, build.source(own, "train").num_classes)
        models = {key: of for method, key, of in settings.models if method == name}
        started = {key: of for key, of in models.items() if not key.startswith("sampling.")}
        if settings.tokens_seen and not started:
            _set_steps(own, settings)
        values = own.to_dict()
        read = {key: values.get(key) for key in _OF_TOKENIZER}
        rest = {k: v for k, v in values.items() if k not in _NOT_OF_TRAINING}
        tokenizer = tokenizers.setdefault(_text(read), name)
        training = trainings.setdefault(_text([rest, started]), name)
        found.append(Method(name, own, tokenizer, training, models))
    return found


def _set_steps(config: ConfigDict, settings: build.ComparisonSettings) -> None:
    """The fewest steps that pass over the settings' tokens."""
    seen, num_steps = 0, 0
    for tokens, _ in passed_over(config):
        seen, num_steps = seen + tokens, num_steps + 1
        if seen >= settings.tokens_seen:
            break
    config.train.num_steps = num_steps
    config.train.optimizer.warmup_steps = round(settings.warmup * num_steps)


def _text(values: Any) -> str:
    return json.dumps(values, sort_keys=True)


class Study:
    """A comparison in a folder: trains and scores what is not there yet.

    WORKDIR/tokenizers/NAME has tokenizer/ and tokens/ of a method and of all that share them,
    WORKDIR/NAME/SEED transformer/, scores.json and samples.png of a run.

    Args:
      config: with the sections comparison and methods; its tokenizer_checkpoint and token_cache, if
        given, are those of the first method.
      workdir: local or gs:// directory.

    Raises:
      ConfigError: see `build.comparison_settings`.
      ValueError: a run that is there has another config.
    """

    def __init__(self, config: ConfigDict, workdir: epath.PathLike) -> None:
        self._config, self._folder = config, epath.Path(workdir)
        self._settings, self._methods = build.comparison_settings(config), methods_of(config)
        self._by_name = {method.name: method for method in self._methods}
        self._scorer: Scorer | None = None
        # What is known to be complete, so that it is not opened again.
        self._tokenizers: dict[str, tuple[str, str]] = {}
        self._transformers: set[epath.Path] = set()
        for method in self._methods:
            for seed in self._settings.seeds:
                self._check_same(method, seed)

    def run(self) -> None:
        """Does what is left; see `write_report`.

        The results are written after each method in the first seed, then after each seed.
        """
        settings = self._settings
        for count, seed in enumerate(settings.seeds, 1):
            for number, method in enumerate(self._methods, 1):
                new = not self._scores_file(method, seed).exists()
                if new:
                    logging.info("%s, seed %d.", method.name, seed)
                    self._score(method, seed)
                if number == len(self._methods) or (new and count == 1):
                    write_report(self._folder, settings.methods[:number], settings.seeds[:count])

    def _score(self, method: Method, seed: int) -> None:
        transformer = self._trained(self._by_name[method.training], seed)
        if self._scorer is None:
            self._scorer = Scorer(method.config, self._settings)
        about = self._folder / "data.json"
        if not about.exists():
            paths.write_json(about, self._scorer.real())
        about = self._folder / "tokenizers" / method.tokenizer / "scores.json"
        if not about.exists():
            paths.write_json(about, self._scorer.tokenizer(transformer / "tokenizer"))
        config = self._named(method, seed)
        drawn, samples = self._scorer.draw(transformer, config, seed)
        file = self._scores_file(method, seed)
        file.parent.mkdir(parents=True, exist_ok=True)
        shown = [samples.images[samples.labels == c][:10] for c in np.unique(samples.labels)]
        picture = make_grid(np.concatenate(shown), columns=len(shown[0]))
        paths.write_bytes(file.parent / "samples.png", encode_png(picture))
        scores = {
            "method": method.name,
            "seed": seed,
            "tokenizer": method.tokenizer,
            "training": method.training,
            **trained(transformer, self._by_name[method.training].config),
            **drawn,
            "config": method.config.to_dict(),
        }
        # Last, so that its presence says that the run is complete.
        paths.write_json(file, scores)

    def _trained(self, method: Method, seed: int) -> epath.Path:
        """The workdir of a method's run, trained to its end."""
        workdir = self._folder / method.name / str(seed) / "transformer"
        if workdir not in self._transformers:
            build.run(self._named(method, seed), str(workdir), "transformer")
            self._transformers.add(workdir)
        return workdir

    def _named(self, method: Method, seed: int) -> ConfigDict:
        """The config of a run: its seed, and where all that it reads lies."""
        config = method.config.copy_and_resolve_references()
        config.seed = seed
        checkpoint, tokens = self._tokenizer(self._by_name[method.tokenizer])
        config.update(tokenizer_checkpoint=checkpoint, token_cache=tokens)
        for key, of in method.models.items():
            workdir = self._trained(self._by_name[self._by_name[of].training], seed)
            config.update_from_flattened_dict({key: str(workdir)})
        return config

    def _tokenizer(self, method: Method) -> tuple[str, str]:
        """A tokenizer, trained to its end, and its tokens."""
        if method.name in self._tokenizers:
            return self._tokenizers[method.name]
        folder, checkpoint, tokens = self._folder / "tokenizers" / method.name, "", ""
        if method is self._methods[0]:
            checkpoint = self._config.get("tokenizer_checkpoint", "")
            tokens = checkpoint and self._config.get("token_cache", "")
        folder.mkdir(parents=True, exist_ok=True)
        if not checkpoint:
            checkpoint = str(folder / "tokenizer")
            build.run(method.config.copy_and_resolve_references(), checkpoint, "tokenizer")
        if not tokens:
            tokens = str(folder / "tokens")
            build.cache_tokens(checkpoint, tokens, crops=self._settings.crops)
        self._tokenizers[method.name] = checkpoint, tokens
        return checkpoint, tokens

    def _scores_file(self, method: Method, seed: int) -> epath.Path:
        return self._folder / method.name / str(seed) / "scores.json"

    def _check_same(self, method: Method, seed: int) -> None:
        file = self._scores_file(method, seed)
        if file.exists() and _text(json.loads(file.read_text())["config"]) != _text(
            method.config.to_dict()
        ):
            raise ValueError(
                f"{file} was made with another config of {method.name} than this one; give another "
                "--workdir, or remove its folder."
            )
