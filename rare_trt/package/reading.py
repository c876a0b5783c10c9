"""The package: one folder with manifest.json and files, each verified against its SHA-256."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os.path import realpath
from pathlib import Path

from rare_trt.backends import Precision
from rare_trt.constants import MAX_MANIFEST_BYTES
from rare_trt.errors import PackageError
from rare_trt.package.manifest import MANIFEST, SIGNATURE, GraphEntry, Manifest, RouteEntry
from rare_trt.package.manifest_json import manifest_from_json, schema_json
from rare_trt.plan.routing import Route
from rare_trt.storage.cache import Cache
from rare_trt.storage.files import (
    opened,
    sha256,
)

SHIPPED = Path(__file__).parents[1] / "packages"
SUFFIX = ".rare"


@dataclass(frozen=True)
class Package:
    """An opened package. Nothing but the manifest has been read yet."""

    folder: Path
    manifest: Manifest
    manifest_sha256: str

    def read(self, name: str) -> bytes:
        """The file `name`, read once and verified against its hash; raises PackageError.

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
        """Where the file `name` lies; raises PackageError where a link leads there."""
        return _inside(self.folder, name)

    def check(self) -> None:
        """Reads every file; raises PackageError where one is not what it was.

        So does a file or a link that the manifest does not name: nothing reads it, and nothing
        vouches for it.
        """
        for name in self.manifest.files:
            self.read(name)
        known = {MANIFEST, SIGNATURE, *self.manifest.files}
        for path in sorted(self.folder.rglob("*")):
            is_folder = path.is_dir() and not path.is_symlink()
            if not is_folder and path.relative_to(self.folder).as_posix() not in known:
                raise PackageError(
                    f"{path}: is in the package, but the manifest does not name it; expected "
                    "nothing else: remove it, nothing reads it"
                )

    def graph(self, route: int, precision: Precision) -> GraphEntry:
        """The graph of `route` at `precision`."""
        for entry in self.manifest.graphs:
            if (entry.route, entry.precision) == (route, precision):
                return entry
        raise PackageError(
            f"{self.folder}: has no {precision} graph for route {route}: build the package again"
        )


def route_from_entry(entry: RouteEntry) -> Route:
    """The geometry of a manifest's route."""
    return Route(
        entry.index, entry.spacing_mm, entry.native_band, entry.multiple, entry.profile.max
    )


def is_fp16_within_budget(manifest: Manifest, route: int) -> bool:
    """Whether fp16 keeps the Dice budget on `route`; True where no calibration measured it."""
    measured = [entry.variants for entry in manifest.calibration if entry.route == route]
    return all("fp16" in [one.arithmetic for one in variants] for variants in measured)


def open_package(
    name_or_folder: str | os.PathLike[str],
    *,
    require_signature: str | os.PathLike[str] | None = None,
) -> Package:
    """A package that ships with rare-trt, by name, or the one in a folder.

    With `require_signature`, a public key in PEM, the manifest must carry the signature of its
    private half, which is looked at before anything else: raises PackageError otherwise.
    """
    folder = package_folder(name_or_folder)
    data = read_manifest(folder)
    if require_signature is not None:
        from rare_trt.package.signing import check_signature

        check_signature(folder, data, read_signature(folder), Path(require_signature))
    digest = sha256(data)
    # Compiling the schema takes longer than all else about opening a package, so this machine
    # remembers the manifests that fitted it.
    cache, key = Cache(), ("manifest", digest, sha256(schema_json()))
    fits_schema = cache.load(*key) is not None
    try:
        manifest = manifest_from_json(data, fits_schema=fits_schema)
    except PackageError as error:
        raise PackageError(f"{folder}: {error}") from error
    if not fits_schema:
        cache.store(b"", *key)
    return Package(folder, manifest, digest)


def package_folder(name_or_folder: str | os.PathLike[str]) -> Path:
    """Where the package of that name, or in that folder, lies; raises PackageError."""
    shipped = SHIPPED / f"{name_or_folder}{SUFFIX}"
    is_name = Path(name_or_folder).name == str(name_or_folder)
    folder = shipped if is_name and shipped.is_dir() else Path(name_or_folder)
    if folder.is_dir():
        return folder
    if set_aside(folder).is_dir():
        raise PackageError(
            f"{folder}: was being replaced when the program was stopped; expected a package: "
            f"rename {set_aside(folder)}, which is the one from before, to {folder.name}"
        )
    names = ", ".join(sorted(path.stem for path in SHIPPED.glob(f"*{SUFFIX}"))) or "none"
    raise PackageError(
        f"{name_or_folder}: no such package; expected a folder, or one that ships with rare-trt "
        f"({names}): check its name"
    )


def read_manifest(folder: Path) -> bytes:
    """The bytes of the manifest of the package in `folder`."""
    return _read(_inside(folder, MANIFEST), limit=MAX_MANIFEST_BYTES)


def read_signature(folder: Path) -> bytes | None:
    """The bytes of the signature of the package in `folder`, None where it has none."""
    path = _inside(folder, SIGNATURE)
    return _read(path, limit=MAX_MANIFEST_BYTES) if path.exists() else None


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


def set_aside(folder: Path) -> Path:
    """Where a package lies while another takes its place, where two names cannot be exchanged."""
    return folder.with_name(f".{folder.name}.old")


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if realpath(path) != str(Path(realpath(folder)) / name):
        raise PackageError(
            f"{path}: is a link or lies behind one; expected a file in the package's own folder: "
            "install the package again"
        )
    return path


def _read(path: Path, limit: int) -> bytes:
    """At most `limit` + 1 bytes of the file `path`."""
    try:
        handle = opened(path)
        with os.fdopen(handle, "rb") as file:
            if stat.S_ISREG(os.fstat(handle).st_mode):
                return file.read(limit + 1)
        reason = "it is not a file"
    except OSError as error:
        reason = error.strerror or str(error)
    raise PackageError(
        f"{path}: cannot be read ({reason}); expected a file of the package: install the package "
        "again"
    )
