"""No bytes make the reader of manifests do anything but accept or refuse them in one sentence.

python fuzz/manifest.py tests/corpus/manifest -max_total_time=60     # needs atheris
"""

from __future__ import annotations

import gc
import sys
from types import FunctionType

from rare_trt.errors import PackageError
from rare_trt.package import manifest_json
from rare_trt.package.manifest_json import json_from_manifest, manifest_from_json, seal


def one(data: bytes) -> None:
    """Reads `data` as it is, and with its seal: no fuzzer would find a SHA-256 by itself."""
    for manifest in (data, data + seal(data)):
        _read(manifest)


def _read(data: bytes) -> None:
    try:
        manifest = manifest_from_json(data)
    except PackageError as error:
        if len(str(error).splitlines()) != 1:
            raise AssertionError(f"not one sentence: {error!r}") from error
        return
    if manifest_from_json(json_from_manifest(manifest)) != manifest:
        raise AssertionError("written and read again it is another manifest")


def main() -> None:
    import atheris

    # The reader and the validator that is generated from the schema: all else is not ours.
    one(b"{}")
    ours = (manifest_json.__file__, "<string>")
    functions = [found for found in gc.get_objects() if isinstance(found, FunctionType)]
    for function in functions:
        if function.__code__.co_filename in ours:
            atheris.instrument_func(function)
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
