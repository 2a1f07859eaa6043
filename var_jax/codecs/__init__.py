"""What the transformer predicts: codecs between feature maps and levels of targets."""
