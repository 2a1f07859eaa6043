"""Kernels: one folder an operation, each with a reference and one file a backend."""
