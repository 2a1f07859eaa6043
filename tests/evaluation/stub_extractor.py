"""Features that need no network, for tests of what is done with features."""

import numpy as np


class StubExtractor:
    """Random projections of the pixels; counts the images that it saw."""

    evaluator = "stub"
    batch_size = 8

    def __init__(self, image_size: int = 8):
        rng = np.random.default_rng(0)
        pixels = image_size * image_size * 3
        self.sizes = {"2048": 6, "spatial": 4, "logits_unbiased": 5}
        self._weights = {
            name: rng.normal(size=(pixels, size)) / np.sqrt(pixels)
            for name, size in self.sizes.items()
        }
        self.seen = 0

    def stream(self, batches):
        for images in batches:
            assert images.dtype == np.uint8 and images.shape[-1] == 3
            self.seen += len(images)
            flat = images.reshape(len(images), -1) / 64.0
            yield {name: (flat @ w).astype(np.float32) for name, w in self._weights.items()}

    def __call__(self, images):
        return next(iter(self.stream([images])))
