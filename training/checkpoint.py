"""A checkpoint: model.safetensors and config.json side by side. Never a pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from rare_trt.errors import RareTrtError
from rare_trt.scan.geometry import Triple
from rare_trt.storage.files import write_files
from rare_trt.training.network import RareUNet
from rare_trt.training.recipe import Recipe, recipe_from_json

FORMAT = "rare-trt checkpoint 1"


@dataclass(frozen=True)
class TrainingFacts:
    """What the training data were, which decides what the package accepts and flags.

    `cases` is 0 where it is not known which they were, of a converted network; the others are then
    facts of the scans that it was measured on, and `validation` is kept back from calibration.
    Fields of view per canonical axis in mm; volumes in mm³ per label from 1 up; `dice` holds
    `dice[route][label - 1]` on the validation cases at base spacing.
    """

    cases: int
    validation: tuple[str, ...]
    smallest_fov_mm: Triple
    typical_fov_mm: Triple
    largest_fov_mm: Triple
    volume_range_mm3: tuple[tuple[float, float], ...]
    epochs: int = 0
    dice: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A trained network with its recipe and the facts of its training."""

    network: RareUNet
    recipe: Recipe
    facts: TrainingFacts

    def save(self, folder: Path) -> None:
        """Writes model.safetensors and config.json into `folder`, replacing what was there."""
        write_files(self.files(folder), overwrite=True)

    def files(self, folder: Path) -> dict[Path, bytes]:
        """What `save` writes."""
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
    """The checkpoint in `folder`; raises RareTrtError where it is absent or does not fit."""
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
