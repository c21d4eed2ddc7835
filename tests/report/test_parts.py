"""Curves, predictions and comparisons, as the page gets them."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.report import made
from vit_jax.report import classified, compared, curves, runs
from vit_jax.report.runs import find, read_runs


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300), st.integers(4, 50))
def test_thin_curves_keep_their_ends_and_their_extremes(values, points):
    values = np.asarray(values)
    kept = curves.thinned(values, points)
    assert kept[0] and kept[-1] and kept.sum() <= max(len(values) if len(values) <= points else 0, points + 2)
    assert values[kept].min() == values.min() and values[kept].max() == values.max()


def test_seconds_are_those_of_training(tmp_path):
    [run] = read_runs(find([made.run(tmp_path / "run", steps=6)])[0])
    steps, seconds = curves.seconds(run)
    assert steps == [0, 1, 2, 3, 4, 5, 6] and seconds == [0, 0.5, 1, 1.5, 2, 2.5, 3]  # 40 images a step, 80 a second


def test_the_best_step_is_the_last_of_equals_and_less_may_be_better(tmp_path):
    [run] = read_runs(find([made.run(tmp_path / "run", steps=20)])[0])
    assert run.best == (15, pytest.approx(0.5625))  # x (1.5 - x) has its maximum at 0.75
    [run] = read_runs(find([made.run(tmp_path / "loss", "evaluate.metric=loss", accuracy=None)])[0])
    assert run.best == (20, 1.0)


def test_predictions_by_hand(tmp_path):
    folder = made.run(tmp_path / "run")
    likely = np.log([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.05, 0.05, 0.9]])
    made.predict(folder, [0, 1, 1, 1], likely)
    [run] = read_runs(find([folder])[0])
    found = classified.read(run)
    about, cards = classified.describe(found), classified.cards(found)
    assert about["matrix"] == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]
    cat, dog, emu = about["per_class"]
    assert cat == [0, 1, 1.0, 0.5, pytest.approx(2 / 3), None, 0.0]
    assert dog == [1, 3, pytest.approx(1 / 3), 1.0, 0.5, 0, pytest.approx(1 / 3)] and emu[1:3] == [0, None]
    assert [card["place"] for card in cards["mistakes"]] == [3, 1]
    assert [card["place"] for card in cards["hits"]] == [2, 0]
    assert cards["mistakes"][0] == {"place": 3, "label": 1, "top": [[2, 0.9], [0, 0.05], [1, 0.05]]}
    assert classified.cells(found, about["shown"]) == {"1,2": [3], "1,0": [1], "0,0": [0], "1,1": [2]}
    bins = {b: (share, round(sure, 3), right) for b, share, sure, right in about["reliability"]}
    assert bins == {8: (0.25, 0.6, 0.0), 10: (0.25, 0.7, 1.0), 11: (0.25, 0.8, 1.0), 13: (0.25, 0.9, 0.0)}
    assert classified.picture(found).size == (108, 108)


def test_logits_that_are_not_finite_have_a_page():
    nothing = np.full(3, np.nan)
    found = classified.Classified(made.CLASSES, np.arange(3), np.arange(3), np.full(3, -1), nothing, None)
    assert classified.describe(found)["reliability"] == []
    json.dumps(classified.cards(found), allow_nan=False)


def test_of_many_classes_those_that_are_confused_most_are_shown():
    matrix = np.eye(100, dtype=int) * 9
    matrix[90, 95] = 5
    shown = classified.most_confused(matrix)
    assert len(shown) == classified.SHOWN_CLASSES and {90, 95} < set(shown) and shown == sorted(shown)


def test_a_field_that_was_swept_has_a_plot(tmp_path):
    for limit, accuracy in ((20, 0.4), (80, 0.6), (0, 0.7)):
        for seed in (0, 1):
            overrides = (f"data.limit={limit}", f"seed={seed}")
            made.run(tmp_path / f"x-limit={limit}-seed{seed}", *overrides, accuracy=accuracy + 0.1 * seed)
    made.run(tmp_path / "other", "optim.lr=0.5", accuracy=0.1)
    runs = read_runs(find([tmp_path])[0])
    [plot] = compared.swept([run for run in runs if run.name != "other"])
    assert plot["title"] == "Test accuracy against data.limit" and plot["log_x"]
    [line] = plot["lines"]
    assert line["x"] == [20, 80, 180] and line["y"] == [0.45, 0.65, 0.75]  # no limit: all 180 images
    assert len(line["points"]) == 6
    plots = {plot["id"]: plot for plot in compared.swept(runs)}
    assert set(plots) == {"sweep-data.limit", "sweep-optim.lr"}
    assert [line["y"] for line in plots["sweep-optim.lr"]["lines"]] == [[0.75, 0.1]]
    assert compared.compute(runs) == []  # all took the same


def test_compute_counts_both_passes_of_sam_and_says_what_it_leaves_out(tmp_path):
    for name, overrides in {"a": (), "b": ("optim.sam_rho=0.1",), "c": ("optim.freeze=^stem",)}.items():
        made.run(tmp_path / name, *overrides)
    plain, sam, frozen = read_runs(find([tmp_path])[0])
    assert (plain.flops_per_step, sam.flops_per_step) == (3 * 7000 * 40, 6 * 7000 * 40)
    [plot] = compared.compute([plain, sam])
    assert plot["x"] == "FLOPs of training" and [line["x"] for line in plot["lines"]] == [[16.8e6], [33.6e6]]
    assert runs.flops_label([plain, frozen]) == "model FLOPs, 3 × forward"
    assert runs.flops_label([sam, frozen]) == "model FLOPs, 3 × forward, SAM 6 ×"


def test_means_leave_out_seeds_that_diverged(tmp_path):
    for limit, accuracies in ((20, (0.4, float("nan"))), (80, (0.6, 0.8)), (40, (float("inf"),))):
        for seed, accuracy in enumerate(accuracies):
            made.run(tmp_path / f"{limit}-{seed}", f"data.limit={limit}", f"seed={seed}", accuracy=accuracy)
    [plot] = compared.swept(read_runs(find([tmp_path])[0]))
    assert [(line["x"], line["y"]) for line in plot["lines"]] == [([20, 80], [0.4, 0.7])]


def test_corruption_of_a_comparison_has_a_line_for_each_kind(tmp_path):
    clean = ["corruption.kind=none", "corruption.severity=0"]
    blur = [["corruption.kind=blur", f"corruption.severity={severity}"] for severity in (5, 1)]
    rows = [
        {"variant": "vit", "with": chosen, "monitor": "accuracy", "test/accuracy": values}
        for chosen, values in ((clean, [0.9, 0.8]), (blur[0], [0.3, 0.1]), (blur[1], [0.7, 0.6]))
    ]
    (tmp_path / "comparison.json").write_text(json.dumps(rows))
    [plot] = compared.corrupted(tmp_path)
    [line] = plot["lines"]
    assert line["label"] == "vit: blur" and line["x"] == [0, 1, 5] and line["y"] == [0.85, 0.65, 0.2]
    assert not plot["log_x"] and plot["percent"]
    (tmp_path / "comparison.json").write_text("{")
    assert compared.corrupted(tmp_path) == []


def test_shape_and_texture_stand_beside_a_comparison(tmp_path):
    (tmp_path / "texture").mkdir()
    found = {"models": {"vit": {"accuracy": 0.9, "shape_bias": 0.3}, "cnn": {"accuracy": 0.9, "shape_bias": None}}}
    (tmp_path / "texture" / "texture.json").write_text(json.dumps(found))
    assert [(row["name"], row["shape_bias"]) for row in compared.texture(tmp_path)] == [("vit", 0.3), ("cnn", None)]


def test_differences_leave_out_the_seed(tmp_path):
    for name, overrides in {"a": ("seed=1",), "b": ("optim.lr=0.5",)}.items():
        made.run(tmp_path / name, *overrides)
    made.run(tmp_path / "c", arg="vit")
    runs = read_runs(find([tmp_path])[0])
    assert compared.differences(runs[:2]) == {"optim.lr": ["0.03", "0.5"]}
    assert compared.differences(runs)["model.patch_size"] == [None, None, "(4,)"]
