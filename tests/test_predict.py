"""The command `vit_jax.predict`: what it prints, where, and its exit codes."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from tests.conftest import REPOSITORY
from tests.pretrained import google_files
from vit_jax import inference, predict
from vit_jax.command import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory) -> Path:
    return tiny.finished(tmp_path_factory, "cnn")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Eleven images of several sizes, one in a folder, and files that are none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for i in range(11):
        name = "more/Ätna 山.png" if i == 10 else f"{i:02}.jpg"
        Image.fromarray(RNG.integers(0, 256, (5 + i, 17 - i, 3), np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def broken(tmp_path_factory) -> Path:
    """Four images, the second cut off, the third empty."""
    folder = tmp_path_factory.mktemp("broken")
    for name in ("a.png", "b.png", "d.png"):
        Image.fromarray(RNG.integers(0, 256, (9, 9, 3), np.uint8)).save(folder / name)
    (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:70])
    (folder / "c.jpg").touch()
    return folder


def files(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.[jp][pn]g"))


def test_json_lines(workdir, photos, capfd):
    assert predict.main(["--workdir", str(workdir), str(photos), "--json", "--top", "2", "--batch_size", "4"]) == 0
    printed = capfd.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    expected = inference.load(workdir).predict(photos)
    assert [line["file"] for line in lines] == list(expected.files) == files(photos)
    for line, best in zip(lines, expected.top(2), strict=True):
        assert [found["class"] for found in line["top"]] == [name for name, _ in best]
        probabilities = [found["probability"] for found in line["top"]]
        np.testing.assert_allclose(probabilities, [share for _, share in best], rtol=1e-5)
    assert "Ätna 山.png" in printed.out, "text is written as it is, not escaped"
    assert "11 images; the first 4 took" in printed.err and "images/s" in printed.err


def test_csv(workdir, photos, capfd):
    assert predict.main(["--workdir", str(workdir), str(photos / "03.jpg"), str(photos / "more"), "--csv"]) == 0
    header, *rows = csv.reader(io.StringIO(capfd.readouterr().out))
    pairs = ["class", "probability", "class 2", "probability 2", "class 3", "probability 3"]
    assert header == ["file", *pairs]  # of three classes no more than three are named
    assert [row[0] for row in rows] == [str(photos / "03.jpg"), str(photos / "more/Ätna 山.png")]
    for row in rows:
        probabilities = [float(text) for text in row[2::2]]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) == pytest.approx(1, abs=1e-6)
        assert sorted(row[1::2]) == ["class 0", "class 1", "class 2"]


def test_the_table(workdir, photos, capfd):
    assert predict.main(["--workdir", str(workdir), str(photos)]) == 0
    header, *rows = capfd.readouterr().out.splitlines()
    assert header.split() == ["file", "class", "probability", "next"] and len(rows) == 11
    for row, name, best in zip(rows, files(photos), inference.load(workdir).predict(photos).top(3), strict=True):
        (first, share), (second, other), _ = best
        assert row.startswith(f"{name}  ") and f"  {first}  " in row and f"{100 * share:.2f} %  {second}" in row
        assert f"{second} {100 * other:.2f} %, " in row
    assert predict.main(["--workdir", str(workdir), str(photos), "--top=1"]) == 0
    assert "next" not in capfd.readouterr().out


def test_a_narrow_terminal_keeps_files_and_classes_whole(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")  # 80 columns and no colours
    results = [
        (f"folder/photo{i}.jpg", [("[red] panda", 0.5), ("a bear", 0.25), ("a kangaroo", 0.125)]) for i in (1, 2)
    ]
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "w") as out:
        predict.write_table(results, out, top=3)
        _, *rows = os.read(ours, 10_000).decode().splitlines()
    os.close(ours)
    starts = [f"folder/photo{i}.jpg  [red] panda      50.00 %  a bear 25" for i in (1, 2)]
    assert [row[: len(start)] for row, start in zip(rows, starts, strict=True)] == starts
    assert all(row.rstrip().endswith("…") and len(row) == 80 for row in rows)


def test_published_weights(photos, tmp_path, capfd):
    np.savez(tmp_path / "weights.npz", **google_files.random_arrays(google_files.vision_transformer()))
    weights = ["--weights", str(tmp_path / "weights.npz")]
    assert predict.main([*weights, str(photos), "--json", "--config.data.resize=stretch"]) == 0
    first = json.loads(capfd.readouterr().out.splitlines()[0])
    assert len(first["top"]) == 5 and first["top"][0]["class"] in [f"class {i}" for i in range(11)]
    predictor = inference.load(weights[1], overrides=["data.resize=stretch"])
    expected = predictor.predict(files(photos)[0]).probabilities.max()
    assert first["top"][0]["probability"] == pytest.approx(expected, rel=1e-5)
    np.savez(tmp_path / "weights.npz", **google_files.random_arrays(google_files.vision_transformer(classes=0)))
    with pytest.raises(UserError, match="have no head"):
        predict.main([*weights, str(photos)])


@pytest.mark.parametrize(("name", "lines"), [("x.csv", 12), ("x.jsonl", 11), ("x.JSONL", 11)])
def test_results_go_into_a_file(workdir, photos, tmp_path, capfd, name, lines):
    assert predict.main(["--workdir", str(workdir), str(photos), "--out", str(tmp_path / name)]) == 0
    written = (tmp_path / name).read_text(encoding="utf-8").splitlines()
    assert len(written) == lines and ("json" in name.lower()) == written[-1].startswith("{")
    assert capfd.readouterr().out == ""


def test_ctrl_c_keeps_what_is_finished_and_a_link_stays_one(tmp_path, capsys):
    target, link = tmp_path / "far" / "x.csv", tmp_path / "x.csv"
    target.parent.mkdir()
    link.symlink_to(target)
    with pytest.raises(KeyboardInterrupt), predict._opened(link) as out:
        out.write("one\n")
        raise KeyboardInterrupt
    part = target.with_name("x.csv.part")
    assert part.read_text() == "one\n" and not target.exists()
    assert capsys.readouterr().err == f"what was finished is in {part}\n"
    with predict._opened(link) as out:
        out.write("two\n")
    assert link.is_symlink() and target.read_text() == "two\n" and not part.exists()


def test_a_flag_decides_the_format_before_the_files_name(workdir, photos, tmp_path):
    assert predict.main(["--workdir", str(workdir), str(photos), "--csv", "--out", str(tmp_path / "x.json")]) == 0
    assert (tmp_path / "x.json").read_text().startswith("file,class")


def test_broken_files_are_told_and_the_others_go_on(workdir, broken, capfd):
    assert predict.main(["--workdir", str(workdir), str(broken), "--json", "--batch_size=1"]) == 1
    printed = capfd.readouterr()
    assert [Path(json.loads(line)["file"]).name for line in printed.out.splitlines()] == ["a.png", "d.png"]
    told = [line for line in printed.err.splitlines() if "is left out: " in line]
    assert [line.startswith(str(broken / name)) for line, name in zip(told, ("b.png", "c.jpg"), strict=True)] == [
        True
    ] * 2
    assert "2 of 4 files could not be read" in printed.err


def test_only_broken_files(workdir, broken, capfd):
    assert predict.main(["--workdir", str(workdir), str(broken / "b.png"), str(broken / "c.jpg")]) == 1
    printed = capfd.readouterr()
    assert printed.out == "" and "2 of 2 files could not be read" in printed.err and "images; " not in printed.err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["PHOTOS"], "one of the arguments --workdir --weights is required"),
        (["PHOTOS", "--workdir=RUN", "--weights=x.npz"], "--weights: not allowed with argument --workdir"),
        (["--workdir=RUN"], "PATH"),
        (["PHOTOS", "--workdir=no-such-run"], "no-such-run holds no run: it has no config.json"),
        (["PHOTOS", "--weights=no-such.npz"], "no-such.npz is neither a run"),
        (["PHOTOS/notes", "--workdir=RUN"], "PHOTOS/notes is not there"),
        (["EMPTY", "--workdir=RUN"], "no image"),
        (["PHOTOS", "--workdir=RUN", "--top=0"], "--top 0 is not positive"),
        (["PHOTOS", "--workdir=RUN", "--batch_size=0"], "--batch_size 0 is not positive"),
        (["PHOTOS", "--workdir=RUN", "--out=x.txt"], "--out x.txt does not end in .jsonl, .csv"),
        (["PHOTOS", "--workdir=RUN", "--out=RUN/config.json"], "config.json does not end in .jsonl, .csv; rename it"),
        (["PHOTOS", "--workdir=RUN", "--out=no/such/x.csv"], "cannot write --out no/such/x.csv: No such file"),
        (["PHOTOS", "--workdir=RUN", "--json", "--csv"], "--csv: not allowed with argument --json"),
        (["PHOTOS", "--workdir=RUN", "--config.data.thread=3"], "did you mean data.threads"),
    ],
)
def test_mistakes(workdir, photos, tmp_path, flags, expected):
    places = {"PHOTOS": photos, "RUN": workdir, "EMPTY": tmp_path}
    for name, place in places.items():
        *flags, expected = (text.replace(name, str(place)) for text in (*flags, expected))
    with pytest.raises(UserError) as mistake:
        predict.main(flags)
    assert expected in str(mistake.value)


def test_the_process(workdir, broken, tmp_path):
    """The exit code, and names that are not UTF-8."""
    name = os.fsdecode(b"\xff.png")
    Image.new("L", (3, 3)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / name)
    words = ["-m", "vit_jax.predict", "--workdir", workdir, tmp_path, broken, "--json"]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and len(lines) == 3 and b"\xff.png" in lines[0] and b"Traceback" not in done.stderr
