"""A package from a checkpoint."""
