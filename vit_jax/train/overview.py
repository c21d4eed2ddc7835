"""What is told of a run before its first step."""

from typing import Any

from vit_jax import log, sharding
from vit_jax.inference.precision import fast_dtype
from vit_jax.train.experiment import Experiment


def describe(experiment: Experiment) -> dict[str, str]:
    """The overview's rows."""
    settings, data, loader = experiment.config, experiment.data, experiment.loader
    height, width, channels = experiment.task.parts.image_shape
    sizes = {"train": len(loader.split), **{purpose: data.size(purpose) for purpose in ("validation", "test")}}
    kept = "on the device" if loader.on_device else "in memory" if loader.in_memory else "streamed"
    mesh = "".join(f", {axis} {n}" for axis, n in experiment.mesh.shape.items() if n > 1)
    parts = f" in {settings.train.accumulate} parts" if settings.train.accumulate > 1 else ""
    epochs = experiment.total_steps / experiment.steps_per_epoch
    length = f"{experiment.total_steps:,} ({epochs:.3g} epochs of {experiment.steps_per_epoch:,})"
    if settings.train.seconds:
        seconds = log.human_seconds(settings.train.seconds)
        length = f"as many as take {seconds} ({experiment.steps_per_epoch:,} an epoch)"
    recomputed = settings.model.get("remat", "none")
    return {
        "images": ", ".join(f"{purpose} {size:,}" for purpose, size in sizes.items() if size) + f" ({kept})",
        "input": f"{height} x {width} x {channels}, {len(data.class_names)} classes",
        "batch": f"{settings.train.batch_size}{parts}",
        "steps": length,
        "optimizer": f"{settings.optim.name}, learning rate {settings.optim.lr:g} {settings.optim.schedule}",
        "device": sharding.device_name(experiment.mesh) + mesh,
        "precision": precision(str(settings.model.get("dtype", "float32")), experiment.mesh.devices.flat[0].platform),
        "forward pass": f"{log.human_count(experiment.flops_per_image)}FLOP per image",
        **({} if recomputed == "none" else {"recomputed": recomputed}),
    }


def precision(dtype: str, platform: str) -> str:
    """The number format of the products, and whether another would be faster on such a device."""
    faster = dtype == "float32" != fast_dtype(platform)
    return f"{dtype}; model.dtype=bfloat16 would be faster on this device" if faster else dtype


def needed_memory(compiled: Any) -> str:
    """What the compiled step needs on each device."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return "not known on this backend"
    kept, temporary = analysis.argument_size_in_bytes, analysis.temp_size_in_bytes
    return f"{log.human_bytes(kept)} kept + {log.human_bytes(temporary)} while a step runs, per device"
