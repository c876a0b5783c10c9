"""The training loop: resumable, seeded, with a log and a plot of its curves."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from rare_trt.errors import OutputError, RareTrtError
from rare_trt.evaluation.cases import Case, find_cases, load_cases, split_by_subject
from rare_trt.scan.geometry import Triple
from rare_trt.storage.files import make_folder, unwritable, write_files
from rare_trt.training.acquisition import Sample, samples
from rare_trt.training.augment import augmented
from rare_trt.training.checkpoint import Checkpoint, TrainingFacts, load_checkpoint
from rare_trt.training.curves import curves_png
from rare_trt.training.losses import consistency_loss, label_shares, segmentation_loss
from rare_trt.training.network import RareUNet
from rare_trt.training.passes import RouteInputs, route_inputs
from rare_trt.training.recipe import Recipe, recipe_from_json
from rare_trt.training.validation import validate
from rare_trt.training.volumes import balance_volumes

CLIP_NORM = 1.0
WARM_UP_SHARE = 0.1
VALIDATE_EVERY = 5


def train(data: Path, out: Path, recipe: Recipe) -> Checkpoint:
    """Trains `recipe` on the labelled scans in `data`; the checkpoint lands in `out`.

    Run again with the same arguments, it goes on after the last finished epoch; with cycles added
    to its recipe a finished run goes on, too, if need be from its checkpoint and log alone. `out`
    gets model.safetensors and config.json (the checkpoint), state.safetensors (what resuming
    needs), log.csv and curves.png.
    """
    files = find_cases(data)
    cases = load_cases(files, recipe.network.channels, recipe.network.classes)
    kept_in, kept_back = split_by_subject(
        [case.name for case in cases],
        recipe.cases_per_subject,
        recipe.validation_share,
        recipe.seed,
    )
    if not kept_in:
        raise RareTrtError(
            f"{data}: the {len(cases)} case(s) are of one subject (cases_per_subject is "
            f"{recipe.cases_per_subject}, counted by the last number in each name); expected at "
            "least two, one of them for validation: add cases, or mend the recipe"
        )
    _make_writable(out)
    run = _Run(
        recipe=recipe,
        training=[cases[index] for index in kept_in],
        validation=[cases[index] for index in kept_back],
        facts=training_facts(cases, [cases[index].name for index in kept_back], recipe),
        out=out,
    )
    return run.finish()


def _make_writable(out: Path) -> None:
    """Raises OutputError at once where the first epoch could not be kept in the end."""
    try:
        make_folder(out)
    except OSError as error:
        raise unwritable(out, error) from error
    if not os.access(out, os.W_OK):
        raise OutputError(f"{out}: cannot be written to: check its permissions")


def training_facts(
    cases: Sequence[Case], kept_back: Sequence[str], recipe: Recipe
) -> TrainingFacts:
    """What of `cases` the package must know: fields of view and the labels' volumes."""
    extents = np.array([case.grid.extent_mm for case in cases])
    volumes = np.array([_volumes_mm3(case, recipe.network.classes) for case in cases])
    ranges = zip(volumes.min(axis=0).tolist(), volumes.max(axis=0).tolist(), strict=True)
    return TrainingFacts(
        cases=len(cases),
        validation=tuple(kept_back),
        smallest_fov_mm=_triple(extents.min(axis=0)),
        typical_fov_mm=_triple(np.median(extents, axis=0)),
        largest_fov_mm=_triple(extents.max(axis=0)),
        volume_range_mm3=tuple(ranges),
    )


def computed_type(device: torch.device) -> torch.dtype:
    """The shortest floating-point type in which `device` trains fast: of 16 bits where it can.

    A CPU without AVX-512 only emulates bf16, in some thirty times the time of float32, and so do
    GPUs before Ampere.
    """
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    return torch.bfloat16 if torch.backends.cpu.get_cpu_capability() == "AVX512" else torch.float32


class _Run:
    """One training run: network, optimiser and log, and where they are kept."""

    def __init__(
        self,
        recipe: Recipe,
        training: list[Case],
        validation: list[Case],
        facts: TrainingFacts,
        out: Path,
    ) -> None:
        self.recipe, self.training, self.validation = recipe, training, validation
        self.facts, self.out = facts, out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = computed_type(self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        torch.manual_seed(recipe.seed)
        self.network = RareUNet(recipe.network).to(self.device)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        # What is validated and kept: the weights' running mean.
        self.average = AveragedModel(
            self.network, multi_avg_fn=get_ema_multi_avg_fn(recipe.averaging)
        )
        self.batches = math.ceil(len(training) / recipe.batch)
        self.log: list[dict[str, float | str]] = []
        self.done = 0
        self._resume()

    def finish(self) -> Checkpoint:
        """Trains the epochs still to come and returns the checkpoint of the last one."""
        epochs = range(self.done, self.recipe.epochs)
        with tqdm(epochs, "training", unit="epoch") as bar:
            for epoch in bar:
                loss = self._epoch(epoch)
                row: dict[str, float | str] = {"epoch": epoch + 1, "loss": round(loss, 5)}
                last = epoch + 1 == self.recipe.epochs
                if last:
                    balance_volumes(self._kept(), self.training, self.recipe)
                if last or (epoch + 1) % VALIDATE_EVERY == 0:
                    row |= self._validate()
                else:
                    # Dice belongs to the weights it was measured with.
                    self.facts = replace(self.facts, dice=())
                self.log.append(row)
                self.done = epoch + 1
                self._save()
                bar.set_postfix(row)
        return self._checkpoint()

    def _epoch(self, epoch: int) -> float:
        rng = np.random.default_rng([self.recipe.seed, epoch])
        torch.manual_seed(self.recipe.seed * 100_003 + epoch)
        order = rng.permutation(len(self.training))
        losses = []
        for step, batch in enumerate(np.array_split(order, self.batches)):
            rate = self._learning_rate(epoch * self.batches + step)
            for group in self.optimiser.param_groups:
                group["lr"] = rate
            for index in batch:
                losses.append(self._accumulate(self.training[index], rng, len(batch)))
            self._update()
        return float(np.mean(losses))

    def _accumulate(self, case: Case, rng: np.random.Generator, batch: int) -> float:
        """Adds one case's gradient. Cases run one by one: each keeps its own least padding."""
        variant = augmented(case, rng, self.recipe.network.classes)
        mixed = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=mixed):
            loss = self._loss(samples(variant, rng, self.recipe), self._answer(variant))
        self.scaler.scale(loss / batch).backward()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise RareTrtError(
                f"the loss became {value} on case {case.name}; expected a finite number: "
                "lower the learning rate in the recipe"
            )
        return value

    def _loss(self, shown: Sequence[Sample], answer: Tensor | None) -> Tensor:
        """Mean segmentation loss over the routes; where route 0 shows what the others show too, it
        also tells each gateway what the encoder makes of the same place."""
        routes = self.recipe.network.routes
        segmentation: list[list[Tensor]] = [[] for _ in range(routes)]
        gateways: list[Tensor] = []
        encoder: list[Tensor] = []
        for sample in shown:
            route = sample.route
            inputs = self._inputs(sample)
            features = self.network.enter(inputs.working(), route)
            skips = self.network.encode(features, route)
            if sample.aligned and route == 0:
                encoder = skips[1:routes]
            elif sample.aligned:
                gateways.append(features)
            logits = inputs.answered(self.network.decode(self.network.deepen(skips), skips, route))
            segmentation[route].append(segmentation_loss(logits, self._truth(sample, answer)))
        loss = torch.stack([torch.stack(of_route).mean() for of_route in segmentation]).mean()
        return loss + consistency_loss(gateways, encoder) if encoder and gateways else loss

    @torch.no_grad()
    def _answer(self, case: Case) -> Tensor | None:
        """What the running mean of the weights makes of all of `case` at base spacing, shares
        [1, classes, i, j, k]; None where nothing is to be learnt of it."""
        begun = self.done >= self.recipe.cycles[0]
        if not (self.recipe.distillation and begun and self.recipe.network.routes > 1):
            return None
        inputs = route_inputs(case.voxels, case.grid, 0, case.grid, self.recipe, self.device)
        logits = inputs.answered(self._kept().eval()(inputs.working()))
        return torch.softmax(logits.float(), dim=1)

    def _inputs(self, sample: Sample) -> RouteInputs:
        return route_inputs(
            sample.voxels, sample.grid, sample.route, sample.truth_grid, self.recipe, self.device
        )

    def _truth(self, sample: Sample, answer: Tensor | None) -> Tensor:
        """What is to be found in `sample`: its labels, and on coarser routes to the recipe's share
        the `answer`, of who has seen what a coarse scan does not show. It is the cross-entropy that
        learns shares between 0 and 1; soft Dice, a product, leans to whole ones, whose effect on
        volumes is balanced at the end."""
        labels = torch.from_numpy(sample.labels).long()[None].to(self.device)
        truth = label_shares(labels, self.recipe.network.classes)
        if sample.route and answer is not None:
            seen = answer[(..., *sample.part)]
            i, j, k = seen.shape[2:]
            truth[..., :i, :j, :k].lerp_(seen, self.recipe.distillation)
        return truth

    def _update(self) -> None:
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
        self.average.update_parameters(self.network)

    def _learning_rate(self, step: int) -> float:
        """In each cycle a linear warm-up, then a half cosine to zero; a function of the step, so
        resumable."""
        cycles = iter(self.recipe.cycles)
        total = next(cycles) * self.batches
        while step >= total:
            step -= total
            total = next(cycles) * self.batches
        warm = max(1.0, WARM_UP_SHARE * total)
        if step < warm:
            return self.recipe.learning_rate * (step + 1) / warm
        progress = (step - warm) / max(1.0, total - warm)
        return self.recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))

    def _kept(self) -> RareUNet:
        module = self.average.module
        assert isinstance(module, RareUNet)
        return module

    def _case_names(self) -> list[list[str]]:
        return [[case.name for case in side] for side in (self.training, self.validation)]

    def _validate(self) -> dict[str, float | str]:
        mean = validate(self._kept(), self.validation, self.recipe).mean(axis=0)
        self.facts = replace(self.facts, dice=tuple(tuple(row) for row in mean.round(4).tolist()))
        return {f"dice_route{r}": round(float(row.mean()), 4) for r, row in enumerate(mean)}

    def _checkpoint(self) -> Checkpoint:
        facts = replace(self.facts, epochs=self.done)
        return Checkpoint(self._kept().eval(), self.recipe, facts)

    def _save(self) -> None:
        tensors = {f"network.{name}": t for name, t in self.network.state_dict().items()}
        tensors |= {f"average.{name}": t for name, t in self.average.state_dict().items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": t for key, t in state.items()}
        notes = {
            "recipe": json.dumps(self.recipe.as_json()),
            "cases": json.dumps(self._case_names()),
            "log": json.dumps(self.log),
            "dice": json.dumps(self.facts.dice),
            "scaler": json.dumps(self.scaler.state_dict()),
        }
        state = save({name: t.cpu().contiguous() for name, t in tensors.items()}, notes)
        # The state first: without it nothing of a first epoch can be gone on with.
        files = {
            self.out / "state.safetensors": state,
            **self._checkpoint().files(self.out),
            self.out / "log.csv": _csv(self.log),
            self.out / "curves.png": curves_png(self.log),
        }
        write_files(files, overwrite=True)

    def _resume(self) -> None:
        path = self.out / "state.safetensors"
        if path.is_file():
            self._resume_from_state(path)
        elif (self.out / "config.json").is_file():
            self._resume_from_checkpoint()

    def _resume_from_checkpoint(self) -> None:
        """Goes on from the weights of a finished run whose state was not kept. The next cycle's
        warm-up is what the optimiser needs to begin anew."""
        path, kept = self.out / "config.json", load_checkpoint(self.out)
        if kept.facts.epochs < kept.recipe.epochs:
            raise RareTrtError(
                f"{self.out}: the training stopped after {kept.facts.epochs} of "
                f"{kept.recipe.epochs} epochs and state.safetensors is gone; expected it, to "
                "resume: name an empty folder to begin anew"
            )
        if not self._goes_on(kept.recipe):
            raise _of_another_recipe(path)
        if (kept.facts.cases, kept.facts.validation) != (self.facts.cases, self.facts.validation):
            raise _on_other_cases(path)
        for module in (self.network, self._kept()):
            module.load_state_dict(kept.network.state_dict())
        self.average.n_averaged.fill_(1)
        self.log = _read_csv(self.out / "log.csv")
        self.facts = replace(self.facts, dice=kept.facts.dice)
        self.done = kept.facts.epochs

    def _resume_from_state(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                notes = file.metadata() or {}
                # The file is no mapping: it has keys() but cannot be iterated.
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise RareTrtError(
                f"{path}: cannot be read ({error}); expected the state of a run: remove it to "
                "begin anew"
            ) from error
        if not {"recipe", "cases", "log", "dice", "scaler"} <= notes.keys():
            raise RareTrtError(
                f"{path}: is not the state of a run of this version; remove it to begin anew"
            )
        try:
            # What is younger than the run has its usual value there.
            before = recipe_from_json(json.loads(notes["recipe"]))
        except RareTrtError as error:
            raise _of_another_recipe(path) from error
        if not self._goes_on(before):
            raise _of_another_recipe(path)
        if notes["cases"] != json.dumps(self._case_names()):
            raise _on_other_cases(path)
        for prefix, module in (("network.", self.network), ("average.", self.average)):
            module.load_state_dict(
                {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            )
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimiser."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        scaler = json.loads(notes["scaler"])
        if scaler:
            # Empty where the run so far needed no scaling.
            self.scaler.load_state_dict(scaler)
        self.log = json.loads(notes["log"])
        dice = tuple(tuple(row) for row in json.loads(notes["dice"]))
        self.facts = replace(self.facts, dice=dice)
        self.done = int(self.log[-1]["epoch"])

    def _goes_on(self, kept: Recipe) -> bool:
        """Whether this recipe is the `kept` one, or the same with more cycles after its own."""
        cycles = self.recipe.cycles[: len(kept.cycles)]
        return replace(self.recipe, cycles=cycles) == kept


def _of_another_recipe(path: Path) -> RareTrtError:
    return RareTrtError(
        f"{path}: holds a run of another recipe; expected the same one to resume: "
        "name an empty folder, or the old recipe"
    )


def _on_other_cases(path: Path) -> RareTrtError:
    return RareTrtError(
        f"{path}: holds a run on other cases; expected the same data to resume, lest training "
        "cases become validation cases: name an empty folder, or the old data"
    )


def _csv(log: Sequence[dict[str, float | str]]) -> bytes:
    names = list(dict.fromkeys(name for row in log for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(log)
    return text.getvalue().encode()


def _read_csv(path: Path) -> list[dict[str, float | str]]:
    """The rows of a log; none where it was not kept."""
    if not path.is_file():
        return []
    rows = csv.DictReader(path.read_text().splitlines())
    return [
        {
            name: int(value) if name == "epoch" else float(value)
            for name, value in row.items()
            if value
        }
        for row in rows
    ]


def _volumes_mm3(case: Case, classes: int) -> list[float]:
    voxel = math.prod(case.grid.spacing_mm)
    return [float((case.labels == label).sum() * voxel) for label in range(1, classes)]


def _triple(values: NDArray[np.float64]) -> Triple:
    i, j, k = values.round(3).tolist()
    return i, j, k
