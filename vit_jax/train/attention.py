"""Which kernel computes a run's attention: the one that its own devices run fastest."""

import logging
import statistics
import time
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh, SingleDeviceSharding

from vit_jax import distributed, sharding, step
from vit_jax.command import UserError
from vit_jax.config import Config
from vit_jax.data import Loader
from vit_jax.models.attention import MultiHeadDotProductAttention
from vit_jax.ops import fused_attention
from vit_jax.ops.remat import kept
from vit_jax.tasks import Task, gathered
from vit_jax.train import remat

ROUNDS, CALLS = 5, 10  # the kernels take turns of so many calls; the median of the turns counts


class Layer(NamedTuple):
    """An attention layer of a model, and the shape of its tokens, [n l d], which are its queries, too."""

    module: nn.Module
    tokens: tuple[int, ...]


def fastest_attention(prepared: Config, mesh: Mesh, task: Task, loader: Loader) -> tuple[Config, dict[str, float]]:
    """The configuration with the fastest kernel in place of `model.attention` auto, and the seconds of each kernel.

    Each different attention layer of the task's loss runs forwards and backwards on one of this process's devices,
    with as many images and heads as the device has of a batch, and with the recomputation of `model.remat` (of auto,
    the least that it may choose). A kernel that fails there is left out, with a warning. The first process decides
    for all. Where there is no choice (see `kernel_choice`) nothing is timed, and auto stays, which is plain.
    """
    layers, kernels = kernel_choice(prepared, mesh, task, loader)
    if not kernels:
        return prepared, {}
    own = Mesh(np.array(mesh.local_devices[:1]).reshape(1, 1, 1), mesh.axis_names)
    seconds = time_kernels(("plain", *kernels), layers, own, remat.least(prepared, mesh))
    fastest = min(seconds, key=lambda kernel: seconds[kernel], default="auto")
    return prepared.with_model(attention=distributed.broadcast_from_first(fastest)), seconds


def kernel_choice(prepared: Config, mesh: Mesh, task: Task, loader: Loader) -> tuple[set[Layer], list[str]]:
    """The layers that `model.attention` auto is about, and the kernels other than plain that can compute them all.

    None on CPUs, and with `train.deterministic`, which a clock is not.
    """
    device = mesh.devices.flat[0]
    platform, kind = device.platform, device.device_kind
    there = [kernel for kernel in fused_attention.KERNELS if fused_attention.runs_on(kernel, platform, kind)]
    if prepared.model.get("attention") != "auto" or prepared.train.deterministic or not there:
        return set(), []
    n = prepared.train.batch_size // (sharding.batch_shards(mesh) * prepared.train.accumulate)
    layers = attention_layers(task, loader, n, mesh.shape["tensor"])
    can = [kernel for kernel in there if layers and all(_can_compute(kernel, layer.module) for layer in layers)]
    return layers, can


def attention_layers(task: Task, loader: Loader, n: int, tensor: int) -> set[Layer]:
    """The different layers whose kernel is auto in the task's loss of `n` images.

    Not those of a teacher, which trains nothing. Of heads that `tensor` devices share, a layer has those of one device.
    """
    found: set[Layer] = set()

    def noted(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        ours = isinstance(module, MultiHeadDotProductAttention) and module.kernel == "auto" and kwargs.get("train")
        if ours and context.method_name == "__call__" and args[0].shape == args[1].shape:
            num_heads = module.num_heads // tensor if module.num_heads % tensor == 0 else module.num_heads
            found.add(Layer(module.clone(parent=None, name=None, num_heads=num_heads), args[0].shape))
        return call(*args, **kwargs)

    def loss(batch: Any, constants: Any) -> Any:
        variables = step.init_variables(task.module, 0, task.parts.image_shape)
        params, batch_stats = variables["params"], variables["batch_stats"]
        state, rngs = task.init_state(params), step.rngs_for(0, 0, jnp.arange(n))
        with nn.intercept_methods(noted):
            return task.loss(params, batch_stats, state, gathered(batch, constants), rngs, constants)

    jax.eval_shape(loss, loader.spec(n), {**loader.constants_spec(), **task.constants})
    return found


def time_kernels(kernels: tuple[str, ...], layers: Collection[Layer], mesh: Mesh, recomputed: str) -> dict[str, float]:
    """Seconds of the layers' forward and backward pass with each kernel that works, on the mesh's one device.

    `recomputed`: none, dots or full, as `model.remat`.
    """
    calls: dict[str, list[Callable[[], Any]]] = {}
    for kernel in kernels:
        try:
            calls[kernel] = [_compiled(layer, kernel, mesh, recomputed) for layer in layers]
        except Exception as error:  # whatever a driver or a compiler says: another kernel does the same
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            logging.getLogger(__name__).warning("model.attention: %s does not work here (%s)", kernel, reason)
    turns: dict[str, list[float]] = {kernel: [] for kernel in calls}
    for _ in range(ROUNDS):
        for kernel, of_layers in calls.items():
            turns[kernel].append(sum(_turn(call) for call in of_layers))
    return {kernel: statistics.median(times) for kernel, times in turns.items()}


def _can_compute(kernel: str, module: nn.Module) -> bool:
    asked = {name: getattr(module, name) for name in ("dtype", "pos_embed", "dropout", "head_dim")}
    try:
        fused_attention.check(kernel, **asked)
    except UserError:
        return False
    return True


def forwards_and_backwards(layer: Layer, kernel: str, recomputed: str) -> Callable[..., Any]:
    """`(parameters, tokens, change of the result) -> (result, gradients)` of a layer with this kernel."""
    module = layer.module.clone(kernel=kernel)

    def forwards(params: Any, x: jax.Array) -> Any:
        return module.apply({"params": params}, x, x, jax.random.key(0), train=True)

    of_layer = forwards if recomputed == "none" else jax.checkpoint(forwards, policy=kept(recomputed))

    def both(params: Any, tokens: jax.Array, change: jax.Array) -> Any:
        result, backwards = jax.vjp(of_layer, params, tokens)
        return result, backwards(change)

    return both


def arguments(layer: Layer) -> tuple[Any, jax.Array, jax.Array]:
    """Random ones, of the layer's sizes."""
    rng = jax.random.key(0)
    tokens, change = jax.random.normal(rng, (2, *layer.tokens), layer.module.dtype)
    return layer.module.init(rng, tokens[:1], tokens[:1], rng, train=False)["params"], tokens, change


def _compiled(layer: Layer, kernel: str, mesh: Mesh, recomputed: str) -> Callable[[], Any]:
    """A call of the layer's forward and backward pass, which has run once."""
    place = SingleDeviceSharding(mesh.devices.flat[0])
    given = jax.jit(lambda: arguments(layer), out_shardings=place)()
    both = sharding.on_mesh(forwards_and_backwards(layer, kernel, recomputed), mesh)
    compiled = jax.jit(both).lower(*given).compile()
    jax.block_until_ready(compiled(*given))
    return lambda: compiled(*given)


def _turn(call: Callable[[], Any]) -> float:
    """Seconds of one of `CALLS` calls."""
    began = time.perf_counter()
    for _ in range(CALLS):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - began) / CALLS
