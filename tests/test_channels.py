"""One scan in several files, one per channel: the answer is that of the one file which joins them,
and what does not belong together is refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving import Running, running
from three_channels import NAMES, three_channel_package, three_channel_scan

from rare_trt import Segmenter, read_channels
from rare_trt.cli import main
from rare_trt.errors import ScanError
from rare_trt.package.reading import Package
from rare_trt.scan.geometry import Array, Volume

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])


@pytest.fixture(scope="module")
def whole(examples: Path) -> Volume:
    return three_channel_scan(examples / "hippocampus_1mm.nii.gz")


@pytest.fixture(scope="module")
def voxels(whole: Volume) -> Array:
    """[i, j, k, channel]."""
    return whole.voxels


@pytest.fixture(scope="module")
def affine(whole: Volume) -> NDArray[np.float64]:
    return whole.grid.affine


@pytest.fixture(scope="module")
def package(whole: Volume, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return three_channel_package(tmp_path_factory.mktemp("package") / "three.rare", whole)


@pytest.fixture(scope="module")
def segmenter(package: Package) -> Iterator[Segmenter]:
    with Segmenter(package) as opened:
        yield opened


@pytest.fixture
def files(tmp_path: Path, voxels: Array, affine: Array) -> list[Path]:
    """The scan's channels in a folder of their own, one file each."""
    return written(tmp_path / "in", np.moveaxis(voxels, 3, 0), affine)


def written(folder: Path, channels: Sequence[Array], affine: Array) -> list[Path]:
    """One file per channel, under the channel's name."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{name}.nii.gz" for name in NAMES[: len(channels)]]
    for path, channel in zip(paths, channels, strict=True):
        nib.save(nib.Nifti1Image(channel, affine, dtype=channel.dtype), path)
    return paths


def joined(path: Path, channels: Sequence[Array], affine: Array) -> Path:
    """One file with every channel as its fourth axis."""
    nib.save(nib.Nifti1Image(np.stack(channels, axis=-1), affine), path)
    return path


def arguments(files: Sequence[Path]) -> list[str]:
    """The command for these files of one scan."""
    first, *others = map(str, files)
    return ["infer", first, *(word for other in others for word in ("--channel", other))]


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def refused(capsys: pytest.CaptureFixture[str], command: Sequence[str | Path]) -> str:
    """Runs a command that must fail: exit 1 and one line on stderr, which is returned."""
    assert main([str(word) for word in command]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix("rare-trt: ")


# The answer


def turned(voxels: Array, affine: Array, orientation: str) -> tuple[Array, Array]:
    """The scan in another order of axes, or tilted."""
    if orientation == "tilted":
        turn = np.eye(4)
        turn[:3, :3] = nib.eulerangles.euler2mat(0.2, -0.3, 0.1)
        return voxels, turn @ affine
    image = nib.Nifti1Image(voxels, affine)
    target = nib.orientations.axcodes2ornt(orientation)
    image = image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(affine), target))
    return np.asarray(image.dataobj), image.affine


@pytest.mark.parametrize(
    ("dtypes", "orientation"),
    [
        (("i2", "i2", "i2"), "RAS"),
        (("u1", "i2", "f4"), "LPS"),
        (("f8", "u2", "i1"), "PIR"),
        (("i4", "f4", "u1"), "tilted"),
        (("i8", "u4", "f4"), "ASL"),
    ],
)
def test_several_files_get_the_labels_of_the_one_that_joins_them(
    package: Package,
    tmp_path: Path,
    voxels: Array,
    affine: Array,
    dtypes: tuple[str, ...],
    orientation: str,
) -> None:
    halved, place = turned(voxels // 2, affine, orientation)
    channels = [halved[..., n].astype(dtype) for n, dtype in enumerate(dtypes)]
    files = written(tmp_path / "in", channels, place)
    whole = joined(tmp_path / "whole.nii.gz", channels, place)
    answers = []
    for name, command in (("files", arguments(files)), ("one", ["infer", str(whole)])):
        out = tmp_path / f"{name}.nii.gz"
        assert main([*command, "--package", str(package.folder), "-o", str(out)]) == 0
        answers.append(out.read_bytes())
    labels = nib.load(tmp_path / "files.nii.gz")
    assert len(np.unique(np.asarray(labels.dataobj))) > 1
    np.testing.assert_array_equal(labels.affine, nib.load(files[0]).affine)
    assert answers[0] == answers[1]


def test_the_order_of_the_files_is_that_of_the_channels(
    segmenter: Segmenter, files: list[Path], tmp_path: Path, voxels: Array, affine: Array
) -> None:
    straight = segmenter.segment(files).labels
    for order in ([1, 0, 2], [2, 1, 0], [1, 2, 0]):
        channels = [voxels[..., n] for n in order]
        whole = joined(tmp_path / "whole.nii.gz", channels, affine)
        labels = segmenter.segment([files[n] for n in order]).labels
        np.testing.assert_array_equal(labels, segmenter.segment(whole).labels)
        assert not np.array_equal(labels, straight)


def test_every_option_answers_as_for_one_file(
    package: Package, files: list[Path], tmp_path: Path, voxels: Array, affine: Array
) -> None:
    # The picture shows the first file's name.
    (tmp_path / "whole").mkdir()
    whole = joined(tmp_path / "whole" / files[0].name, np.moveaxis(voxels, 3, 0), affine)
    x, y, z = nib.affines.apply_affine(affine, np.array(voxels.shape[:3]) / 2).tolist()
    for number, options in enumerate(
        ([f"--at={x},{y},{z}"], ["--spacing-out", "2"], ["--route=0"])
    ):
        made = []
        for name, command in (("files", arguments(files)), ("whole", ["infer", str(whole)])):
            out = tmp_path / f"{number}_{name}"
            command += ["--package", str(package.folder), "-o", str(out / "l.nii.gz"), *options]
            command += ["--report", str(out / "r.json"), "--picture", str(out / "p.png")]
            assert main(command) == 0
            report = json.loads((out / "r.json").read_text())
            made.append([(out / "l.nii.gz").read_bytes(), (out / "p.png").read_bytes()])
            for entry in ("timings_ms", "scan"):
                del report[entry]
            made[-1].append(json.dumps(report).encode())
        assert made[0] == made[1]


def test_outputs_are_named_after_the_first_file(package: Package, files: list[Path]) -> None:
    assert main([*arguments(files), "--package", str(package.folder)]) == 0
    outputs = ["T1w_labels.nii.gz", "T1w_labels_dseg.tsv"]
    assert listed(files[0].parent) == sorted([*(path.name for path in files), *outputs])


def test_the_report_names_the_hash_of_every_file(
    segmenter: Segmenter, files: list[Path], tmp_path: Path, voxels: Array, affine: Array
) -> None:
    scan = segmenter.segment(files).report()["scan"]
    assert list(scan["channel_sha256"]) == [sha256(p.read_bytes()).hexdigest() for p in files]
    assert "sha256" not in scan
    whole = joined(tmp_path / "whole.nii.gz", np.moveaxis(voxels, 3, 0), affine)
    scan = segmenter.segment(whole).report()["scan"]
    assert scan["sha256"] == sha256(whole.read_bytes()).hexdigest()
    assert "channel_sha256" not in scan


def test_a_doubtful_place_of_any_channel_is_told(
    package: Package, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A qform that lies elsewhere is a doubt in the registration, whichever file has it."""
    image = nib.load(files[1])
    moved = image.affine.copy()
    moved[0, 3] += 60.0
    image.set_qform(moved, code=1)
    image.set_sform(image.affine, code=1)
    data = image.to_bytes()
    files[1].write_bytes(gzip.compress(data) if files[1].suffix == ".gz" else data)
    words = "sform and qform place the scan 60 mm apart"
    assert read_channels(files).remarks == (f"channel 2: {words}; the sform was taken",)
    command = [*arguments(files), "--package", package.folder]
    assert words in refused(capsys, [*command, "--strict"])
    assert main([str(word) for word in command]) == 0
    assert f"look at this: channel 2: {words}" in capsys.readouterr().out


def test_no_files_are_no_scan() -> None:
    with pytest.raises(ScanError, match="no files"):
        read_channels([])


def test_every_channel_is_compared_with_its_own_distribution(
    segmenter: Segmenter, files: list[Path]
) -> None:
    def channels(paths: list[Path]) -> set[str]:
        remarks = segmenter.segment(paths).boxes[0].remarks
        return {words for words in ("channel 1", "channel 2", "channel 3") if words in str(remarks)}

    assert channels(files) == set()
    assert "channel 3" in channels([files[0], files[2], files[1]])


def test_the_place_is_the_first_files(
    segmenter: Segmenter, files: list[Path], tmp_path: Path
) -> None:
    """Remarks on a place are reported for every file; codes are the first one's."""
    sentence = "sform and qform place the scan 25 mm apart; the sform was taken"
    for number in (0, 1):
        paths = list(files)
        paths[number] = tmp_path / "moved.nii.gz"
        image = nib.load(files[number])
        moved = image.affine.copy()
        moved[2, 3] += 25.0
        image.set_sform(image.affine, 4)
        image.set_qform(moved, 4)
        nib.save(image, paths[number])
        result = segmenter.segment(paths)
        assert f"channel {number + 1}: {sentence}" in result.flags
        result.save(tmp_path / "l.nii.gz", overwrite=True)
        labels = nib.load(tmp_path / "l.nii.gz").header
        first = nib.load(paths[0]).header
        for code in ("sform_code", "qform_code"):
            assert labels[code] == first[code]


def test_files_are_taken_however_they_are_named(
    segmenter: Segmenter, files: list[Path], tmp_path: Path, voxels: Array, affine: Array
) -> None:
    labels = segmenter.segment(files).labels
    for scan in ([str(p) for p in files], tuple(files), segmenter.read(files)):
        np.testing.assert_array_equal(segmenter.segment(scan).labels, labels)
    np.testing.assert_array_equal(segmenter.segment(read_channels(files)).labels, labels)
    whole = joined(tmp_path / "whole.nii.gz", np.moveaxis(voxels, 3, 0), affine)
    for one in (str(whole), [whole]):
        np.testing.assert_array_equal(segmenter.segment(one).labels, labels)


# What is read

KINDS = ("u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8", ">i2", ">f4")


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
    shape=st.tuples(*[st.integers(1, 6)] * 3),
    seed=st.integers(0, 99),
    slope=st.sampled_from([None, 2.0, -0.5]),
)
def test_every_voxel_of_every_file_is_read(
    tmp_path: Path, kinds: list[str], shape: tuple[int, int, int], seed: int, slope: float | None
) -> None:
    """No common type loses a value, however the files differ."""
    rng = np.random.default_rng(seed)
    paths, stored = [], []
    for number, kind in enumerate(kinds):
        dtype = np.dtype(kind)
        if dtype.kind == "f":
            channel = rng.normal(0, 1e4, shape).astype(dtype)
        else:
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
            channel = rng.integers(low, high, shape, dtype.newbyteorder("="), True).astype(dtype)
        header = nib.Nifti1Header(endianness=">" if kind.startswith(">") else "<")
        header.set_data_dtype(dtype)
        header.set_data_shape(shape)
        header.set_sform(AFFINE, 1)
        header["magic"], header["vox_offset"] = header.single_magic, header.single_vox_offset
        # No two files are the same, though voxels may be.
        header["descrip"] = str(number)
        if slope is not None and number == 0:
            header["scl_slope"], header["scl_inter"] = slope, 1.0
        path = tmp_path / f"{number}.nii"
        path.write_bytes(header.binaryblock + bytes(4) + channel.tobytes(order="F"))
        paths.append(path)
        # In float64, as readers scale float32 too: a sum would be rounded otherwise.
        scaled = slope is not None and number == 0
        stored.append(channel.astype(np.float64) * slope + 1.0 if scaled else channel)
    scan = read_channels(paths)
    assert scan.volume.voxels.shape == (*shape, len(kinds))
    for number, channel in enumerate(stored):
        np.testing.assert_array_equal(scan.volume.voxels[..., number], channel)
    np.testing.assert_array_equal(scan.volume.grid.affine, AFFINE)
    assert scan.validated is scan.volume.voxels
    assert not scan.volume.voxels.flags.writeable
    narrow = all(np.dtype(kind).itemsize <= 2 for kind in kinds) and slope is None
    assert scan.volume.voxels.itemsize <= (4 if narrow else 8)


def test_real_sequences_are_joined_on_one_grid_and_refused_on_their_own(shared_data: Path) -> None:
    """An exam resampled onto an atlas, and the same exam as it left the scanner."""
    atlas = sorted((shared_data / "tcga_fg6692_sri24").glob("*_bet.nii.gz"))
    scan = read_channels(atlas)
    assert scan.volume.voxels.shape == (240, 240, 155, 4)
    assert scan.volume.voxels.dtype == np.int16
    for number, path in enumerate(atlas):
        stored = np.asarray(nib.load(path).dataobj)
        assert np.array_equal(scan.volume.voxels[..., number], stored)
    flair, t1, t1c, t2 = sorted((shared_data / "tcga_fg6692_clinical").glob("*.nii.gz"))
    for other in (t1, t1c, t2):
        with pytest.raises(ScanError, match=f"{other.name}: lies on another grid than"):
            read_channels([flair, other])
    # With and without contrast agent: one place.
    assert read_channels([t1, t1c]).volume.voxels.shape == (256, 224, 26, 2)


# What is refused


def changed(files: list[Path], kind: str) -> list[Path]:
    """The scan with a second file that does not belong to it."""
    path = files[1]
    image = nib.load(path)
    data, affine = np.asarray(image.dataobj), image.affine.copy()
    if kind == "4d":
        data = np.stack([data, data], axis=-1)
    elif kind == "cut":
        data = data[:-1]
    elif kind == "moved":
        affine[0, 3] += 2.5
    elif kind == "turned":
        affine[:3, :3] = nib.eulerangles.euler2mat(0.05, 0, 0) @ affine[:3, :3]
    elif kind == "flipped":
        data, affine = turned(data, affine, "LAS")
    elif kind == "nan":
        data = data.astype(np.float32)
        data[1, 2, 3] = np.nan
    path.unlink()
    if kind == "text":
        path.write_text("hello")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "twice":
        shutil.copy(files[0], path)
    elif kind == "packed":
        first = nib.load(files[0])
        path.write_bytes(gzip.compress(nib.Nifti2Image.from_image(first).to_bytes(), 9))
    elif kind != "absent":
        nib.save(nib.Nifti1Image(data, affine), path)
    return files


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("4d", "2 channels or time points; expected 1: extract the right volume(s)"),
        ("cut", "(shape {cut}, not {shape}); expected all channels on one grid: resample it"),
        ("moved", "(corners up to 2.5 mm apart, more than 0.1 mm); expected all channels on one"),
        ("turned", "mm apart, more than 0.1 mm)"),
        ("flipped", "mm apart, more than 0.1 mm)"),
        ("twice", "holds the same voxels as {first}; expected a file of its own for every channel"),
        ("packed", "holds the same voxels as {first}; expected a file of its own for every"),
        ("nan", "1 of "),
        ("text", "not a NIfTI file"),
        ("folder", "cannot be read (not a file)"),
        ("pipe", "cannot be read (not a file)"),
        ("absent", "no such file"),
    ],
)
def test_a_file_that_does_not_belong_is_named_and_refused(
    package: Package,
    files: list[Path],
    voxels: Array,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    words: str,
) -> None:
    bad = changed(files, kind)
    before = listed(files[0].parent)
    sentence = refused(capsys, [*arguments(bad), "--package", package.folder])
    i, j, k = voxels.shape[:3]
    expected = words.format(first=files[0], shape=f"{i} x {j} x {k}", cut=f"{i - 1} x {j} x {k}")
    assert sentence.startswith(f"{files[1]}: ")
    assert expected in sentence
    if "grid" in expected:
        assert f"lies on another grid than {files[0]} (" in sentence
    assert listed(files[0].parent) == before


@pytest.mark.parametrize(("count", "word"), [(2, "2 files"), (4, "4 files")])
def test_the_number_of_files_must_be_that_of_the_channels(
    package: Package,
    files: list[Path],
    capsys: pytest.CaptureFixture[str],
    count: int,
    word: str,
) -> None:
    more = shutil.copy(files[0], files[0].with_name("more.nii.gz"))
    some = [*files, Path(more)][:count]
    sentence = refused(capsys, [*arguments(some), "--package", package.folder])
    assert sentence == (
        f"{files[0]}: the scan comes in {word}; this package takes 3, one per channel "
        "(T1w, FLAIR, T2w): name them in this order\n"
    )


def test_one_file_without_every_channel_says_what_to_do(
    package: Package, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = refused(capsys, ["infer", files[0], "--package", package.folder])
    assert "1 channels or time points; expected 3: join all of them in one file, or" in sentence


def test_no_file_is_no_scan(segmenter: Segmenter) -> None:
    with pytest.raises(ScanError, match="comes in 0 files; this package takes 3"):
        segmenter.segment([])


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 2.0, 3.0), (4.0, 4.0, 4.0)])
def test_rounding_in_a_header_is_no_other_grid(
    tmp_path: Path, spacing: tuple[float, float, float]
) -> None:
    """A tenth of the smallest voxel at the corners, whether by a shift or by a turn."""
    shape = (200, 160, 20)
    affine = np.diag([*spacing, 1.0])
    voxels = np.zeros(shape, np.uint8)
    first = tmp_path / "first.nii"
    nib.save(nib.Nifti1Image(voxels, affine), first)
    reach = np.linalg.norm((np.array(shape) - 1)[:2] * spacing[:2])
    for share, holds in ((1e-4, True), (0.09, True), (0.11, False)):
        off = share * min(spacing)
        moved, turn = affine.copy(), np.eye(4)
        moved[:3, 3] += off * np.array([2.0, -1.0, 2.0]) / 3.0
        turn[:3, :3] = nib.eulerangles.euler2mat(off / reach, 0, 0)
        for other in (moved, turn @ affine):
            nib.save(nib.Nifti1Image(voxels + 1, other), tmp_path / "other.nii")
            if holds:
                scan = read_channels([first, tmp_path / "other.nii"])
                np.testing.assert_array_equal(scan.volume.grid.affine, affine)
            else:
                with pytest.raises(ScanError, match="lies on another grid"):
                    read_channels([first, tmp_path / "other.nii"])


def test_channels_that_are_too_large_together_are_refused(
    files: list[Path], voxels: Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = voxels[..., 0].nbytes
    monkeypatch.setattr("rare_trt.scan.channels.MAX_BYTES", 3 * one)
    read_channels(files)
    monkeypatch.setattr("rare_trt.scan.channels.MAX_BYTES", 3 * one - 1)
    with pytest.raises(ScanError, match=f"T2w.nii.gz: brings the scan to {3 * one} bytes"):
        read_channels(files)
    # Counted as they are held: a float64 makes every channel one.
    image = nib.load(files[1])
    nib.save(nib.Nifti1Image(image.get_fdata(), image.affine), files[1])
    monkeypatch.setattr("rare_trt.scan.channels.MAX_BYTES", 6 * one)
    with pytest.raises(ScanError, match=f"FLAIR.nii.gz: brings the scan to {8 * one} bytes"):
        read_channels(files)


def test_further_channels_go_with_one_scan(
    package: Package, files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--channel", files[2], "--package", package.folder, "-o", tmp_path / "out"]
    for scans in ([files[0], files[1]], [files[0].parent]):
        sentence = refused(capsys, ["infer", *scans, *more])
        assert sentence.startswith(f"{files[2]}: --channel names a further file of one scan")
    assert not (tmp_path / "out").exists()


def test_no_file_of_the_scan_is_an_output(
    package: Package, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    before = files[1].read_bytes()
    command = [*arguments(files), "--package", package.folder, "-o", files[1], "--overwrite"]
    assert "is an input" in refused(capsys, command)
    assert files[1].read_bytes() == before


# A server


@pytest.fixture(scope="module")
def server(package: Package, cache_folder: Path) -> Iterator[Running]:
    """A server with the package."""
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="rt-") as name:
        patch.setenv("RARE_TRT_CACHE", str(cache_folder))
        with running(package.folder, "--socket", Path(name) / "s") as found:
            yield found


def test_a_client_of_a_server_says_that_it_sends_one_file(
    server: Running,
    files: list[Path],
    tmp_path: Path,
    voxels: Array,
    affine: Array,
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = server.address
    out = tmp_path / "l.nii.gz"
    sentence = refused(capsys, [*arguments(files), "--server", address, "-o", out])
    assert "--channel goes without --server, which is sent one file" in sentence
    assert not out.exists()
    whole = joined(tmp_path / "whole.nii.gz", np.moveaxis(voxels, 3, 0), affine)
    assert main(["infer", str(whole), "--server", address, "-o", str(out)]) == 0
