"""The package: one folder with manifest.json and files, each held to its SHA-256."""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os.path import realpath
from pathlib import Path

from rare_trt.cache import Cache
from rare_trt.errors import OutputError, PackageError, SignatureWarning
from rare_trt.files import (
    claimed,
    claimed_still,
    make_folder,
    new_folder,
    opened,
    refuse_existing,
    remove_folders,
    sha256,
    sync_folder,
    temporary_name,
    unwritable,
    write_files,
    write_synced,
)
from rare_trt.manifest import (
    MANIFEST,
    SIGNATURE,
    EngineEntry,
    FileEntry,
    GraphEntry,
    Manifest,
    Precision,
    manifest_from_json,
    schema_json,
)
from rare_trt.renaming import exchange, rename_new

SHIPPED = Path(__file__).parent / "packages"
SUFFIX = ".rare"
MAX_MANIFEST_BYTES = 1 << 20
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
        from rare_trt.signing import check_signature

        check_signature(folder, data, Path(require_signature))
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
    if _set_aside(folder).is_dir():
        raise PackageError(
            f"{folder}: was being replaced when the program was stopped; expected a package: "
            f"rename {_set_aside(folder)}, which is the one from before, to {folder.name}"
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


def write_package(
    folder: Path, manifest: Manifest, contents: Mapping[str, bytes], *, overwrite: bool
) -> Package:
    """Writes `contents` and `manifest` (its `files` filled in from them) as the package `folder`.

    Everything is written beside `folder` first, and takes its place when it is on the disk, so
    that at every moment the old package or the new one is there, where the file system can
    exchange two names (Linux: ext4, XFS, Btrfs, tmpfs, overlay). Elsewhere there is a moment
    between two renames; a process killed in it leaves the old package beside, and opening says so.
    The signature of a package that was replaced goes with it, with a SignatureWarning.
    """
    refuse_folder(folder, overwrite=overwrite)
    folder = Path(realpath(folder))
    files = {name: FileEntry(sha256(data), len(data)) for name, data in contents.items()}
    data = replace(manifest, files=files).to_json()
    manifest_from_json(data)
    new = temporary_name(folder)
    signed = (folder / SIGNATURE).exists()
    new_parents: list[Path] = []
    try:
        new_parents = make_folder(folder.parent)
        with claimed(new, new_folder) as handle:
            for name, content in {**contents, MANIFEST: data}.items():
                path = new / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_synced(path, content)
            for made in (new, *(path for path in new.rglob("*") if path.is_dir())):
                sync_folder(made)
            claimed_still(handle, new)
            _put(new, folder)
            for changed in {folder.parent, *(path.parent for path in new_parents)}:
                sync_folder(changed)
    except OSError as error:
        remove_folders(new_parents)
        raise unwritable(folder, error) from error
    if signed:
        _warn_unsigned(folder)
    return open_package(folder)


def store_engines(
    package: Package, engines: Sequence[EngineEntry], contents: Mapping[str, bytes]
) -> Package:
    """Makes `engines` those of the package in its folder; `contents` are the new ones' files.

    The files come first and the manifest last, each renamed into place, so that the package is
    whole at every moment. A signature no longer holds: it is removed, with a SignatureWarning.
    Raises OutputError, with the package as it was.
    """
    manifest = with_engines(package.manifest, engines, contents)
    data = manifest.to_json()
    manifest_from_json(data)
    new = {package.inside(name): content for name, content in contents.items()}
    gone = [package.inside(name) for name in set(package.manifest.files) - set(manifest.files)]
    refuse_changed(package)
    # All or none: the manifest is renamed last, and what was written before it goes if it fails.
    write_files({**new, package.folder / MANIFEST: data}, overwrite=True)
    for path in gone:
        path.unlink(missing_ok=True)
    signature = package.inside(SIGNATURE)
    if signature.exists():
        signature.unlink()
        _warn_unsigned(package.folder)
    return open_package(package.folder)


def refuse_changed(package: Package) -> None:
    """Raises OutputError where what lies in the package's folder is not what was opened."""
    if open_package(package.folder).manifest_sha256 != package.manifest_sha256:
        raise OutputError(
            f"{package.folder}: was changed by another program meanwhile: run the command again"
        )


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
    return (folder / MANIFEST).is_file()


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
    """Raises OutputError where the package `folder`, or what a link of that name leads to, may not
    be written."""
    # Not Path.resolve, which raises where links go in a circle.
    folder = Path(realpath(folder))
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
    parent = next(path for path in folder.parents if path.exists())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{parent}: cannot be written to: check its permissions")


def _put(new: Path, folder: Path) -> None:
    """Gives the folder `new` the name `folder`; what had it before goes."""
    if not folder.exists():
        rename_new(new, folder)
        return
    old = _set_aside(folder)
    shutil.rmtree(old, ignore_errors=True)
    if exchange(new, folder):
        shutil.rmtree(new, ignore_errors=True)
        return
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    """Where a package lies while another takes its place, where two names cannot be exchanged."""
    return folder.with_name(f".{folder.name}.old")


def _warn_unsigned(folder: Path) -> None:
    warnings.warn(
        f"{folder}: was changed, so its signature no longer holds and was removed: sign it again "
        "with `rare-trt sign`",
        SignatureWarning,
        stacklevel=3,
    )


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
        reason = "it is no file"
    except OSError as error:
        reason = error.strerror or str(error)
    raise PackageError(
        f"{path}: cannot be read ({reason}); expected a file of the package: install the package "
        "again"
    )
