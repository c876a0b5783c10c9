"""Scans: reading, validation, geometry, intensities."""
