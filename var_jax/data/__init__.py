"""Data: sources of records, preprocessing, the stateless pipeline and the token cache.

What is in batch i depends on the seed and on i alone, so that a run can go on at any step.

    source = make_source("mnist5k", "train")
    transform = make_transform(source, size=32, train=True)
    pipeline = Pipeline(source, transform, batch_size=64, seed=0, train=True)
    for batch in pipeline.batches(start_step=0):
        ...  # {"image": uint8 [64, 32, 32, 1], "label": int32 [64], "index": int64 [64]}
"""

from var_jax.data.pipeline import Pipeline
from var_jax.data.sources import Source, make_source
from var_jax.data.transforms import ImageTransform, RandomAffine, UnreadableImage, make_transform

__all__ = [
    "ImageTransform",
    "Pipeline",
    "RandomAffine",
    "Source",
    "UnreadableImage",
    "make_source",
    "make_transform",
]
