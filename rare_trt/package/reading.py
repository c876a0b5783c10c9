"""The package: one folder with manifest.json and files, each verified against its SHA-256.

Engines that were built for a package that may not be written to lie in the user's own folder, with
a manifest of their own: that of the package, with those engines.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from os.path import realpath
from pathlib import Path
from typing import Final

from rare_trt.backends import Precision
from rare_trt.constants import MAX_MANIFEST_BYTES
from rare_trt.errors import PackageError
from rare_trt.package.manifest import (
    MANIFEST,
    SIGNATURE,
    GraphEntry,
    Manifest,
    RouteEntry,
    TrainingRecord,
)
from rare_trt.package.manifest_json import manifest_from_json, schema_json
from rare_trt.plan.routing import Route
from rare_trt.storage.cache import Cache, home_folder, is_private
from rare_trt.storage.files import (
    opened,
    sha256,
)

SHIPPED = Path(__file__).parents[1] / "packages"
SUFFIX = ".rare"

# A label with less Dice than this on the validation cases is not segmented.
MIN_VALIDATION_DICE: Final = 0.1


@dataclass(frozen=True)
class Package:
    """An opened package. Nothing but the manifest has been read yet.

    `manifest_sha256` is that of the file in the package's folder. Where engines for it lie in
    `engines_folder`, the user's own, `manifest` lists them too, and `engine_files` names them.
    """

    folder: Path
    manifest: Manifest
    manifest_sha256: str
    engines_folder: Path | None = None
    engine_files: frozenset[str] = field(default_factory=frozenset)

    def read(self, name: str) -> bytes:
        """The file `name`, read once and verified against its hash; raises PackageError.

        What is returned is what was hashed: parsers get these bytes, never the path.
        """
        entry = self.manifest.files[name]
        path = self.inside(name)
        data = _read(path, limit=entry.bytes)
        if len(data) != entry.bytes or sha256(data) != entry.sha256:
            remedy = "install the package again"
            if name in self.engine_files:
                remedy = f"remove {self.engines_folder} and build the engines again"
            raise PackageError(
                f"{path}: is not the file the manifest names (SHA-256 or size differ); it was "
                f"damaged or tampered with: {remedy}"
            )
        return data

    def inside(self, name: str) -> Path:
        """Where the file `name` lies; raises PackageError where a link leads there."""
        if name in self.engine_files and self.engines_folder is not None:
            return inside(self.engines_folder, name)
        return inside(self.folder, name)

    @property
    def is_shipped(self) -> bool:
        """Whether the package is part of the installation, which nothing writes to."""
        return Path(realpath(self.folder)).parent == Path(realpath(SHIPPED))

    def check(self) -> None:
        """Reads every file; raises PackageError where one is not what it was.

        So does a file or a link that the manifest does not name: nothing reads it, and nothing
        vouches for it.
        """
        for name in self.manifest.files:
            self.read(name)
        own = self.manifest.files.keys() - self.engine_files
        _refuse_others(self.folder, {MANIFEST, SIGNATURE, *own})
        if self.engines_folder is not None:
            _refuse_others(self.engines_folder, {MANIFEST, *self.engine_files})

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


def describe_data(training: TrainingRecord) -> str:
    """The training data and their licence, as the recipe names them."""
    named = [text for text in (training.data, training.licence) if text]
    return ", ".join(named) or "not recorded, because the recipe does not name them"


def describe_unsegmented(labels: Sequence[str], dice: Sequence[Sequence[float]]) -> str | None:
    """The routes with labels whose Dice on the validation cases, `dice[route][label - 1]`, is below
    MIN_VALIDATION_DICE, with the worst label of each; None where there is no such label. `labels`
    are the names, that of the background first."""
    found = []
    for route, scores in enumerate(dice):
        low = [label for label, score in enumerate(scores) if not score >= MIN_VALIDATION_DICE]
        if low:
            worst = min(low, key=lambda label: scores[label])
            found.append(
                f"route {route}: {len(low)} of {len(scores)} labels, the lowest "
                f"{scores[worst]:.3f} ({labels[worst + 1]})"
            )
    return "; ".join(found) or None


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
    return _with_own_engines(Package(folder, _parse_manifest(folder, data), digest))


def engines_folder(manifest_sha256: str) -> Path | None:
    """The user's own folder for the engines of the package whose manifest has that hash; None
    where the user has no folder."""
    home = home_folder()
    return None if home is None else home / "engines" / manifest_sha256


def without_engines(manifest: Manifest) -> Manifest:
    """`manifest` without its engines and their files."""
    gone = {engine.file for engine in manifest.engines}
    files = {name: entry for name, entry in manifest.files.items() if name not in gone}
    return replace(manifest, engines=(), files=files)


def _with_own_engines(package: Package) -> Package:
    """`package` with the engines for it that lie in the user's own folder.

    Raises PackageError where they are damaged, made for another package, or may be another user's.
    """
    folder = engines_folder(package.manifest_sha256)
    try:
        if folder is None or not (folder / MANIFEST).is_file():
            return package
    except PermissionError:
        # $HOME is another user's.
        return package
    remedy = f"remove {folder} and build the engines again"
    if not is_private(folder, or_system=True):
        raise PackageError(
            f"{folder}: is another user's, or others may write to it, and engines are programs: "
            f"{remedy}"
        )
    try:
        found = _parse_manifest(folder, read_manifest(folder))
    except PackageError as error:
        raise PackageError(f"{error}, or {remedy}") from error
    manifest = package.manifest
    if without_engines(found) != without_engines(manifest):
        raise PackageError(
            f"{folder}: its engines are not those of the package in {package.folder}: {remedy}"
        )
    own = {name: entry for name, entry in found.files.items() if name not in manifest.files}
    engines = (*manifest.engines, *(engine for engine in found.engines if engine.file in own))
    merged = replace(manifest, engines=engines, files={**manifest.files, **own})
    return replace(package, manifest=merged, engines_folder=folder, engine_files=frozenset(own))


def _parse_manifest(folder: Path, data: bytes) -> Manifest:
    """The manifest of `folder` in the bytes `data`; raises PackageError."""
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
    return manifest


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
    """The bytes of the manifest of the package in `folder`; raises PackageError."""
    path = inside(folder, MANIFEST)
    if not os.path.lexists(path):
        raise PackageError(
            f"{folder}: is no package (it has no {MANIFEST}); expected a folder NAME.rare: check "
            "its name, or install the package again"
        )
    return _read(path, limit=MAX_MANIFEST_BYTES)


def read_signature(folder: Path) -> bytes | None:
    """The bytes of the signature of the package in `folder`, None where it has none."""
    path = inside(folder, SIGNATURE)
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


def _refuse_others(folder: Path, known: AbstractSet[str]) -> None:
    """Raises PackageError where `folder` holds a file or a link that is not `known`."""
    for path in sorted(folder.rglob("*")):
        is_folder = path.is_dir() and not path.is_symlink()
        if not is_folder and path.relative_to(folder).as_posix() not in known:
            raise PackageError(
                f"{path}: is in the package, but the manifest does not name it; expected "
                "nothing else: remove it, nothing reads it"
            )


def inside(folder: Path, name: str) -> Path:
    """The path of `name` in `folder`; raises PackageError where a link leads there."""
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
