"""A level's vectors to codes and back, and how a codebook lives while it is trained."""
