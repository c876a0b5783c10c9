"""Signatures: only the key that was asked for opens a package, and only as it was signed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rare_trt import Segmenter
from rare_trt.cli import main
from rare_trt.errors import OutputError, PackageError, SignatureError, SignatureWarning
from rare_trt.package.manifest_json import json_from_manifest
from rare_trt.package.reading import open_package
from rare_trt.package.writing import sign_package, store_engines, write_package

OPENSSL = shutil.which("openssl")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """key.pem and public.pem, and another pair, made as the documentation says."""
    if OPENSSL is None:
        pytest.skip("not installed: openssl")
    folder = tmp_path_factory.mktemp("keys")
    for key, public in (("key.pem", "public.pem"), ("other.pem", "other_public.pem")):
        openssl("genpkey", "-algorithm", "ed25519", "-out", folder / key)
        openssl("pkey", "-in", folder / key, "-pubout", "-out", folder / public)
    return folder


def openssl(*arguments: str | Path) -> str:
    assert OPENSSL is not None
    command = [OPENSSL, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture
def signed(tmp_path: Path, tiny_package_folder: Path, keys: Path) -> Iterator[Path]:
    """A signed copy of the small package, in today's format."""
    package = open_package(tiny_package_folder)
    contents = {name: package.read(name) for name in package.manifest.files}
    folder = write_package(tmp_path / "tiny.rare", package.manifest, contents, overwrite=False)
    assert main(["sign", str(folder.folder), "--key", str(keys / "key.pem")]) == 0
    yield folder.folder


def test_a_signed_package_opens_with_its_key_and_without(signed: Path, keys: Path) -> None:
    package = open_package(signed, require_signature=keys / "public.pem")
    assert package == open_package(signed)
    package.check()


def test_openssl_agrees_with_the_signature(signed: Path, keys: Path) -> None:
    manifest, signature = signed / "manifest.json", signed / "manifest.sig"
    assert len(signature.read_bytes()) == 64
    given = ("-pubin", "-inkey", keys / "public.pem", "-rawin", "-in", manifest)
    said = openssl("pkeyutl", "-verify", *given, "-sigfile", signature)
    assert "Verified Successfully" in said


def test_another_key_or_none_is_refused(signed: Path, keys: Path) -> None:
    with pytest.raises(SignatureError, match="another key signed it"):
        open_package(signed, require_signature=keys / "other_public.pem")
    (signed / "manifest.sig").unlink()
    with pytest.raises(SignatureError, match="is not signed"):
        open_package(signed, require_signature=keys / "public.pem")


@pytest.mark.parametrize("name", ["manifest.json", "manifest.sig"])
def test_every_byte_of_manifest_and_signature_counts(signed: Path, keys: Path, name: str) -> None:
    whole = (signed / name).read_bytes()
    step = 1 if name == "manifest.sig" else 97
    for at in range(0, len(whole), step):
        (signed / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SignatureError, match="was changed"):
            open_package(signed, require_signature=keys / "public.pem")
    for changed in (whole[:-1], whole + b"\0", b""):
        (signed / name).write_bytes(changed)
        with pytest.raises(SignatureError, match="was changed"):
            open_package(signed, require_signature=keys / "public.pem")


def test_a_manifest_sealed_anew_after_a_change_is_still_refused(signed: Path, keys: Path) -> None:
    """The seal holds against accidents; against a forger it is the signature that does."""
    package = open_package(signed)
    forged = json_from_manifest(replace(package.manifest, created_with="a forger"))
    (signed / "manifest.json").write_bytes(forged)
    assert open_package(signed).manifest.created_with == "a forger"
    with pytest.raises(SignatureError, match="was changed"):
        open_package(signed, require_signature=keys / "public.pem")


def test_the_signature_is_looked_at_before_anything_is_parsed(signed: Path, keys: Path) -> None:
    (signed / "manifest.json").write_bytes(b"{ no JSON")
    with pytest.raises(SignatureError, match="was changed"):
        open_package(signed, require_signature=keys / "public.pem")


def test_a_file_under_a_signed_manifest_is_held_to_it(
    signed: Path, keys: Path, tiny_scan: Path
) -> None:
    weights = signed / "graphs/fp32/weights.bin"
    data = weights.read_bytes()
    weights.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    with (
        Segmenter.load(signed, require_signature=keys / "public.pem") as segmenter,
        pytest.raises(PackageError, match="tampered"),
    ):
        segmenter.segment(tiny_scan)
    with pytest.raises(PackageError, match="tampered"):
        sign_package(str(signed), keys / "key.pem")


def test_what_the_manifest_does_not_name_is_not_signed(signed: Path, keys: Path) -> None:
    (signed / "more.onnx").write_bytes(b"?")
    with pytest.raises(PackageError, match="does not name"):
        sign_package(str(signed), keys / "key.pem")


def test_a_change_removes_the_signature_and_says_so(signed: Path, keys: Path) -> None:
    package = open_package(signed)
    contents = {name: package.read(name) for name in package.manifest.files}
    with pytest.warns(SignatureWarning, match="no longer valid"):
        store_engines(package, (), {})
    assert not (signed / "manifest.sig").exists()
    sign_package(str(signed), keys / "key.pem")
    with pytest.warns(SignatureWarning, match="no longer valid"):
        write_package(signed, package.manifest, contents, overwrite=True)
    assert not (signed / "manifest.sig").exists()
    # What was not signed says nothing.
    write_package(signed, package.manifest, contents, overwrite=True)


def test_what_is_no_key_is_refused_in_one_sentence(signed: Path, keys: Path) -> None:
    rsa = keys / "rsa.pem"
    openssl("genpkey", "-algorithm", "rsa", "-out", rsa)
    for key in (keys / "public.pem", rsa, signed / "manifest.json"):
        with pytest.raises(SignatureError, match=r"not a private Ed25519 key.*openssl genpkey"):
            sign_package(str(signed), key)
    for key in (keys / "key.pem", rsa, signed / "manifest.json"):
        with pytest.raises(SignatureError, match=r"not a public Ed25519 key.*openssl pkey"):
            open_package(signed, require_signature=key)
    locked = keys / "locked.pem"
    openssl("pkey", "-in", keys / "key.pem", "-aes256", "-passout", "pass:x", "-out", locked)
    with pytest.raises(SignatureError, match="without a password"):
        sign_package(str(signed), locked)
    with pytest.raises(SignatureError, match="cannot be read"):
        sign_package(str(signed), keys / "absent.pem")


@pytest.mark.parametrize(
    "command", ["infer", "info", "verify", "doctor", "evaluate", "calibrate", "bench", "serve"]
)
def test_every_command_that_opens_a_package_can_ask_for_a_signature(
    signed: Path,
    keys: Path,
    command: str,
    tmp_path: Path,
    tiny_scan: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = {
        "infer": [str(tiny_scan), "--package", str(signed), "-o", str(tmp_path / "labels.nii.gz")],
        "evaluate": [str(signed), "--data", str(tmp_path), "-o", str(tmp_path / "evaluated")],
        "calibrate": [str(signed), "--data", str(tmp_path), "-o", str(tmp_path / "new.rare")],
        "bench": [str(signed), str(tiny_scan), "--anyway"],
        "serve": [str(signed), "--port", "0"],
    }
    arguments = [command, *named.get(command, [str(signed)])]
    asked = [*arguments, "--require-signature", str(keys / "other_public.pem")]
    status = main(asked)
    captured = capsys.readouterr()
    if command == "doctor":
        assert status == 0
        assert "its signature is not that of its manifest" in captured.out
    else:
        assert status == 1
        assert "its signature is not that of its manifest" in captured.err
    assert not (tmp_path / "labels.nii.gz").exists()


def test_building_engines_can_ask_for_a_signature(
    signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--require-signature", str(keys / "other_public.pem")]
    assert main(["build", "--package", str(signed), *asked]) == 1
    assert "its signature is not that of its manifest" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["build", "checkpoint", "--data", "x", "-o", "y.rare", *asked])
    assert "--require-signature is for engines" in capsys.readouterr().err


def test_without_the_library_one_sentence_says_what_to_install(
    signed: Path, keys: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert main(["info", str(signed), "--require-signature", str(keys / "public.pem")]) == 1
    assert "pip install 'rare-trt[sign]'" in capsys.readouterr().err
    assert main(["info", str(signed)]) == 0


def test_a_package_that_cannot_be_written_is_not_signed(
    keys: Path, signed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (signed / "manifest.sig").unlink()
    (signed / "manifest.sig").mkdir()
    with pytest.raises(OutputError, match="cannot be written"):
        sign_package(str(signed), keys / "key.pem")
