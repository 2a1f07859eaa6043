"""Text encoders that do not train, read from the folders in which others publish them."""
