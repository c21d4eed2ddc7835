"""Accuracy against the operations of training: which points are the best, what is drawn, what is refused."""

import json
from xml.etree import ElementTree

import pytest

from tests.conftest import REPOSITORY
from vit_jax import command
from vit_jax.command import UserError
from vit_jax.report import frontier
from vit_jax.report.frontier import Point

KEPT = REPOSITORY / "benchmarks" / "results" / "accuracy"


def point(flops: int, accuracy: float, kind: str = "ViT") -> Point:
    return Point(f"{flops}", kind, float(flops), accuracy, True, "<here>")


def result(folder, name: str, **changes):
    """A finished run's folder."""
    given = {"model": {"name": "cnn/conv3"}, "data": {"name": "cifar10"}, "train": {"batch_size": 7}, "optim": {}}
    content = {"test/accuracy": 0.9, "flops_per_image": 11, "steps": 13, "workdir": f"runs/{name}", "config": given}
    (folder / name).mkdir()
    (folder / name / "result.json").write_text(json.dumps(content | changes))
    return folder / name


def test_the_best_are_those_that_nothing_cheaper_beats():
    points = [point(3, 0.7), point(1, 0.5), point(2, 0.7), point(4, 0.6), point(5, 0.9), point(1, 0.4)]
    assert [(p.flops, p.accuracy) for p in frontier.frontier(points)] == [(1, 0.5), (2, 0.7), (5, 0.9)]


def test_every_published_point_has_a_source():
    points = frontier.published("cifar10")
    assert len(points) >= 12 and all(p.about and 1e13 < p.flops < 1e19 and 0.8 < p.accuracy < 1 for p in points)
    assert frontier.published("digits") == []


def test_runs_are_read_from_folders_and_files(tmp_path):
    one = result(tmp_path, "one")
    other = result(tmp_path, "other", training_flops=5e9)
    (found,) = frontier.trained([one], "cifar10")
    assert (found.kind, found.flops, found.accuracy, found.model) == ("CNN", 3 * 11 * 13 * 7, 0.9, "one")
    assert [p.flops for p in frontier.trained([tmp_path], "cifar10")] == [3003, 5e9]
    assert frontier.trained([other / "result.json"], "digits") == []


def test_the_picture_holds_each_point_once(tmp_path, capsys):
    out = tmp_path / "made" / "frontier.svg"
    assert frontier.main([str(KEPT), "--out", str(out)]) == command.DONE
    circles = [e for e in ElementTree.parse(out).iter() if e.tag.endswith("circle") and e.get("data-model")]
    drawn, below = (
        capsys.readouterr().out.count("FLOP "),
        int(out.read_text().partition(" more below")[0].split(">")[-1]),
    )
    assert len(circles) + below == drawn > 30
    assert all(0 < float(e.get("cx")) < frontier.WIDTH and 0 < float(e.get("cy")) < frontier.HEIGHT for e in circles)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--out", "frontier.gif"], "the picture is an SVG; give a file such as frontier.svg"),
        (["nowhere", "--out", "x.svg"], "nowhere holds no finished run of a classification"),
        (["--data", "digits", "--out", "x.svg"], "--data digits: no run and no published point"),
        (["--published", "missing.csv", "--out", "x.svg"], "missing.csv cannot be read"),
    ],
)
def test_what_cannot_be_drawn_is_refused(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        frontier.main(flags)
