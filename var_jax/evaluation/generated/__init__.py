"""Generated images: drawing them, their files, and their scores against references."""
