"""Scores on small data sets, where Inception says little: by a classifier of their images."""
