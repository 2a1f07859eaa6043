"""Whole studies over several models or sets of images, as the commands run them."""
