"""Sessions: one route on one backend."""
