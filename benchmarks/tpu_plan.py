"""Ours against the textbook's Vision Transformer on a TPU that is not there: modelled step time and memory of a core.

python -m benchmarks.tpu_plan --topology v3:2x2 --images-per-core 64 --out benchmarks/results/plan-textbook-v3.json

Both train the same sizes in bfloat16 on images of 224 pixels, compiled one after the other by the same TPU compiler.
Ours is the real train step of `configs/imagenet.py:vit_b16` without augmentation; the textbook's is
`benchmarks.textbook` under `optax.adamw`, with nothing around it.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks import textbook
from benchmarks.machine import RESULTS
from benchmarks.step import planned
from benchmarks.workloads import check_positive
from vit_jax import command, plan, sharding
from vit_jax.command import UserError
from vit_jax.plan import topology

PLAIN = ("augment.policy=none", "augment.mixup=0", "augment.crop_area=()", "augment.flip=0", "augment.resize=()")
SIZE = (224, 224, 3)


def textbooks(ours: Any, batch_size: int) -> Any:
    """The plain step, planned in the place of ours; data-parallel, state donated."""
    model = textbook.ViT(16, 768, 12, 3072, 12, 1000, dtype=jnp.bfloat16)
    tx = optax.adamw(1e-3, weight_decay=0.1)
    mesh = sharding.make_mesh(sharding.Settings(), ours.machine.devices)
    split, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    images = jax.ShapeDtypeStruct((batch_size, *SIZE), jnp.uint8, sharding=split)
    labels = jax.ShapeDtypeStruct((batch_size,), jnp.int32, sharding=split)
    shapes = jax.eval_shape(lambda: textbook.init_state(model, tx, SIZE))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)

    def train_step(state: Any, batch: Any, constants: Any) -> Any:
        return textbook.train_step(model, tx, state, batch["image"], batch["label"])

    step, batch = jax.jit(train_step, out_shardings=whole, donate_argnums=0), {"image": images, "label": labels}
    experiment = dataclasses.replace(ours.experiment, train_step=step, abstract_state=state, batch=batch, constants={})
    return dataclasses.replace(ours, experiment=experiment)


def modelled(subject: Any) -> dict[str, Any]:
    """The time and memory of a step, as `vit_jax.plan` has them."""
    compiled, needed = plan.compile_step(subject)
    found = plan.modelled(subject, compiled, price=0)
    return {
        "step_seconds": found["step_seconds"],
        "optimal_seconds": found["compiler"]["optimal_seconds"],
        "bytes_accessed": found["compiler"]["bytes accessed"],
        "memory": needed.total,
    }


def main(argv: Sequence[str]) -> int:
    parser = command.Parser(prog="python -m benchmarks.tpu_plan", description="Ours against a textbook ViT-B/16.")
    parser.add_argument("--topology", default="v3:2x2")
    parser.add_argument("--images-per-core", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "plan-textbook-v3.json", help="the JSON file")
    flags, overrides = parser.parse(argv)
    check_positive(flags, "images_per_core")
    if topology.split_topologies(flags.topology) != [flags.topology] or flags.topology.startswith("cpu:"):
        raise UserError(f"--topology {flags.topology}: this compiles for one TPU; give e.g. v3:2x2")
    plan.check_out(flags.out)
    topology.prepare([flags.topology])
    machine = topology.describe(flags.topology)
    batch_size = flags.images_per_core * len(machine.devices)
    size = ["data.image_size=(224,)", "model.pre_logits=0", f"train.batch_size={batch_size}"]
    ours = planned("configs/imagenet.py:vit_b16", [*PLAIN, *size, *overrides], machine)
    about = {"topology": flags.topology, "images_per_core": flags.images_per_core, "overrides": overrides}
    steps = {"textbook": modelled(textbooks(ours, batch_size)), "ours": modelled(ours)}
    found: dict[str, Any] = {**about, **plan.origin(), **steps}
    for key in ("step_seconds", "optimal_seconds", "memory"):
        found[f"{key}_ratio"] = found["ours"][key] / found["textbook"][key]
    flags.out.write_text(json.dumps(found, indent=1) + "\n")
    print(flags.out.read_text())
    return command.DONE


if __name__ == "__main__":
    command.run(main)
