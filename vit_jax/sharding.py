"""How arrays lie on devices: the mesh, and rules from a parameter's path to its PartitionSpec.

Models know nothing of this. Axes: `data` splits the batch, `fsdp` splits the batch and the parameters (ZeRO-3,
Rajbhandari et al. 2020, arXiv:1910.02054), `tensor` splits heads and MLP width (Megatron, arXiv:1909.08053).
"""

import os
import platform
import re
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from vit_jax import trees
from vit_jax.command import UserError
from vit_jax.trees import PyTree

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
P = PartitionSpec
Rule = tuple[str, PartitionSpec]

# For the kernels of every model, behind the rules of its own: see `models.naming`. The first rule that is found in the
# path, and whose rank is the leaf's, decides; no rule: replicated.
RULES: tuple[Rule, ...] = (
    (r"kernel$", P("fsdp", None)),
    (r"kernel$", P(None, None, None, "fsdp")),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The mesh; the product of the three axes is the number of devices used."""

    data: int = 0  # devices along the data axis; 0: all that the other axes leave
    fsdp: int = 1  # devices that divide the batch and the parameters
    tensor: int = 1  # devices that divide heads and MLPs
    devices: int = 0  # how many devices the run must find; 0: any number


def check(settings: Settings) -> None:
    """Raises `UserError` for axis sizes that no machine could have."""
    least = {"data": 0, "fsdp": 1, "tensor": 1, "devices": 0}
    given = {name: getattr(settings, name) for name in least}
    if wrong := [f"mesh.{name}={size}" for name, size in given.items() if size < least[name]]:
        raise UserError(f"{', '.join(wrong)}: sizes are positive; mesh.data=0 means all that remain, the default")


def make_mesh(settings: Settings, devices: Sequence[jax.Device] = ()) -> Mesh:
    """The mesh over the given devices (default: all of every process)."""
    check(settings)
    devices = tuple(devices) or tuple(jax.devices())
    if settings.devices and settings.devices != len(devices):
        raise UserError(
            f"found {len(devices)} devices, expected mesh.devices={settings.devices}; "
            "start the run on that many, or set mesh.devices to what there is"
        )
    model = settings.fsdp * settings.tensor
    data = settings.data or max(1, len(devices) // model)
    if data * model != len(devices):
        raise UserError(
            f"mesh data={data} x fsdp={settings.fsdp} x tensor={settings.tensor} needs {data * model} devices, "
            f"found {len(devices)}; make the product {len(devices)}"
        )
    # Auto: Linen does not work on Explicit axes, the default of `jax.make_mesh`.
    shape = (data, settings.fsdp, settings.tensor)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis split over the devices, for everything with one entry an image."""
    return NamedSharding(mesh, P(BATCH_AXES))


_activations: ContextVar[Mesh | None] = ContextVar("mesh of the activations", default=None)


def on_mesh(fn: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`fn`, traced so that `split_batch` in it means this mesh."""

    def traced(*args: Any) -> Any:
        token = _activations.set(mesh)
        try:
            return fn(*args)
        finally:
            _activations.reset(token)

    return traced


def split_batch(x: jax.Array) -> jax.Array:
    """Activations [n ...] with their images split over the devices, inside `on_mesh`; elsewhere as they are.

    Left alone, XLA follows the parameters' fsdp sharding: every device computes all images with a part of the width,
    and adds up activations instead of gradients.
    """
    mesh = _activations.get()
    return x if mesh is None or mesh.size == 1 else jax.lax.with_sharding_constraint(x, batch_sharding(mesh))


def on_each_device(fn: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """`fn` of arrays [n l a e], run by each device for its images, and for its heads where they are divided.

    For kernels that XLA cannot divide. Outside `on_mesh`, and on one device, `fn` itself.
    """
    mesh = _activations.get()
    if mesh is None or mesh.size == 1:
        return fn

    def divided(*arrays: jax.Array) -> jax.Array:
        num_heads = "tensor" if arrays[0].shape[2] % mesh.shape["tensor"] == 0 else None
        spec = P(BATCH_AXES, None, num_heads)
        return jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)

    return divided


def on_own_images(fn: Callable[..., jax.Array], *, whole: int = 0, summed: bool = False) -> Callable[..., jax.Array]:
    """`fn` of arrays [n ...], and `whole` others behind them, run by each device for its images.

    For loops over images, which XLA cannot divide. `summed`: `fn` is a sum over images, which the devices then add up.
    Outside `on_mesh`, on one device, and of images that cannot be divided, `fn` itself.
    """
    mesh = _activations.get()

    def divided(*arrays: jax.Array) -> jax.Array:
        if mesh is None or mesh.size == 1 or arrays[0].shape[0] % batch_shards(mesh):
            return fn(*arrays)

        def of_own(*own: jax.Array) -> jax.Array:
            return jax.lax.psum(fn(*own), BATCH_AXES) if summed else fn(*own)

        specs = (P(BATCH_AXES),) * (len(arrays) - whole) + (P(),) * whole
        out = P() if summed else P(BATCH_AXES)
        return jax.shard_map(of_own, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False)(*arrays)

    return divided


def batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return int(np.prod([mesh.shape[axis] for axis in BATCH_AXES]))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of a global batch that this process's devices hold, ascending."""
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, P())


def put(array: jax.Array | np.ndarray, place: Sharding) -> jax.Array:
    """The array on its devices, those of other processes too: of one that each process has, each gives its part."""
    if isinstance(array, jax.Array) and (place.is_fully_addressable or not array.is_fully_addressable):
        return jax.device_put(array, place)
    whole = np.asarray(array)
    return jax.make_array_from_callback(whole.shape, place, lambda index: whole[index])


def spec_for(name: str, shape: tuple[int, ...], mesh: Mesh, rules: Sequence[Rule]) -> PartitionSpec:
    """The PartitionSpec of one leaf; an axis that does not divide its dimension is left out."""
    layer_axes = 1 if trees.is_stacked(name) else 0
    for pattern, spec in rules:
        if len(spec) + layer_axes == len(shape) and re.search(pattern, name):
            wanted = (None,) * layer_axes + tuple(spec)
            return P(
                *(
                    axis if axis and size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(wanted, shape, strict=True)
                )
            )
    return P()


def tree_shardings(tree: PyTree, mesh: Mesh, rules: Sequence[Rule]) -> PyTree:
    """The sharding of each leaf of a tree of arrays or shapes, by its path."""
    return trees.map_with_name(lambda name, leaf: NamedSharding(mesh, spec_for(name, leaf.shape, mesh, rules)), tree)


def device_name(mesh: Mesh) -> str:
    """The kind and number of the devices: `8 x NVIDIA H200`, `1 x CPU (Intel Xeon, 2 cores)`."""
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.devices.size} x {processor_name() if kind == 'cpu' else kind}"


def processor_name() -> str:
    """This machine's: `CPU (Intel Xeon, 2 cores)`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"CPU ({names[0] if names else platform.processor() or platform.machine()}, {_cores()})"


def _cores() -> str:
    """How many this process may use."""
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    return f"{there} cores" if usable == there else f"{usable} of {there} cores"
