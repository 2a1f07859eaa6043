"""Exchange of weights with PyTorch and safetensors files."""
