"""The page without a server: pictures drawn before, in files that any web server can show."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from etils import epath

from var_jax.demo.answers import Answers
from var_jax.demo.requests import Drawing
from var_jax.demo.server import FILES, data_script, page_file
from var_jax.paths import write_text

#: Drawings stop once they take so many bytes.
MAX_BYTES = 4_000_000
#: Classes and seeds that are drawn at most.
NUM_CLASSES, NUM_SEEDS = 10, 4


def export(answers: Answers, folder: epath.PathLike) -> int:
    """Writes the page and its drawings; index.html opens it.

    For each of up to ten classes, evenly spread, and up to four seeds there is the drawing with
    the model's own settings and, where guidance can be changed, the one without it.

    Args:
      answers: draws.
      folder: local or gs:// directory; files of the page that are there are replaced.

    Returns:
      the number of drawings.

    Raises:
      ValueError: the model is one of text, whose prompts nobody knows before.
    """
    if answers.explorer.prompt_bytes:
        raise ValueError(
            "A page without a server shows classes, but this model is asked in words; leave "
            "--export out."
        )
    target, facts = epath.Path(folder), answers.facts()
    drawings = drawn(answers)
    facts["stored"] = drawings
    target.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        write_text(target / name, page_file(name))
    write_text(target / "data.js", data_script(facts))
    return len(drawings)


def drawn(answers: Answers) -> dict[str, Any]:
    """Drawings by 'LABEL/SEED', and by 'LABEL/SEED/unguided' the same without guidance."""
    explorer, found, size = answers.explorer, {}, 0
    count = explorer.model.num_classes
    labels = np.unique(np.linspace(0, count - 1, min(count, NUM_CLASSES)).round().astype(int))
    own = explorer.own_settings()
    kinds = {"": own, "/unguided": {**own, "cfg": 0.0}} if own else {"": own}
    for seed in range(NUM_SEEDS):
        for label in labels.tolist():
            for ending, settings in kinds.items():
                answer = answers.draw(Drawing(label, seed, settings=settings))
                found[f"{label}/{seed}{ending}"] = answer
                size += len(json.dumps(answer))
            if size > MAX_BYTES:
                return found
    return found
