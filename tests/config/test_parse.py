"""Config files, JSON and overrides to a `Config` and back, and what every mistake says."""

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vit_jax import config, models
from vit_jax.command import UserError
from vit_jax.config.schema import schema

HEAD = "from vit_jax import config, models\n\n\ndef get_config(arg=''):\n    c = config.default()\n"


@pytest.fixture
def write(tmp_path):
    """Writes a config file whose get_config holds these lines; returns its path."""

    def write(*lines: str, name: str = "given.py") -> str:
        path = tmp_path / name
        path.write_text(HEAD + "".join(f"    {line}\n" for line in (*lines, "return c")))
        return str(path)

    return write


def field(loaded: config.Config, key: str):
    for name in key.split("."):
        loaded = loaded[name] if isinstance(loaded, dict) else getattr(loaded, name)
    return loaded


def test_a_file_changes_what_it_states_and_overrides_come_last(write):
    path = write("c.train.epochs = 3", "c.optim.lr = 2e-3", "c.data.image_size = (5, 7)")
    loaded = config.load(path, ["optim.lr=1", "optim.lr=5e-3", "model.num_heads=1", "seed=11"])
    assert (loaded.train.epochs, loaded.optim.lr, loaded.data.image_size) == (3.0, 5e-3, (5, 7))
    assert (loaded.model["num_heads"], loaded.seed) == (1, 11)
    assert dataclasses.replace(loaded, seed=0, model=config.Config().model, train=config.Config().train) == (
        config.from_dict({"optim": {"lr": 5e-3}, "data": {"image_size": [5, 7]}})
    )


def test_nothing_given_is_the_default():
    assert config.from_dict({}) == config.from_dict(config.default()) == config.Config()
    assert config.from_dict({"data": {}}, ["model.width=5"]).model == models.settings("vit/Ti16", width=5)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epoch=3", r"no field 'train\.epoch'; did you mean train\.epochs"),
        ("trian.epochs=3", r"did you mean train\.epochs"),
        ("epochs=3", r"did you mean train\.epochs"),
        ("optim.learning_rate=1", r"known: optim\.name, optim\.lr, "),
        ("zzz=3", r"known: plugins, seed, model\.name, "),
        ("data=cifar10", r"config\.data is a group; set its fields: data\.name, "),
        ("model.widht=3", r"did you mean model\.width"),
        ("model.stages=3", r"no field 'model\.stages'"),  # another model's
        ("model.name=vit/S16", "choose the model by the config's argument"),
        ("task.name=masked", "choose the task by the config's argument"),
        ("evaluate.metric=best", "evaluate.metric='best' is unknown; choose from auto, accuracy, "),
        ("train.batch_size", r"train\.batch_size='' is a str, expected an int"),
        ("model.patch_size=(4, 4.5)", r"model\.patch_size=4\.5 is a float, expected an int"),
        ("model.pooling=mean", "choose from token, gap, token_gap, map, flatten, none"),
        ("optim.name=adam", "choose from adamw, sgd,"),
        ("optim.lr=-1", r"optim\.lr=-1\.0 is not positive"),
    ],
)
def test_an_override_that_is_wrong(override, expected):
    with pytest.raises(UserError, match=expected):
        config.from_dict(config.default(), [override])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("c.train.epoch = 3", r"given\.py:6: config has no field 'train\.epoch'; did you mean train\.epochs\?$"),
        ("c.model.depht = 3", r"given\.py:6: config has no field 'model\.depht'; did you mean model\.depth\?$"),
        (
            "c.train.xyz = 3",
            r"given\.py:6: config has no field 'train\.xyz'; known: train\.batch_size, train\.epochs, .*tic$",
        ),
        ("c.trian.epochs = 3", r"given\.py:6: .*[Dd]id you mean .*train"),
        ("c.train.batch_size = 'many'", r"given\.py:6: train\.batch_size='many' is a str, expected an int$"),
        ("c.data.classes = 'cat'", r"given\.py:6: data\.classes='cat' is not a tuple; write classes=\('cat',\)$"),
        ("c.data.image_size = 224", r"given\.py:6: data\.image_size=224 is not a tuple; write image_size=\(224,\)$"),
        ("c.data = 5", r"given\.py:6: config\.data is a group; set its fields: data\.name, "),
        ("c.data = {'nmae': 'digits'}", r"given\.py:6: .*no field 'data\.nmae'; did you mean data\.name"),
        ("c.data = {'image_size': (5, '7')}", r"given\.py:6: .*data\.image_size='7' is a str, expected an int"),
        (
            "c.model = {'name': 'vit/S16', 'widht': 5}",
            r"given\.py:6: .*no field 'model\.widht'; did you mean model\.width",
        ),
        ("c.model = {'name': 'vit/S16', 'patch_size': 4}", r"given\.py:6: .*write patch_size=\(4,\)"),
        (
            "c.model = {'name': 'vit', 'width': 5}",
            r"given\.py:6: .*model 'vit' needs patch_size, depth, mlp_dim, num_heads",
        ),
        ("c.model = {'width': 5}", r"given\.py:6: .*config.model has no name; start from models.settings"),
        ("c.model = models.settings('vti/S16')", "model 'vti/S16' is unknown; did you mean .*vit/S16"),
        ("c.optim.name = 'adam'", r"given\.py:6: .*optim.name='adam' is unknown; choose from adamw, sgd,"),
        ("c.data.name = 7", r"given\.py:6: data\.name=7 is an int, expected a str$"),
        ("c.train.update(epoch=3)", r"given\.py:6: config has no field 'train\.epoch'; did you mean train\.epochs"),
        ("c['optim']['lr'] = 'high'", r"given\.py:6: optim\.lr='high' is a str, expected a float$"),
        ("c.task = {'name': 'clasification'}", r"given\.py:6: task 'clasification' is unknown; did you mean 'clas"),
        ("c.task = {'loss': 'softmax'}", r"given\.py:6: config\.task has no name; start from tasks\.settings\(NAME\)"),
        ("raise IndexError('no such\\n row')", r"given\.py:6: IndexError: no such row$"),
        ("undefined", r"given\.py:6: NameError: .*undefined"),
        ("1 +", r"given\.py:6: SyntaxError: invalid syntax"),
        ("import no_such_module", r"given\.py:6: ModuleNotFoundError: .*no_such_module"),
        ("helper()\n\ndef helper():\n    1 / 0\n\ndef more(c):\n    pass", r"given\.py:6: |given\.py:9: "),
    ],
)
def test_a_file_that_is_wrong(write, line, expected):
    with pytest.raises(UserError, match=expected):
        config.load(write(line))


def test_a_relative_path_names_the_line_too(write, monkeypatch):
    path = Path(write("c.optim.lr = 1 / 0"))
    monkeypatch.chdir(path.parent)
    with pytest.raises(UserError, match=r"^given\.py:6: ZeroDivisionError: "):
        config.load("given.py")


def test_a_run_s_folder_has_a_configuration(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is a run's folder; give .*/config\.json$"):
        config.load(str(tmp_path))


def test_no_such_file(write, tmp_path):
    write()
    with pytest.raises(UserError, match=r"givne\.py' does not exist; did you mean .*given\.py\?"):
        config.load(str(tmp_path / "givne.py"))
    with pytest.raises(UserError, match="does not exist; give the path of a config file"):
        config.load(str(tmp_path / "unlike anything.py"))
    with pytest.raises(UserError, match="does not exist"):
        config.load(str(tmp_path))


def test_choose():
    assert config.choose("", {"a": 5, "b": 7}) == 5
    assert config.choose("b", {"a": 5, "b": 7}) == 7
    assert config.choose("", {"": 5}) == 5
    with pytest.raises(UserError, match="config argument 'c' is unknown; choose from a, b"):
        config.choose("c", {"a": 5, "b": 7})
    with pytest.raises(UserError, match="config argument 'c': this file takes none; leave out `:c`"):
        config.choose("c", {"": 5})


def test_the_argument_reaches_the_file(write):
    path = write("c.seed = config.choose(arg, {'five': 5, 'seven': 7})")
    assert [config.load(path + arg).seed for arg in ("", ":five", ":seven")] == [5, 5, 7]
    with pytest.raises(UserError, match="'six' is unknown; choose from five, seven"):
        config.load(path + ":six")


def test_a_file_starts_from_another_ones_recipe(tmp_path, write):
    base = write("c.seed = config.choose(arg, {'five': 5, 'seven': 7})")
    (tmp_path / "other.py").write_text(
        "from pathlib import Path\nfrom vit_jax import config\n"
        f"def get_config(arg):\n    c = config.run_file(Path({base!r}), arg or 'seven')\n"
        "    c.train.steps = 3\n    return c\n"
    )
    other = str(tmp_path / "other.py")
    assert (config.load(other).seed, config.load(other + ":five").seed, config.load(other).train.steps) == (7, 5, 3)
    with pytest.raises(UserError, match="'six' is unknown; choose from five, seven"):
        config.load(other + ":six")


def test_json_file(tmp_path):
    path = tmp_path / "config.json"
    given = config.from_dict({"model": models.settings("cnn/conv3"), "data": {"image_size": (5, 7)}}, ["seed=3"])
    path.write_text(config.to_json(given))
    assert config.load(str(path)) == given
    assert config.load(str(path), ["seed=5"]) == dataclasses.replace(given, seed=5)
    with pytest.raises(UserError, match="config argument 'tiny': .*takes none"):
        config.load(f"{path}:tiny")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"seed": 3', r"broken\.json is not JSON: .* line 1 column 11"),
        ('{"modle": {}}', r"no field 'modle'"),
        ('{"model": {"name": ["a"]}}', "config.model has no name"),
        ('{"model": 5}', "config.model has no name"),
        ('{"model": "vit/S16"}', r"config\.model is a group"),
        ('{"seed": {}}', "seed={} is a dict, expected an int"),
        ('{"optim": {"lr": NaN}}', "optim.lr=nan is not a finite number"),
        ('{"optim": {"lr": null}}', "optim.lr=None is a NoneType"),
    ],
)
def test_json_file_that_is_wrong(tmp_path, text, expected):
    (tmp_path / "broken.json").write_text(text)
    with pytest.raises(UserError, match=expected):
        config.load(str(tmp_path / "broken.json"))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.json", '{"café": 1}'.encode("latin-1"), "is not JSON"),
        ("x.py", "x = 'café'".encode("latin-1"), "SyntaxError"),
        ("x.py", b"\0", "x.py.*: (SyntaxError|ValueError): source code"),
    ],
)
def test_a_file_that_is_no_text(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=expected):
        config.load(str(tmp_path / name))


FAMILIES = ("vit/Ti16", "cnn/conv3")
SCHEMAS = {
    name: {key: f.type for key, f in schema({"model": name, "task": "classification"}).items() if key[-5:] != ".name"}
    | {"data.name": str}
    for name in FAMILIES
}


def values(annotation) -> st.SearchStrategy:
    origin, args = getattr(annotation, "__origin__", None), getattr(annotation, "__args__", ())
    if origin is tuple:
        sizes = {} if args[-1] is Ellipsis else {"min_size": len(args), "max_size": len(args)}
        return st.lists(values(args[0]), **({"max_size": 3} | sizes)).map(tuple)
    if args:
        return st.sampled_from(args)
    kinds = {
        bool: st.booleans(),
        int: st.integers(0, 2**40) | st.integers(0, 9),
        float: st.floats(0, 1) | st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=7),
    }
    return kinds[annotation]


@given(st.data())
def test_json_and_overrides_keep_every_value(data):
    name = data.draw(st.sampled_from(FAMILIES))
    keys = st.sampled_from(list(SCHEMAS[name]))
    given = {key: data.draw(values(SCHEMAS[name][key]), key) for key in data.draw(st.sets(keys, max_size=2))}
    plain = {"model": models.settings(name)}
    try:
        loaded = config.from_dict(plain, [f"{key}={value}" for key, value in given.items()])
    except UserError as mistake:  # out of range; never of the wrong type
        assume("expected a" not in str(mistake))
        assume(False)
    assert {key: field(loaded, key) for key in given} == given
    assert config.from_dict(json.loads(config.to_json(loaded))) == loaded


@pytest.mark.parametrize("name", FAMILIES)
def test_the_text_of_every_default_is_that_default(name):
    given = config.from_dict({"model": models.settings(name)})
    overrides = [f"{key}={field(given, key)}" for key in SCHEMAS[name]]
    assert len(overrides) > 60
    assert config.from_dict({"model": models.settings(name)}, overrides) == given


def test_differences_are_those_that_decide_the_result():
    old = config.Config()
    new = config.from_dict(
        config.default(), ["optim.lr=0.5", "model.width=384", "data.image_size=(5,7)", "seed=3", "train.steps=7"]
    )
    assert config.differences(old, new) == {
        "seed": (0, 3),
        "model.width": (192, 384),
        "data.image_size": ((), (5, 7)),
        "optim.lr": (1e-3, 0.5),
        "train.steps": (0, 7),
    }
    assert config.differences(new, old)["seed"] == (3, 0)
    assert config.differences(new, new) == {}


def test_differences_in_where_and_how_fast_do_not_count():
    where = "mesh.data=4 mesh.fsdp=2 data.cache=none data.data_dir=/d data.threads=7 model.scan=true model.remat=full"
    when = "log.every_steps=7 log.tensorboard=false checkpoint.every_steps=7 checkpoint.keep_best=3 "
    when += "evaluate.every_steps=7 evaluate.batch_size=7 evaluate.split=train train.deterministic=true"
    assert config.differences(config.Config(), config.from_dict({}, (where + " " + when).split())) == {}
    decides = ["evaluate.use=best", "evaluate.metric=loss", "data.channels=3", "model.scan=true", "train.accumulate=2"]
    found = config.differences(config.Config(), config.from_dict({}, decides))
    assert set(found) == {"evaluate.use", "evaluate.metric", "data.channels", "train.accumulate"}


def test_where_images_are_kept_counts_where_it_decides_who_crops_them():
    flags = ["augment.crop_area=(0.3,1)", "data.image_size=32"]
    kept, streamed = (config.from_dict({}, [*flags, f"data.cache={cache}"]) for cache in ("host", "none"))
    assert config.differences(kept, streamed) == {"data.cache": ("host", "none")}
    kept, streamed = (
        config.from_dict({}, [*flags, f"data.cache={c}", "data.crop_on=device"]) for c in ("host", "none")
    )
    assert config.differences(kept, streamed) == {}


def test_another_model_differs_in_the_fields_that_only_one_has():
    old, new = (config.from_dict({"model": models.settings(name)}) for name in FAMILIES)
    found = config.differences(old, new)
    assert found["model.name"] == FAMILIES
    assert found["model.stages"] == (None, ((32,), (64,), (64,))) and found["model.depth"] == (12, None)
