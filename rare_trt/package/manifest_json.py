"""manifest.json read and written.

manifest.schema.json is the published description of the file. It is checked first, so that msgspec
builds the types of manifest.py from values of the right kind; consistency.py then checks what a
schema cannot say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cache
from importlib import resources
from math import isfinite
from typing import Any, Final

import msgspec

from rare_trt.errors import PackageError
from rare_trt.package.consistency import first_fault
from rare_trt.package.manifest import MANIFEST, Manifest
from rare_trt.storage.files import sha256

FORMAT: Final = "rare-trt package"
FORMAT_VERSION: Final = 4

# Every integer of the file stands for itself as a float too.
MAX_INTEGER: Final = 1 << 53


def json_from_manifest(manifest: Manifest) -> bytes:
    """The bytes of manifest.json in today's format, with its seal."""
    return json_with_seal({"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)})


def json_with_seal(values: Mapping[str, Any]) -> bytes:
    """`values` as the bytes of a manifest, their SHA-256 as its last entry."""
    body = json.dumps(values, indent=1, sort_keys=False).removesuffix("\n}").encode()
    return body + seal(body)


def seal(body: bytes) -> bytes:
    """What a manifest ends with after `body`: the SHA-256 of those very bytes, white space too."""
    return f',\n "sha256": "{sha256(body)}"\n}}\n'.encode()


SEAL_BYTES: Final = len(seal(b""))


def manifest_from_json(data: bytes, *, fits_schema: bool = False) -> Manifest:
    """The manifest in `data`; raises PackageError that names what is wrong.

    `fits_schema`: these very bytes were checked against the schema before.
    """
    try:
        values = json.loads(
            data.decode(), parse_constant=_refuse_constant, parse_float=_finite, parse_int=_bounded
        )
        # Halves of surrogate pairs can be escaped, but neither printed nor written.
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise PackageError(
            f"manifest.json is not JSON ({error}); build the package again"
        ) from error
    if isinstance(values, dict):
        values = _upgrade(values, data)
    if not fits_schema:
        _check_schema(values)
    # Not strict: 8.0 is an integer to the schema, and must become one here.
    manifest = msgspec.convert(values, Manifest, strict=False)
    fault = first_fault(manifest)
    if fault is not None:
        raise PackageError(f"manifest.json contradicts itself ({fault}); build the package again")
    return manifest


def _upgrade(values: dict[str, Any], data: bytes) -> dict[str, Any]:
    """`values` in the newest format; refuses a newer one, and one whose seal is broken."""
    version = values.get("format_version")
    if isinstance(version, bool) or not isinstance(version, int | float):
        return values
    if version > FORMAT_VERSION:
        raise PackageError(
            f"the package has format version {version}; this rare-trt reads up to "
            f"{FORMAT_VERSION}: install a newer rare-trt"
        )
    if version == FORMAT_VERSION:
        _check_seal(data)
        return values
    if "sha256" in values:
        # One byte of the version would make a sealed manifest one that needs no seal.
        raise PackageError(
            f"{MANIFEST} has a seal, which format version {version} has not; it was damaged or "
            "changed by hand: install the package again"
        )
    # Version 2 added engines, version 3 INT8 and its calibration, version 4 the seal and the
    # training distribution, and they changed nothing else.
    if version == 1:
        values, version = {**values, "engines": []}, 2
    if version == 2:
        values, version = {**values, "calibration": []}, 3
    if version == 3:
        values = {**values, "format_version": 4, "sha256": sha256(data)}
    return values


def _check_seal(data: bytes) -> None:
    if data[-SEAL_BYTES:] != seal(data[:-SEAL_BYTES]):
        raise PackageError(
            f"{MANIFEST} does not end with the SHA-256 of what stands before; it was damaged or "
            "changed by hand: install the package again"
        )


def _check_schema(values: Any) -> None:
    from fastjsonschema import JsonSchemaValueException

    try:
        _validator()(values)
    except JsonSchemaValueException as error:
        raise PackageError(
            f"manifest.json does not fit its schema ({error.message}); build the package again"
        ) from error


@cache
def _validator() -> Callable[[Any], Any]:
    from fastjsonschema import compile as compile_schema

    validate: Callable[[Any], Any] = compile_schema(json.loads(schema_json()))
    return validate


def schema_json() -> bytes:
    """The published description of manifest.json."""
    return (resources.files("rare_trt.package") / "manifest.schema.json").read_bytes()


def _refuse_constant(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _bounded(text: str) -> int:
    value = int(text)
    if abs(value) > MAX_INTEGER:
        raise ValueError(f"an integer of {len(text)} digits is too large")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text} is too large")
    return value
