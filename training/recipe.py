"""A recipe: everything that decides a training run, as one JSON file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any

from rare_trt.errors import RareTrtError
from rare_trt.plan.routing import Route
from rare_trt.scan.intensity import IntensityRule
from rare_trt.training.network import NetworkConfig

# Per route, how far off its spacing (relative to it) a scan may be and still run on its own voxels.
# Further off, resampling to the route's spacing gains Dice (docs/RESULTS.md). The last one
# holds for deeper routes, too.
NATIVE_BANDS = ((0.95, 1.05), (0.95, 1.05), (0.96, 1.05), (0.99, 1.01))


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _hold(name: str, value: object, holds: bool, expected: str) -> None:
    """Raises RareTrtError that says what is wrong with the entry `name`, unless it `holds`."""
    if not holds:
        raise RareTrtError(f"the recipe's {name} is {value!r}; expected {expected}: mend it")


@dataclass(frozen=True)
class AcquisitionRule:
    """Which scans are simulated from the labelled ones.

    Every step shows each route the scan averaged to its spacing and an acquisition of its own,
    spacings within `spacing_mm` per axis and up to `largest_ratio` between axes; route 0, which
    takes most of the time, one of the two: in a `simulated_share` of the steps the acquisition. The
    coarser end of `spacing_mm` is also the coarsest voxel
    that the package accepts.
    """

    simulated_share: float = 0.6
    spacing_mm: tuple[float, float] = (0.8, 10.0)
    largest_ratio: float = 10.0

    def __post_init__(self) -> None:
        finest, coarsest = self.spacing_mm
        share, ratio = self.simulated_share, self.largest_ratio
        rises = 0.0 < finest < coarsest < inf
        for name, holds, expected in (
            ("simulated_share", _is_number(share) and 0.0 <= share <= 1.0, "0 to 1"),
            ("spacing_mm", rises, "the finest before the coarsest, above 0"),
            ("largest_ratio", _is_number(ratio) and 1.0 <= ratio < inf, "1 or more"),
        ):
            _hold(name, getattr(self, name), holds, expected)


@dataclass(frozen=True)
class Recipe:
    """What is trained, on which data, how.

    `labels` and `channels` are names in order of value and index (label 0 is the background).
    `cases_per_subject` consecutive case numbers belong to one subject (1: every case its own), so
    that validation never sees a training subject. `cycles` are the epochs of each fall of the
    learning rate to zero; a finished run goes on when cycles are added to its recipe.
    `averaging` is the decay, per step, of the running mean of the weights that is kept.
    `distillation` is how much of the truth that coarser routes are shown is what that running mean
    makes of the same place at base spacing, instead of the manual label; from the second cycle on,
    when it has learnt something.

    Half of the scans that training shows are mirrored left to right, labels and all: names that
    tell one side from the other cannot be learnt, but for `mirror_pairs` of labels, which a
    mirrored scan exchanges. `class_weights` (none: equal) weigh the labels in the cross-entropy,
    without which small structures are not found; from the second cycle on they fade to 1 in each.
    Only the head stage uses these two.
    """

    name: str
    task: str
    labels: tuple[str, ...]
    channels: tuple[str, ...]
    data_source: str
    data_licence: str
    base_spacing_mm: float = 1.0
    cases_per_subject: int = 1
    intensity: IntensityRule = field(default_factory=IntensityRule)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    acquisition: AcquisitionRule = field(default_factory=AcquisitionRule)
    cycles: tuple[int, ...] = (40,)
    batch: int = 4
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    averaging: float = 0.995
    distillation: float = 0.0
    validation_share: float = 0.1
    seed: int = 0
    mirror_pairs: tuple[tuple[int, int], ...] = ()
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        counts = [("cycles", epochs) for epochs in self.cycles or (0,)]
        counts += [(name, getattr(self, name)) for name in ("batch", "cases_per_subject")]
        for name, count in counts:
            _hold(name, count, type(count) is int and count >= 1, "1, 2, 3, ...")
        is_seed = type(self.seed) is int and 0 <= self.seed < 2**32
        _hold("seed", self.seed, is_seed, "0, 1, 2, ... below 2^32")
        for name in ("learning_rate", "base_spacing_mm"):
            value = getattr(self, name)
            _hold(name, value, _is_number(value) and 0.0 < value < inf, "more than 0")
        for name, value, end, expected in (
            ("weight_decay", self.weight_decay, inf, "0 or more"),
            ("averaging", self.averaging, 1.0, "0 to less than 1"),
            ("distillation", self.distillation, 1.0, "0 to less than 1"),
            ("foreground_share", self.intensity.foreground_share, 1.0, "0 to less than 1"),
        ):
            _hold(name, value, _is_number(value) and 0.0 <= value < end, expected)
        classes, weights = self.network.classes, self.class_weights
        holds = all(_is_number(w) and 0.0 < w < inf for w in weights)
        expected = "one weight above 0 per class, or none"
        _hold("class_weights", weights, holds and len(weights) in (0, classes), expected)
        members = [label for pair in self.mirror_pairs for label in pair]
        holds = all(type(label) is int and 0 < label < classes for label in members)
        holds = holds and all(len(pair) == 2 for pair in self.mirror_pairs)
        holds = holds and len(set(members)) == len(members)
        _hold("mirror_pairs", self.mirror_pairs, holds, "pairs of different labels above 0")
        share, percentiles = self.validation_share, self.intensity.clip_percentiles
        holds = _is_number(share) and 0.0 < share < 1.0
        _hold("validation_share", share, holds, "more than 0 and less than 1")
        holds = all(map(_is_number, percentiles)) and len(percentiles) == 2
        holds = holds and 0.0 <= percentiles[0] < percentiles[1] <= 100.0
        _hold("clip_percentiles", percentiles, holds, "two from 0 to 100 that rise")
        spacings = self.acquisition.spacing_mm
        expected = f"the coarsest at base_spacing_mm ({self.base_spacing_mm:g}) or beyond"
        _hold("spacing_mm", spacings, spacings[1] >= self.base_spacing_mm, expected)
        for name in ("name", "task", "data_source", "data_licence"):
            value = getattr(self, name)
            _hold(name, value, isinstance(value, str), "a text")
        found = (len(self.channels), len(self.labels))
        wanted = (self.network.channels, self.network.classes)
        if found != wanted:
            raise RareTrtError(
                f"the recipe names {found[0]} channels and {found[1]} labels; its network has "
                f"{wanted[0]} and {wanted[1]}: make them agree"
            )
        for name, fewest in (("labels", 2), ("channels", 1)):
            names = getattr(self, name)
            holds = all(isinstance(one, str) for one in names) and len(set(names)) == len(names)
            expected = f"{fewest} or more different names"
            _hold(name, names, holds and len(names) >= fewest, expected)

    @property
    def epochs(self) -> int:
        """All cycles together."""
        return sum(self.cycles)

    def route(self, index: int) -> Route:
        """Route `index` without a limit on its working shape: training runs cases whole."""
        return Route(
            index=index,
            spacing_mm=self.base_spacing_mm * 2**index,
            native_band=NATIVE_BANDS[min(index, len(NATIVE_BANDS) - 1)],
            multiple=self.network.multiple(index),
            max_shape=(2**31, 2**31, 2**31),
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def recipe_from_json(values: dict[str, Any]) -> Recipe:
    """A recipe from parsed JSON; raises RareTrtError that names a missing or unknown entry."""
    try:
        values = dict(values)
        for key in ("labels", "channels", "cycles"):
            if key in values:
                if not isinstance(values[key], list | tuple):
                    raise TypeError(f"{key} is {values[key]!r}, no list")
                values[key] = tuple(values[key])
        if "class_weights" in values:
            values["class_weights"] = tuple(float(w) for w in values["class_weights"])
        if "mirror_pairs" in values:
            values["mirror_pairs"] = tuple(tuple(pair) for pair in values["mirror_pairs"])
        if "acquisition" in values:
            rule = dict(values["acquisition"])
            if "spacing_mm" in rule:
                low, high = rule["spacing_mm"]
                rule["spacing_mm"] = (float(low), float(high))
            values["acquisition"] = AcquisitionRule(**rule)
        if "intensity" in values:
            intensity = dict(values["intensity"])
            if "clip_percentiles" in intensity:
                intensity["clip_percentiles"] = tuple(intensity["clip_percentiles"])
            values["intensity"] = IntensityRule(**intensity)
        if "network" in values:
            values["network"] = NetworkConfig(**values["network"])
        return Recipe(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise RareTrtError(
            f"the recipe does not fit ({error}); expected the entries of "
            "training/recipes/hippocampus.json: mend the recipe"
        ) from error


def load_recipe(name_or_path: str) -> Recipe:
    """A recipe that ships with the package, by name, or one from a JSON file."""
    shipped = resources.files("rare_trt.training") / "recipes" / f"{name_or_path}.json"
    try:
        text = shipped.read_text() if shipped.is_file() else Path(name_or_path).read_text()
        return recipe_from_json(json.loads(text))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RareTrtError(
            f"{name_or_path}: not a recipe ({error}); expected a shipped name or a JSON file"
        ) from error
