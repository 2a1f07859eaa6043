"""Meshes, shardings, and starting on many hosts."""
