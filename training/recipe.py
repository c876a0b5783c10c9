"""A recipe: everything that decides a training run, as one JSON file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from math import inf
from pathlib import Path
from typing import Any, Final, TypeAlias

from rare_trt.errors import RareTrtError
from rare_trt.evaluation.cases import Case, split_by_subject
from rare_trt.plan.routing import Route
from rare_trt.scan.intensity import IntensityRule
from rare_trt.training.network import NetworkConfig

# Per route, the range of voxel spacings, relative to the route's, within which a scan runs on its
# own voxels. Outside it, resampling to the route's spacing gains Dice
# (docs/measurements/routes.md). The last range also applies to deeper routes.
NATIVE_BANDS = ((0.95, 1.05), (0.95, 1.05), (0.96, 1.05), (0.99, 1.01))


# The limits of a package's manifest: labels, background included, and characters of a name.
MAX_LABELS: Final = 255
MAX_TEXT: Final = 250


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _are_percentiles(values: Sequence[Any]) -> bool:
    are_two = len(values) == 2 and all(map(_is_number, values))
    return are_two and 0.0 <= values[0] < values[1] <= 100.0


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and not set(value) & set("\n\r\t")


def _are_names(values: Sequence[Any], fewest: int) -> bool:
    are_texts = all(map(_is_text, values))
    return are_texts and len(set(values)) == len(values) >= fewest


def _are_pairs(values: Sequence[Any]) -> bool:
    members = [label for pair in values for label in pair]
    are_labels = all(type(label) is int and label > 0 for label in members)
    return are_labels and len(set(members)) == len(members) == 2 * len(values)


def _are_weights(values: Sequence[Any]) -> bool:
    return all(_is_number(weight) and 0.0 < weight < inf for weight in values)


# The values that an entry may have: in words, and as a function.
_Rule: TypeAlias = tuple[str, Callable[[Any], bool]]

_COUNT: Final[_Rule] = ("1, 2, 3, ...", lambda n: type(n) is int and n >= 1)
_POSITIVE: Final[_Rule] = ("more than 0", lambda x: _is_number(x) and 0.0 < x < inf)
_FRACTION: Final[_Rule] = ("0 to less than 1", lambda x: _is_number(x) and 0.0 <= x < 1.0)
_TEXT: Final[_Rule] = (f"one line of at most {MAX_TEXT} characters", _is_text)

# The rules of a recipe, of its intensity rule and of its acquisition rule; `cycles` names each of
# the cycles.
_RULES: Final[Mapping[str, _Rule]] = {
    "simulated_share": ("0 to 1", lambda x: _is_number(x) and 0.0 <= x <= 1.0),
    "spacing_mm": ("the finest before the coarsest, above 0", lambda s: 0.0 < s[0] < s[1] < inf),
    "largest_ratio": ("1 or more", lambda x: _is_number(x) and 1.0 <= x < inf),
    "clip_percentiles": ("two from 0 to 100 that rise", _are_percentiles),
    "foreground_share": _FRACTION,
    "cycles": _COUNT,
    "batch": _COUNT,
    "cases_per_subject": _COUNT,
    "seed": ("0, 1, 2, ... below 2^32", lambda n: type(n) is int and 0 <= n < 2**32),
    "learning_rate": _POSITIVE,
    "base_spacing_mm": _POSITIVE,
    "weight_decay": ("0 or more", lambda x: _is_number(x) and 0.0 <= x < inf),
    "averaging": _FRACTION,
    "distillation": _FRACTION,
    "patch_voxels": (
        "32 or more, or null",
        lambda n: n is None or (type(n) is int and n >= 32),
    ),
    "rim_weight": ("0 to 1", lambda x: _is_number(x) and 0.0 <= x <= 1.0),
    "validation_share": ("more than 0 and less than 1", lambda x: _is_number(x) and 0.0 < x < 1.0),
    "task": _TEXT,
    "data_source": _TEXT,
    "data_licence": _TEXT,
    "labels": ("2 or more different names", lambda names: _are_names(names, 2)),
    "mirror_pairs": ("pairs of different labels above 0", _are_pairs),
    "class_weights": ("weights above 0", _are_weights),
    "channels": ("1 or more different names", lambda names: _are_names(names, 1)),
}


def _faults(entries: Iterable[tuple[str, object]]) -> list[str]:
    """One clause for each of `entries`, by name and value, that has a rule and breaks it."""
    checked = [(name, value, *_RULES[name]) for name, value in entries if name in _RULES]
    return [
        f"{name} is {value!r} (expected {expected})"
        for name, value, expected, accepts in checked
        if not accepts(value)
    ]


def _raise(faults: Sequence[str]) -> None:
    """Raises RareTrtError with all `faults`, where there are any."""
    if faults:
        raise RareTrtError(f"the recipe does not fit: {'; '.join(faults)}: correct it")


@dataclass(frozen=True)
class AcquisitionRule:
    """Which scans are simulated from the labelled ones.

    In every step each route gets the scan averaged to its spacing and an acquisition of its own,
    with spacings within `spacing_mm` per axis and a ratio of up to `largest_ratio` between axes;
    route 0, which takes most of the time, gets one of the two: in a `simulated_share` of the steps
    the acquisition. The coarser end of `spacing_mm` is also the coarsest voxel that the package
    accepts. Raises RareTrtError where an entry does not fit its rule.
    """

    simulated_share: float = 0.6
    spacing_mm: tuple[float, float] = (0.8, 10.0)
    largest_ratio: float = 10.0

    def __post_init__(self) -> None:
        _raise(_faults(vars(self).items()))


@dataclass(frozen=True)
class Recipe:
    """Task, data, network and training parameters.

    `labels` and `channels` are names in order of value and index (label 0 is the background).
    `cases_per_subject` consecutive case numbers belong to one subject (1: every case its own), so
    that no subject is both trained on and validated on. `cycles` are the epochs of each fall of the
    learning rate to zero; a finished run continues when cycles are added to its recipe.
    `averaging` is the decay, per step, of the EMA of the weights, which is validated and saved.
    `distillation` is the weight of the EMA teacher in coarse-route targets, from the second cycle
    on: the rest is the manual label. (Source: Hinton, Vinyals, Dean, "Distilling the Knowledge in a
    Neural Network", 2015.)

    Half of the training scans are mirrored left to right, labels included, so labels that differ in
    their side only cannot be learnt, unless they are `mirror_pairs`, which a mirrored scan
    exchanges. `class_weights` (none: equal) weigh the labels in the cross-entropy, without which
    small structures are not found; from the second cycle on they fade to 1 in each. Only the head
    stage uses them. `rim_weight` is the weight of the outermost voxels of partially labelled cases
    (`training/partial_labels.py`). With `patch_voxels` each route sees parts of a case of at most
    so many of its own voxels per axis, which bounds memory. Raises RareTrtError with all entries
    that do not fit.
    """

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
    rim_weight: float = 1.0
    patch_voxels: int | None = None
    validation_share: float = 0.1
    seed: int = 0
    mirror_pairs: tuple[tuple[int, int], ...] = ()
    class_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        entries = {**vars(self), **vars(self.intensity)}
        cycles = entries.pop("cycles") or (0,)
        faults = _faults([*entries.items(), *(("cycles", epochs) for epochs in cycles)])
        base, spacings = self.base_spacing_mm, self.acquisition.spacing_mm
        if _is_number(base) and spacings[1] < base:
            faults.append(
                f"spacing_mm is {spacings!r} (expected a coarsest of base_spacing_mm, {base:g}, or "
                "more)"
            )
        if len(self.class_weights) not in (0, self.network.classes):
            faults.append(
                f"class_weights is {self.class_weights!r} (expected one per class, "
                f"{self.network.classes}, or none)"
            )
        if any(max(pair) >= self.network.classes for pair in self.mirror_pairs):
            faults.append(
                f"mirror_pairs is {self.mirror_pairs!r} (expected labels below "
                f"{self.network.classes})"
            )
        if self.patch_voxels is not None and self.distillation:
            faults.append(
                f"distillation is {self.distillation!r} (expected 0 with patch_voxels: teacher and "
                "coarse routes see different parts)"
            )
        named = (len(self.channels), len(self.labels))
        expected = (self.network.channels, self.network.classes)
        if named != expected:
            faults.append(
                f"it names {named[0]} channels and {named[1]} labels (expected {expected[0]} and "
                f"{expected[1]}, as in its network)"
            )
        if len(self.labels) > MAX_LABELS:
            faults.append(
                f"it names {len(self.labels)} labels (expected at most {MAX_LABELS}, background "
                "included, as many as a package takes)"
            )
        _raise(faults)

    @property
    def epochs(self) -> int:
        """The epochs of all cycles together."""
        return sum(self.cycles)

    def route(self, index: int) -> Route:
        """Returns route `index` without a limit on its working shape: training runs cases whole."""
        return Route(
            index=index,
            spacing_mm=self.base_spacing_mm * 2**index,
            native_band=NATIVE_BANDS[min(index, len(NATIVE_BANDS) - 1)],
            multiple=self.network.multiple(index),
            max_shape=(2**31, 2**31, 2**31),
        )

    def split(self, cases: Sequence[Case]) -> tuple[list[Case], list[Case]]:
        """Splits `cases` by subject into training cases and cases held out for validation."""
        training, held_out = split_by_subject(
            [case.name for case in cases], self.cases_per_subject, self.validation_share, self.seed
        )
        return [cases[index] for index in training], [cases[index] for index in held_out]

    def as_json(self) -> dict[str, Any]:
        """Returns the recipe as `recipe_from_json` reads it."""
        return asdict(self)


def _intensity_from_json(values: Mapping[str, Any]) -> IntensityRule:
    entries = dict(values)
    if "clip_percentiles" in entries:
        entries["clip_percentiles"] = tuple(entries["clip_percentiles"])
    return IntensityRule(**entries)


def _acquisition_from_json(values: Mapping[str, Any]) -> AcquisitionRule:
    entries = dict(values)
    if "spacing_mm" in entries:
        low, high = entries["spacing_mm"]
        entries["spacing_mm"] = (float(low), float(high))
    return AcquisitionRule(**entries)


def check_sides(recipe: Recipe) -> None:
    """Raises RareTrtError where the names of labels tell left from right and `mirror_pairs` does
    not have them: half of the scans are mirrored, so such labels cannot be learnt."""
    mapped = {label for pair in recipe.mirror_pairs for label in pair}
    sided = {
        label: words
        for label, name in enumerate(recipe.labels)
        if {"left", "right"} & set(words := re.findall(r"[^\W_]+", name.casefold()))
    }
    faults = [recipe.labels[label] for label in sided if label not in mapped]
    if not faults:
        return
    names = {tuple(words): label for label, words in sided.items()}
    other = {"left": "right", "right": "left"}
    pairs = [
        [label, names[opposite]]
        for words, label in names.items()
        if label < names.get(opposite := tuple(other.get(word, word) for word in words), -1)
    ]
    raise RareTrtError(
        f"the recipe's labels {', '.join(map(repr, faults))} name a side, and training mirrors "
        f"scans left to right; expected them in mirror_pairs, as in {pairs or [[1, 2]]}: pair each "
        "with the label of the other side"
    )


# The entries that are not in JSON as a recipe holds them.
_CONVERTERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "class_weights": lambda weights: tuple(float(weight) for weight in weights),
    "mirror_pairs": lambda pairs: tuple(tuple(pair) for pair in pairs),
    "acquisition": _acquisition_from_json,
    "intensity": _intensity_from_json,
    "network": lambda values: NetworkConfig(**values),
}


def recipe_from_json(values: dict[str, Any]) -> Recipe:
    """Returns the recipe of parsed JSON; raises RareTrtError that names missing, unknown or wrong
    entries."""
    try:
        values = dict(values)
        # Recipes and checkpoints of earlier versions have a name, which nothing reads.
        values.pop("name", None)
        for key in ("labels", "channels", "cycles"):
            if key in values:
                if not isinstance(values[key], list | tuple):
                    raise TypeError(f"{key} is {values[key]!r}, no list")
                values[key] = tuple(values[key])
        for key, convert in _CONVERTERS.items():
            if key in values:
                values[key] = convert(values[key])
        return Recipe(**values)
    except (KeyError, TypeError, ValueError) as error:
        raise RareTrtError(
            f"the recipe does not fit ({error}); expected the entries of "
            "training/recipes/hippocampus.json: correct it"
        ) from error


def load_recipe(name_or_path: str) -> Recipe:
    """Reads a recipe that ships with the package, by name, or one from a JSON file.

    Raises RareTrtError where there is none or it does not fit.
    """
    shipped = resources.files("rare_trt.training") / "recipes" / f"{name_or_path}.json"
    try:
        text = shipped.read_text() if shipped.is_file() else Path(name_or_path).read_text()
        return recipe_from_json(json.loads(text))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RareTrtError(
            f"{name_or_path}: not a recipe ({error}); expected a shipped name or a JSON file"
        ) from error
