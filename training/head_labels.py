"""From the region numbers of a labelling protocol to the labels and tissues of the head stage.

A protocol is a JSON file in `training/protocols` (or of the user's own): which numbers are the left
and the right hippocampus, and which numbers are which tissue. The head stage is trained on

* labels: 0 background, 1 intracranial space without the hippocampi, 2 left, 3 right hippocampus;
* tissues: the regions that an image is synthesised from, the same on both sides of the head.

The intracranial space is every labelled tissue of the brain, its ventricles, and fluid and dura
within `FLUID_REACH_MM` of brain: farther away they are the spinal canal's, or strays.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rare_trt.errors import RareTrtError
from rare_trt.scan.geometry import Triple

BACKGROUND, INTRACRANIAL, LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS = range(4)
CLASSES = 4

BRAIN = (
    "ventricles",
    "cerebral grey matter",
    "cerebral white matter",
    "cerebellar grey matter",
    "cerebellar white matter",
    "brain stem",
    "thalamus",
    "caudate nucleus",
    "putamen",
    "pallidum",
    "hippocampus",
    "amygdala",
    "accumbens and basal forebrain",
    "ventral diencephalon",
    "lesion",
    "vessels",
)

# Intracranial where brain is near.
AROUND_BRAIN = ("fluid", "dura and sinuses")

# Where no map tells tissues outside the skull apart, intensities of the image do.
BY_INTENSITY = 5
OUTSIDE = (
    "muscle and fat",
    "skin",
    "bone",
    "marrow",
    "eyes",
    "mucosa",
    "spinal cord",
    "arteries and nerves",
    *(f"outside the skull {n}" for n in range(BY_INTENSITY)),
)

AIR = 0
TISSUES = ("air", *BRAIN, *AROUND_BRAIN, *OUTSIDE)
INDEX = {name: index for index, name in enumerate(TISSUES)}

FLUID_REACH_MM = 12.0


@dataclass(frozen=True)
class Protocol:
    """A labelling protocol: source numbers of each hippocampus and of each tissue of `TISSUES`."""

    name: str
    source: str
    left_hippocampus: frozenset[int]
    right_hippocampus: frozenset[int]
    tissues: dict[str, frozenset[int]]

    def tissue_of(self, numbers: NDArray[Any]) -> NDArray[np.uint8]:
        """Tissue indices [i, j, k] of source numbers [i, j, k].

        Raises RareTrtError for numbers that the protocol does not name (0 is air).
        """
        table = np.full(int(numbers.max()) + 1, len(TISSUES), np.uint8)
        table[0] = AIR
        for name, members in self.tissues.items():
            table[[number for number in members if number < len(table)]] = INDEX[name]
        tissues: NDArray[np.uint8] = table[numbers.astype(np.int64)]
        if (tissues == len(TISSUES)).any():
            unknown = np.unique(numbers[tissues == len(TISSUES)]).tolist()
            raise RareTrtError(
                f"the label map holds {unknown[:5]}; the protocol {self.name} does not name them: "
                "add them to a tissue of the protocol"
            )
        return tissues


def load_protocol(name_or_path: str) -> Protocol:
    """A protocol that ships with the package, by name, or one from a JSON file.

    Raises RareTrtError where the file cannot be read or does not name what a protocol needs.
    """
    shipped = resources.files("rare_trt.training") / "protocols" / f"{name_or_path}.json"
    try:
        text = shipped.read_text() if shipped.is_file() else Path(name_or_path).read_text()
        values = json.loads(text)
        tissues = {str(name): _numbers(spans) for name, spans in values["tissues"].items()}
        protocol = Protocol(
            name=str(values["name"]),
            source=str(values["source"]),
            left_hippocampus=_numbers(values["left_hippocampus"]),
            right_hippocampus=_numbers(values["right_hippocampus"]),
            tissues=tissues,
        )
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RareTrtError(
            f"{name_or_path}: not a labelling protocol ({error!r}); expected a shipped name or a "
            "JSON file like training/protocols/dlmuse.json"
        ) from error
    unknown = sorted(set(tissues) - set(TISSUES))
    sides = protocol.left_hippocampus | protocol.right_hippocampus
    if unknown or not sides <= tissues.get("hippocampus", frozenset()):
        raise RareTrtError(
            f"{name_or_path}: names the tissues {unknown}, or hippocampi that its tissue "
            f"'hippocampus' lacks; expected tissues among {', '.join(TISSUES[1:])}"
        )
    return protocol


def head_labels(
    numbers: NDArray[Any], tissues: NDArray[np.uint8], protocol: Protocol, spacing_mm: Triple
) -> NDArray[np.uint8]:
    """Labels 0 to 3 [i, j, k] of the head stage from source numbers and their tissues.

    Of fluid and dura only what lies near brain counts, and of all that only the largest connected
    part: label maps have strays.
    """
    from scipy.ndimage import distance_transform_edt, label

    brain = np.isin(tissues, [INDEX[name] for name in BRAIN])
    around = np.isin(tissues, [INDEX[name] for name in AROUND_BRAIN])
    near = distance_transform_edt(~brain, sampling=spacing_mm) <= FLUID_REACH_MM
    inside = brain | (around & near)
    parts, count = label(inside)
    if count > 1:
        inside = parts == 1 + int(np.argmax(np.bincount(parts.ravel())[1:]))
    labels = np.where(inside, np.uint8(INTRACRANIAL), np.uint8(BACKGROUND))
    labels[np.isin(numbers, list(protocol.left_hippocampus))] = LEFT_HIPPOCAMPUS
    labels[np.isin(numbers, list(protocol.right_hippocampus))] = RIGHT_HIPPOCAMPUS
    return labels


def exchange_labels(
    labels: NDArray[np.uint8], pairs: tuple[tuple[int, int], ...]
) -> NDArray[np.uint8]:
    """Labels of a head that was mirrored left to right: the two of each pair take turns."""
    table = np.arange(256, dtype=np.uint8)
    for one, other in pairs:
        table[[one, other]] = other, one
    exchanged: NDArray[np.uint8] = table[labels]
    return exchanged


def _numbers(spans: list[str]) -> frozenset[int]:
    """The whole numbers of spans like "47" and "100-207"."""
    found: set[int] = set()
    for span in spans:
        first, _, last = span.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
