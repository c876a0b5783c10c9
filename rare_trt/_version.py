"""The version, for Python, CMake and packaging alike."""

VERSION = "0.1.0"
