"""Reconstructions: scores of a tokenizer against the very pictures that went in."""
