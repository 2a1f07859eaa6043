"""Scores of generated and reconstructed images."""
