"""A web page and an HTTP interface for a trained model.

    python -m vit_jax.serve --workdir runs/digits

`served` is what a server needs of a model, `uploads` finds the images of a request, `batcher` computes those of many
requests together, `app` answers, `openapi` describes it.
"""

from vit_jax.serve.command import main

__all__ = ["main"]
