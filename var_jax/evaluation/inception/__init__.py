"""The Inception network of the Frechet inception distance, its weights, features of streams."""
