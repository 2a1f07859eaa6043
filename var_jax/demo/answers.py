"""What a page shows: facts about the model, and each picture with its tokens and as Python."""

from __future__ import annotations

import base64
import io
import pprint
from typing import Any

import numpy as np

from var_jax.build.modules import GuidanceSettings
from var_jax.demo.explorer import SETTINGS, Drawn, Explorer
from var_jax.demo.requests import MAX_SEED, RANGES, Drawing, Painting, mask_of, mask_shape
from var_jax.pixels import as_image


class Answers:
    """Draws what is asked for and says it as JSON.

    Args:
      explorer: draws.
      path, tokenizer: what `var_jax.load` is given in the Python that a page shows.
      small: pictures of more than 128 pixels are JPEG in place of PNG, for what is stored.
    """

    def __init__(
        self, explorer: Explorer, path: str, tokenizer: str = "", small: bool = False
    ) -> None:
        self.explorer, self._path, self._tokenizer = explorer, path, tokenizer
        self._small = small and max(explorer.model.image_shape) > 128

    def facts(self) -> dict[str, Any]:
        """What a page needs to know of the model."""
        explorer = self.explorer
        model = explorer.model
        sampling = model.transformer.config.get("sampling", {})
        ranges = {name: [low, high or explorer.vocab_size] for name, (low, high) in RANGES.items()}
        return {
            "name": self._path,
            "image": list(model.image_shape),
            "classes": [] if explorer.prompt_bytes else [*self._class_names(), "no class"],
            "prompt_bytes": explorer.prompt_bytes,
            "levels": [list(shape) for shape in explorer.pyramid.shapes],
            "vocab_size": explorer.vocab_size,
            "reason": explorer.reason,
            "settings": explorer.own_settings(),
            "cfg_schedule": sampling.get("cfg_schedule", GuidanceSettings.cfg_schedule),
            "ranges": {} if explorer.reason else ranges,
            "max_seed": MAX_SEED,
            "mask": list(mask_shape(explorer)),
            "palette": self._palette(),
            "stored": None,
        }

    def warm_up(self) -> None:
        """Draws and paints once, so that all programs are compiled."""
        asked: int | str = "" if self.explorer.prompt_bytes else 0
        drawing = Drawing(asked, 0, settings=self.explorer.own_settings())
        self.paint(Painting(drawing, np.ones(mask_shape(self.explorer), bool), asked, 0))

    def draw(self, drawing: Drawing) -> dict[str, Any]:
        """A drawing."""
        return self._answer(self._drawn(drawing), self._python(drawing))

    def paint(self, painting: Painting) -> dict[str, Any]:
        """A painting."""
        drawing, mask = painting.drawing, mask_of(painting.cells, self.explorer)
        image = self._drawn(drawing).image
        asked, seed = painting.asked, painting.seed
        made = self.explorer.paint(image, mask, asked, seed=seed, **drawing.settings)
        return self._answer(made, self._python(drawing) + self._painting_python(painting))

    def _class_names(self) -> list[str]:
        model = self.explorer.model
        names = model.transformer.metadata.get("data", {}).get("class_names") or []
        count = model.num_classes
        return list(names) if len(names) == count else [str(i) for i in range(count)]

    def _drawn(self, drawing: Drawing) -> Drawn:
        chosen = dict(seed=drawing.seed, negative=drawing.negative, pins=drawing.pins)
        return self.explorer.draw(drawing.asked, **chosen, **drawing.settings)

    def _answer(self, drawn: Drawn, python: str) -> dict[str, Any]:
        levels = []
        pyramid = self.explorer.pyramid
        for k, image in enumerate(() if drawn.levels is None else drawn.levels):
            part = pyramid.level(k)
            found = {
                "image": self._picture(image),
                "tokens": drawn.tokens[part].tolist(),
                "entropy": _rounded(drawn.entropy[part]),
                "probability": _rounded(drawn.probability[part]),
                "candidates": drawn.candidates[part].tolist(),
                "candidate_probability": _rounded(drawn.candidate_probability[part]),
            }
            levels.append(found)
        return {"image": self._picture(drawn.image), "python": python, "levels": levels}

    def _picture(self, image: np.ndarray) -> str:
        """A picture as the address of itself."""
        buffer, kind = io.BytesIO(), "jpeg" if self._small else "png"
        as_image(image).save(buffer, format=kind)
        return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"

    def _palette(self) -> list[str]:
        """A colour '#rrggbb' for each code: codes that are alike look alike.

        Their three directions of most variation, ranked, are lightness and two opposed hues.
        """
        if self.explorer.reason:
            return []
        codes = np.asarray(self.explorer.model.tokenizer.params["codec"]["codebook"], np.float64)
        centred = codes - codes.mean(0)
        found = centred @ np.linalg.svd(centred, full_matrices=False)[2][:3].T
        ranks = found.argsort(0).argsort(0) / max(len(codes) - 1, 1)
        light, a, b = np.pad(ranks, ((0, 0), (0, 3 - ranks.shape[1])), constant_values=0.5).T
        grey, a, b = 0.3 + 0.5 * light, 0.5 * (a - 0.5), 0.5 * (b - 0.5)
        rgb = np.stack([grey + a, grey - a / 2 - b / 2, grey + b], 1).clip(0, 1)
        return [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in (rgb * 255).round().astype(int)]

    def _python(self, drawing: Drawing) -> str:
        """Python that makes the image of a drawing."""
        tokenizer = f", tokenizer={self._tokenizer!r}" if self._tokenizer else ""
        settings = _arguments(drawing, self.explorer)
        lines = ["import var_jax"]
        if drawing.pins:
            lines.append("from var_jax.demo.explorer import Explorer")
        lines += ["", f"model = var_jax.load({self._path!r}{tokenizer})"]
        if drawing.pins:
            pins = pprint.pformat(dict(drawing.pins), width=90, compact=True)
            lines += [
                f"pins = {pins}",
                f"drawn = Explorer(model).draw({drawing.asked!r}, {settings}, pins=pins)",
                "image = drawn.image",
            ]
        else:
            lines.append(f"image = model.sample([{drawing.asked!r}], {settings})[0]")
        return "\n".join(lines) + "\n"

    def _painting_python(self, painting: Painting) -> str:
        """What follows it to paint."""
        cells = painting.cells
        rows = ["".join("1" if cell else "0" for cell in row) for row in cells]
        size = [n // m for n, m in zip(self.explorer.model.image_shape, cells.shape, strict=False)]
        drawing = Drawing(painting.asked, painting.seed, settings=painting.drawing.settings)
        return "\n".join(
            [
                "",
                "import numpy as np",
                "",
                "rows = [",
                *(f'    "{row}",' for row in rows),
                "]",
                "cells = np.array([list(row) for row in rows]) == '1'",
                f"mask = np.kron(cells, np.ones({tuple(size)})) > 0",
                f"image = model.edit(image[None], [{painting.asked!r}], mask, "
                f"{_arguments(drawing, self.explorer)})[0]",
                "",
            ]
        )


def _arguments(drawing: Drawing, explorer: Explorer) -> str:
    """Seed and settings as arguments of a call."""
    chosen = {name: drawing.settings[name] for name in SETTINGS if name in drawing.settings}
    values = {"seed": drawing.seed, **chosen}
    if drawing.negative:
        values["negative"] = drawing.negative
    if not drawing.pins and explorer.smooth:
        values["smooth"] = False
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _rounded(values: np.ndarray) -> list[Any]:
    return np.round(values.astype(np.float64), 4).tolist()
