"""One page about one run or several: whole, safe, and without anything from outside."""

import json
import logging
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tests.report import made
from vit_jax import cli, main, models, tasks
from vit_jax.command import UserError
from vit_jax.data import Split, open_data
from vit_jax.report import page
from vit_jax.report.runs import find, read_runs
from vit_jax.train import Result
from vit_jax.workdir import Workdir

OLDER = REPOSITORY / "tests" / "fixtures" / "older_runs"


class Read(HTMLParser):
    """Every address in a page, its words, and the data of its script."""

    def __init__(self, text):
        super().__init__()
        self.addresses, self.words, self.tags, self._inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self._inside = tag
        self.addresses += [value for name, value in attributes if name in ("src", "href", "srcset", "action")]

    def handle_data(self, data):
        if self._inside == "script" and data.startswith("{"):
            self.data = json.loads(data)
        elif self._inside not in ("script", "style"):
            self.words.append(" ".join(data.split()))

    @property
    def text(self):
        return " ".join(self.words)


def read(*folders, **options):
    folders, compared = find(folders)
    return Read(page.render(read_runs(folders), compared, **options))


def test_runs_of_an_earlier_version_make_a_page_that_needs_nothing_else():
    album = page.Album()
    found = read(OLDER / "finished", OLDER / "cnn", OLDER / "stopped", album=album)
    assert found.addresses and all(address.startswith(("#", "data:")) for address in found.addresses)
    assert "24.17 %" in found.text and "stopped not finished: step 6 of 14" in found.text
    assert [run["name"] for run in found.data["runs"]] == ["finished", "cnn", "stopped"]
    assert set(found.data["runs"][0]["series"]) >= {"train/loss", "val/accuracy", "train/grad_norm"}
    first = found.data["classified"][0]
    matrix = json.loads((OLDER / "finished" / "confusion.json").read_text())["matrix"]
    assert first["matrix"] == matrix and not album.faults
    assert all(key in found.data["images"] for keys in first["cells"].values() for key in keys)
    for cell, keys in first["cells"].items():
        row, column = map(int, cell.split(","))
        assert 0 < len(keys) <= matrix[row][column]
    assert first["mistakes"][0]["top"][0][1] >= first["mistakes"][-1]["top"][0][1]


def test_names_cannot_escape_into_the_page(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    folder = made.run(tmp_path / "run")
    Workdir(folder).labels_file.write_text(json.dumps([evil, "b", "c"]))
    made.predict(folder, [0, 1, 1], np.eye(3)[[1, 1, 2]])
    folders, _ = find([folder])
    text = page.render(read_runs(folders))
    assert evil not in text and "<b>slow</b>" not in text  # a warning of the result
    found = Read(text)
    assert found.data["classified"][0]["classes"][0] == evil and "img" not in found.tags


def test_the_best_of_each_column_is_marked_and_seeds_are_averaged(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.7)):
        made.run(tmp_path / f"a-seed{seed}", f"seed={seed}", accuracy=accuracy)
    made.run(tmp_path / "b-seed0", "model.dense_widths=(5,)", accuracy=0.65)
    runs = read_runs(find([tmp_path])[0])
    assert [run.group for run in runs] == [0, 0, 1]
    table = page.tables.summary(runs)
    [a, b] = table["groups"]["rows"]
    titles = [column["title"] for column in table["groups"]["columns"]]
    at = titles.index("test acc")
    assert (a["name"], a["cells"][at]["text"], a["cells"][at]["spread"]) == ("a", "60.00 %", "± 14.14")
    assert (b["name"], b["cells"][at]["text"], b["cells"][at]["best"]) == ("b-seed0", "65.00 %", True)
    assert [row["cells"][at]["best"] for row in table["runs"]["rows"]] == [False, True, False]
    loss = titles.index("test loss")  # where less is better
    assert b["cells"][loss]["best"] and not a["cells"][loss]["best"]
    assert "energy (kWh)" not in titles  # nobody measured it
    assert not any(cell["best"] for cell in (row["cells"][titles.index("parameters")] for row in (a, b)))


def test_a_seed_that_diverged_is_left_out_and_the_mean_says_so(tmp_path):
    for seed, accuracy in enumerate((0.5, 0.7, float("nan"), float("inf"))):
        made.run(tmp_path / f"a-seed{seed}", f"seed={seed}", accuracy=accuracy)
    made.run(tmp_path / "a-seed4", "seed=4", accuracy=None)
    made.run(tmp_path / "b-seed0", "model.dense_widths=(5,)", accuracy=0.55)
    lines = Workdir(tmp_path / "b-seed0").metrics_file
    lines.write_text(lines.read_text() + '{"step": 21, "val/accuracy": "inf"}\n')
    found = read(tmp_path)
    assert "60.00 % ± 14.14, 2 of 5 seeds" in found.text and "nan %" in found.text
    assert found.data["runs"][-1]["best"]["step"] == 15
    table = page.tables.summary(read_runs(find([tmp_path])[0]))
    a, b = table["groups"]["rows"]
    assert a["status"] == "not finished: step 20 of 23" and not b["status"]  # the first one is finished
    at = [column["title"] for column in table["groups"]["columns"]].index("test acc")
    assert a["cells"][at]["best"] and [row["cells"][at]["best"] for row in table["runs"]["rows"]].index(True) == 1


def test_a_run_that_is_not_finished_shows_what_it_has(tmp_path):
    folder = made.run(tmp_path / "run", accuracy=None, steps=14)
    Workdir(folder).write_progress(14, {"training_seconds": 7.0, "best": {"val/accuracy": 0.4}, "warnings": ["odd"]})
    found = read(folder)
    assert "not finished: step 14 of 23" in found.text
    assert "best val accuracy 40.00 %" in found.text and "odd" in found.text
    assert read_runs(find([folder])[0])[0].fact("images_per_second") == pytest.approx(14 * 40 / 7)


def test_an_empty_run_has_a_page(tmp_path):
    folder = made.run(tmp_path / "run", accuracy=None, steps=0)
    assert "No step has been logged yet" in read(folder).text


def test_without_the_data_set_a_line_says_why(tmp_path):
    folder = made.run(tmp_path / "run", "data.name=folder_that_is_not_there")
    made.predict(folder, [0, 1, 2], np.eye(3)[[1, 1, 2]])
    found = read(folder, album=page.Album())
    assert "images are missing: data set 'folder_that_is_not_there'" in found.text and not found.data["images"]


def test_a_data_set_that_has_grown_shows_no_other_images(tmp_path):
    folder = made.run(tmp_path / "run")
    made.predict(folder, [0, 1, 2], np.eye(3)[[1, 1, 2]])
    album = page.Album()
    data = read(folder, album=album).data
    assert data["images"] and not album.faults
    Workdir(folder).images_file.write_text(json.dumps({"train": 180, "validation": 20, "test": 39}))
    found = read(folder, album=page.Album())
    why = "images are missing: the data set is not the one that the run began with: 39 images to test, now 40"
    assert why in found.text and not found.data["images"]


def test_damaged_files_and_images_cost_no_more_than_themselves(tmp_path, monkeypatch):
    folder = made.run(tmp_path / "run")
    made.predict(folder, [0, 1, 2], np.eye(3)[[1, 1, 2]])

    def broken(self, *args):
        raise OSError("the disk\nis gone")

    with monkeypatch.context() as patch:
        patch.setattr(Split, "read_marked", broken)
        found = read(folder, album=page.Album())
    assert "images are missing: the disk is gone" in found.text and found.data["classified"]
    Workdir(folder).predictions_file.write_bytes(b"PK\x03\x04")
    found = read(folder, album=page.Album())
    assert "predictions are missing:" in found.text and not found.data["classified"] and found.data["charts"]


def test_images_that_come_too_late_are_left_out():
    album = page.Album(seconds=0)
    assert "there was no time for more" in read(OLDER / "finished", album=album).text and not album.uris


def test_the_command_writes_a_page_and_explains_mistakes(tmp_path, capsys, monkeypatch):
    folder, out, updates = made.run(tmp_path / "run"), tmp_path / "new" / "report.html", []
    with monkeypatch.context() as patch:
        patch.setattr(page.jax, "config", SimpleNamespace(update=lambda *given: updates.append(given)))
        assert cli.dispatch(["report", str(folder), "--out", str(out), "--no-images"]) == 0
    assert updates == [("jax_platforms", "cpu")]  # a run may train beside it
    assert "run" in Read(out.read_text()).text and f"wrote {out}" in capsys.readouterr().out.replace("\n", "")
    for flags, expected in {
        (str(tmp_path / "new"),): "holds neither a run nor folders of runs",
        (str(folder), str(folder)): "a run is given twice",
    }.items():
        with pytest.raises(UserError, match=expected):
            page.main([*flags, "--out", str(out)])
    with pytest.raises(UserError, match="is a folder; give a file"):
        page.main([str(folder), "--out", str(tmp_path)])


def test_watching_ends_with_the_run_and_the_page_loads_itself_anew(tmp_path, monkeypatch):
    folder, out, pages, albums = made.run(tmp_path / "run", accuracy=None), tmp_path / "report.html", [], []

    def train(seconds):
        pages.append(out.read_text())
        Workdir(folder).write_result({"steps": 20, "test/accuracy": 0.9})

    def rendered(*args, album, **options):
        albums.append(album)
        return render(*args, **options)

    render = page.render
    monkeypatch.setattr(page, "render", rendered)

    monkeypatch.setattr(page.time, "sleep", train)
    assert page.main([str(folder), "--out", str(out), "--watch", "--no-images"]) == 0
    assert 'data-refresh="10"' in pages[0] and "training: step 20 of 23" in pages[0]
    assert len(pages) == 1 and 'data-refresh="0"' in out.read_text() and albums == [None, None]
    Workdir(folder).result_file.unlink()
    assert page.main([str(folder), "--out", str(out), "--watch"]) == 0
    assert albums[2] is albums[3] is not None  # which opens the data set once


def test_what_is_wrong_with_the_page_is_told_and_harms_no_run(tmp_path, caplog):
    folder = made.run(tmp_path / "run", "log.tensorboard=false")
    Workdir(folder).metrics_file.write_text("not JSON\n{}\n")
    with caplog.at_level(logging.WARNING):
        page.write_report(folder)
    assert "report.html could not be written" in caplog.text
    assert not Workdir(folder).report_file.exists()


@pytest.mark.parametrize("wanted", [True, False])
def test_training_leaves_the_page_unless_it_is_turned_off(tmp_path, monkeypatch, wanted):
    folder = made.run(tmp_path / "run", "log.tensorboard=false")
    data = open_data(Workdir(folder).config().data)
    monkeypatch.setattr(main, "train", lambda given, workdir, console: Result(workdir, 0, {}, data))
    monkeypatch.setattr(page, "augmented", lambda run, album: {})
    main.start(Workdir(folder).config(), folder, [f"log.report={wanted}"])
    assert Workdir(folder).report_file.exists() is wanted


def test_a_task_brings_sections_of_its_own(tmp_path):
    folder = made.run(tmp_path / "run")
    tree = json.loads(Workdir(folder).config_file.read_text())
    tree["task"] = tasks.settings("masked_autoencoder")
    tree["model"] = models.settings("vit", patch_size=(1,), width=8, depth=1, mlp_dim=8, num_heads=2)
    Workdir(folder).config_file.write_text(json.dumps(tree))
    assert "Reconstructions" not in read(folder).text
    page.Image.new("RGB", (40, 30)).save(folder / "reconstructions.png")
    found = read(folder)
    assert "Reconstructions" in found.text and any(a.startswith("data:image/jpeg") for a in found.addresses)


def test_sections_write_metrics_as_the_registry_says(tmp_path):
    rows = [("cat", 0.123, 0.5)]
    filled = page._filled(page.Section("Classes", columns=("class", "accuracy", "loss"), rows=rows))
    assert filled["columns"] == ["class", "accuracy", "loss"] and filled["rows"] == [["cat", "12.30 %", "0.5000"]]


@pytest.mark.slow
def test_ten_runs_of_ten_thousand_points_fit_into_five_megabytes(tmp_path):
    for i in range(10):
        made.run(tmp_path / f"run{i}", f"optim.lr={i + 1}e-3", steps=10_000)
    page.write([tmp_path], tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert len(text) < 5e6
    steps, values = Read(text).data["runs"][3]["series"]["train/loss"]
    assert steps[0] == 1 and steps[-1] == 10_000 and 400 < len(steps) <= 900
    assert max(values) == pytest.approx(2.1, abs=1e-2)  # peaks stay
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
