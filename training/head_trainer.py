"""Trains the head stage: `rare-trt train --recipe head --heads ...`.

Every epoch shows each head with an image once and each label map alone twice, as a new random scan
(`head_synthesis`): half of the images, and all of the label maps, with a synthesised contrast.
Most scans are drawn at half the resolution, for the coarse routes, which takes an eighth of the
time; the others at base spacing, and of those route 0 sees a share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from rare_trt.errors import RareTrtError
from rare_trt.plan.resampling import plan_resampling
from rare_trt.scan.intensity import normalise
from rare_trt.storage.files import make_folder, write_files
from rare_trt.training.checkpoint import Checkpoint, TrainingFacts, load_checkpoint
from rare_trt.training.head_cases import HeadCase, HeadSource, halve, load_training_heads
from rare_trt.training.head_labels import CLASSES
from rare_trt.training.head_losses import fade_weights, weighted_loss
from rare_trt.training.head_synthesis import HeadScan, draw_scan, draw_spacing
from rare_trt.training.inputs import RouteInputs
from rare_trt.training.log import LogRow, csv_from_log
from rare_trt.training.losses import one_hot
from rare_trt.training.network import RareUNet
from rare_trt.training.recipe import Recipe
from rare_trt.training.schedule import learning_rate, place_in_cycle
from rare_trt.training.state import (
    LOG,
    STATE,
    RunState,
    read_state_file,
    state_from_checkpoint,
)
from rare_trt.training.trainer import CLIP_NORM, compute_dtype

# The share of scans that are drawn at half the resolution.
HALVED_SHARE = 0.8

# At base spacing: how many voxels of the truth, per axis, make one that a route is compared on,
# since what its own voxels cannot show need not be computed.
TRUTH_FACTORS = (1, 1, 2)

# Route 0 takes five times as long as the others together: it sees this share of the scans at base
# spacing, and none with a coarser voxel than this many times base spacing.
ROUTE_0_SHARE, ROUTE_0_COARSEST = 0.6, 2.5

SYNTHETIC_SHARE = 0.5

# How often an epoch shows a label map without an image.
MAP_REPEATS = 2

_Weights: TypeAlias = tuple[Tensor, ...] | list[Tensor]


class HeadRun:
    """One training run of the head stage: network, optimiser and log, resumable by epoch.

    Run on the same heads with the same recipe, it goes on after the last finished epoch, with the
    very numbers of a run that was not interrupted. Cycles that have not begun may change.
    """

    def __init__(
        self, recipe: Recipe, heads: Sequence[HeadCase], validation: Sequence[str], out: Path
    ) -> None:
        self.recipe, self.heads, self.validation, self.out = recipe, heads, validation, out
        self.halved = [halve(head) for head in heads]
        self.shown = [
            index
            for index, head in enumerate(heads)
            for _ in range(1 if head.image is not None else MAP_REPEATS)
        ]
        self.dtype = compute_dtype(torch.device("cpu"))
        torch.manual_seed(recipe.seed)
        self.network = RareUNet(recipe.network)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.average = AveragedModel(self.network, multi_avg_fn=_averaging(recipe.averaging))
        self.steps = math.ceil(len(self.shown) / recipe.batch)
        self.log: list[LogRow] = []
        self._resume()

    @property
    def done(self) -> int:
        """How many epochs are finished."""
        return len(self.log)

    def finish(self) -> Checkpoint:
        """Trains the epochs still to come and returns the checkpoint of the last one."""
        make_folder(self.out)
        while self.done < self.recipe.epochs:
            self.log.append(self._epoch(self.done))
            self._save()
            tqdm.write(json.dumps(self.log[-1]))
        return self._checkpoint()

    def _epoch(self, epoch: int) -> LogRow:
        rng = np.random.default_rng([self.recipe.seed, epoch])
        torch.manual_seed(self.recipe.seed * 100_003 + epoch)
        order = rng.permutation(self.shown)
        losses: list[list[float]] = [[] for _ in range(self.recipe.network.routes)]
        batches = np.array_split(order, self.steps)
        for step, batch in enumerate(tqdm(batches, f"epoch {epoch + 1}", mininterval=20.0)):
            number = epoch * self.steps + step
            cycles = self.recipe.cycles
            cycle, done, total = place_in_cycle(number, self.steps, cycles)
            rate = learning_rate(number, self.steps, cycles, self.recipe.learning_rate)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            weights = fade_weights(
                self.recipe.class_weights,
                self.recipe.network.classes,
                cycle,
                (done + 0.5) / total,
            )
            for index in batch:
                self._accumulate(int(index), rng, weights, len(batch), losses)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), CLIP_NORM)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            self.average.update_parameters(self.network)
        row: LogRow = {"epoch": epoch + 1}
        for route, of_route in enumerate(losses):
            if of_route:
                row[f"loss_route{route}"] = round(float(np.mean(of_route)), 5)
        return row

    def _accumulate(
        self,
        index: int,
        rng: np.random.Generator,
        weights: Sequence[float],
        batch: int,
        losses: list[list[float]],
    ) -> None:
        """Adds the gradient of one random scan of head `index`, route by route."""
        halved = bool(rng.random() < HALVED_SHARE)
        head = (self.halved if halved else self.heads)[index]
        base = self.recipe.base_spacing_mm * (2.0 if halved else 1.0)
        spacing = draw_spacing(rng, base, self.recipe.acquisition.spacing_mm[1])
        synthetic = bool(rng.random() < SYNTHETIC_SHARE)
        scan = draw_scan(
            head, rng, synthetic=synthetic, spacing_mm=spacing, pairs=self.recipe.mirror_pairs
        )
        fine = not halved and max(spacing) <= ROUTE_0_COARSEST * base
        fine = fine and bool(rng.random() < ROUTE_0_SHARE)
        routes = range(0 if fine else 1, self.recipe.network.routes)
        image = torch.from_numpy(normalise(np.moveaxis(scan.voxels, 0, 3), self.recipe.intensity))
        for route in routes:
            factor = 1 if halved else TRUTH_FACTORS[min(route, len(TRUTH_FACTORS) - 1)]
            loss = self._loss(scan, image, route, factor, weights)
            (loss / (len(routes) * batch)).backward()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise RareTrtError(
                    f"the loss became {value} on head {head.name}; expected a finite number: "
                    "lower the learning rate in the recipe"
                )
            losses[route].append(value)

    def _loss(
        self,
        scan: HeadScan,
        image: Tensor,
        route: int,
        factor: int,
        weights: Sequence[float],
    ) -> Tensor:
        i, j, k = (n // factor for n in scan.labels.shape)
        labels = scan.labels[: i * factor, : j * factor, : k * factor]
        truth = one_hot(torch.from_numpy(labels).long()[None], self.recipe.network.classes)
        grid = scan.truth_grid.box((0, 0, 0), (i * factor, j * factor, k * factor))
        if factor > 1:
            truth = torch.nn.functional.avg_pool3d(truth, factor)
            si, sj, sk = (s * factor for s in grid.spacing_mm)
            grid = grid.regrid((si, sj, sk), (i, j, k))
        plan = plan_resampling(scan.grid, self.recipe.route(route), grid)
        matrices = (torch.from_numpy(m) for m in (*plan.in_matrices, *plan.out_matrices))
        inputs = RouteInputs(image[None], *matrices)
        working = inputs.resample_image()
        with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
            logits = self.network(working, route)
        return weighted_loss(inputs.resample_logits(logits.float()), truth, weights)

    def _checkpoint(self) -> Checkpoint:
        facts = replace(
            TrainingFacts.from_cases(self.heads, (), self.recipe.network.classes),
            cases=len(self.heads) + len(self.validation),
            validation=tuple(self.validation),
            epochs=self.done,
        )
        network = self.average.module
        assert isinstance(network, RareUNet)
        return Checkpoint(network.eval(), self.recipe, facts)

    def _save(self) -> None:
        state = RunState(
            epochs=self.done,
            log=self.log,
            dice=(),
            network=self.network.state_dict(),
            ema=self.average.state_dict(),
            optimiser=self.optimiser.state_dict()["state"],
            scaler={},
        )
        files = {
            self.out / STATE: state.to_bytes(self.recipe, self._case_names()),
            **self._checkpoint().files(self.out),
            self.out / LOG: csv_from_log(self.log),
        }
        self.network.train()
        self.average.train()
        write_files(files, overwrite=True)

    def _case_names(self) -> list[list[str]]:
        return [[head.name for head in self.heads], list(self.validation)]

    def _resume(self) -> None:
        """Continues the run in `out`, where there is one."""
        path = self.out / STATE
        if path.is_file():
            saved = read_state_file(path)
            done = saved.state.epochs
            same = _from_epoch(self.recipe, done) == _from_epoch(saved.recipe, done)
            if not same or json.loads(saved.case_names)[0] != self._case_names()[0]:
                raise RareTrtError(
                    f"{path}: holds a run of another recipe or on other heads; expected the same "
                    "to resume: name an empty folder"
                )
            self._restore(saved.state)
        elif (self.out / "config.json").is_file():
            self._resume_from_checkpoint()

    def _resume_from_checkpoint(self) -> None:
        """Continues from the weights of finished cycles whose state was not kept."""
        kept = load_checkpoint(self.out)
        done = kept.facts.epochs
        same = _from_epoch(self.recipe, done) == _from_epoch(kept.recipe, done)
        if done not in accumulate(kept.recipe.cycles) or not same:
            raise RareTrtError(
                f"{self.out}: has weights after {done} epochs of cycles {kept.recipe.cycles}, but "
                f"no {STATE}; expected the same recipe at the end of a cycle, to continue: name "
                "an empty folder to begin anew"
            )
        self._restore(state_from_checkpoint(kept, self.out))

    def _restore(self, state: RunState) -> None:
        state.load_into(self.network, self.average, self.optimiser)
        self.log = list(state.log)


def train_head(sources: Sequence[HeadSource], out: Path, recipe: Recipe) -> Checkpoint:
    """Trains `recipe` on the heads and label maps in `sources` but for those held out of the first
    one; the checkpoint lands in `out`. Run again, it goes on."""
    if recipe.network.classes != CLASSES:
        raise RareTrtError(
            f"the recipe has {recipe.network.classes} labels; expected the {CLASSES} of the head "
            "stage, as in training/recipes/head.json: name --data for another task"
        )
    heads, held_out = load_training_heads(sources, recipe.base_spacing_mm, recipe.seed)
    return HeadRun(recipe, heads, held_out, out).finish()


def _from_epoch(recipe: Recipe, done: int) -> Recipe:
    """The recipe with those of its cycles alone that have begun after `done` epochs."""
    begun = [cycle for n, cycle in enumerate(recipe.cycles) if sum(recipe.cycles[:n]) < done]
    return replace(recipe, cycles=tuple(begun) or recipe.cycles[:1])


def _averaging(decay: float) -> Callable[[_Weights, _Weights, Tensor | int], None]:
    """An EMA that forgets the first steps' weights faster than its `decay` would."""

    @torch.no_grad()
    def average(kept: _Weights, current: _Weights, count: Tensor | int) -> None:
        share = min(decay, (1.0 + float(count)) / (10.0 + float(count)))
        for old, new in zip(kept, current, strict=True):
            old.lerp_(new, 1.0 - share)

    return average
