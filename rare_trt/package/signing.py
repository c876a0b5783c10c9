"""Who made a package: an Ed25519 signature over the bytes of its manifest, and so over every file.

manifest.sig contains its 64 bytes. Keys are PEM files as openssl makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from rare_trt.errors import SignatureError
from rare_trt.package.manifest import SIGNATURE

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import (
        Ed25519PrivateKey,
        Ed25519PublicKey,
    )

PRIVATE_KEY: Final = "openssl genpkey -algorithm ed25519 -out key.pem"
PUBLIC_KEY: Final = "openssl pkey -in key.pem -pubout -out public.pem"


def sign(manifest: bytes, key: Path) -> bytes:
    """The signature of a manifest's bytes by the private key in the file `key`."""
    return _private_key(key).sign(manifest)


def check_signature(folder: Path, manifest: bytes, signature: bytes | None, key: Path) -> None:
    """Raises SignatureError unless the package in `folder` has the signature of `manifest`, its
    manifest's bytes, by the private half of the public key in the file `key`."""
    public = _public_key(key)
    from cryptography.exceptions import InvalidSignature

    if signature is None:
        raise SignatureError(
            f"{folder}: is not signed; expected {SIGNATURE} in it by the key {key}: get the "
            "package from who signs it, or leave out --require-signature"
        )
    try:
        public.verify(signature, manifest)
    except InvalidSignature as error:
        raise SignatureError(
            f"{folder}: its signature is not that of its manifest by the key {key}; the package "
            "was changed, or another key signed it: get it again from who signs it"
        ) from error


def _private_key(path: Path) -> Ed25519PrivateKey:
    data = _key_bytes(path)
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise _missing(error) from error
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "private", PRIVATE_KEY) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _no_key(path, "private", PRIVATE_KEY)
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    data = _key_bytes(path)
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise _missing(error) from error
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _no_key(path, "public", PUBLIC_KEY) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _no_key(path, "public", PUBLIC_KEY)
    return key


def _key_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SignatureError(
            f"{path}: cannot be read ({error.strerror}); expected a key: check the path"
        ) from error


def _no_key(path: Path, half: str, how: str) -> SignatureError:
    return SignatureError(
        f"{path}: is not a {half} Ed25519 key in PEM without a password: make one with `{how}`"
    )


def _missing(error: ImportError) -> SignatureError:
    return SignatureError(
        f"signatures need the package {error.name}, which the base install leaves out: "
        "pip install 'rare-trt[sign]'"
    )
