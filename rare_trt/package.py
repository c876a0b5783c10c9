"""The package: one folder with manifest.json and files, each held to its SHA-256."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from rare_trt.errors import OutputError, PackageError
from rare_trt.files import refuse_existing, sha256, write_files
from rare_trt.manifest import (
    EngineEntry,
    FileEntry,
    GraphEntry,
    Manifest,
    Precision,
    manifest_from_json,
)

SHIPPED = Path(__file__).parent / "packages"
SUFFIX = ".rare"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.rare")


@dataclass(frozen=True)
class Package:
    """An opened package. Nothing but the manifest has been read yet."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str

    def read(self, name: str) -> bytes:
        """The file `name`, read once and held to its hash; raises PackageError otherwise.

        What is returned is what was hashed: parsers get these bytes, never the path.
        """
        entry = self.manifest.files[name]
        path = self.inside(name)
        data = _read(path, limit=entry.bytes)
        if len(data) != entry.bytes or sha256(data) != entry.sha256:
            raise PackageError(
                f"{path}: is not the file the manifest names (SHA-256 or size differ); it was "
                "damaged or tampered with: install the package again"
            )
        return data

    def inside(self, name: str) -> Path:
        """Where the file `name` lies; raises PackageError where a link leads out of the folder."""
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise PackageError(f"{path}: leads out of the package; expected a file inside it")
        return path

    def graph(self, route: int, precision: Precision) -> GraphEntry:
        """The graph of `route` at `precision`."""
        for entry in self.manifest.graphs:
            if (entry.route, entry.precision) == (route, precision):
                return entry
        raise PackageError(
            f"{self.folder}: has no {precision} graph for route {route}: build the package again"
        )


def open_package(name_or_folder: str | os.PathLike[str]) -> Package:
    """A package that ships with rare-trt, by name, or the one in a folder."""
    shipped = SHIPPED / f"{name_or_folder}{SUFFIX}"
    is_name = Path(name_or_folder).name == str(name_or_folder)
    folder = shipped if is_name and shipped.is_dir() else Path(name_or_folder)
    if not folder.is_dir():
        names = ", ".join(sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}"))) or "none"
        raise PackageError(
            f"{name_or_folder}: no such package; expected a folder, or one that ships with "
            f"rare-trt ({names}): check --package"
        )
    data = _read(folder / "manifest.json", limit=1 << 20)
    try:
        return Package(folder, manifest_from_json(data), sha256(data))
    except PackageError as error:
        raise PackageError(f"{folder}: {error}") from error


def write_package(
    folder: Path, manifest: Manifest, contents: Mapping[str, bytes], *, overwrite: bool
) -> Package:
    """Writes `contents` and `manifest` (its `files` filled in from them) as the package `folder`.

    Everything is written beside `folder` first and renamed, so that `folder` is never half there.
    """
    folder = folder.resolve()
    refuse_folder(folder, overwrite=overwrite)
    files = {name: FileEntry(sha256(data), len(data)) for name, data in contents.items()}
    data = replace(manifest, files=files).to_json()
    manifest_from_json(data)
    token = secrets.token_hex(4)
    new = folder.with_name(f".{folder.name}.{token}.part")
    old = folder.with_name(f".{folder.name}.{token}.old")
    try:
        for name, content in {**contents, "manifest.json": data}.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except OSError as error:
        raise OutputError(
            f"{folder}: cannot be written ({error.strerror}): check the folder's permissions and "
            "the free space"
        ) from error
    finally:
        # Whatever interrupted, an interrupt from the keyboard included, a package is there.
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return open_package(folder)


def store_engines(
    package: Package, engines: Sequence[EngineEntry], contents: Mapping[str, bytes]
) -> Package:
    """Makes `engines` those of the package in its folder; `contents` are the new ones' files.

    The files come first and the manifest last, each renamed into place, so that the package is
    whole at every moment. Raises OutputError, with the package as it was.
    """
    manifest = with_engines(package.manifest, engines, contents)
    data = manifest.to_json()
    manifest_from_json(data)
    new = {package.inside(name): content for name, content in contents.items()}
    gone = [package.inside(name) for name in set(package.manifest.files) - set(manifest.files)]
    if open_package(package.folder).manifest_sha256 != package.manifest_sha256:
        raise OutputError(
            f"{package.folder}: was changed by another program meanwhile: run the build again"
        )
    # All or none: the manifest is renamed last, and what was written before it goes if it fails.
    write_files({**new, package.folder / "manifest.json": data}, overwrite=True)
    for path in gone:
        path.unlink(missing_ok=True)
    return open_package(package.folder)


def with_engines(
    manifest: Manifest, engines: Sequence[EngineEntry], contents: Mapping[str, bytes]
) -> Manifest:
    """`manifest` with `engines` and no others; `contents` are the files that are new."""
    gone = {engine.file for engine in manifest.engines} - {engine.file for engine in engines}
    files = {name: entry for name, entry in manifest.files.items() if name not in gone}
    files |= {name: FileEntry(sha256(data), len(data)) for name, data in contents.items()}
    return replace(manifest, engines=tuple(engines), files=files)


def is_package(folder: Path) -> bool:
    """Whether a package, whole or not, lies in `folder`."""
    return (folder / "manifest.json").is_file()


@contextmanager
def graph_on_disk(graph: bytes, weights: bytes, weights_name: str) -> Iterator[Path]:
    """A private copy of a graph's verified bytes as files, for as long as a parser reads it.

    Parsers open external weights by path: so nothing can be swapped between check and load.
    """
    with tempfile.TemporaryDirectory(prefix="rare-trt-") as folder:
        path = Path(folder) / "graph.onnx"
        path.write_bytes(graph)
        (Path(folder) / weights_name).write_bytes(weights)
        yield path


def refuse_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises OutputError where the package `folder` may not be written."""
    if not NAME.fullmatch(folder.name):
        raise OutputError(
            f"{folder}: expected letters, digits, - and _, then {SUFFIX}: choose another name"
        )
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file; expected a folder or nothing: name another output")
    if not overwrite:
        refuse_existing([folder])
    if folder.is_dir() and any(folder.iterdir()) and not is_package(folder):
        raise OutputError(
            f"{folder}: is a folder that holds no package; expected one to replace: name another "
            "output"
        )
    parent = next(path for path in folder.resolve().parents if path.exists())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{parent}: cannot be written to: check its permissions")


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise PackageError(
            f"{path}: cannot be read ({error.strerror}); expected a file of the package: install "
            "the package again"
        ) from error
