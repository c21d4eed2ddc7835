"""AugReg's index: which file an address means, on a table in the published format."""

import pytest

from vit_jax import models
from vit_jax.command import UserError
from vit_jax.pretrained import augreg

COLUMNS = (
    "name,ds,epochs,lr,aug,wd,do,sd,best_val,final_val,final_test,adapt_ds,adapt_lr,adapt_steps,adapt_resolution,"
    "adapt_final_val,adapt_final_test,params,infer_samples_per_sec,filename,adapt_filename\n"
)
LIGHT = "B_16-i21k-300ep-lr_0.001-aug_light1-wd_0.1-do_0.0-sd_0.0"
MEDIUM = "B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0"
SMALL = "B_16-i1k-300ep-lr_0.001-aug_strong1-wd_0.1-do_0.0-sd_0.0"
HYBRID = "R_Ti_16-i21k-300ep-lr_0.001-aug_none-wd_0.03-do_0.0-sd_0.0"


def row(name: str, ds: str, final_val: float, filename: str, adapted: str, resolution: int, adapt_val: float) -> str:
    aug = filename.split("aug_")[1].split("-")[0]
    # best_val and final_test are the other way round, so that they would choose other files.
    upstream = f"{name},{ds},300.0,0.001,{aug},0.1,0.0,0.0,{1 - final_val},{final_val},{1 - final_val}"
    file = f"{filename}--{adapted}-steps_10k-lr_0.01-res_{resolution}"
    return (
        f"{upstream},{adapted},0.01,10000,{resolution},{adapt_val},{1 - adapt_val},86567656,138.0,{filename},{file}\n"
    )


INDEX = COLUMNS + "".join(
    [
        row("B/16", "i21k", 0.47, LIGHT, "cifar100", 384, 0.95),
        row("B/16", "i21k", 0.48, MEDIUM, "cifar100", 224, 0.91),
        row("B/16", "i21k", 0.48, MEDIUM, "cifar100", 384, 0.93),
        row("B/16", "i21k", 0.48, MEDIUM, "kitti", 224, 0.97),
        row("B/16", "i1k", 0.79, SMALL, "cifar100", 384, 0.96),
        row("R+Ti/16", "i21k", 0.31, HYBRID, "kitti", 224, 0.71),
    ]
)
BUCKET = "https://storage.googleapis.com/vit_models/augreg"


def read_text(address: str) -> str:
    assert address == f"{BUCKET}/index.csv"
    return INDEX


@pytest.mark.parametrize("model", ["B/16", "B_16", "ViT-B_16", "vit_b16", "vit/B16"])
def test_a_models_name_means_the_best_pretrained_on_imagenet21k(model):
    assert augreg.best_upstream(augreg.read_index(INDEX), model) == MEDIUM
    assert augreg.resolve(f"augreg://{model}", read_text) == f"{BUCKET}/{MEDIUM}.npz"


@pytest.mark.parametrize("model", ["R+Ti/16", "R_Ti_16", "R+Ti_16", "R+ViT-Ti_16", "hybrid/R+Ti16"])
def test_hybrids_have_a_plus_in_their_names(model):
    assert augreg.resolve(f"augreg://{model}", read_text) == f"{BUCKET}/{HYBRID}.npz"


def test_a_missing_accuracy_is_never_the_best():
    text = INDEX + row("B/16", "i21k", 0.75, LIGHT, "kitti", 224, 0.5).replace(",0.75,", ",,")
    assert augreg.best_upstream(augreg.read_index(text), "B/16") == MEDIUM


def test_another_upstream():
    assert augreg.best_upstream(augreg.read_index(INDEX), "B/16", "i1k") == SMALL


@pytest.mark.parametrize(
    ("address", "file"),
    [
        ("augreg://B/16/cifar100", f"{MEDIUM}--cifar100-steps_10k-lr_0.01-res_384"),
        ("augreg://B_16/cifar100", f"{MEDIUM}--cifar100-steps_10k-lr_0.01-res_384"),
        ("augreg://B/16/cifar100/224", f"{MEDIUM}--cifar100-steps_10k-lr_0.01-res_224"),
        ("augreg://vit_b16/kitti", f"{MEDIUM}--kitti-steps_10k-lr_0.01-res_224"),
    ],
)
def test_a_data_set_means_the_best_fine_tuned_from_the_best_pretrained(address, file):
    assert augreg.resolve(address, read_text) == f"{BUCKET}/{file}.npz"


@pytest.mark.parametrize("file", [LIGHT, f"{HYBRID}--kitti-steps_2k-lr_0.03-res_224", f"{SMALL}.npz"])
def test_a_files_name_needs_no_index(file):
    def unread(address: str) -> str:
        raise AssertionError(address)

    assert augreg.resolve(f"augreg://{file}", unread) == f"{BUCKET}/{file.removesuffix('.npz')}.npz"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("augreg://H/14", r"no model 'H/14' pre-trained on i21k; known: B/16, R\+Ti/16"),
        (
            "augreg://B/16/cifar10",
            "has not fine-tuned 'B/16' to 'cifar10'; known: cifar100/224, cifar100/384, kitti/224",
        ),
        ("augreg://B/16/kitti/384", "to 'kitti/384'"),
        ("augreg://B/16/kitti/large", r"expected augreg://MODEL\[/DATASET\[/RESOLUTION\]\]"),
        ("augreg://B/16/kitti/224/1", "expected augreg://MODEL"),
        ("augreg://", "no model ''"),
    ],
)
def test_errors_list_what_there_is(address, message):
    with pytest.raises(UserError, match=message):
        augreg.resolve(address, read_text)


def test_another_table_is_refused():
    with pytest.raises(UserError, match="no columns ds, final_val, .*adapt_filename; is it the table at https"):
        augreg.read_index("name,accuracy\nB/16,0.5\n")


@pytest.mark.parametrize(
    ("name", "row", "address"),
    [
        ("ViT-B_16", "vit/B16", "https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz"),
        ("vit_b16", "vit/B16", "https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz"),
        ("b16", "vit/B16", "https://storage.googleapis.com/vit_models/imagenet21k/ViT-B_16.npz"),
        ("vit_ti16", "vit/Ti16", "augreg://Ti/16"),
        ("r50_b16", "hybrid/R50+B16", "https://storage.googleapis.com/vit_models/imagenet21k/R50+ViT-B_16.npz"),
        ("mixer_b16", "mixer/B16", "https://storage.googleapis.com/mixer_models/imagenet21k/Mixer-B_16.npz"),
        ("bit/152x4", "bit/152x4", "https://storage.googleapis.com/bit_models/BiT-M-R152x4.npz"),
    ],
)
def test_published_weights(name, row, address):
    assert augreg.known(name) == (row, address)


def test_published_names_are_rows_of_the_tables_and_unambiguous():
    for name, (row, address) in augreg.PUBLISHED.items():
        assert row in models.names()
        assert augreg.known(name) == augreg.known(row) == (row, address)
    assert augreg.known("ViT-X_16") is None
