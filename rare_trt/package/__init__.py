"""Packages: manifest, reading, writing, signing."""
