"""Labelled scans, simulated acquisitions, and the agreement of labels."""
