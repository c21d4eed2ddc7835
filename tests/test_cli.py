"""The console script: its sub-commands, and the lists of recipes and of published weights."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.conftest import REPOSITORY
from vit_jax import cli, config
from vit_jax.command import UserError
from vit_jax.pretrained import PUBLISHED

HELP = """
import sys
from vit_jax import cli
sys.argv = ["vit_jax", "--help"]
try:
    cli.main()
finally:
    print(sorted({"jax", "numpy", "flax", "rich", "ml_collections"} & set(sys.modules)))
"""


def test_help_lists_the_commands_and_imports_nothing_heavy():
    found = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True).stdout.splitlines()
    assert found[-1] == "[]" and found[0] == "usage: vit_jax COMMAND ..."
    assert [line.split()[0] for line in found[2 : 2 + len(cli.COMMANDS)]] == list(cli.COMMANDS)


@pytest.mark.parametrize("name", [name for name, (module, _) in cli.COMMANDS.items() if module])
def test_each_command_has_its_module(name, capsys):
    with pytest.raises(SystemExit) as end:
        cli.dispatch([name, "--help"])
    assert end.value.code == 0 and "usage: " in capsys.readouterr().out


def test_a_finished_run_goes_through_its_commands(tmp_path, tmp_path_factory, capfd):
    workdir = str(shutil.copytree(tiny.finished(tmp_path_factory, "cnn"), tmp_path / "run"))
    assert cli.dispatch(["train", "--config", tiny.spec("cnn"), "--workdir", workdir]) == 0
    assert "This run is finished" in capfd.readouterr().out
    assert cli.dispatch(["evaluate", "--workdir", workdir]) == 0
    assert (tmp_path / "run" / "evaluation-test.json").exists()
    assert "all of it, with the confusion matrix, in " in capfd.readouterr().out


def test_mistakes(capsys):
    with pytest.raises(UserError, match="no command 'evalute'; did you mean 'evaluate'"):
        cli.dispatch(["evalute"])
    with pytest.raises(UserError, match="no command 'xyz'; choose from train, evaluate, "):
        cli.dispatch(["xyz"])
    assert cli.dispatch([]) == 2 and "usage: vit_jax" in capsys.readouterr().out
    with pytest.raises(UserError, match="no recipe of the .* has 'xyz' in its name"):
        cli.dispatch(["configs", "xyz"])


def test_every_recipe_is_listed_once_and_loads_its_variants(monkeypatch, capsys):
    monkeypatch.chdir(REPOSITORY)
    assert cli.dispatch(["configs"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    specs = [spec for spec, _ in lines]
    assert len(set(specs)) == len(specs) > 50
    assert {spec.partition(":")[0] for spec in specs} == {
        f"configs/{path.name}" for path in Path("configs").glob("*.py")
    }
    assert {"configs/digits.py", "configs/finetune.py", "configs/cifar10.py:tiny"} < set(specs)
    for spec in ("configs/digits.py", "configs/compact.py:cvt_cifar100"):
        assert config.load(spec)


def test_a_variant_is_told_by_its_function_else_by_its_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "x.py").write_text('''"""The file.

More.
"""
from functools import partial
from vit_jax import config


def small():
    """Small.

    More.
    """
    assert False, "a list builds nothing"


def large(depth):
    """Large."""


def get_config(arg=""):
    choices = {"s": small, "l": partial(large, 3), "twice": lambda: large(small()), "ß": 7}
    return config.choose(arg, choices)()
''')
    monkeypatch.chdir(tmp_path)
    assert cli.dispatch(["configs"]) == 0
    expected = ["s      Small.", "l      Large.", "twice  Large.", "ß      The file."]
    assert capsys.readouterr().out.splitlines() == [f"configs/x.py:{line}" for line in expected]
    assert cli.dispatch(["configs", "x.py:[sl]"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_without_a_folder_of_recipes_it_says_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.configs_folder() == REPOSITORY / "configs"
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "site-packages" / "vit_jax" / "cli.py"))
    with pytest.raises(UserError, match="no folder configs/ here; go to the folder where you cloned"):
        cli.dispatch(["configs"])


def test_weights_are_listed_by_name(capsys):
    assert cli.dispatch(["weights"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(PUBLISHED)
    assert lines[4].split() == ["vit_b16", "vit/B16,", PUBLISHED["vit_b16"][1]]
    assert cli.dispatch(["weights", "mixer"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
