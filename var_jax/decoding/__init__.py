"""From labels to tokens to images: guidance and the loop over levels."""
