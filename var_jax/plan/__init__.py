"""Programs compiled for TPU slices that are not attached, and what they need of each chip."""
