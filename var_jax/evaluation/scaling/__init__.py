"""Scaling studies: power laws of loss and error in size and compute."""
