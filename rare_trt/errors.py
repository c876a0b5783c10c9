"""Errors a user can act on. The command line prints them as one sentence and exits 1."""

from __future__ import annotations


class RareTrtError(Exception):
    """Base of every error that the input or the environment causes; anything else is a bug."""


class ScanError(RareTrtError):
    """The scan cannot be segmented as it is."""


class PackageError(RareTrtError):
    """The package is absent, damaged, tampered with or too new."""


class SignatureError(PackageError):
    """The package is not signed as required, or the key is invalid."""


class BackendError(RareTrtError):
    """The requested backend cannot run here, or gave labels that cannot be trusted."""


class ShapeError(BackendError):
    """An engine was not built for the shapes a scan needs."""


class OutputError(RareTrtError):
    """An output cannot be written."""


class EngineWarning(UserWarning):
    """An engine failed or does not fit; another backend was used."""


class AccuracyWarning(UserWarning):
    """A network segments a label hardly or not at all."""


class SignatureWarning(UserWarning):
    """A signed package was changed, and is no longer signed."""


class CacheWarning(UserWarning):
    """The cache cannot be used; everything runs without it, and starts take longer."""
