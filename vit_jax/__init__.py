"""Vision Transformers, and the CNNs they are compared with, in JAX/Flax Linen."""
