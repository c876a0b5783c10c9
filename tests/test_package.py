"""The package: schema, hashes, versions, atomic writing, and an old package that stays readable."""

from __future__ import annotations

import fcntl
import gzip
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest

import rare_trt
from rare_trt import Segmenter
from rare_trt.cli import main
from rare_trt.errors import BackendError, OutputError, PackageError
from rare_trt.evaluation.verification import Finding
from rare_trt.package import manifest_json
from rare_trt.package.manifest_json import json_from_manifest, json_with_seal, manifest_from_json
from rare_trt.package.reading import open_package
from rare_trt.package.writing import refuse_folder, write_package
from rare_trt.sessions import openvino
from rare_trt.storage.files import exchange

FOLDER = Path(rare_trt.__file__).parent
SCHEMA = json.loads((FOLDER / "package" / "manifest.schema.json").read_text())
V1 = Path(__file__).parent / "data" / "tiny_v1.rare"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A private copy of the small package."""
    folder = tmp_path / "tiny.rare"
    shutil.copytree(V1, folder)
    return folder


def shipped_values() -> dict[str, Any]:
    """The shipped manifest in today's format, without its seal."""
    values: dict[str, Any] = json.loads(json_from_manifest(open_package("hippocampus").manifest))
    del values["sha256"]
    return values


def test_the_shipped_manifest_fits_the_published_schema_and_survives_a_round_trip() -> None:
    package = open_package("hippocampus")
    jsonschema.validate(json.loads(json_from_manifest(package.manifest)), SCHEMA)
    assert manifest_from_json(json_from_manifest(package.manifest)) == package.manifest


def test_every_file_of_the_shipped_package_is_named_and_whole() -> None:
    package = open_package("hippocampus")
    found = {p.relative_to(package.folder).as_posix() for p in package.folder.rglob("*")}
    folders = {p for p in found if (package.folder / p).is_dir()}
    assert found - folders == {"manifest.json", *package.manifest.files}
    for name in package.manifest.files:
        package.read(name)


def test_the_shipped_package_stays_small() -> None:
    package = open_package("hippocampus")
    assert sum(entry.bytes for entry in package.manifest.files.values()) < 45e6


@pytest.mark.parametrize("name", sorted(open_package(V1).manifest.files))
def test_one_flipped_bit_in_any_file_is_refused(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(PackageError, match=r"damaged or tampered"):
        open_package(copy).read(name)


def test_a_tampered_graph_never_answers_even_with_its_compiled_model_cached(
    copy: Path, tiny_scan: Path
) -> None:
    with Segmenter.load(copy) as segmenter:
        segmenter.segment(tiny_scan)
    weights = copy / "graphs/fp32/weights.bin"
    data = bytearray(weights.read_bytes())
    data[0] ^= 1
    weights.write_bytes(data)
    with Segmenter.load(copy) as segmenter, pytest.raises(PackageError, match="tampered"):
        segmenter.segment(tiny_scan)


def test_a_longer_or_missing_file_is_refused(copy: Path) -> None:
    graph = copy / "graphs/fp32/route0.onnx"
    graph.write_bytes(graph.read_bytes() + b"\0")
    with pytest.raises(PackageError, match="tampered"):
        open_package(copy).read("graphs/fp32/route0.onnx")
    graph.unlink()
    with pytest.raises(PackageError, match="cannot be read"):
        open_package(copy).read("graphs/fp32/route0.onnx")


def test_no_link_is_followed_whatever_it_leads_to(copy: Path, tmp_path: Path) -> None:
    graph = copy / "graphs/fp32/route0.onnx"
    elsewhere = tmp_path / "elsewhere.onnx"
    shutil.move(graph, elsewhere)
    graph.symlink_to(elsewhere)
    with pytest.raises(PackageError, match="is a link"):
        open_package(copy).read("graphs/fp32/route0.onnx")
    graph.unlink()
    graph.symlink_to(copy / "graphs/fp32/route1.onnx")
    with pytest.raises(PackageError, match="is a link"):
        open_package(copy).read("graphs/fp32/route0.onnx")
    shutil.move(copy / "graphs", tmp_path / "graphs")
    (copy / "graphs").symlink_to(tmp_path / "graphs")
    with pytest.raises(PackageError, match="lies behind one"):
        open_package(copy).read("graphs/fp32/route1.onnx")
    shutil.move(copy / "manifest.json", tmp_path / "manifest.json")
    (copy / "manifest.json").symlink_to(tmp_path / "manifest.json")
    with pytest.raises(PackageError, match="is a link"):
        open_package(copy)


def test_links_in_a_circle_get_one_sentence(copy: Path, tmp_path: Path) -> None:
    graph, manifest = copy / "graphs/fp32/route0.onnx", copy / "manifest.json"
    graph.unlink()
    graph.symlink_to(graph)
    with pytest.raises(PackageError, match="cannot be read"):
        open_package(copy).read("graphs/fp32/route0.onnx")
    circle = tmp_path / "circle.rare"
    circle.symlink_to(circle)
    with pytest.raises(OutputError, match="exists already"):
        refuse_folder(circle, overwrite=False)
    manifest.unlink()
    manifest.symlink_to(manifest)
    with pytest.raises(PackageError, match="cannot be read"):
        open_package(copy)


def test_what_a_link_leads_to_is_judged_before_the_work(copy: Path, tmp_path: Path) -> None:
    """Not only when it is written."""
    shutil.move(copy, tmp_path / "v2")
    (tmp_path / "mine.rare").symlink_to(tmp_path / "v2")
    with pytest.raises(OutputError, match="v2: expected letters"):
        refuse_folder(tmp_path / "mine.rare", overwrite=True)


def test_whole_numbers_may_be_written_with_a_point() -> None:
    """JSON has one kind of number."""
    package = open_package("hippocampus")
    values = json.loads((package.folder / "manifest.json").read_bytes())
    del values["sha256"]
    for part in ("graphs", "golden", "calibration", "routes"):
        for entry in values[part]:
            whole = {name: float(v) for name, v in entry.items() if isinstance(v, int)}
            entry.update(whole)
    pointed = manifest_from_json(json_with_seal(values))
    assert pointed == package.manifest
    routes = [entry.route for part in (pointed.graphs, pointed.golden) for entry in part]
    routes += [entry.route for entry in pointed.calibration]
    assert all(type(route) is int for route in routes)


def test_a_package_may_itself_be_behind_a_link(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link.rare").symlink_to(copy)
    open_package(tmp_path / "link.rare").check()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("name", ["manifest.json", "graphs/fp32/route0.onnx"])
def test_a_pipe_in_the_place_of_a_file_is_refused_at_once(copy: Path, name: str) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(PackageError, match="it is not a file"):
        open_package(copy).read(name)


def test_what_the_manifest_does_not_name_answers_nothing_and_fails_the_check(
    copy: Path, tiny_scan: Path
) -> None:
    open_package(copy).check()
    (copy / "graphs" / "extra.onnx").write_bytes(b"?")
    with Segmenter.load(copy) as segmenter:
        segmenter.segment(tiny_scan)
    with pytest.raises(PackageError, match=r"extra\.onnx: is in the package.*does not name"):
        open_package(copy).check()


def resaved(folder: Path) -> Path:
    """The package in `folder`, written anew there in today's format."""
    package = open_package(folder)
    contents = {name: package.read(name) for name in package.manifest.files}
    return write_package(folder, package.manifest, contents, overwrite=True).folder


def test_every_byte_of_a_manifest_is_held(copy: Path) -> None:
    """One bit of each flipped, a byte removed or added: white space, version, seal and all."""
    whole = (resaved(copy) / "manifest.json").read_bytes()
    manifest_from_json(whole)
    changed = [
        bytes([*whole[:at], whole[at] ^ 1 << at % 8, *whole[at + 1 :]]) for at in range(len(whole))
    ]
    changed += [whole[:at] + whole[at + 1 :] for at in range(0, len(whole), 7)]
    changed += [whole[:at] + b" " + whole[at:] for at in range(0, len(whole) + 1, 7)]
    for data in changed:
        with pytest.raises(PackageError):
            manifest_from_json(data)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_sealed_manifest_cannot_be_made_one_that_needs_no_seal(copy: Path, version: int) -> None:
    path = resaved(copy) / "manifest.json"
    data = path.read_bytes().replace(b'"format_version": 5', b'"format_version": %d' % version)
    path.write_bytes(data.replace(b"tiny_v1", b"tiny_v9"))
    with pytest.raises(PackageError, match="has a seal"):
        open_package(copy)


@pytest.mark.parametrize("own", ["manifest.json", "manifest.sig"])
def test_a_manifest_does_not_list_itself_or_its_signature(own: str) -> None:
    values = shipped_values()
    values["files"][own] = {"sha256": "0" * 64, "bytes": 1}
    with pytest.raises(PackageError, match="among the files"):
        manifest_from_json(json_with_seal(values))


def test_a_newer_format_is_refused_kindly(copy: Path) -> None:
    values = json.loads((copy / "manifest.json").read_text()) | {"format_version": 6}
    (copy / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(PackageError, match=r"format version 6.*install a newer rare-trt"):
        open_package(copy)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '"x"',
        "null",
        "\xff",
        "{}",
        "[" * 10**5,
        '{"x": NaN}',
        '{"x": 1e999}',
        '{"x": 1' + "0" * 400 + "}",
    ],
)
def test_what_is_no_manifest_is_refused(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(PackageError, match=r"manifest\.json"):
        open_package(copy)


def test_an_absent_package_names_the_shipped_ones() -> None:
    with pytest.raises(PackageError, match=r"no such package.*hippocampus"):
        open_package("hippocampos")


def test_a_folder_without_a_manifest_is_no_package(tmp_path: Path) -> None:
    """A folder of scans in the package's place, for instance."""
    with pytest.raises(PackageError) as refusal:
        open_package(tmp_path)
    assert str(refusal.value) == (
        f"{tmp_path}: is no package (it has no manifest.json); expected a folder NAME.rare: check "
        "its name, or install the package again"
    )


def damaged(values: dict[str, Any], path: str, value: Any) -> bytes:
    """`values` with the entry at `path` replaced (or, for ..., removed)."""
    *parents, last = path.split("/")
    place: Any = values
    for key in parents:
        place = place[int(key) if isinstance(place, list) else key]
    key = int(last) if isinstance(place, list) else last
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return json_with_seal(values)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model", ...),
        ("unknown", 1),
        ("name", "../evil"),
        ("model/labels", ["background"]),
        ("model/base_spacing_mm", 0),
        ("model/field_of_view_mm/min", [1, 2]),
        ("routes/0/profile/max", [48, 64, 0]),
        ("routes/1/multiple", "8"),
        ("graphs/0/file", "../../etc/passwd"),
        ("graphs/0/file", "/etc/passwd"),
        ("graphs/0/precision", "fp64"),
        ("golden/0/max_disagreement/fp32", 2),
        ("golden", []),
        ("files/manifest", {"sha256": "0" * 64, "bytes": 2**41}),
    ],
)
def test_what_the_schema_forbids_is_refused_by_the_runtime_too(path: str, value: Any) -> None:
    """The runtime's validator and the reference validator read the same schema alike."""
    data = damaged(shipped_values(), path, value)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(data), SCHEMA)
    with pytest.raises(PackageError, match="does not fit its schema"):
        manifest_from_json(data)


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("routes/1/index", 0, "name one twice"),
        ("golden", [shipped_values()["golden"][0]], "no golden vector for route 1"),
        ("graphs/0/route", 9, "name a route"),
        ("golden/0/route", 9, "name a route"),
        ("files/graphs~fp32~route0.onnx", ..., "not among the files"),
        ("model/volume_range_mm3", [[1, 2]], "volume ranges"),
        ("model/spacing_limits_mm", [2, 1], "lower limit"),
        ("routes/0/native_band", [1, 1], "lower limit"),
        ("graphs/0/weights", "golden/route0_min.nii.gz", "different folders"),
    ],
)
def test_entries_that_contradict_each_other_are_refused(path: str, value: Any, words: str) -> None:
    values = shipped_values()
    if "~" in path:
        del values["files"][path.split("/", 1)[1].replace("~", "/")]
        data = json_with_seal(values)
    else:
        data = damaged(values, path, value)
    with pytest.raises(PackageError, match=words):
        manifest_from_json(data)


def test_writing_replaces_a_package_whole_or_not_at_all(copy: Path, tmp_path: Path) -> None:
    package = open_package(copy)
    contents = {name: package.read(name) for name in package.manifest.files}
    with pytest.raises(OutputError, match="exists already"):
        write_package(copy, package.manifest, contents, overwrite=False)
    again = write_package(copy, package.manifest, contents, overwrite=True)
    assert again.manifest == package.manifest
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_package(blocked / "new.rare", package.manifest, contents, overwrite=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "tiny.rare"]


def test_a_package_is_there_at_every_moment_of_being_replaced(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where two names can be exchanged: seen after every rename that the call does."""
    package = open_package(copy)
    contents = {name: package.read(name) for name in package.manifest.files}
    seen = []

    def watched(first: Path, second: Path) -> bool:
        done = exchange(first, second)
        seen.append(open_package(copy).manifest)
        return done

    if not exchange(*probe(copy.parent)):
        pytest.skip("this file system cannot exchange two names")
    monkeypatch.setattr("rare_trt.package.writing.exchange", watched)
    manifest = replace(package.manifest, created_with="a later release")
    write_package(copy, manifest, contents, overwrite=True)
    assert [found.created_with for found in seen] == ["a later release"]
    assert [p.name for p in copy.parent.iterdir() if "rare" in p.name] == [copy.name]


def probe(folder: Path) -> tuple[Path, Path]:
    """Two folders whose names can be exchanged, or not."""
    for name in ("one", "two"):
        (folder / name).mkdir()
    return folder / "one", folder / "two"


def test_where_names_cannot_be_exchanged_an_interrupt_leaves_the_old_package(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = open_package(copy)
    contents = {name: package.read(name) for name in package.manifest.files}
    monkeypatch.setattr("rare_trt.package.writing.exchange", lambda first, second: False)
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        if path.name.endswith(".part"):
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_package(copy, package.manifest, contents, overwrite=True)
    assert open_package(copy) == package
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]
    write_package(copy, package.manifest, contents, overwrite=True)
    assert [p.name for p in copy.parent.iterdir()] == [copy.name]


def test_a_package_that_a_killed_program_left_aside_is_named(copy: Path) -> None:
    """The one moment without a package, where names cannot be exchanged."""
    copy.rename(copy.with_name(".tiny.rare.old"))
    with pytest.raises(PackageError, match=r"rename .*\.tiny\.rare\.old, .* to tiny\.rare"):
        open_package(copy)


def test_what_a_killed_writer_left_goes_and_what_a_living_one_writes_stays(copy: Path) -> None:
    package = open_package(copy)
    contents = {name: package.read(name) for name in package.manifest.files}
    part = copy.with_name(".tiny.rare.part")
    shutil.copytree(copy, part)
    write_package(copy, package.manifest, contents, overwrite=True)
    assert not part.exists()
    shutil.copytree(copy, part)
    living = os.open(part, os.O_RDONLY)
    fcntl.flock(living, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="being written by another program"):
        write_package(copy, package.manifest, contents, overwrite=True)
    assert (part / "manifest.json").exists()
    os.close(living)


@pytest.mark.parametrize("name", ["x", "my package.rare", ".rare", "a.b.rare"])
def test_a_package_needs_a_plain_name(copy: Path, name: str) -> None:
    package = open_package(copy)
    with pytest.raises(OutputError, match="choose another name"):
        write_package(copy.with_name(name), package.manifest, {}, overwrite=False)


def test_a_file_is_not_replaced_by_a_package(copy: Path) -> None:
    path = copy.with_name("file.rare")
    path.write_text("precious")
    with pytest.raises(OutputError, match="is a file"):
        write_package(path, open_package(copy).manifest, {}, overwrite=True)
    assert path.read_text() == "precious"


def test_a_package_of_format_1_still_segments(tiny_scan: Path) -> None:
    """tests/data/tiny_v1.rare holds the format as first written, and never changes."""
    with Segmenter.load(V1) as segmenter:
        for route in (0, 1):
            assert segmenter.segment(tiny_scan, route=route).labels.max() > 0


def test_a_session_that_answers_otherwise_than_the_golden_vectors_is_refused(
    copy: Path, tiny_scan: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wrong expectations under right hashes: as if this machine computed other labels."""
    package = open_package(copy)
    contents = {name: package.read(name) for name in package.manifest.files}
    vector = package.manifest.golden[0]
    expected = bytearray(gzip.decompress(contents[vector.labels]))
    # 352 bytes of header, then labels 0 to 2: each becomes another one.
    expected[352:] = bytes(2 - label for label in expected[352:])
    contents[vector.labels] = gzip.compress(bytes(expected))
    write_package(copy, package.manifest, contents, overwrite=True)
    with Segmenter.load(copy) as segmenter, pytest.raises(BackendError, match="golden vector"):
        segmenter.segment(tiny_scan, route=vector.route)
    assert main(["verify", str(copy)]) == 1
    said = capsys.readouterr().out
    assert f"FAILED  route {vector.route}, openvino fp32: " in said
    assert "golden vector" in said
    # The package may be at fault as well as the machine.
    assert "where it fails there too, build the package again" in said


def test_a_proof_counts_for_the_openvino_and_the_cpu_it_was_made_with(
    copy: Path, tiny_scan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, proofs = openvino._core(), []

    class Other:
        """OpenVINO of another build, or on another CPU."""

        cpu, build = "this CPU", "this build"

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

        def get_property(self, device: str, name: str) -> Any:
            return self.cpu if name == "FULL_DEVICE_NAME" else core.get_property(device, name)

        def get_versions(self, device: str) -> Any:
            return {device: SimpleNamespace(build_number=self.build)}

    def proved(*arguments: Any) -> None:
        proofs.append(arguments)

    def count() -> int:
        before = len(proofs)
        with Segmenter.load(copy) as segmenter:
            segmenter.segment(tiny_scan, route=0)
        return len(proofs) - before

    monkeypatch.setenv("RARE_TRT_CACHE", str(tmp_path / "fresh"))
    monkeypatch.setattr(openvino, "_core", Other)
    monkeypatch.setattr("rare_trt.sessions.golden.check_golden_vectors", proved)
    assert [count(), count()] == [1, 0]
    Other.build = "another build"
    assert [count(), count()] == [1, 0]
    Other.cpu = "another CPU"
    assert [count(), count()] == [1, 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dice": 0.99}, "Dice with float32 is 0.99"),
        ({"dice": float("nan")}, "Dice with float32 is nan"),
        ({"loss": 0.002}, "Dice is lower by 0.002"),
        ({"loss": float("nan")}, "Dice is lower by nan"),
        ({"non_finite": 3}, "3 logits are not finite"),
        ({"fault": "no engine"}, "no engine"),
    ],
)
def test_what_breaks_a_bound_is_named(change: dict[str, Any], words: str) -> None:
    good = Finding("openvino fp16", 0, 4, 1e-6, 0.9999, 0.0, 0.01, 0)
    assert good.broken == []
    (found,) = replace(good, **change).broken
    assert words in found


def test_one_thread_at_a_time_builds_a_manifest(
    tiny_package_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two threads that use a type of msgspec for the first time together crash the process."""
    convert, held = manifest_json.msgspec.convert, []

    def watched(*arguments: Any, **options: Any) -> Any:
        held.append(manifest_json.CONVERSION.locked())
        return convert(*arguments, **options)

    monkeypatch.setattr(manifest_json.msgspec, "convert", watched)
    open_package(tiny_package_folder)
    assert held == [True]
