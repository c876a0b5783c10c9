"""Labelled scans, simulated acquisitions, and how well labels agree."""
