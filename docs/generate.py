"""The pages of the site that are made from the code: a hook of mkdocs, which asks for them when it builds.

python docs/generate.py models.md    # prints one of them
"""

import fnmatch
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LAUNCH = Path(__file__).parents[1] / "launch" / "README.md"


def configuration() -> str:
    """Every field of a configuration, with its type, its default and its comment in the source."""
    sys.path.append(str(LAUNCH.parents[1]))  # wherever mkdocs is started
    from docs import reference

    return (
        "# Configuration\n\n"
        "Every field is a flag, `--config.<group>.<field>=<value>`, and a line of a config file, "
        "`c.<group>.<field> = value`. A command refuses a field that it does not read. This page is made from the "
        f"code.\n\n{reference.markdown()}"
    )


def models() -> str:
    """Every published model with its number of parameters and its source, which is its module's first sentence."""
    from vit_jax import models

    lines = [
        "# Models",
        "`vit_jax.create(NAME)` builds a model, and a config file says `c.model = models.settings(NAME)`. A family's "
        "name without a size, such as `vit`, takes sizes of your own. The number of parameters depends on the classes "
        "and, for some models, on the size of the images: the tables say for which it is. Tests compare the counts "
        "with the papers or with the published code.",
    ]
    for family, (module, _) in models.FAMILIES.items():
        names = models.names(f"{family}/*")
        rows = "\n".join(f"| `{name}` | {parameters(name):,} | {counted_for(name)} |" for name in names)
        header = "| name | parameters | classes, images |\n|---|---:|---|"
        lines += [f"## {family}", source(family, module), f"{header}\n{rows}"]
    return "\n\n".join([*lines, VIT_OPTIONS]) + "\n"


# In words, because the types of the fields do not say what combines with what.
VIT_OPTIONS = """## Options of the Vision Transformer

Head sizes are free of the width. Pooling: `token`, `gap`, `map`, `flatten`. Positions: `learned`, `learned_2d`,
`sincos2d`, `relative`, `relative_bias`, `none`. There are registers, LayerScale, QK-norm, SwiGLU and stochastic depth.

Attention: `plain`, `cudnn` (GPUs), `pallas` (TPUs from v4 on), or `auto`. With `auto` a run measures at its start which
kernel is the fastest on its devices, and takes it. A CPU has one kernel. An H100 took `cudnn`, 1.2 to 1.7 times as
fast. No TPU has run it yet.

At 224 pixels VT-R18 has 11.89 million parameters and 1,561 million multiply-adds (paper: 11.7 and 1,579), and VT-R34
21.80 and 3,267 (paper: 21.8 and 3,299)."""


# The classes and the image shape that a model is made for, by the first pattern that fits its name.
MADE_FOR = {
    "cnn/conv3": (10, (28, 28, 1)),
    "cnn/conv6": (10, (32, 32, 3)),
    "resnetv2/keras101": (100, (32, 32, 3)),
    "compact/*/7x2": (1000, (224, 224, 3)),
    "compact/*": (10, (32, 32, 3)),
    "*": (1000, (224, 224, 3)),
}


def made_for(name: str) -> tuple[int, tuple[int, int, int]]:
    return next(size for pattern, size in MADE_FOR.items() if fnmatch.fnmatch(name, pattern))


def counted_for(name: str) -> str:
    classes, (height, width, channels) = made_for(name)
    return f"{classes:,}, {height} x {width} {'grey' if channels == 1 else 'colour'}"


def parameters(name: str) -> int:
    """The number of parameters of a published model; nothing is computed."""
    import jax
    import jax.numpy as jnp

    from vit_jax import models, trees

    classes, shape = made_for(name)
    scan = {"scan": True} if "scan" in models.fields(name) else {}  # one block stands for all: traced in no time
    model = models.create(models.settings(name, num_classes=classes, **scan))
    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
    return trees.count(variables["params"])


def source(family: str, module: type) -> str:
    """Where a family was published: the first paragraph of its file."""
    import importlib.util
    import inspect

    own = f"vit_jax.models.{family}"
    file = importlib.import_module(own if importlib.util.find_spec(own) else module.__module__)
    return (inspect.getdoc(file) or "").partition("\n\n")[0].replace("\n", " ")


PAGES: dict[str, Callable[[], str]] = {
    "configuration.md": configuration,
    "models.md": models,
    "machines.md": lambda: LAUNCH.read_text(encoding="utf-8").replace("](../docs/", "]("),
}


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages to those of the folder."""
    from mkdocs.structure.files import File

    for path, page in PAGES.items():
        files.append(File.generated(config, path, content=page()))
    return files


if __name__ == "__main__":
    print(PAGES[sys.argv[1]](), end="")
