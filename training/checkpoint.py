"""A checkpoint: model.safetensors and config.json side by side. Never a pickle."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rare_trt.errors import RareTrtError
from rare_trt.scan.geometry import Grid, Triple
from rare_trt.storage.files import write_files
from rare_trt.training.network import RareUNet
from rare_trt.training.recipe import Recipe, recipe_from_json

FORMAT = "rare-trt checkpoint 1"


class LabelledCase(Protocol):
    """What the facts of training are taken from: labels uint8 [i, j, k] on a grid, by name."""

    @property
    def name(self) -> str:
        """The case's name."""
        ...

    @property
    def grid(self) -> Grid:
        """The grid of the labels, axes in canonical order."""
        ...

    @property
    def labels(self) -> NDArray[np.uint8]:
        """The labels."""
        ...


@dataclass(frozen=True)
class TrainingFacts:
    """Facts of the training data, from which follows what the package accepts and flags.

    `cases` is 0 for a converted network whose training cases are unknown; the other entries then
    describe the scans it was measured on, and `validation` names those held out from calibration.
    Fields of view are in mm per canonical axis, volumes in mm³ per label from 1 up;
    `dice[route][label - 1]` is the mean over the validation cases at base spacing, empty where the
    weights were not validated.
    """

    cases: int
    validation: tuple[str, ...]
    smallest_fov_mm: Triple
    typical_fov_mm: Triple
    largest_fov_mm: Triple
    volume_range_mm3: tuple[tuple[float, float], ...]
    epochs: int = 0
    dice: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def from_cases(
        cls, cases: Sequence[LabelledCase], held_out: Sequence[LabelledCase], classes: int
    ) -> TrainingFacts:
        """Returns the facts of `cases`, of which `held_out` are for validation, before training."""
        extents = np.array([case.grid.extent_mm for case in cases])
        volumes = np.array([_volumes_mm3(case, classes) for case in cases])
        ranges = zip(volumes.min(axis=0).tolist(), volumes.max(axis=0).tolist(), strict=True)
        return cls(
            cases=len(cases),
            validation=tuple(case.name for case in held_out),
            smallest_fov_mm=_triple(extents.min(axis=0)),
            typical_fov_mm=_triple(np.median(extents, axis=0)),
            largest_fov_mm=_triple(extents.max(axis=0)),
            volume_range_mm3=tuple(ranges),
        )


def _volumes_mm3(case: LabelledCase, classes: int) -> list[float]:
    voxel = prod(case.grid.spacing_mm)
    return [float((case.labels == label).sum() * voxel) for label in range(1, classes)]


def _triple(values: NDArray[np.float64]) -> Triple:
    i, j, k = values.round(3).tolist()
    return i, j, k


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network with its recipe and the facts of its training data."""

    network: RareUNet
    recipe: Recipe
    facts: TrainingFacts

    def save(self, folder: Path) -> None:
        """Writes model.safetensors and config.json into `folder` and replaces existing ones.

        Raises OutputError where they cannot be written."""
        write_files(self.files(folder), overwrite=True)

    def files(self, folder: Path) -> dict[Path, bytes]:
        """Returns the contents of the files that `save` writes into `folder`."""
        weights = {
            name: t.detach().cpu().contiguous() for name, t in self.network.state_dict().items()
        }
        config = {
            "format": FORMAT,
            "recipe": self.recipe.as_json(),
            "facts": asdict(self.facts),
        }
        return {
            folder / "model.safetensors": save(weights),
            folder / "config.json": (json.dumps(config, indent=2) + "\n").encode(),
        }


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads the checkpoint in `folder`, its network in evaluation mode.

    Raises RareTrtError where a file is missing, damaged or does not fit the other.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        if config["format"] != FORMAT:
            raise ValueError(f"format is {config['format']!r}, expected {FORMAT!r}")
        recipe = recipe_from_json(config["recipe"])
        facts = _facts_from_json(config["facts"])
        network = RareUNet(recipe.network)
        network.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise RareTrtError(
            f"{folder}: not a checkpoint ({error}); expected model.safetensors and config.json "
            "as `rare-trt train` writes them"
        ) from error
    return Checkpoint(network.eval(), recipe, facts)


def _facts_from_json(values: dict[str, Any]) -> TrainingFacts:
    values = dict(values)
    for key in ("smallest_fov_mm", "typical_fov_mm", "largest_fov_mm", "validation"):
        values[key] = tuple(values[key])
    for key in ("volume_range_mm3", "dice"):
        values[key] = tuple(tuple(entry) for entry in values[key])
    return TrainingFacts(**values)
