"""The keys and shapes of published files of `transformers`, and arrays for them."""

import numpy as np

from vit_jax.pretrained.layout import Layout

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, c: int) -> Shapes:
    return {f"{name}.weight": (c,), f"{name}.bias": (c,)}


def batch_norm(name: str, c: int) -> Shapes:
    statistics = {f"{name}.{leaf}": (c,) for leaf in ("running_mean", "running_var")}
    return norm(name, c) | statistics | {f"{name}.num_batches_tracked": ()}


def transformer(prefix: str, d: int, depth: int, patch: int, rows: int, tokens: tuple[str, ...] = ()) -> Shapes:
    """What ViT, DeiT and DINOv2 share. `rows`: of the positions."""
    embeddings = f"{prefix}embeddings."
    shapes: Shapes = {f"{embeddings}{token}": (1, 1, d) for token in ("cls_token", *tokens)}
    shapes[f"{embeddings}position_embeddings"] = (1, rows, d)
    shapes[f"{embeddings}patch_embeddings.projection.weight"] = (d, 3, patch, patch)
    shapes[f"{embeddings}patch_embeddings.projection.bias"] = (d,)
    for i in range(depth):
        attention = f"{prefix}encoder.layer.{i}.attention."
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= linear(attention + part, d, d)
    return shapes | norm(f"{prefix}layernorm", d)


def vit(
    d: int, f: int, depth: int, patch: int, rows: int, prefix: str = "vit.", tokens: tuple[str, ...] = ()
) -> Shapes:
    """ViT or DeiT without a head."""
    shapes = transformer(prefix, d, depth, patch, rows, tokens)
    for i in range(depth):
        block = f"{prefix}encoder.layer.{i}."
        shapes |= norm(f"{block}layernorm_before", d) | norm(f"{block}layernorm_after", d)
        shapes |= linear(f"{block}intermediate.dense", d, f) | linear(f"{block}output.dense", f, d)
    return shapes


def deit(d: int, f: int, depth: int, patch: int, rows: int, classes: int) -> Shapes:
    """Distilled."""
    shapes = vit(d, f, depth, patch, rows, "deit.", ("distillation_token",))
    return shapes | linear("cls_classifier", d, classes) | linear("distillation_classifier", d, classes)


def dinov2(d: int, f: int, depth: int, patch: int, rows: int, *, gated: bool, registers: int = 0) -> Shapes:
    """Without a head."""
    shapes = transformer("", d, depth, patch, rows) | {"embeddings.mask_token": (1, d)}
    if registers:
        shapes["embeddings.register_tokens"] = (1, registers, d)
    for i in range(depth):
        block = f"encoder.layer.{i}."
        shapes |= norm(f"{block}norm1", d) | norm(f"{block}norm2", d)
        shapes |= {f"{block}layer_scale{n}.lambda1": (d,) for n in (1, 2)}
        if gated:
            shapes |= linear(f"{block}mlp.weights_in", d, 2 * f) | linear(f"{block}mlp.weights_out", f, d)
        else:
            shapes |= linear(f"{block}mlp.fc1", d, f) | linear(f"{block}mlp.fc2", f, d)
    return shapes


def resnet(width: int, stages: tuple[int, ...], bottleneck: bool, classes: int) -> Shapes:
    stem = "resnet.embedder.embedder."
    shapes: Shapes = {f"{stem}convolution.weight": (width, 3, 7, 7)} | batch_norm(f"{stem}normalization", width)
    inputs = width
    for i, blocks in enumerate(stages):
        c = width * 2**i
        for j in range(blocks):
            block, before = f"resnet.encoder.stages.{i}.layers.{j}.", inputs
            for n, (size, outputs) in enumerate([(1, c), (3, c), (1, 4 * c)] if bottleneck else [(3, c), (3, c)]):
                shapes[f"{block}layer.{n}.convolution.weight"] = (outputs, before, size, size)
                shapes |= batch_norm(f"{block}layer.{n}.normalization", outputs)
                before = outputs
            if j == 0 and (i > 0 or bottleneck):
                shapes[f"{block}shortcut.convolution.weight"] = (before, inputs, 1, 1)
                shapes |= batch_norm(f"{block}shortcut.normalization", before)
            inputs = before
    return shapes | linear("classifier.1", inputs, classes)


def bit(width: int, stages: tuple[int, ...], classes: int) -> Shapes:
    shapes: Shapes = {"bit.embedder.convolution.weight": (width, 3, 7, 7)}
    inputs = width
    for i, units in enumerate(stages):
        c = width * 2**i
        for j in range(units):
            unit = f"bit.encoder.stages.{i}.layers.{j}."
            for n, (size, before, outputs) in enumerate([(1, inputs, c), (3, c, c), (1, c, 4 * c)], 1):
                shapes |= norm(f"{unit}norm{n}", before)
                shapes[f"{unit}conv{n}.weight"] = (outputs, before, size, size)
            if j == 0:
                shapes[f"{unit}downsample.conv.weight"] = (4 * c, inputs, 1, 1)
            inputs = 4 * c
    return shapes | norm("bit.norm", inputs) | linear("classifier.1", inputs, classes)


def arrays(shapes: Shapes) -> dict[str, np.ndarray]:
    """Random arrays of these shapes."""
    rng = np.random.default_rng(29)
    return {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def our_shapes(layout: Layout, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """The shapes of the converted arrays, by our names; nothing large is computed."""
    empty = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    return {entry.ours: entry.convert(empty[entry.theirs]).shape for entry in layout.entries}
