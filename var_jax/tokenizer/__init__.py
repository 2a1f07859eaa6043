"""The tokenizer: images to feature maps and back, and the networks that train it."""
