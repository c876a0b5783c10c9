"""The training loop: seeded, and resumable after every epoch."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from rare_trt.errors import OutputError, RareTrtError
from rare_trt.evaluation.cases import Case, find_cases_in, load_cases
from rare_trt.evaluation.layouts import check_names
from rare_trt.storage.files import make_folder, unwritable, write_files
from rare_trt.training.augmentation import augment
from rare_trt.training.checkpoint import Checkpoint, TrainingFacts
from rare_trt.training.head_cases import HeadCase
from rare_trt.training.inputs import route_inputs
from rare_trt.training.log import LogRow, csv_from_log, curves_png
from rare_trt.training.losses import consistency_loss, one_hot, segmentation_loss
from rare_trt.training.network import RareUNet
from rare_trt.training.partial_labels import (
    boxes_of_heads,
    draw_box,
    draw_partial_samples,
    partial_loss,
)
from rare_trt.training.recipe import Recipe, check_sides
from rare_trt.training.samples import TrainingSample, draw_samples, own_route
from rare_trt.training.schedule import learning_rate
from rare_trt.training.state import LOG, STATE, RunState, find_state
from rare_trt.training.validation import validate
from rare_trt.training.volumes import balance_volumes

CLIP_NORM = 1.0
VALIDATE_EVERY = 5


def train(
    data: Sequence[Path], out: Path, recipe: Recipe, heads: Sequence[HeadCase] = ()
) -> Checkpoint:
    """Trains a network by `recipe` on the labelled scans in the folders `data`, and in every epoch
    on one hippocampus, partially labelled, of each of `heads`; returns its checkpoint.

    After every epoch `out` gets model.safetensors and config.json (the checkpoint),
    state.safetensors (for resuming) and log.csv, after every cycle curves.png. Run again with the
    same arguments, it resumes after the last finished epoch; with cycles added to its recipe a
    finished run continues, if need be from its checkpoint and log alone.

    All scans are read and checked before the first epoch. Raises ScanError with all their faults,
    OutputError where `out` cannot be written, and RareTrtError where the labels name sides that
    `recipe` does not pair, where there is one subject only, where `out` has the run of another
    recipe or of other cases, and where the loss or its gradient is not finite.
    """
    check_sides(recipe)
    files = find_cases_in(data)
    for folder in data:
        check_names(folder, recipe.labels, recipe.channels)
    network = recipe.network
    cases = load_cases(files, network.channels, network.classes, recipe.intensity)
    training, held_out = recipe.split(cases)
    if not training:
        raise RareTrtError(
            f"{data[0]}: the {len(cases)} case(s) are of one subject (cases_per_subject is "
            f"{recipe.cases_per_subject}, counted by the last number in each name); expected at "
            "least two, one of them for validation: add cases, or correct the recipe"
        )
    if any(all(own_route(case, recipe) for case in part) for part in (training, held_out)):
        raise RareTrtError(
            f"{data[0]}: route 0 has no case to be trained on or to be validated on: all are much "
            f"coarser than {recipe.base_spacing_mm:g} mm (base_spacing_mm); expected some of that "
            "spacing: add cases, or correct the recipe"
        )
    _check_writable(out)
    facts = TrainingFacts.from_cases(cases, held_out, recipe.network.classes)
    boxes = boxes_of_heads(heads, facts.typical_fov_mm)
    return _Run(recipe, training, held_out, boxes, facts, out).finish()


def _check_writable(out: Path) -> None:
    """Makes the folder `out`; raises OutputError, before any training, where it is not writable."""
    try:
        make_folder(out)
    except OSError as error:
        raise unwritable(out, error) from error
    if not os.access(out, os.W_OK):
        raise OutputError(f"{out}: cannot be written to: check its permissions")


def compute_dtype(device: torch.device) -> torch.dtype:
    """Returns the shortest floating-point type in which `device` trains fast, of 16 bits if any.

    A CPU without AVX-512 only emulates bf16, in some thirty times the time of float32, and so do
    GPUs before Ampere.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    return torch.bfloat16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else torch.float32


class _Run:
    """One training run: network, EMA of its weights, optimiser and log, saved in the folder `out`.

    The network with the EMA weights is the one that is validated and saved as the checkpoint.
    """

    def __init__(
        self,
        recipe: Recipe,
        training: list[Case],
        validation: list[Case],
        boxes: list[Case],
        facts: TrainingFacts,
        out: Path,
    ) -> None:
        self.recipe, self.training, self.validation = recipe, training, validation
        self.boxes = boxes
        self.facts, self.out = facts, out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = compute_dtype(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        torch.manual_seed(recipe.seed)
        self.network = RareUNet(recipe.network).to(self.device)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.ema = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging))
        # One of a head's two hippocampi in each epoch.
        self.batches = math.ceil((len(training) + len(boxes) // 2) / recipe.batch)
        self.log: list[LogRow] = []
        self.done = 0
        self._resume()

    def finish(self) -> Checkpoint:
        """Trains the remaining epochs and returns the checkpoint after the last one."""
        epochs = range(self.done, self.recipe.epochs)
        with tqdm(epochs, "training", unit="epoch") as bar:
            for epoch in bar:
                row: LogRow = {"epoch": epoch + 1, "loss": round(self._train_epoch(epoch), 5)}
                last = epoch + 1 == self.recipe.epochs
                if last:
                    balance_volumes(self._ema_network(), self.training, self.recipe)
                if last or self._is_validated(epoch + 1):
                    row |= self._validate()
                else:
                    # Dice belongs to the weights it was measured with.
                    self.facts = replace(self.facts, dice=())
                self.log.append(row)
                self.done = epoch + 1
                self._save()
                bar.set_postfix(row)
        return self._checkpoint()

    def _is_validated(self, done: int) -> bool:
        """Whether the weights after `done` epochs are validated: large volumes take as long as an
        epoch."""
        if self.recipe.patch_voxels is not None:
            return done in accumulate(self.recipe.cycles)
        return done % VALIDATE_EVERY == 0

    def _train_epoch(self, epoch: int) -> float:
        """Trains epoch `epoch`, counted from 0, and returns its mean loss."""
        rng = np.random.default_rng([self.recipe.seed, epoch])
        torch.manual_seed(self.recipe.seed * 100_003 + epoch)
        of_heads = rng.permutation(len(self.boxes))[: len(self.boxes) // 2]
        order = rng.permutation([*range(len(self.training)), *(-1 - n for n in of_heads)])
        losses = []
        for step, batch in enumerate(np.array_split(order, self.batches), epoch * self.batches):
            rate = learning_rate(step, self.batches, self.recipe.cycles, self.recipe.learning_rate)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            for index in batch:
                case = self.training[index] if index >= 0 else self.boxes[-1 - index]
                losses.append(self._accumulate(case, rng, len(batch), partial=index < 0))
            self._update()
        return float(np.mean(losses))

    def _accumulate(
        self, case: Case, rng: np.random.Generator, batch: int, *, partial: bool
    ) -> float:
        """Adds one case's gradient. Cases run one by one: each keeps its own least padding."""
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            if partial:
                variant = draw_box(case, rng, self.facts.typical_fov_mm)
                loss = self._partial_loss(draw_partial_samples(variant, rng, self.recipe))
            else:
                variant = augment(case, rng, self.recipe.network.classes, self.recipe.mirror_pairs)
                samples = draw_samples(variant, rng, self.recipe)
                loss = self._loss(samples, self._predict_teacher(variant))
        self.scaler.scale(loss / batch).backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RareTrtError(
                f"the loss became {value} on case {case.name}; expected a finite number: "
                "lower the learning rate in the recipe"
            )
        return value

    def _loss(self, samples: Sequence[TrainingSample], teacher: Tensor | None) -> Tensor:
        """Mean segmentation loss over the routes and, where the sample of route 0 is aligned with
        those of the other routes, the consistency of the gateways with the encoder."""
        routes = self.recipe.network.routes
        segmentation: list[list[Tensor]] = [[] for _ in range(routes)]
        gateways: list[Tensor] = []
        encoder: list[Tensor] = []
        for sample in samples:
            route = sample.route
            inputs = route_inputs(
                sample.voxels, sample.grid, route, sample.truth_grid, self.recipe, self.device
            )
            features = self.network.enter(inputs.resample_image(), route)
            skips = self.network.encode(features, route)
            if sample.aligned and route == 0:
                encoder = skips[1:routes]
            elif sample.aligned:
                gateways.append(features)
            logits = self.network.decode(self.network.deepen(skips), skips, route)
            target = self._target(sample, teacher)
            segmentation[route].append(segmentation_loss(inputs.resample_logits(logits), target))
        of_routes = [torch.stack(losses).mean() for losses in segmentation if losses]
        loss = torch.stack(of_routes).mean()
        return loss + consistency_loss(gateways, encoder) if encoder and gateways else loss

    def _partial_loss(self, samples: Sequence[TrainingSample]) -> Tensor:
        """Mean loss over the samples of a partially labelled case."""
        losses = []
        for sample in samples:
            inputs = route_inputs(
                sample.voxels,
                sample.grid,
                sample.route,
                sample.truth_grid,
                self.recipe,
                self.device,
            )
            labels = torch.from_numpy(sample.labels).to(self.device)
            logits = inputs.predict(self.network, sample.route)
            losses.append(partial_loss(logits, labels, self.recipe.rim_weight))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _predict_teacher(self, case: Case) -> Tensor | None:
        """The EMA teacher's probabilities [1, classes, i, j, k] for all of `case` at base spacing;
        None where no target uses them."""
        begun = self.done >= self.recipe.cycles[0]
        if not (self.recipe.distillation and begun and self.recipe.network.routes > 1):
            return None
        inputs = route_inputs(case.voxels, case.grid, 0, case.grid, self.recipe, self.device)
        return torch.softmax(inputs.predict(self._ema_network().eval(), 0).float(), dim=1)

    def _target(self, sample: TrainingSample, teacher: Tensor | None) -> Tensor:
        """Target probabilities [1, classes, i, j, k]: the one-hot labels, on coarse routes blended
        with the prediction of the EMA teacher, which sees the scan at base spacing.

        Cross-entropy learns probabilities between 0 and 1; soft Dice, a product, leans to whole
        ones, whose effect on volumes is balanced at the end.
        """
        labels = torch.from_numpy(sample.labels).long()[None].to(self.device)
        target = one_hot(labels, self.recipe.network.classes)
        if sample.route and teacher is not None:
            prediction = teacher[(..., *sample.part)]
            i, j, k = prediction.shape[2:]
            target[..., :i, :j, :k].lerp_(prediction, self.recipe.distillation)
        return target

    def _update(self) -> None:
        """Makes one optimiser step with the accumulated gradient, and updates the EMA."""
        self.scaler.unscale_(self.optimiser)
        norm = float(torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM))
        # Only the fp16 scaler may meet overflowing gradients: it skips that step.
        if not (math.isfinite(norm) or self.scaler.is_enabled()):
            raise RareTrtError(
                f"the gradient's norm became {norm}; expected a finite number: lower the learning "
                "rate in the recipe"
            )
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        self.ema.update_parameters(self.network)

    def _ema_network(self) -> RareUNet:
        module = self.ema.module
        assert isinstance(module, RareUNet)
        return module

    def _validate(self) -> LogRow:
        """Measures Dice with the EMA weights; returns the mean of each route for the log."""
        scores = validate(self._ema_network(), self.validation, self.recipe)
        mean = np.nanmean(scores, axis=0)
        self.facts = replace(self.facts, dice=tuple(tuple(row) for row in mean.round(4).tolist()))
        return {f"dice_route{r}": round(float(row.mean()), 4) for r, row in enumerate(mean)}

    def _checkpoint(self) -> Checkpoint:
        facts = replace(self.facts, epochs=self.done)
        return Checkpoint(self._ema_network().eval(), self.recipe, facts)

    def _case_names(self) -> list[list[str]]:
        groups = (self.training, self.validation, *([self.boxes] if self.boxes else []))
        return [[case.name for case in cases] for cases in groups]

    def _save(self) -> None:
        state = RunState(
            epochs=self.done,
            log=self.log,
            dice=self.facts.dice,
            network=self.network.state_dict(),
            ema=self.ema.state_dict(),
            optimiser=self.optimiser.state_dict()["state"],
            scaler=self.scaler.state_dict(),
        )
        # The state first: an unfinished run cannot be resumed from the other files.
        files = {
            self.out / STATE: state.to_bytes(self.recipe, self._case_names()),
            **self._checkpoint().files(self.out),
            self.out / LOG: csv_from_log(self.log),
        }
        if self.done in accumulate(self.recipe.cycles):
            files[self.out / "curves.png"] = curves_png(self.log)
        write_files(files, overwrite=True)

    def _resume(self) -> None:
        """Continues the run in `out`, where there is one."""
        state = find_state(self.out, self.recipe, self.facts, self._case_names())
        if state is None:
            return
        state.load_into(self.network, self.ema, self.optimiser)
        if state.scaler:
            # Empty where the run so far needed no scaling.
            self.scaler.load_state_dict(dict(state.scaler))
        self.log, self.done = list(state.log), state.epochs
        self.facts = replace(self.facts, dice=state.dice)
