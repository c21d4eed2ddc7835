"""Vision Transformers in JAX/Flax Linen: train, fine-tune, compare and explain them."""
