"""Packages onto the disk: whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os.path import realpath
from pathlib import Path

from rare_trt.errors import OutputError, SignatureWarning
from rare_trt.package.manifest import MANIFEST, SIGNATURE, EngineEntry, FileEntry, Manifest
from rare_trt.package.manifest_json import json_from_manifest, manifest_from_json
from rare_trt.package.reading import (
    SUFFIX,
    Package,
    engines_folder,
    inside,
    open_package,
    read_manifest,
    set_aside,
)
from rare_trt.package.signing import sign
from rare_trt.storage.cache import is_private
from rare_trt.storage.files import (
    claimed,
    claimed_still,
    exchange,
    make_folder,
    new_folder,
    refuse_existing,
    remove_folders,
    rename_new,
    sha256,
    sync_folder,
    temporary_name,
    unwritable,
    write_files,
    write_synced,
)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.rare")


def write_package(
    folder: Path, manifest: Manifest, contents: Mapping[str, bytes], *, overwrite: bool
) -> Package:
    """Writes `contents` and `manifest` (its `files` filled in from them) as the package `folder`.

    Everything is written beside `folder` first, and takes its place when it is on the disk, so
    that at every moment the old package or the new one is there, where the file system can
    exchange two names (Linux: ext4, XFS, Btrfs, tmpfs, overlay). Elsewhere there is a moment
    between two renames; a process killed in it leaves the old package beside it, and opening
    reports that. The signature of a replaced package is removed, with a SignatureWarning.
    """
    refuse_folder(folder, overwrite=overwrite)
    folder = Path(realpath(folder))
    files = {name: FileEntry(sha256(data), len(data)) for name, data in contents.items()}
    data = json_from_manifest(replace(manifest, files=files))
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
    """Makes `engines` those of the package; `contents` are the new ones' files.

    They go into the package's folder, or for a package that ships with rare-trt into the user's
    own. The files come first and the manifest last, each renamed into place, so that the package is
    whole at every moment. Where the package's own manifest changes, a signature is no longer valid:
    it is removed, with a SignatureWarning. Raises OutputError, with the package as it was.
    """
    known = package.engine_files
    if package.is_shipped:
        folder = own_engines_folder(package)
        engines = [one for one in engines if one.file in known or one.file in contents]
    else:
        folder = package.folder
        moved = known & {engine.file for engine in engines}
        contents = {**{name: package.read(name) for name in moved}, **contents}
    manifest = with_engines(package.manifest, engines, contents)
    data = json_from_manifest(manifest)
    manifest_from_json(data)
    new = {inside(folder, name): content for name, content in contents.items()}
    replaced = known if package.is_shipped else package.manifest.files.keys() - known
    gone = [inside(folder, name) for name in replaced - manifest.files.keys()]
    refuse_changed(package)
    new_folders = _make_private(folder)
    try:
        # All or none: the manifest is renamed last, and the files before it are removed if it
        # fails.
        write_files({**new, inside(folder, MANIFEST): data}, overwrite=True)
    except BaseException:
        remove_folders(new_folders)
        raise
    for path in gone:
        path.unlink(missing_ok=True)
    signature = package.inside(SIGNATURE)
    if folder == package.folder and signature.exists():
        signature.unlink()
        _warn_unsigned(package.folder)
    return open_package(package.folder)


def own_engines_folder(package: Package) -> Path:
    """The user's own folder for engines of `package`; raises OutputError where there is none that
    can be written to and that no other user may write to."""
    folder = engines_folder(package.manifest_sha256)
    if folder is None:
        raise OutputError(
            f"{package.folder}: is part of the installation, and no folder for this user's engines "
            "is known (the user has no home): set RARE_TRT_HOME, or name a copy of the package "
            "with -o"
        )
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if parent == folder and not is_private(folder, or_system=True):
        raise OutputError(
            f"{folder}: is another user's, or others may write to it, and engines are programs: "
            "remove it, or name a copy of the package with -o"
        )
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(
            f"{parent}: cannot be written to: set RARE_TRT_HOME to a folder that can, or name a "
            "copy of the package with -o"
        )
    return folder


def _make_private(folder: Path) -> list[Path]:
    """Creates `folder`, which only its user may enter, where it is missing; returns new folders."""
    try:
        new = make_folder(folder)
        if new:
            folder.chmod(0o700)
    except OSError as error:
        raise unwritable(folder, error) from error
    return new


def refuse_changed(package: Package) -> None:
    """Raises OutputError where the package in its folder, or its engines in the user's own, are not
    those that were opened."""
    if open_package(package.folder) != package:
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
            f"{folder}: is a folder without a package; expected one to replace: name another output"
        )
    parent = next(path for path in folder.parents if path.exists())
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{parent}: cannot be written to: check its permissions")


def _put(new: Path, folder: Path) -> None:
    """Renames the folder `new` to `folder`, replacing it."""
    if not folder.exists():
        rename_new(new, folder)
        return
    old = set_aside(folder)
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


def sign_package(name_or_folder: str, key: Path) -> Path:
    """Signs a package with the private key in the file `key`; returns the path of the signature.

    A signature that is there already is replaced. Raises RareTrtError where the key is invalid,
    where a file of the package differs from the manifest, or where the signature cannot be written.
    """
    package = open_package(name_or_folder)
    data = read_manifest(package.folder)
    signature = sign(data, key)
    package.check()
    if sha256(data) != package.manifest_sha256:
        raise OutputError(
            f"{package.folder}: was changed by another program meanwhile: sign it again"
        )
    path = package.inside(SIGNATURE)
    write_files({path: signature}, overwrite=True)
    return path


def _warn_unsigned(folder: Path) -> None:
    warnings.warn(
        f"{folder}: was changed, so its signature was no longer valid and was removed: sign it "
        "again with `rare-trt sign`",
        SignatureWarning,
        stacklevel=3,
    )
