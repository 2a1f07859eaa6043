"""What an example or a token is made of: named arrays with shape, type and range."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Field:
    """One array.

    Attributes:
      name: such as 'tokens', 'features'.
      shape: without the axis of examples, or of tokens.
      dtype: name of its type in NumPy.
      num_values: integers lie in [0, num_values); 0 for floats.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "int32"
    num_values: int = 0

    @property
    def stored_dtype(self) -> np.dtype:
        """Its type on disk, little endian: the smallest that holds every value."""
        if not self.num_values or self.dtype == "uint8":
            return np.dtype(self.dtype).newbyteorder("<")
        return np.dtype("<u2" if self.num_values <= 2**16 else "<i4")

    def check(self, values: np.ndarray) -> None:
        """Raises ValueError for an array [n, *shape] of another shape or out of range."""
        if values.shape[1:] != self.shape:
            wanted = ", ".join(map(str, ("n", *self.shape)))
            raise ValueError(f"{self.name} must be [{wanted}], got {list(values.shape)}.")
        if self.num_values and values.size:
            low, high = int(values.min()), int(values.max())
            if not 0 <= low <= high < self.num_values:
                raise ValueError(
                    f"{self.name} must lie in 0..{self.num_values - 1}, got {low}..{high}."
                )
