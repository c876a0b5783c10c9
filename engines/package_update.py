"""Where built engines go: into the package they were built for, or into a copy of it. Those for a
package that ships with rare-trt go into the user's own folder: nothing writes to the
installation."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rare_trt.errors import OutputError
from rare_trt.package.manifest import EngineEntry
from rare_trt.package.reading import Package, open_package, without_engines
from rare_trt.package.writing import (
    is_package,
    own_engines_folder,
    refuse_folder,
    store_engines,
    with_engines,
    write_package,
)


def open_target(package: Package, out: Path | None, *, overwrite: bool) -> Package:
    """The package to build engines for: `package`, or its copy at `out` where that exists.

    Raises OutputError, before any work, where the engines could not be written in the end.
    """
    if out is None and package.is_shipped:
        own_engines_folder(package)
        return package
    if out is None:
        if not os.access(package.folder, os.W_OK):
            raise OutputError(
                f"{package.folder}: cannot be written to: name a copy of the package with -o"
            )
        return package
    refuse_folder(out, overwrite=overwrite or is_package(out))
    if not out.exists() or overwrite:
        return package
    copy = open_package(out)
    # All but the engines must be equal, hashes of graphs and weights included: engines are built
    # from the copy's graphs.
    if without_engines(copy.manifest) != without_engines(package.manifest):
        raise OutputError(
            f"{out}: exists and is not a copy of the package: name another output or pass "
            "--overwrite"
        )
    return copy


def merge_engines(
    old: Sequence[EngineEntry], new: Sequence[EngineEntry], *, any_precision: bool
) -> list[EngineEntry]:
    """`new`, and those of `old` that none of them replaces.

    An engine replaces another of the same backend, route, target and options, and of the same
    precision unless `any_precision`. Engines in both keep their place, so that a package to which
    nothing is added stays unchanged.
    """
    uses = [_use(engine, any_precision=any_precision) for engine in new]
    kept = [engine for engine in old if _use(engine, any_precision=any_precision) not in uses]
    return sorted([*kept, *new], key=lambda one: old.index(one) if one in old else len(old))


def write_target(
    package: Package,
    out: Path | None,
    engines: Sequence[EngineEntry],
    contents: Mapping[str, bytes],
    *,
    overwrite: bool,
) -> Package:
    """Writes `engines` for `package`, or a copy of it at `out` with them.

    `contents` holds the files of the engines that are new. Raises OutputError.
    """
    if out is not None and (package.folder != out or overwrite):
        return copy_with_engines(package, out, engines, contents, overwrite=overwrite)
    if tuple(engines) == package.manifest.engines:
        return package
    return store_engines(package, engines, contents)


def copy_with_engines(
    package: Package,
    folder: Path,
    engines: Sequence[EngineEntry],
    contents: Mapping[str, bytes],
    *,
    overwrite: bool,
) -> Package:
    """Writes a copy of `package` with `engines` to `folder`; `contents` as for `write_target`."""
    manifest = with_engines(package.manifest, engines, contents)
    others = {name: package.read(name) for name in manifest.files if name not in contents}
    return write_package(folder, manifest, {**others, **contents}, overwrite=overwrite)


def _use(engine: EngineEntry, *, any_precision: bool) -> EngineEntry:
    """The purpose of an engine without its origin; engines of equal use replace one another."""
    use = replace(engine, file="", graph_sha256="", library="", profile={})
    return replace(use, precision="fp32") if any_precision else use
