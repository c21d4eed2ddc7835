"""Ours against the textbook's Vision Transformer on a TPU that is not there: modelled step time and memory of a core.

python -m benchmarks.tpu_plan --topology v3:2x2 --images-per-core 64 --out benchmarks/results/plan-textbook-v3.json

Both train the same sizes in bfloat16 on images of 224 pixels, compiled one after the other by the same TPU compiler.
Ours is the real train step of `configs/imagenet.py:vit_b16` without augmentation; the textbook's is
`benchmarks.textbook` under `optax.adamw`, with nothing around it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import textbook
from benchmarks.machine import RESULTS
from vit_jax import command, compilation, config, flops, plan, sharding
from vit_jax.command import UserError
from vit_jax.plan import collectives, hlo, memory, subject, timing, topology
from vit_jax.plan.topology import Machine

PLAIN = ("augment.policy=none", "augment.mixup=0", "augment.crop_area=()", "augment.flip=0", "augment.resize=()")


def ours(machine: Machine, batch_size: int, overrides: Sequence[str]) -> dict[str, Any]:
    """The real train step."""
    size = ["data.image_size=(224,)", "model.pre_logits=0", f"train.batch_size={batch_size}"]
    given = config.load("configs/imagenet.py:vit_b16", [*PLAIN, *size, *overrides])
    planned = subject.build(subject.prepare(given), machine)
    return modelled(planned.run.train_step, planned.arguments, machine)


def textbooks(machine: Machine, batch_size: int, depth: int) -> dict[str, Any]:
    """The plain step: cross-entropy, its gradient, AdamW; data-parallel, state donated."""
    model = textbook.ViT(16, 768, depth, 3072, 12, 1000, dtype=jnp.bfloat16)
    tx = optax.adamw(1e-3, weight_decay=0.1)
    mesh = sharding.make_mesh(sharding.Settings(), machine.devices)
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)

    def init() -> tuple[Any, Any]:
        params = model.init(jax.random.key(0), jnp.zeros((1, 224, 224, 3)), train=False)
        return params, tx.init(params)

    def train_step(state: tuple[Any, Any], images: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            logits = model.apply(params, images.astype(jnp.float32) / 127.5 - 1, train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = jax.value_and_grad(loss)(state[0])
        updates, opt_state = tx.update(gradients, state[1], state[0])
        return (optax.apply_updates(state[0], updates), opt_state), value

    images = jax.ShapeDtypeStruct((batch_size, 224, 224, 3), jnp.uint8)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    step = jax.jit(train_step, in_shardings=(whole, split, split), out_shardings=whole, donate_argnums=0)
    return modelled(step, (jax.eval_shape(init), images, labels), machine)


def modelled(step: Any, arguments: tuple[Any, ...], machine: Machine) -> dict[str, Any]:
    """What `vit_jax.plan` says of a jitted step."""
    with compilation.keeping(False):
        compiled = step.lower(*arguments).compile()
    module = hlo.parse(compiled.as_text())
    devices = len(machine.devices)
    exchanged = collectives.find(module, devices)
    products = flops.count(step, *arguments) / devices
    time = timing.of_tpu(timing.work(module, products, compiled.cost_analysis()), exchanged, machine)
    needed = memory.of_program(compiled.memory_analysis(), 0, machine.memory)
    return {
        "step_seconds": time.seconds,
        "method": time.method,
        "optimal_seconds": compiled.cost_analysis()["optimal_seconds"],
        "bytes_accessed": compiled.cost_analysis()["bytes accessed"],
        "flops": products,
        "memory": needed.total,
        "temporaries": needed.temporaries,
    }


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.tpu_plan", description="Ours against a textbook ViT-B/16.")
    parser.add_argument("--topology", default="v3:2x2")
    parser.add_argument("--images-per-core", type=int, default=64)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--out", type=Path, default=RESULTS / "plan-textbook-v3.json", help="the JSON file")
    flags, overrides = parser.parse(argv)
    if topology.split_topologies(flags.topology) != [flags.topology] or flags.topology.startswith("cpu:"):
        raise UserError(f"--topology {flags.topology}: this compiles for one TPU; give e.g. v3:2x2")
    plan.check_out(flags.out)
    topology.prepare([flags.topology])
    machine = topology.describe(flags.topology)
    batch_size = flags.images_per_core * len(machine.devices)
    found = {
        "topology": flags.topology,
        "images_per_core": flags.images_per_core,
        "depth": flags.depth,
        "overrides": overrides,
        **plan.origin(),
        "textbook": textbooks(machine, batch_size, flags.depth),
        "ours": ours(machine, batch_size, [f"model.depth={flags.depth}", *overrides]),
    }
    for key in ("step_seconds", "optimal_seconds", "memory"):
        found[f"{key}_ratio"] = found["ours"][key] / found["textbook"][key]
    flags.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return command.DONE


if __name__ == "__main__":
    command.run(main)
