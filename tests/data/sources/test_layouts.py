"""Folders as well-known data sets and phones leave them: read, or told what was passed over."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.images import encoded
from vit_jax.command import UserError
from vit_jax.data.files import find_images
from vit_jax.data.sources import Dataset, folder, open_dataset


def fill(root: Path, *names: str) -> Path:
    """Files, each an image of its own, though the last four bytes of a name may be no image's."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(list(name.encode()))
        path.write_bytes(encoded(rng.integers(0, 256, (5, 7, 3), np.uint8)))
    return root


def opened(root: Path) -> Dataset:
    return open_dataset(str(root), Path("/no/such/folder"))


def files(data: Dataset, split: str, root: Path) -> dict[str, str]:
    """Each file of a split, with its class."""
    source = data.source(split)
    names = [data.class_names[label] for label in source.labels()]
    return {str(Path(source.describe(i)).relative_to(root)): names[i] for i in range(len(source))}


def test_photos_that_pillow_cannot_read_are_counted(tmp_path, caplog):
    fill(tmp_path, *(f"{c}/{i}.{end}" for c in "ab" for i, end in enumerate(["HEIC"] * 3 + ["jpg"] * 2 + ["txt"])))
    fill(tmp_path, "a/noname", "b/.hidden", "a/Thumbs.db")
    if ".heic" in folder._extensions():
        pytest.skip("pillow-heif is installed")
    assert opened(tmp_path).splits == {"train": 2, "test": 2}
    assert "passed over: 6 .heic, 1 without an extension; convert or rename them; `pip install" in caplog.text
    caplog.clear()
    assert len(find_images([str(tmp_path)])) == 4
    assert "passed over: 6 .heic" in caplog.text


@pytest.mark.parametrize("twice", [True, False])
def test_a_word_before_each_split(tmp_path, caplog, twice):
    inside = {split: f"seg_{split}/seg_{split}" if twice else f"seg_{split}" for split in ("train", "test", "pred")}
    fill(tmp_path, *(f"{inside[split]}/{c}/{i}.jpg" for split in ("train", "test") for c in "ab" for i in range(3)))
    fill(tmp_path, f"{inside['pred']}/1.jpg")
    data = opened(tmp_path)
    assert data.class_names == ("a", "b") and data.splits == {"train": 6, "test": 6}
    assert all(
        name.startswith(inside["test"]) and f"/{c}/" in name for name, c in files(data, "test", tmp_path).items()
    )
    assert "folders that are no split, passed over: seg_pred/" in caplog.text


def test_a_class_whose_name_ends_in_train_is_a_class(tmp_path):
    fill(tmp_path, *(f"{c}/{i}.jpg" for c in ("bullet_train", "steam_train", "bus") for i in range(3)))
    assert opened(tmp_path).class_names == ("bullet_train", "bus", "steam_train")


def test_classes_in_the_names_of_files(tmp_path):
    fill(tmp_path, *(f"train/{c}.{i}.jpg" for c in ("cat", "dog") for i in range(5)), "test1/1.jpg")
    with pytest.raises(UserError, match="neither test/ nor val/; add one, or give .*/train, of which a fifth"):
        opened(tmp_path)
    data = opened(tmp_path / "train")
    assert data.class_names == ("cat", "dog") and data.splits == {"train": 8, "test": 2}
    for split in data.splits:
        assert all(name.startswith(f"{c}.") for name, c in files(data, split, tmp_path / "train").items())
    fill(tmp_path, "train/IMG_1.jpg")
    with pytest.raises(UserError, match="11 images beside it; .* files that are all called CLASS.NUMBER.jpg"):
        opened(tmp_path / "train")


def tiny_imagenet(root: Path) -> Path:
    fill(root, *(f"train/{c}/images/{c}_{i}.JPEG" for c in ("n01", "n02") for i in range(4)))
    fill(root, *(f"{split}/images/{split}_{i}.JPEG" for split in ("val", "test") for i in range(4)))
    rows = [f"val_{i}.JPEG\tn0{1 + i % 2}\t0\t32\t44\t62" for i in range(4)]
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    return root


def test_tiny_imagenet(tmp_path, caplog):
    data = opened(tiny_imagenet(tmp_path))
    assert data.class_names == ("n01", "n02") and data.splits == {"train": 8, "validation": 4}
    assert files(data, "validation", tmp_path) == {f"val/images/val_{i}.JPEG": f"n0{1 + i % 2}" for i in range(4)}
    assert "test/ has no classes and is passed over; the images of val/ are the test images" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("val_9.JPEG\tn01\n", "lists 1 images that are not there, such as .*val_9.JPEG"),
        ("../../x.JPEG\tn01\n", "holds '../../x.JPEG'; expected lines of FILE and CLASS"),
        ("val_0.JPEG n01\n", "holds 'val_0.JPEG n01'; expected lines"),
        ("", "is empty"),
        (b"\xff\xfe\n", "is not UTF-8 text"),
    ],
)
def test_damaged_annotations(tmp_path, text, said):
    content = text if isinstance(text, bytes) else text.encode()
    (tiny_imagenet(tmp_path) / "val" / "val_annotations.txt").write_bytes(content)
    with pytest.raises(UserError, match=said):
        opened(tmp_path)


def test_copies_of_training_images_are_told(tmp_path, caplog):
    fill(tmp_path, *(f"{split}/{c}/{i}.png" for split in ("train", "test") for c in "ab" for i in range(4)))
    opened(tmp_path)
    assert "copies" not in caplog.text
    for i in range(3):
        (tmp_path / "test" / "a" / f"copy{i}.png").write_bytes((tmp_path / "train" / "b" / f"{i}.png").read_bytes())
    opened(tmp_path)
    assert "3 files of test (such as test/a/copy0.png) are copies of training files" in caplog.text


def test_a_class_that_links_to_where_it_lies_is_refused(tmp_path):
    fill(tmp_path, "a/1.png", "b/1.png", "a/2.png", "b/2.png")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)  # inside a class: not followed
    assert opened(tmp_path).splits == {"train": 2, "test": 2}
    (tmp_path / "loop").symlink_to(tmp_path)
    with pytest.raises(UserError, match="loop links to a folder that it lies in"):
        opened(tmp_path)
