"""The model card of a package: intended use, training data, accuracy, limitations.

After Mitchell et al., "Model Cards for Model Reporting", FAT* 2019. Everything in it comes from the
manifest and the recipe, so that it cannot contradict them.
"""

from __future__ import annotations

from typing import Final

from rare_trt.package.manifest import Manifest, Model, TrainingRecord
from rare_trt.package.reading import MIN_VALIDATION_DICE, describe_data, describe_unsegmented
from rare_trt.training.recipe import Recipe

MODEL_CARD: Final = "MODEL_CARD.md"


def card_from_manifest(manifest: Manifest, recipe: Recipe) -> bytes:
    """The card of the package with `manifest`, trained by `recipe`, as Markdown in UTF-8."""
    model = manifest.model
    training = model.training
    view, limits = model.field_of_view_mm, model.spacing_limits_mm
    names = ", ".join(f"{value} {name}" for value, name in enumerate(model.labels))
    lines = [
        f"# {manifest.name}",
        "",
        f"Segments {model.task}. Research use only: not a medical device, not for diagnosis.",
        "",
        "## Input and output",
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
        "## Training data",
        "",
        f"- Data: {describe_data(training)}.",
        *(_training_lines(model, recipe) if training.cases else _unknown_lines(training)),
        "",
        "## Accuracy",
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
        *_unsegmented_lines(model),
        f"`rare-trt evaluate {manifest.name} --data DIR -o FOLDER` measures more acquisitions; "
        "its scans end with their last whole voxel, which lowers Dice of coarse ones.",
        "",
        "## Limitations",
        "",
        "- Every scan of low resolution was simulated; real thick-slice and low-field scans were "
        "not measured.",
        "- Other contrasts, other sites and other scanners than the training data's were not "
        "measured against manual labels.",
        "- Scans without such a structure, or with disease that deforms it beyond the training "
        "data, get labels all the same.",
        "",
    ]
    return "\n".join(lines).encode()


def _mm(size: tuple[float, float, float]) -> str:
    return " x ".join(f"{value:g}" for value in size)


def _training_lines(model: Model, recipe: Recipe) -> list[str]:
    """Lines about the training data and the training."""
    training, acquisition = model.training, recipe.acquisition
    finest, coarsest = acquisition.spacing_mm
    held_out = len(training.validation_cases)
    lines = [
        f"- {training.cases} labelled scans, {held_out} of them held out for validation"
        + (
            f" (scans are split by subject, {recipe.cases_per_subject} consecutive ones to each)."
            if recipe.cases_per_subject > 1
            else "."
        ),
        f"- Held out: {', '.join(training.validation_cases)}.",
        f"- {training.epochs} epochs. Every route was trained on simulated acquisitions, the "
        f"finest one in {acquisition.simulated_share:.0%} of the steps: voxels of {finest:g} to "
        f"{coarsest:g} mm per axis, up to 1:{acquisition.largest_ratio:g} between axes, slice "
        "profiles, tilts to 45 degrees, air, noise, spikes.",
    ]
    if recipe.distillation and len(recipe.cycles) > 1:
        lines += [
            "- In later cycles of the learning rate the targets of coarser routes were "
            f"{recipe.distillation:.0%} the predictions of the network's EMA for the same place at "
            f"{model.base_spacing_mm:g} mm, the rest the labels."
        ]
    return [*lines, "- Volumes were balanced on the training scans."]


def _unsegmented_lines(model: Model) -> list[str]:
    """A warning about labels that the network does not segment, where there are any."""
    unsegmented = describe_unsegmented(model.labels, model.training.dice)
    if unsegmented is None:
        return []
    return [
        f"**Not every label is segmented: Dice is below {MIN_VALIDATION_DICE:g} on "
        f"{unsegmented}. Do not use these labels.**",
        "",
    ]


def _unknown_lines(training: TrainingRecord) -> list[str]:
    """Lines about a converted checkpoint, whose training data are unknown."""
    return [
        f"- Converted from a checkpoint of {training.epochs} epochs that does not record its "
        "training data; calibrated and measured here on the data above.",
        f"- Held out from calibration, perhaps not from training: "
        f"{', '.join(training.validation_cases)}.",
    ]
