"""Labelled data: layouts, one check of all files before anything is computed, left and right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from numpy.typing import NDArray

from rare_trt.cli import main
from rare_trt.errors import RareTrtError, ScanError
from rare_trt.evaluation.cases import Case, find_cases, load_cases, split_by_subject
from rare_trt.evaluation.layouts import check_names
from rare_trt.scan.geometry import Grid
from rare_trt.scan.intensity import IntensityRule
from rare_trt.training.augmentation import augment
from rare_trt.training.recipe import Recipe, load_recipe, recipe_from_json
from rare_trt.training.trainer import train

SHAPE = (8, 9, 10)
RNG = np.random.default_rng(0)
SCAN = RNG.integers(0, 900, SHAPE).astype(np.int16)
LABELS = RNG.integers(0, 3, SHAPE).astype(np.uint8)


def save(path: Path, voxels: NDArray[Any], shift_mm: float = 0.0) -> None:
    """Writes `voxels`, of 1 mm, as the NIfTI file `path`."""
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[0, 3] = shift_mm
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels, affine), path)


def save_pairs(folder: Path, names: Sequence[str], images: str, labels: str) -> None:
    """Writes a scan and a label file per name into two folders."""
    for name in names:
        save(folder / images / f"{name}.nii.gz", SCAN)
        save(folder / labels / f"{name}.nii.gz", LABELS)


def load(folder: Path, channels: int = 1, classes: int = 3) -> list[Case]:
    """The cases of `folder`, checked."""
    return load_cases(find_cases(folder), channels, classes, IntensityRule())


def refused(folder: Path, channels: int = 1, classes: int = 3) -> str:
    """Why `folder` is refused."""
    with pytest.raises(ScanError) as caught:
        load(folder, channels, classes)
    return str(caught.value)


# The check


def test_every_fault_of_every_file_is_reported_at_once(tmp_path: Path) -> None:
    save_pairs(tmp_path, "abcdef", "images", "labels")
    save(tmp_path / "images/b.nii.gz", np.zeros(SHAPE, np.int16))
    save(tmp_path / "labels/b.nii.gz", LABELS.astype(np.int16) * 300)
    save(tmp_path / "labels/c.nii.gz", LABELS * np.float32(0.5))
    save(tmp_path / "labels/d.nii.gz", LABELS, shift_mm=2.0)
    whole = (tmp_path / "images/e.nii.gz").read_bytes()
    (tmp_path / "images/e.nii.gz").write_bytes(whole[:200])
    (tmp_path / "images/f.nii.gz").write_bytes(b"")
    first, *faults = refused(tmp_path).splitlines()
    assert first == "6 faults in the data:"
    expected = (
        ("images/b.nii.gz", "no contrast"),
        ("labels/b.nii.gz", "holds 300, 600; expected 0 to 2"),
        ("labels/c.nii.gz", "holds values that are not whole numbers (0.5)"),
        ("labels/d.nii.gz", "another grid"),
        ("images/e.nii.gz", "the gzip stream is damaged"),
        ("images/f.nii.gz", "the file is empty"),
    )
    for fault, (name, words) in zip(faults, expected, strict=True):
        assert fault.strip().startswith(f"{tmp_path / name}: "), fault
        assert words in fault


def test_labels_in_the_place_of_a_scan_are_refused(tmp_path: Path) -> None:
    """By their header, as everywhere else."""
    save_pairs(tmp_path, "ab", "images", "labels")
    path = tmp_path / "images/b.nii.gz"
    image = nib.Nifti1Image(LABELS, np.eye(4))
    image.header.set_intent("label")
    nib.save(image, path)
    assert f"{path}: the file holds labels" in refused(tmp_path)


def test_labels_do_not_wrap_at_256(tmp_path: Path) -> None:
    labels = LABELS.astype(np.int16)
    labels[0, 0, :2] = 256, 257
    save(tmp_path / "images/a.nii.gz", SCAN)
    save(tmp_path / "labels/a.nii.gz", labels)
    assert "holds 256, 257; expected 0 to 254" in refused(tmp_path, classes=255)


def test_more_labels_than_a_package_takes_are_refused_with_the_recipe() -> None:
    values = load_recipe("hippocampus").as_json()
    network = {**values["network"], "classes": 256}
    labels = ["background", *(f"ball {n}" for n in range(1, 256))]
    with pytest.raises(RareTrtError, match=r"names 256 labels .*at most 255"):
        recipe_from_json({**values, "network": network, "labels": labels})
    network["classes"] = 255
    assert len(recipe_from_json({**values, "network": network, "labels": labels[:255]}).labels)
    with pytest.raises(RareTrtError, match="task is"):
        recipe_from_json({**values, "task": "x" * 251})


@pytest.mark.parametrize(
    ("off", "words"),
    [
        (2e-5, None),
        (-9e-4, None),
        (2e-3, "not whole numbers (1.002)"),
        (0.5, "holds values that are not whole numbers (1.5); expected labels from 0 to 2"),
    ],
)
def test_labels_are_read_where_they_are_nearly_whole(
    tmp_path: Path, off: float, words: str | None
) -> None:
    stored = LABELS.astype(np.float32)
    stored[LABELS == 1] += off
    save(tmp_path / "images/a.nii.gz", SCAN)
    save(tmp_path / "labels/a.nii.gz", stored)
    if words is None:
        (case,) = load(tmp_path)
        assert np.array_equal(case.labels, LABELS)
    else:
        found = refused(tmp_path)
        assert words in found
        assert "not whole numbers" in found


@pytest.mark.parametrize("command", ["train", "evaluate", "calibrate"])
def test_every_command_that_reads_labelled_scans_checks_them(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pairs(tmp_path / "data", ("case_1", "case_2", "case_3"), "images", "labels")
    save(tmp_path / "data/images/case_2.nii.gz", np.zeros(SHAPE, np.int16))
    save(tmp_path / "data/labels/case_3.nii.gz", LABELS + np.uint8(7))
    out = tmp_path / ("out.rare" if command == "calibrate" else "out")
    to = ["--out" if command == "train" else "-o", str(out)]
    assert main([command, "--data", str(tmp_path / "data"), *to]) == 1
    found = capsys.readouterr().err
    assert "2 faults in the data" in found
    assert "case_2.nii.gz: the voxels have no contrast" in found
    assert "case_3.nii.gz: holds 7, 8, 9" in found
    assert not out.exists()


# Layouts


def test_scans_of_one_name_in_several_folders_are_cases_of_their_own(tmp_path: Path) -> None:
    listing = []
    for subject in range(1, 5):
        save(tmp_path / f"sub-{subject}/t1.nii.gz", SCAN)
        save(tmp_path / f"sub-{subject}/seg.nii.gz", LABELS)
        listing.append({"image": f"sub-{subject}/t1.nii.gz", "label": f"sub-{subject}/seg.nii.gz"})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listing}))
    names = [case.name for case in find_cases(tmp_path)]
    assert names == ["sub-1/t1", "sub-2/t1", "sub-3/t1", "sub-4/t1"]
    training, held_out = split_by_subject(names, 1, 0.25, 0)
    assert (len(training), len(held_out)) == (3, 1)


def test_scans_of_one_folder_are_of_one_subject_where_cases_are_counted() -> None:
    names = [f"sub-{subject}/t{scan}" for subject in range(4) for scan in (1, 2)]
    training, held_out = split_by_subject(names, 2, 0.25, 0)
    assert {names[n].partition("/")[0] for n in training}.isdisjoint(
        names[n].partition("/")[0] for n in held_out
    )
    assert (len(training), len(held_out)) == (6, 2)


def test_two_files_of_one_case_are_refused(tmp_path: Path) -> None:
    save_pairs(tmp_path, "ab", "images", "labels")
    save(tmp_path / "images/a.nii", SCAN)
    with pytest.raises(ScanError, match=r"a\.nii, .*a\.nii\.gz: are of one case"):
        find_cases(tmp_path)
    entry = {"image": "images/b.nii.gz", "label": "labels/b.nii.gz"}
    (tmp_path / "dataset.json").write_text(json.dumps({"training": [entry, entry]}))
    with pytest.raises(ScanError, match="are of one case"):
        find_cases(tmp_path)


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    save_pairs(tmp_path, "abc", "images", "labels")
    (tmp_path / "labels/a.nii.gz").unlink()
    (tmp_path / "labels/c.nii.gz").unlink()
    with pytest.raises(ScanError, match=r"labels/a\.nii\.gz, .*labels/c\.nii\.gz: .*2 missing"):
        find_cases(tmp_path)


def nnunet(folder: Path, version: int, channels: int) -> None:
    """Two cases in a layout of nnU-Net, the second channel the first one's negative."""
    for name in ("hip_001", "hip_002"):
        for channel in range(channels):
            voxels = SCAN if channel == 0 else 900 - SCAN
            save(folder / f"imagesTr/{name}_{channel:04d}.nii.gz", voxels)
        save(folder / f"labelsTr/{name}.nii.gz", LABELS)
    modalities = {str(n): ("T1", "FLAIR")[n] for n in range(channels)}
    listing: dict[str, Any] = {
        "labels": {"0": "background", "1": "anterior", "2": "posterior"},
        "modality": modalities,
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in ("hip_001", "hip_002")
        ],
    }
    if version == 2:
        listing = {
            "labels": {"background": 0, "anterior": 1, "posterior": 2, "whole": [1, 2]},
            "channel_names": modalities,
            "numTraining": 2,
            "file_ending": ".nii.gz",
        }
    (folder / "dataset.json").write_text(json.dumps(listing))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("channels", [1, 2])
def test_nnunets_layouts_are_read(tmp_path: Path, version: int, channels: int) -> None:
    nnunet(tmp_path, version, channels)
    cases = load(tmp_path, channels)
    assert [case.name for case in cases] == ["hip_001", "hip_002"]
    for case in cases:
        assert np.array_equal(case.labels, LABELS)
        assert np.array_equal(case.voxels[0], SCAN)
        assert np.array_equal(case.voxels[-1], SCAN if channels == 1 else 900 - SCAN)
    check_names(tmp_path, ("Background", "Anterior", "other"), ("T1", "FLAIR"))
    with pytest.raises(ScanError, match="label 1 is 'posterior', which has the number 2 there"):
        check_names(tmp_path, ("background", "posterior", "anterior"), ("T1",))
    if channels == 2:
        assert "is one of 2 files, one per channel; expected 3" in refused(tmp_path, 3)
        with pytest.raises(ScanError, match="channel 0 is 'FLAIR', which has the number 1"):
            check_names(tmp_path, ("background",), ("FLAIR", "T1"))


def test_a_missing_channel_is_named(tmp_path: Path) -> None:
    nnunet(tmp_path, 2, 2)
    (tmp_path / "imagesTr/hip_002_0000.nii.gz").unlink()
    with pytest.raises(ScanError, match=r"hip_002_0000\.nii\.gz: no such file"):
        find_cases(tmp_path)


def test_the_case_whose_channel_has_no_contrast_is_named_by_its_file(tmp_path: Path) -> None:
    nnunet(tmp_path, 1, 2)
    save(tmp_path / "imagesTr/hip_002_0001.nii.gz", np.zeros(SHAPE, np.int16))
    assert refused(tmp_path, 2).startswith(f"{tmp_path}/imagesTr/hip_002_0001.nii.gz: the voxels")


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        ({"file_ending": ".png"}, "file_ending is '.png'; expected one of .nii.gz, .nii"),
        ([], "it is no object"),
        ({"training": [{"image": "x.nii.gz"}]}, "not in the Decathlon's layout or nnU-Net's"),
        ({"file_ending": ".nii.gz"}, "no labelled scans"),
    ],
)
def test_other_listings_are_refused(tmp_path: Path, listing: object, words: str) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(listing))
    with pytest.raises(ScanError, match=words):
        find_cases(tmp_path)


# Left and right


def sided(*labels: str, pairs: tuple[tuple[int, int], ...] = ()) -> Recipe:
    """A recipe of these labels and the background."""
    recipe = load_recipe("hippocampus")
    network = replace(recipe.network, classes=len(labels) + 1)
    return replace(
        recipe, labels=("background", *labels), network=network, mirror_pairs=pairs, cycles=(1,)
    )


def test_labels_of_one_side_are_refused_without_pairs(tmp_path: Path) -> None:
    """Before any scan is read: there are none."""
    (tmp_path / "images").mkdir()
    recipe = sided("Left_hippocampus", "midline", "Right_hippocampus")
    with pytest.raises(RareTrtError, match=r"'Right_hippocampus' name a side.*\[\[1, 3\]\]"):
        train([tmp_path], tmp_path / "out", recipe)
    with pytest.raises(RareTrtError, match="'left amygdala' name a side"):
        train([tmp_path], tmp_path / "out", sided("left amygdala", "body"))
    for mapped in (replace(recipe, mirror_pairs=((1, 3),)), sided("cleft lip", "brightness")):
        with pytest.raises(ScanError, match="no labelled scans"):
            train([tmp_path], tmp_path / "out", mapped)


def test_a_mirrored_scan_exchanges_the_labels_of_a_pair() -> None:
    """Whatever its pose, label 1 stays on the side that it is defined by."""
    labels = np.zeros((40, 30, 30), np.uint8)
    labels[4:12, 8:22, 8:22], labels[28:36, 8:22, 8:22] = 1, 2
    voxels = RNG.random((1, *labels.shape), np.float32) + 4 * labels
    case = Case("x", voxels, labels, Grid((40, 30, 30), np.eye(4)))

    def is_right_of(seed: int, pairs: tuple[tuple[int, int], ...]) -> bool:
        found = augment(case, np.random.default_rng(seed), 3, pairs).labels
        one, other = (np.argwhere(found == label)[:, 0].mean() for label in (1, 2))
        return bool(one < other)

    seeds = range(12)
    assert all(is_right_of(seed, ((1, 2),)) for seed in seeds)
    assert len({is_right_of(seed, ()) for seed in seeds}) == 2
