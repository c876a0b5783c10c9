"""The state of an unfinished or finished run, from which `rare-trt train` resumes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from rare_trt.errors import RareTrtError
from rare_trt.training.checkpoint import Checkpoint, TrainingFacts, load_checkpoint
from rare_trt.training.log import LogRow, log_from_csv
from rare_trt.training.recipe import Recipe, recipe_from_json

# Entries of a recipe that name its data, or that say how much a part of them counts.
_NAMED: Final = ("data_source", "data_licence", "rim_weight")

STATE: Final = "state.safetensors"
LOG: Final = "log.csv"


@dataclass(frozen=True, eq=False)
class RunState:
    """A run after `epochs` epochs, as far as its recipe and data do not decide it.

    `network` and `ema` are the state dictionaries of the network and of the AveragedModel with the
    EMA of its weights; `optimiser` has the optimiser's tensors per parameter and `scaler` the state
    of the fp16 gradient scaler, both empty where there is none. `dice[route][label - 1]` is that of
    the EMA weights, empty where they were not validated.
    """

    epochs: int
    log: Sequence[LogRow]
    dice: tuple[tuple[float, ...], ...]
    network: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimiser: Mapping[int, Mapping[str, Tensor]]
    scaler: Mapping[str, Any]

    def to_bytes(self, recipe: Recipe, case_names: Sequence[Sequence[str]]) -> bytes:
        """Returns the contents of state.safetensors. `case_names` are those of the training cases
        and those of the validation cases."""
        tensors = {f"network.{name}": tensor for name, tensor in self.network.items()}
        tensors |= {f"average.{name}": tensor for name, tensor in self.ema.items()}
        for index, state in self.optimiser.items():
            tensors |= {f"optimiser.{index}.{key}": tensor for key, tensor in state.items()}
        notes = {
            "recipe": json.dumps(recipe.as_json()),
            "cases": json.dumps(case_names),
            "log": json.dumps(self.log),
            "dice": json.dumps(self.dice),
            "scaler": json.dumps(self.scaler),
        }
        return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, notes)

    def load_into(self, network: nn.Module, ema: nn.Module, optimiser: Optimizer) -> None:
        """Puts weights and optimiser state into the objects of a run that resumes."""
        network.load_state_dict(self.network)
        ema.load_state_dict(self.ema)
        groups = optimiser.state_dict()["param_groups"]
        optimiser.load_state_dict({"state": self.optimiser, "param_groups": groups})


@dataclass(frozen=True, eq=False)
class SavedRun:
    """The contents of a state.safetensors: a run's state, its recipe and `case_names` as JSON."""

    state: RunState
    recipe: Recipe
    case_names: str


def find_state(
    folder: Path, recipe: Recipe, facts: TrainingFacts, case_names: Sequence[Sequence[str]]
) -> RunState | None:
    """Reads the state of the run in `folder`: from state.safetensors, or from the checkpoint and
    log of a finished run. Returns None where the folder has neither.

    Raises RareTrtError where a file is damaged, the run is not finished and its state is missing,
    or the run was of other cases or of another recipe, but for cycles that `recipe` adds.
    """
    path = folder / STATE
    if path.is_file():
        saved = read_state_file(path)
        if not _continues(recipe, saved.recipe):
            raise _other_recipe(path)
        if saved.case_names != json.dumps(case_names):
            raise _other_cases(path)
        return saved.state
    if (folder / "config.json").is_file():
        return _from_checkpoint(folder, recipe, facts)
    return None


def read_state_file(path: Path) -> SavedRun:
    """Reads a state.safetensors; raises RareTrtError where it is damaged or of another version."""
    try:
        with safe_open(path, framework="pt") as file:
            notes = file.metadata() or {}
            # The file is no mapping: it has keys() but cannot be iterated.
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RareTrtError(
            f"{path}: cannot be read ({error}); expected the state of a run: remove it to begin "
            "anew"
        ) from error
    if not {"recipe", "cases", "log", "dice", "scaler"} <= notes.keys():
        raise RareTrtError(
            f"{path}: is not the state of a run of this version; remove it to begin anew"
        )
    try:
        # Recipe fields added later take their defaults.
        saved = recipe_from_json(json.loads(notes["recipe"]))
    except RareTrtError as error:
        raise _other_recipe(path) from error
    optimiser: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _with_prefix(tensors, "optimiser.").items():
        index, key = name.split(".")
        optimiser.setdefault(int(index), {})[key] = tensor
    log = json.loads(notes["log"])
    state = RunState(
        epochs=int(log[-1]["epoch"]),
        log=log,
        dice=tuple(tuple(row) for row in json.loads(notes["dice"])),
        network=_with_prefix(tensors, "network."),
        ema=_with_prefix(tensors, "average."),
        optimiser=optimiser,
        scaler=json.loads(notes["scaler"]),
    )
    return SavedRun(state, saved, notes["cases"])


def _from_checkpoint(folder: Path, recipe: Recipe, facts: TrainingFacts) -> RunState:
    """The state of a finished run that only its checkpoint is left of."""
    path, saved = folder / "config.json", load_checkpoint(folder)
    if saved.facts.epochs < saved.recipe.epochs:
        raise RareTrtError(
            f"{folder}: the training stopped after {saved.facts.epochs} of {saved.recipe.epochs} "
            f"epochs and {STATE} is gone; expected it, to resume: name an empty folder to begin "
            "anew"
        )
    if not _continues(recipe, saved.recipe):
        raise _other_recipe(path)
    if (saved.facts.cases, saved.facts.validation) != (facts.cases, facts.validation):
        raise _other_cases(path)
    return state_from_checkpoint(saved, folder)


def state_from_checkpoint(saved: Checkpoint, folder: Path) -> RunState:
    """The state of a run that only its checkpoint `saved` and log in `folder` are left of: the EMA
    of the weights.

    The optimiser begins anew, which the warm-up of the next cycle allows for.
    """
    weights = saved.network.state_dict()
    ema = {f"module.{name}": tensor for name, tensor in weights.items()}
    return RunState(
        epochs=saved.facts.epochs,
        log=log_from_csv(folder / LOG),
        dice=saved.facts.dice,
        network=weights,
        ema=ema | {"n_averaged": torch.tensor(1)},
        optimiser={},
        scaler={},
    )


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, under the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _continues(recipe: Recipe, saved: Recipe) -> bool:
    """Whether `recipe` is the `saved` one, or the same with more cycles after its own, which may
    show other data too."""
    begun = recipe.cycles[: len(saved.cycles)]
    same = replace(recipe, cycles=begun, **{name: getattr(saved, name) for name in _NAMED})
    return same == saved


def _other_recipe(path: Path) -> RareTrtError:
    return RareTrtError(
        f"{path}: holds a run of another recipe; expected the same one to resume: "
        "name an empty folder, or the old recipe"
    )


def _other_cases(path: Path) -> RareTrtError:
    return RareTrtError(
        f"{path}: holds a run on other cases; expected the same data to resume, lest training "
        "cases become validation cases: name an empty folder, or the old data"
    )
