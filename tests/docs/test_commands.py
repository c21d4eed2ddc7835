"""Every command that README and docs/ show: its flags and configurations are accepted, and it runs.

The fast tests stop a command where its work would begin. The slow one runs the commands in one folder, whose recipes
are made small: synthetic images of the right shape, two steps.
"""

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY
from tests.docs import written
from tests.docs.written import Command
from vit_jax import cli, command, config, models, tasks
from vit_jax.command import UserError
from vit_jax.config.older import rename
from vit_jax.config.schema import schema

# Where each command has accepted its flags and configurations, and begins to work.
WORK = {
    "train": "vit_jax.main.train",
    "evaluate": "vit_jax.evaluate.evaluate_run",
    "predict": "vit_jax.inference.load",
    "explain": "vit_jax.inference.load",
    "faithfulness": "vit_jax.inference.load",
    "export": "vit_jax.inference.load",
    "serve": "vit_jax.inference.load",
    "compare": "vit_jax.compare.check",
    "soup": "vit_jax.soup.cook",
    "plan": "vit_jax.plan.subject.prepare",
    "report": "vit_jax.report.page.write",
    "augmentations": "vit_jax.report.augmentations.sheet",
    "texture": "vit_jax.inference.load",
    "frontier": "vit_jax.report.frontier.trained",
    "prepare": "vit_jax.data.prepare.prepare",
}
LISTS = ("configs", "weights")  # these run as they are
# Other lines of the shell, and why no test runs them.
OTHER = {
    r"pip install -e (\.|\"\.\[(?P<extra>\w+)\]\")": "installs",
    r"make (?P<target>[\w-]+)( PYTHON=\S+)?": "installs, and trains for a minute; the target is looked up",
    r"source \.venv/bin/activate": "belongs to make",
    r"mkdocs serve": "waits for a browser; test_site.py builds the pages",
}
# What stands for something that is not here, in both tests.
INSTEAD = {"hf://google/vit-base-patch16-224": "runs/imagenette-pretrain"}
# Not run, by how a command begins.
PARSED_ONLY = {
    "train --config configs/finetune.py:vit_b16": "the weights come from the network",
    "train --config configs/footwear.py": "the weights come from the network",
    "train --config configs/finetune.py:runs/imagenette-pretrain,fashion_mnist": "the classes are Fashion-MNIST's",
    "train --config configs/fashion_mnist.py:cnn --workdir runs/teacher-cnn": "it takes half an hour",
    "train --config configs/cifar100.py": "it compiles for minutes",
    "prepare cifar100": "the archive comes from the network",
    "train --config configs/camvid.py": "the images are not here",
    "evaluate --workdir runs/camvid-fpn": "the same",
    "predict --workdir runs/camvid-fpn": "the same",
    "serve --workdir runs/digits": "it serves until it is stopped; tests/serve starts and stops it",
    "report runs/a runs/b": "two runs of the reader",
    "plan --config configs/imagenet.py": "wants the compilers of TPUs and GPUs, and minutes; tests/plan has small ones",
    "plan --config configs/scaling.py": "wants the compiler of TPUs, and minutes",
}
RUN = ("README.md", "quickstart.md", "predict.md")  # the pages whose commands run; those of others are parsed only
SMALLER = {"data.limit=600,6000,54000": "data.limit=20,40", "--seeds 3": "--seeds 2"}
COMMANDS = {c.text: c for page in written.PAGES for c in written.commands(page)}
IMAGES = 64  # for training; a fifth as many test


class Accepted(Exception):
    """Raised where a command would begin to work."""


def label(text: str) -> str:
    return re.sub(r"\s+", " ", text)[:90]


def argv(found: Command, changes: dict[str, str]) -> list[str]:
    """The words of a command under some changes, with the files that a pattern stands for."""
    words = []
    for word in shlex.split(shlex.join(found.argv)):
        for old, new in changes.items():
            word = word.replace(old, new)
        words += sorted(map(str, Path().glob(word))) if "*" in word else [word]
    return words


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder that has what the commands name: recipes, photos, and runs, which are copies of a tiny one."""
    folder = tmp_path_factory.mktemp("docs")
    (folder / "configs").symlink_to(REPOSITORY / "configs")
    photos(folder)
    run = REPOSITORY / "tests" / "fixtures" / "older_runs" / "finished"
    for name in (
        "digits",
        "imagenette-pretrain",
        "imagenette-vit64",
        "cifar100",
        "cifar10-tiny",
        "dino-cifar10",
        "mae-cifar10",
        "vit_or_cnn/a-seed0",
        "vit_or_cnn/b-seed0",
    ):
        shutil.copytree(run, folder / "runs" / name)
    segmentation = folder / "runs" / "camvid-fpn"
    shutil.copytree(run, segmentation)
    (segmentation / "config.json").write_text(config.to_json(config.load(str(REPOSITORY / "configs/camvid.py:fpn"))))
    return folder


def photos(folder: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "my_photos" / name).mkdir(parents=True)
        for i in range(12):
            picture = Image.fromarray(rng.integers(0, 256, (37, 41, 3), np.uint8))
            picture.save(folder / "my_photos" / name / f"{i}.png")
    picture.save(folder / "more.jpg")


def accept(found: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a command up to its work; raises what it says of a mistake."""

    def work(*args: object, **kwargs: object) -> None:
        raise Accepted

    monkeypatch.chdir(home)
    if found.name in LISTS:
        assert cli.dispatch([found.name, *found.argv]) == command.DONE
        return
    monkeypatch.setattr(WORK[found.name], work)
    monkeypatch.setattr("vit_jax.inference.load_masks", work)
    monkeypatch.setattr("vit_jax.evaluate.probe", work)
    with pytest.raises(Accepted):
        cli.dispatch([found.name, *argv(found, INSTEAD)])


@pytest.mark.parametrize("text", [t for t in COMMANDS if "--help" not in t], ids=label)
def test_its_flags_and_configurations_are_accepted(text, home, monkeypatch):
    accept(COMMANDS[text], home, monkeypatch)


@pytest.mark.parametrize(
    "wrong",
    [
        "vit_jax train --config configs/digits.py --config.train.epoch=3",
        "vit_jax train --config configs/digit.py",
        "vit_jax train --config configs/digits.py --work_dir runs/x",
        "vit_jax evaluate --workdir runs/digits --config.optim.lr=1",
        "vit_jax predict --workdir runs/digits my_photo/",
        "python -m vit_jax.compare configs/digits.py --sweep train.epoch=1,2 --out runs/x",
        "launch/local.sh 4 --config configs/cifar10.py:tinny",
    ],
)
def test_a_misspelt_one_is_not(wrong, home, monkeypatch):
    with pytest.raises(UserError):
        accept(written.parse(wrong), home, monkeypatch)


def test_other_lines_of_the_shell_are_known():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    makefile = (REPOSITORY / "Makefile").read_text()
    for page in written.PAGES:
        for line in written.shell_lines(page):
            if written.parse(line):
                continue
            line = line.partition(" #")[0].strip()
            known = next((found for pattern in OTHER if (found := re.fullmatch(pattern, line))), None)
            assert known, f"{page.name}: no test knows what to do with `{line}`"
            parts = known.groupdict()
            assert not parts.get("extra") or parts["extra"] in extras, line
            assert not parts.get("target") or f"\n{parts['target']}:" in makefile, line


def test_launchers_are_there():
    for found in COMMANDS.values():
        for word in found.launcher:
            assert not word.startswith("launch/") or (REPOSITORY / word).is_file(), found.text


@pytest.mark.parametrize("page", written.PAGES, ids=lambda path: path.name)
def test_fields_that_the_text_names_exist(page):
    known: set[str] = set()
    for family in models.FAMILIES:
        for task in tasks.TASKS:
            known |= set(schema({"model": family, "task": task}))
    unknown = {field for field in written.fields(page) if rename(field, known) not in known}
    assert not unknown


@pytest.mark.parametrize("page", written.PAGES, ids=lambda path: path.name)
def test_python_compiles(page):
    for block in written.blocks(page, "python"):
        compile(block, page.name, "exec")


def test_the_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text().split()) < 900


SHAPES = {"cifar10": "32x32x3/10", "cifar100": "32x32x3/100", "fashion_mnist": "28x28x1/10"}
SMALL = """
from vit_jax import config

def get_config(arg=""):
    c = config.run_file(__import__("pathlib").Path({path!r}), arg)
    shape = {shapes!r}.get(c.data.name)
    if shape:
        c.data.name = f"synthetic/{{shape}}/{images}"
    c.train.batch_size, c.train.accumulate = 16, 1
    c.train.steps, c.train.epochs = 0, 0.05 if c.data.name == "digits" else 1.0
    c.optim.warmup_steps, c.optim.warmup_epochs = 0, 0.0
    c.log.tensorboard = False
    return c
"""


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_they_run(tmp_path, monkeypatch, capfd):
    """Training comes first, because the other commands use its runs; then the Python code of each page."""
    photos(tmp_path)
    (tmp_path / "configs").mkdir()
    for path in (REPOSITORY / "configs").glob("*.py"):
        small = SMALL.format(path=str(path), shapes=SHAPES, images=IMAGES)
        (tmp_path / "configs" / path.name).write_text(small)
    shutil.copytree(REPOSITORY / "tests/fixtures/older_runs/finished", tmp_path / "runs" / "imagenette-pretrain")
    monkeypatch.chdir(tmp_path)
    order = ["train", "compare"]
    run = [c for page in written.PAGES if page.name in RUN for c in written.commands(page)]
    ours = [c for c in run if c.name in WORK and not c.launcher and "--help" not in c.text]
    failed = []
    for found in sorted(ours, key=lambda c: order.index(c.name) if c.name in order else len(order)):
        words = argv(found, INSTEAD | SMALLER)
        if any(f"{found.name} {shlex.join(found.argv)}".startswith(begin) for begin in PARSED_ONLY):
            continue
        try:
            assert cli.dispatch([found.name, *words]) == command.DONE
        except Exception as error:
            failed.append(f"{found.page}: {found.text}: {error!r}")
    for page in (page for page in written.PAGES if page.name in RUN):
        for block in written.blocks(page, "python"):
            try:
                exec(compile(block, page.name, "exec"), {"__name__": "docs"})
            except Exception as error:
                failed.append(f"{page.name}: {block}: {error!r}")
    assert not failed, "\n".join(failed)
