"""The model card of a package: what the network is for, what it learnt from, how well it answers.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. Everything in it is said by the
manifest and the recipe, so that it cannot fall behind them.
"""

from __future__ import annotations

from typing import Final

from rare_trt.package.manifest import Manifest, Model, TrainingRecord
from rare_trt.training.recipe import Recipe

MODEL_CARD: Final = "MODEL_CARD.md"


def model_card(manifest: Manifest, recipe: Recipe) -> bytes:
    """The card of the package with `manifest`, trained by `recipe`, as Markdown."""
    model = manifest.model
    training = model.training
    view, limits = model.field_of_view_mm, model.spacing_limits_mm
    names = ", ".join(f"{value} {name}" for value, name in enumerate(model.labels))
    lines = [
        f"# {manifest.name}",
        "",
        f"Segments {model.task}. Research use only: not a medical device, nothing for diagnosis.",
        "",
        "## What it takes and gives",
        "",
        f"- Channels: {', '.join(model.channels)}.",
        f"- Labels: {names}.",
        f"- Voxels of {limits[0]:g} to {limits[1]:g} mm per axis, in any orientation, no shear.",
        f"- Fields of view of {_mm(view.min)} to {_mm(view.max)} mm (right-left, "
        "anterior-posterior, superior-inferior).",
        f"- Intensities are clipped to the percentiles {model.intensity.clip_percentiles[0]:g} and "
        f"{model.intensity.clip_percentiles[1]:g}, then centred and scaled by mean and deviation "
        f"of the voxels above {model.intensity.foreground_share:g} of that range.",
        "",
        "## What it learnt from",
        "",
        f"- Data: {training.data}, {training.licence}.",
        *(_learnt(model, recipe) if training.cases else _not_known(training)),
        "",
        "## How well it answers",
        "",
        f"Dice on the validation scans, averaged to each route's spacing and padded to whole "
        f"voxels, against the full label at {model.base_spacing_mm:g} mm:",
        "",
        f"| scan | {' | '.join(model.labels[1:])} |",
        "|---" * len(model.labels) + "|",
        *(
            f"| {entry.spacing_mm:g} mm | {' | '.join(f'{s:.3f}' for s in scores)} |"
            for entry, scores in zip(manifest.routes, training.dice, strict=True)
        ),
        "",
        f"`rare-trt evaluate {manifest.name} --data DIR -o FOLDER` measures many more; there scans "
        "end with their last whole voxel, which costs coarse ones something.",
        "",
        "## What is not known",
        "",
        "- Every scan of low resolution was simulated; real thick-slice and low-field scans were "
        "not measured.",
        "- Other contrasts, other sites and other scanners than the training data's were not "
        "measured against manual labels.",
        "- Scans that show no such structure, or disease that deforms it beyond the training "
        "data, get an answer all the same.",
        "",
    ]
    return "\n".join(lines).encode()


def _mm(size: tuple[float, float, float]) -> str:
    return " x ".join(f"{value:g}" for value in size)


def _learnt(model: Model, recipe: Recipe) -> list[str]:
    """What the network was trained on, and how."""
    training, acquisition = model.training, recipe.acquisition
    finest, coarsest = acquisition.spacing_mm
    kept_back = len(training.validation_cases)
    lines = [
        f"- {training.cases} labelled scans, {kept_back} of them kept back for validation"
        + (
            f" (scans are split by subject, {recipe.cases_per_subject} consecutive ones to each)."
            if recipe.cases_per_subject > 1
            else "."
        ),
        f"- Kept back: {', '.join(training.validation_cases)}.",
        f"- {training.epochs} epochs. Every route was shown simulated acquisitions, the finest one "
        f"in {acquisition.simulated_share:.0%} of the steps: voxels of {finest:g} to {coarsest:g} "
        f"mm per axis, up to 1:{acquisition.largest_ratio:g} between axes, slice profiles, tilts "
        "to 45 degrees, air, noise, spikes.",
    ]
    if recipe.distillation and len(recipe.cycles) > 1:
        lines += [
            "- In later cycles of the learning rate coarser routes learnt "
            f"{recipe.distillation:.0%} from what the network's running mean made of the same "
            f"place at {model.base_spacing_mm:g} mm, the rest from the labels."
        ]
    return [*lines, "- Volumes were balanced on the training scans."]


def _not_known(training: TrainingRecord) -> list[str]:
    return [
        f"- Converted from a checkpoint of {training.epochs} epochs that does not say what it was "
        "trained on; calibrated and measured here on the data above.",
        f"- Kept back from calibration, perhaps not from training: "
        f"{', '.join(training.validation_cases)}.",
    ]
