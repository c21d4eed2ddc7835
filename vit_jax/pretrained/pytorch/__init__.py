"""What the layouts of PyTorch's models share: arrays as PyTorch stores them, transformers, ResNets."""
