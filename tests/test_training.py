"""Training on real scans: splitting, resuming, and one preprocessing for all three stages."""

from __future__ import annotations

import csv
import json
import shutil
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save

from rare_trt import Segmenter, read_scan
from rare_trt.backends import Precision
from rare_trt.building import package_from_checkpoint as building
from rare_trt.building.model_card import card_from_manifest
from rare_trt.building.package_from_checkpoint import build_package, graphs_from_checkpoint
from rare_trt.cli import main
from rare_trt.commands.info import describe_model
from rare_trt.errors import (
    AccuracyWarning,
    BackendError,
    OutputError,
    RareTrtError,
    ScanError,
)
from rare_trt.evaluation.cases import Case, CaseFiles, find_cases, load_cases, split_by_subject
from rare_trt.export.agreement import Agreement
from rare_trt.export.graph_files import GraphFiles
from rare_trt.package.reading import Package, describe_unsegmented, open_package
from rare_trt.package.writing import write_package
from rare_trt.scan.geometry import Canonical
from rare_trt.scan.intensity import IntensityRule
from rare_trt.sessions.golden import GoldenVector
from rare_trt.sessions.session import Session
from rare_trt.training import trainer
from rare_trt.training.augmentation import augment
from rare_trt.training.checkpoint import Checkpoint, load_checkpoint
from rare_trt.training.downsampling import average_blocks
from rare_trt.training.head_cases import HeadCase
from rare_trt.training.inputs import route_inputs
from rare_trt.training.losses import segmentation_loss
from rare_trt.training.network import NetworkConfig
from rare_trt.training.recipe import Recipe, load_recipe, recipe_from_json
from rare_trt.training.schedule import learning_rate
from rare_trt.training.trainer import compute_dtype, train

pytestmark = pytest.mark.usefixtures("quick_trials")


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """Five labelled crops of a real scan, of different shapes, in images/ and labels/."""
    folder = tmp_path_factory.mktemp("labelled")
    for part, source in (("images", "hippocampus_1mm.nii.gz"), ("labels", "truth/1mm.nii.gz")):
        (folder / part).mkdir()
        image = nib.load(examples / source)
        for number in range(1, 6):
            cut = image.slicer[number - 1 :, : 47 - number, :]
            nib.save(cut, folder / part / f"case_{number:03d}.nii.gz")
    return folder


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    """A network of two routes that trains in seconds."""
    network = NetworkConfig(depth=2, filters=4, gate_blocks=1, routes=2)
    return replace(
        load_recipe("hippocampus"),
        network=network,
        cycles=(2,),
        averaging=0.5,
        batch=2,
        cases_per_subject=1,
        validation_share=0.2,
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, labelled: Path, recipe: Recipe) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    train([labelled], folder, recipe)
    return folder


def load_case(files: CaseFiles, channels: int, classes: int) -> Case:
    (case,) = load_cases([files], channels, classes, IntensityRule())
    return case


@dataclass(frozen=True)
class Built:
    """What `build` made of the trained network, and the graphs that it exported on the way."""

    package: Package
    agreements: list[Agreement]
    graphs: dict[Precision, GraphFiles]


@pytest.fixture(scope="module")
def build(
    trained: Path, labelled: Path, tmp_path_factory: pytest.TempPathFactory, quick_trials: None
) -> Built:
    graphs: dict[Precision, GraphFiles] = {}

    def kept(checkpoint: Checkpoint) -> dict[Precision, GraphFiles]:
        graphs.update(graphs_from_checkpoint(checkpoint))
        return graphs

    out = tmp_path_factory.mktemp("built") / "x.rare"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "graphs_from_checkpoint", kept)
        with pytest.warns(AccuracyWarning, match="route 0: 2 of 2 labels, the lowest 0"):
            package, agreements = build_package(trained, labelled, out, overwrite=False)
    return Built(package, agreements, graphs)


def test_the_same_labels_from_torch_and_from_the_runtime(
    build: Built, trained: Path, tmp_path: Path, examples: Path
) -> None:
    """One preprocessing: two epochs of training, export, and the same NIfTI file both ways."""
    built, agreements = build.package, build.agreements
    assert all(result.within_bounds for result in agreements)
    # The float32 graphs alone: fp16 would blur a difference in preprocessing.
    manifest = built.manifest
    graphs = tuple(graph for graph in manifest.graphs if graph.precision == "fp32")
    contents = {name: built.read(name) for name in manifest.files if "fp16" not in name}
    package = write_package(
        tmp_path / "fp32.rare",
        replace(manifest, graphs=graphs, calibration=()),
        contents,
        overwrite=False,
    )
    card = built.read("MODEL_CARD.md").decode()
    said = ("CC BY-SA 4.0", "case_00", "Volumes were balanced", "not measured")
    for words in (built.manifest.model.training.data, *said):
        assert words in card
    for scores in built.manifest.model.training.dice:
        assert " | ".join(f"{score:.3f}" for score in scores) in card
    checkpoint = load_checkpoint(trained)
    for name, route in (("hippocampus_1mm", 0), ("hippocampus_2mm", 1)):
        volume = read_scan(examples / f"{name}.nii.gz").volume
        canonical = Canonical(volume.grid)
        voxels = canonical.from_scan(volume.voxels)[None]
        factor = 2**route
        full = canonical.grid.subdivide((factor, factor, factor))
        inputs = route_inputs(
            voxels, canonical.grid, route, full, checkpoint.recipe, torch.device("cpu")
        )
        with torch.no_grad():
            logits = inputs.predict(checkpoint.network, route)
        expected = logits[0].argmax(0).numpy()
        with Segmenter(package) as segmenter:
            result = segmenter.segment(examples / f"{name}.nii.gz", spacing_out_mm=1.0)
        assert result.route.route == route
        # They differ only where two labels are as good as equal: sums run in another order.
        different = result.labels != expected
        second, best = np.sort(logits[0].numpy(), axis=0)[-2:]
        assert different.mean() <= 2e-5
        assert ((best - second)[different] < 1e-3).all()


@pytest.mark.parametrize("axes", ["LPS", "PIR", "SAL"])
def test_a_case_is_the_same_in_every_order_of_its_axes(
    labelled: Path, tmp_path: Path, axes: str
) -> None:
    (first, *_) = find_cases(labelled)
    paths = []
    for path in (first.image, first.labels):
        image = nib.load(path)
        to = nib.orientations.axcodes2ornt(tuple(axes))
        change = nib.orientations.ornt_transform(nib.io_orientation(image.affine), to)
        paths.append(tmp_path / f"{path.parent.name}.nii.gz")
        nib.save(image.as_reoriented(change), paths[-1])
    assert "".join(nib.aff2axcodes(nib.load(paths[1]).affine)) == axes
    one, other = load_case(first, 1, 3), load_case(CaseFiles("x", *paths), 1, 3)
    assert one.labels.any()
    assert np.array_equal(one.voxels, other.voxels)
    assert np.array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.grid.affine, other.grid.affine, atol=1e-5)


def test_graphs_whose_labels_differ_from_the_networks_are_not_packed(
    build: Built,
    trained: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def wrong(*arguments: object) -> list[Agreement]:
        return [replace(one, different=one.voxels) for one in proven(*arguments)]

    proven = building.check_against_network
    # Exporting takes most of the time, and these are of the same checkpoint.
    monkeypatch.setattr(building, "graphs_from_checkpoint", lambda checkpoint: build.graphs)
    monkeypatch.setattr(building, "check_against_network", wrong)
    with (
        pytest.warns(AccuracyWarning),
        pytest.raises(BackendError, match="do not give the network's labels"),
    ):
        build_package(trained, labelled, tmp_path / "x.rare", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_package_that_its_own_machine_refuses_is_not_written(
    build: Built,
    trained: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    precision: Precision,
) -> None:
    measure = GoldenVector.disagreement

    def disagreement(vector: GoldenVector, session: Session) -> float:
        return 0.125 if session.precision == precision else measure(vector, session)

    monkeypatch.setattr(GoldenVector, "disagreement", disagreement)
    monkeypatch.setattr(building, "graphs_from_checkpoint", lambda checkpoint: build.graphs)
    refused = rf"route 0: openvino {precision} labels 12\.5% .+ not written.+ train it longer"
    with pytest.warns(AccuracyWarning), pytest.raises(BackendError, match=refused):
        build_package(trained, labelled, tmp_path / "x.rare", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_labels_that_rounding_decides_are_not_packed(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """41 classes after one epoch: `infer` refused the package on the machine that built it."""
    case = shared_data / "reported" / "case-13"
    command = ["build", str(case / "ck"), "--data", str(case / "data")]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([*command, "-o", str(tmp_path / "p.rare"), "--no-int8"]) == 1
    shown = capsys.readouterr().err
    assert "route 0: 40 of 40 labels" in shown
    error = shown.splitlines()[-1]
    assert "differently than the package (at most 0.01% may differ)" in error
    assert "train it longer" in error and "this machine" not in error
    assert list(tmp_path.iterdir()) == []


def test_a_build_without_int8_warns_of_labels_that_are_not_segmented(
    build: Built,
    trained: Path,
    labelled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(building, "graphs_from_checkpoint", lambda checkpoint: build.graphs)
    loaded = load_checkpoint(trained)
    nameless = replace(loaded.recipe, data_source="", data_licence="")
    replace(loaded, recipe=nameless).save(tmp_path / "checkpoint")
    out = tmp_path / "x.rare"
    command = ["build", str(tmp_path / "checkpoint"), "--data", str(labelled), "-o", str(out)]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main([*command, "--no-int8"]) == 0
    shown = capsys.readouterr().err
    assert "rare-trt: warning: the network does not segment every label" in shown
    # One bar over everything but the reading of scans, and it ends at its total.
    bars = shown.replace("\r", "\n").splitlines()
    titles = {line.split(":")[0] for line in bars if "%|" in line}
    assert titles == {"building", "reading"}
    assert any("building: 100%" in line and "9/9" in line for line in bars)
    package = open_package(out)
    assert package.manifest.calibration == ()
    assert {graph.precision for graph in package.manifest.graphs} == {"fp32", "fp16"}
    card = package.read("MODEL_CARD.md").decode()
    assert "Data: not recorded, because the recipe does not name them." in card
    assert "Not every label is segmented: Dice is below 0.1 on route 0: 2 of 2 labels" in card
    assert main(["info", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "not segmented" in shown and "route 0: 2 of 2 labels" in shown
    assert "Decathlon" not in card + shown


def test_info_and_card_of_a_trained_network_have_no_warning() -> None:
    package = open_package("hippocampus")
    assert "not segmented" not in dict(describe_model(package.manifest))
    training = package.manifest.model.training
    assert describe_unsegmented(package.manifest.model.labels, training.dice) is None


def test_data_are_named_where_a_recipe_names_them(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default recipe is for the Decathlon's hippocampus, and `--data` may be any other."""
    found: list[Recipe] = []

    def stop(data: list[Path], out: Path, recipe: Recipe, heads: list[HeadCase]) -> Checkpoint:
        found.append(recipe)
        raise RareTrtError("not trained")

    monkeypatch.setattr(trainer, "train", stop)
    command = ["train", "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    for option in ([], ["--recipe", "hippocampus"]):
        assert main([*command, *option]) == 1
    assert [bool(one.data_source and one.data_licence) for one in found] == [False, True]
    assert found[0] == replace(found[1], data_source="", data_licence="")


def test_a_card_claims_no_unknown_training(
    trained: Path,
) -> None:
    with Segmenter.load("hippocampus") as segmenter:
        manifest = segmenter.package.manifest
    recipe = load_checkpoint(trained).recipe
    learnt = "were 50% the predictions of the network's EMA"
    assert learnt in card_from_manifest(manifest, replace(recipe, cycles=(1, 1))).decode()
    # In later cycles.
    assert learnt not in card_from_manifest(manifest, replace(recipe, cycles=(2,))).decode()
    training = replace(manifest.model.training, cases=0)
    converted = replace(manifest, model=replace(manifest.model, training=training))
    card = card_from_manifest(converted, recipe).decode()
    assert "does not record its training data" in card
    assert "trained on simulated acquisitions" not in card
    assert "epochs on unknown cases: " in dict(describe_model(converted))["trained"]


def test_a_run_leaves_a_checkpoint_a_log_and_curves(trained: Path, recipe: Recipe) -> None:
    found = sorted(path.name for path in trained.iterdir())
    assert found == [
        "config.json",
        "curves.png",
        "log.csv",
        "model.safetensors",
        "state.safetensors",
    ]
    rows = list(csv.DictReader((trained / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert 0.0 <= float(rows[1]["dice_route1"]) <= 1.0
    with Image.open(trained / "curves.png") as curves:
        assert curves.width > 500
    checkpoint = load_checkpoint(trained)
    assert checkpoint.recipe == recipe
    facts = checkpoint.facts
    assert (facts.cases, facts.epochs, len(facts.validation)) == (5, 2, 1)
    assert facts.smallest_fov_mm[1] < facts.largest_fov_mm[1]
    assert len(facts.dice) == recipe.network.routes


def test_a_folder_that_cannot_be_made_is_reported_before_the_first_epoch(
    labelled: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_before(0, monkeypatch)
    (tmp_path / "file").write_text("taken")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match=r"file.* cannot be written"):
            train([labelled], out, recipe)


def test_options_for_engines_are_not_taken_with_a_checkpoint(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option in (["--static"], ["--workspace", "64"], ["--backend", "tensorrt-rtx"]):
        with pytest.raises(SystemExit):
            main(["build", "checkpoint", "--data", "x", "-o", "y.rare", *option])
        assert f"{option[0]} is for engines" in capsys.readouterr().err


def test_a_cpu_trains_in_bf16_only_where_it_computes_in_it() -> None:
    """Elsewhere every step would take thirty times as long."""
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    expected = torch.bfloat16 if supported else torch.float32
    assert compute_dtype(torch.device("cpu")) is expected


def test_the_loss_falls(labelled: Path, recipe: Recipe, tmp_path: Path) -> None:
    still = replace(recipe.acquisition, simulated_share=0.0)
    train([labelled], tmp_path, replace(recipe, cycles=(6,), acquisition=still))
    rows = list(csv.DictReader((tmp_path / "log.csv").read_text().splitlines()))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) - 0.1


def stop_before(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupts the next run when it reaches `epoch` (counted from 0)."""
    once = trainer._Run._train_epoch

    def interrupted(run: trainer._Run, at: int) -> float:
        if at == epoch:
            raise KeyboardInterrupt
        return once(run, at)

    monkeypatch.setattr(trainer._Run, "_train_epoch", interrupted)


def test_an_interrupted_run_resumes_where_it_stopped(
    trained: Path, labelled: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two epochs in one go, and two with an interruption between them, end in equal weights."""
    stop_before(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train([labelled], tmp_path, recipe)
    monkeypatch.undo()
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2
    # Curves are drawn at the end of a cycle.
    assert not (tmp_path / "curves.png").exists()
    train([labelled], tmp_path, recipe)
    assert (tmp_path / "curves.png").exists()
    whole, resumed = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path))
    for name, tensor in whole.items():
        # Sums over threads may round differently from run to run.
        torch.testing.assert_close(resumed[name], tensor, atol=1e-3, rtol=1e-2)


def test_another_recipe_does_not_resume(trained: Path, labelled: Path, recipe: Recipe) -> None:
    with pytest.raises(RareTrtError, match="another recipe"):
        train([labelled], trained, replace(recipe, batch=1))


def test_a_finished_run_continues_when_cycles_are_added(
    trained: Path, labelled: Path, recipe: Recipe, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    longer = train([labelled], out, replace(recipe, cycles=(2, 1)))
    assert longer.facts.epochs == 3
    rows = list(csv.DictReader((out / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, out))
    assert any((after[name] != tensor).any() for name, tensor in before.items())
    for cycles in ((3,), (1, 2)):
        with pytest.raises(RareTrtError, match="another recipe"):
            train([labelled], out, replace(recipe, cycles=cycles))


def test_a_finished_run_continues_from_its_checkpoint_alone(
    trained: Path,
    labelled: Path,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An epoch without training leaves the weights unchanged, but for the heads, which are
    balanced."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    (out / "state.safetensors").unlink()
    monkeypatch.setattr(trainer._Run, "_train_epoch", lambda run, at: 1.0)
    longer = train([labelled], out, replace(recipe, cycles=(2, 1)))
    assert longer.facts.epochs == 3
    rows = list(csv.DictReader((out / "log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert rows[1] == list(csv.DictReader((trained / "log.csv").read_text().splitlines()))[1]
    before, after = (load_file(folder / "model.safetensors") for folder in (trained, out))
    assert all((after[name] == before[name]).all() for name in before if "heads" not in name)
    # Once more, now from its state.
    assert train([labelled], out, replace(recipe, cycles=(2, 1, 1))).facts.epochs == 4


def test_the_checkpoint_of_another_run_is_not_continued(
    trained: Path, labelled: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    (out / "state.safetensors").unlink()
    left = {file.name: file.read_bytes() for file in out.iterdir()}
    with pytest.raises(RareTrtError, match="another recipe"):
        train([labelled], out, replace(recipe, batch=1, cycles=(2, 1)))
    shutil.copytree(labelled, tmp_path / "data")
    for part in ("images", "labels"):
        (tmp_path / "data" / part / "case_005.nii.gz").unlink()
    with pytest.raises(RareTrtError, match="other cases"):
        train([tmp_path / "data"], out, replace(recipe, cycles=(2, 1)))
    assert {file.name: file.read_bytes() for file in out.iterdir()} == left
    stop_before(1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train([labelled], tmp_path / "cut", recipe)
    (tmp_path / "cut/state.safetensors").unlink()
    with pytest.raises(RareTrtError, match=r"after 1 of 2 epochs and state.safetensors is gone"):
        train([labelled], tmp_path / "cut", recipe)


def test_a_run_of_an_earlier_version_continues(
    trained: Path, labelled: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """Recipe entries added later have their defaults; the name that recipes had is ignored."""
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    with safe_open(out / "state.safetensors", framework="pt") as file:
        notes = file.metadata()
    kept = json.loads(notes["recipe"])
    del kept["distillation"]
    kept["name"] = "hippocampus"
    notes["recipe"] = json.dumps(kept)
    (out / "state.safetensors").write_bytes(save(load_file(out / "state.safetensors"), notes))
    usual = replace(recipe, distillation=0.0)
    assert train([labelled], out, usual).facts.epochs == 2
    with pytest.raises(RareTrtError, match="another recipe"):
        train([labelled], out, replace(recipe, distillation=0.25))


def test_the_learning_rate_rises_and_falls_in_every_cycle() -> None:
    batches, cycles, peak = 2, (20, 10), 2e-3
    rates = np.array([learning_rate(step, batches, cycles, peak) for step in range(60)])
    for cycle in (rates[:40], rates[40:]):
        warm = len(cycle) // 10
        assert cycle[:warm] == pytest.approx(peak * np.arange(1, warm + 1) / warm)
        assert cycle.max() == pytest.approx(peak, rel=0.02)
        assert cycle[-1] < 0.02 * peak
        assert (np.diff(cycle[cycle.argmax() :]) <= 0).all()
    assert learning_rate(0, 1, (1,), peak) == peak
    with pytest.raises(ValueError, match="has ended"):
        learning_rate(60, batches, cycles, peak)


@pytest.mark.parametrize("quantity", ["the loss", "the gradient's norm"])
def test_a_run_that_diverges_says_what_to_do(
    labelled: Path, recipe: Recipe, tmp_path: Path, quantity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    resume = trainer._Run._resume

    def spoilt(run: trainer._Run) -> None:
        resume(run)
        bias = run.network.get_parameter("heads.0.bias")
        if quantity == "the loss":
            bias.data.fill_(torch.nan)
        else:
            bias.register_hook(lambda gradient: gradient * torch.inf)

    monkeypatch.setattr(trainer._Run, "_resume", spoilt)
    with pytest.raises(RareTrtError, match=f"{quantity} became .*lower the learning rate"):
        train([labelled], tmp_path, recipe)
    assert not (tmp_path / "model.safetensors").exists()


def test_the_checkpoint_has_the_ema_of_the_weights(
    labelled: Path, recipe: Recipe, tmp_path: Path
) -> None:
    train([labelled], tmp_path, recipe)
    state = load_file(tmp_path / "state.safetensors")
    kept = load_file(tmp_path / "model.safetensors")
    for name, tensor in kept.items():
        if not name.startswith("heads"):
            assert (tensor == state[f"average.module.{name}"]).all()
    last = {name: state[f"network.{name}"] for name in kept}
    assert any((last[name] != tensor).any() for name, tensor in kept.items())


@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_coarse_routes_learn_from_the_ema_teacher_at_base_spacing(
    labelled: Path,
    recipe: Recipe,
    tmp_path: Path,
    distillation: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Targets are half label and half prediction on coarse routes in the second cycle, and the
    label alone elsewhere."""
    truths: list[torch.Tensor] = []
    resume = trainer._Run._resume

    def resumed(run: trainer._Run) -> None:
        """The EMA teacher is sure of label 2, the network itself of no label."""
        resume(run)
        run._ema_network().get_parameter("heads.0.bias").data[2] += 100.0
        run.ema.n_averaged.fill_(1)

    def loss(logits: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        truths.append(truth)
        return segmentation_loss(logits, truth)

    monkeypatch.setattr(trainer, "segmentation_loss", loss)
    monkeypatch.setattr(trainer._Run, "_resume", resumed)
    taught = replace(recipe, cycles=(1, 1), averaging=0.999, distillation=distillation)
    train([labelled], tmp_path, taught)
    # One scan shows route 0, then route 1 an average and an acquisition.
    for number, truth in enumerate(truths):
        assert not truth.requires_grad
        assert (truth.sum(dim=1) - 1.0).abs().max() <= 1e-2
        if distillation and number >= 12 and number % 3:
            i, j, k = ((truth[0, 2] > 0.4).nonzero().amax(dim=0) + 1).tolist()
            labels = 2.0 * truth - torch.tensor([0.0, 0.0, 1.0]).reshape(1, 3, 1, 1, 1)
            labels = labels[..., :i, :j, :k]
            assert (labels - labels.round()).abs().max() <= 1e-3
            assert set(labels.argmax(1).unique().tolist()) == {0, 1, 2}
            # Beyond the case there is background.
            assert truth.sum() - truth[..., :i, :j, :k].sum() == truth[0, 0].numel() - i * j * k
        else:
            assert ((truth == 0) | (truth == 1)).all()
    assert len(truths) == 24


def test_other_data_do_not_resume(
    trained: Path, labelled: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """The split would change under a half-trained network."""
    shutil.copytree(labelled, tmp_path / "data")
    for part in ("images", "labels"):
        (tmp_path / "data" / part / "case_005.nii.gz").unlink()
    with pytest.raises(RareTrtError, match="other cases"):
        train([tmp_path / "data"], trained, recipe)


def test_a_damaged_state_is_refused(
    trained: Path, labelled: Path, recipe: Recipe, tmp_path: Path
) -> None:
    shutil.copytree(trained, tmp_path / "x")
    for content in (b"junk", save({"x": torch.zeros(1)}), save({}, {"recipe": "{}"})):
        (tmp_path / "x/state.safetensors").write_bytes(content)
        with pytest.raises(RareTrtError, match="state of a run"):
            train([labelled], tmp_path / "x", recipe)


def test_an_unfinished_run_is_not_packed_and_carries_no_stale_dice(
    labelled: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_before(3, monkeypatch)
    # Validated after the second of six epochs, cut short in the fourth: the figures are stale.
    monkeypatch.setattr(trainer, "VALIDATE_EVERY", 2)
    with pytest.raises(KeyboardInterrupt):
        train([labelled], tmp_path / "run", replace(recipe, cycles=(6,)))
    assert load_checkpoint(tmp_path / "run").facts.dice == ()
    with pytest.raises(RareTrtError, match="after 3 of 6 epochs"):
        build_package(tmp_path / "run", labelled, tmp_path / "x.rare", overwrite=False)
    assert not (tmp_path / "x.rare").exists()


def test_one_subject_is_too_few(labelled: Path, recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(RareTrtError, match=r"of one subject \(cases_per_subject is 10, counted"):
        train([labelled], tmp_path, replace(recipe, cases_per_subject=10))


def test_one_of_several_subjects_is_trained_on_whatever_the_share() -> None:
    training, validation = split_by_subject(["a", "b", "c", "d"], 1, 0.9, seed=0)
    assert (len(training), len(validation)) == (1, 3)
    assert split_by_subject(["a"], 1, 0.1, seed=0) == ([], [0])


def test_no_subject_is_on_both_sides() -> None:
    names = [f"hippocampus_{number:03d}" for number in range(1, 209) if number % 7]
    training, validation = split_by_subject(names, 2, 0.1, seed=0)
    assert sorted(training + validation) == list(range(len(names)))
    subjects = [(int(name[-3:]) + 1) // 2 for name in names]
    assert {subjects[i] for i in training}.isdisjoint(subjects[i] for i in validation)
    assert 10 <= len(validation) <= 30
    assert split_by_subject(names, 2, 0.1, seed=0) == (training, validation)


def test_the_shipped_package_held_its_examples_out() -> None:
    with Segmenter.load("hippocampus") as segmenter:
        record = segmenter.package.manifest.model.training
    assert {"hippocampus_292", "hippocampus_127"} <= set(record.validation_cases)


def test_the_decathlons_layout_is_read(labelled: Path, tmp_path: Path) -> None:
    for part, name in (("images", "imagesTr"), ("labels", "labelsTr")):
        shutil.copytree(labelled / part, tmp_path / name)
    listing = [
        {"image": f"./imagesTr/{p.name}", "label": f"./labelsTr/{p.name}"}
        for p in sorted((labelled / "images").iterdir())[:3]
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"training": listing}))
    assert [case.name for case in find_cases(tmp_path)] == ["case_001", "case_002", "case_003"]


def test_files_that_do_not_fit_together_are_refused(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(ScanError, match="no labelled scans"):
        find_cases(tmp_path)
    shutil.copytree(labelled, tmp_path / "data")
    (tmp_path / "data/labels/case_002.nii.gz").unlink()
    with pytest.raises(ScanError, match="1 missing in all"):
        find_cases(tmp_path / "data")
    listing = tmp_path / "data/dataset.json"
    listing.write_bytes('{"training": [], "reference": "Bjørnstrup"}'.encode("latin-1"))
    with pytest.raises(ScanError, match="not in the Decathlon's layout"):
        find_cases(tmp_path / "data")
    image, labels = (labelled / part / "case_001.nii.gz" for part in ("images", "labels"))
    with pytest.raises(ScanError, match="another grid"):
        load_case(CaseFiles("x", image, labelled / "labels/case_002.nii.gz"), 1, 3)
    with pytest.raises(ScanError, match="holds 2; expected 0 to 1"):
        load_case(CaseFiles("x", image, labels), 1, 2)
    with pytest.raises(ScanError, match=r"not whole numbers \((\S+, ){5}\.\.\.\)"):
        load_case(CaseFiles("x", image, image), 1, 3)


def test_labels_may_lie_as_far_from_the_scan_as_files_round_and_no_farther(
    labelled: Path, tmp_path: Path
) -> None:
    image = nib.load(labelled / "images/case_001.nii.gz")
    labels = nib.load(labelled / "labels/case_001.nii.gz")
    for name, matrix, fits in (
        ("rounded", np.array([[0, 0, 0, 3e-3]] + 3 * [[0, 0, 0, 0]]), True),
        ("tilted", np.array([[0, 9e-3, 0, 0]] + 3 * [[0, 0, 0, 0]]), False),
    ):
        path = tmp_path / f"{name}.nii.gz"
        nib.save(nib.Nifti1Image(labels.dataobj, image.affine + matrix, image.header), path)
        files = CaseFiles("x", labelled / "images/case_001.nii.gz", path)
        if fits:
            assert load_case(files, 1, 3).labels.any()
        else:
            with pytest.raises(ScanError, match=r"another grid .*corners up to \S+ mm apart"):
                load_case(files, 1, 3)


def test_augmented_cases_keep_image_and_labels_together(labelled: Path) -> None:
    """An image made of its own labels must still be its labels after any variation of pose."""
    files = find_cases(labelled)[0]
    case = load_case(files, 1, 3)
    painted = replace(case, voxels=(case.labels > 0)[None].astype(np.float32) * 100.0)
    for seed in range(12):
        varied = augment(painted, np.random.default_rng(seed), 3)
        voxels, labels = varied.voxels, varied.labels
        assert voxels.shape[1:] == labels.shape == varied.grid.shape
        assert set(np.unique(labels)) <= {0, 1, 2}
        inside, outside = voxels[0][labels > 0], voxels[0][labels == 0]
        assert np.median(inside) > np.percentile(outside, 95)


@pytest.mark.parametrize("slices", [1, 4, 8])
def test_a_scan_of_few_slices_keeps_some(labelled: Path, slices: int) -> None:
    case = load_case(find_cases(labelled)[0], 1, 3)
    i, j, k = case.labels.shape
    few = slice(k // 2, k // 2 + slices)
    thin = replace(
        case,
        voxels=case.voxels[..., few],
        labels=case.labels[..., few],
        grid=case.grid.box((0, 0, k // 2), (i, j, slices)),
    )
    for seed in range(60):
        assert min(augment(thin, np.random.default_rng(seed), 3).labels.shape) >= (slices + 1) // 2


def test_scans_that_only_some_routes_resample_are_trained_on(
    labelled: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """At 1.04 mm route 0 takes a scan as it is, and route 3 does not: their grids differ."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for path in sorted((labelled / part).iterdir()):
            image = nib.load(path)
            affine = image.affine @ np.diag([1.04, 1.04, 1.04, 1.0])
            nib.save(
                nib.Nifti1Image(np.asarray(image.dataobj), affine), tmp_path / part / path.name
            )
    network = NetworkConfig(depth=4, filters=2, gate_blocks=1)
    still = replace(recipe.acquisition, simulated_share=0.0)
    other = replace(recipe, network=network, acquisition=still, cycles=(1,))
    assert train([tmp_path], tmp_path / "run", other).facts.epochs == 1


def test_lower_resolution_is_the_mean_of_blocks() -> None:
    voxels = np.arange(64, dtype=np.float32).reshape(1, 4, 4, 4)
    assert average_blocks(voxels, 4).tolist() == [[[[31.5]]]]
    assert average_blocks(voxels, 2)[0, 0, 0, 0] == voxels[0, :2, :2, :2].mean()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ["a"]}, "names 1 channels and 1 labels"),
        ({"speed": 1}, "speed"),
        ({"network": {"depth": 1}}, "routes is 4"),
        ({"batch": 0}, "batch is 0"),
        ({"cycles": ["ten"]}, "cycles is 'ten'"),
        ({"learning_rate": -1}, "learning_rate is -1"),
        ({"averaging": 1.0}, "averaging is 1.0"),
        ({"distillation": -0.5}, "distillation is -0.5"),
        ({"acquisition": {"simulated_share": 2}}, "simulated_share is 2"),
        ({"acquisition": {"spacing_mm": [4, 2]}}, r"spacing_mm is \(4.0, 2.0\)"),
        ({"acquisition": {"largest_ratio": 0.5}}, "largest_ratio is 0.5"),
        ({"acquisition": {"largest_ratio": float("inf")}}, "largest_ratio is inf"),
        ({"acquisition": {"spacing_mm": [0.8, float("inf")]}}, "spacing_mm is"),
        ({"seed": 2**32}, "seed is 4294967296"),
        ({"base_spacing_mm": 20.0}, r"spacing_mm is \(0.8, 10.0\)"),
        ({"labels": "abc"}, "labels is 'abc', no list"),
        ({"labels": ["background", "a", "a"]}, "different names"),
        ({"task": None}, "task is None"),
        ({"seed": -1}, "seed is -1"),
        ({"weight_decay": "x"}, "weight_decay is 'x'"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
        ({"intensity": {"clip_percentiles": [99, 1]}}, "clip_percentiles is"),
        ({"intensity": {"foreground_share": 5}}, "foreground_share is 5"),
        ({"intensity": {"percentiles": [1, 99]}}, "percentiles"),
        ({"network": {"filters": "16"}}, "filters is '16'"),
        ({"network": {"gate_blocks": 0}}, "gate_blocks is 0"),
        ({"network": {"dropout": 2}}, "dropout is 2"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(load_recipe("hippocampus").as_json() | change))
    with pytest.raises(RareTrtError, match=words):
        load_recipe(str(path))


def test_all_faults_of_a_recipe_are_reported_at_once() -> None:
    values = load_recipe("hippocampus").as_json()
    wrong = {"batch": 0, "seed": -1, "labels": ["a", "a"], "base_spacing_mm": "x"}
    with pytest.raises(RareTrtError) as caught:
        recipe_from_json(values | wrong)
    for words in ("batch is 0", "seed is -1", "labels is ('a', 'a')", "base_spacing_mm is 'x'"):
        assert words in str(caught.value)
    assert "names 1 channels and 2 labels (expected 1 and 3" in str(caught.value)


def test_a_recipe_of_an_earlier_version_has_a_name_that_is_ignored(tmp_path: Path) -> None:
    shipped = load_recipe("hippocampus")
    for name in ({}, {"name": "hippocampus"}):
        (tmp_path / "recipe.json").write_text(json.dumps(shipped.as_json() | name))
        assert load_recipe(str(tmp_path / "recipe.json")) == shipped


def test_files_that_are_no_checkpoint_are_refused(tmp_path: Path, trained: Path) -> None:
    with pytest.raises(RareTrtError, match="not a checkpoint"):
        load_checkpoint(tmp_path)
    shutil.copytree(trained, tmp_path / "x")
    (tmp_path / "x/model.safetensors").write_bytes(b"junk")
    with pytest.raises(RareTrtError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "x")


def test_a_build_reports_all_faults_of_the_data_first(
    trained: Path, labelled: Path, tmp_path: Path
) -> None:
    """Those of cases included that only later steps read."""
    shutil.copytree(labelled, tmp_path / "data")
    for name in ("case_001", "case_004"):
        (tmp_path / f"data/images/{name}.nii.gz").write_bytes(b"")
    with pytest.raises(ScanError, match=r"(?s)2 faults.*case_001.*is empty.*case_004.*is empty"):
        build_package(trained, tmp_path / "data", tmp_path / "x.rare", overwrite=False)
    assert not (tmp_path / "x.rare").exists()
