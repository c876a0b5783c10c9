"""A converted checkpoint of the RARE-UNet authors gives the same logits."""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch
import yaml
from torch import Tensor, nn

from rare_trt.cli import main
from rare_trt.errors import RareTrtError
from rare_trt.training.authors import convert
from rare_trt.training.checkpoint import load_checkpoint
from rare_trt.training.network import NetworkConfig
from rare_trt.training.recipe import Recipe, load_recipe


class Block(nn.Module):
    """`count` times convolution, instance norm, leaky ReLU, all in `conv` as theirs."""

    def __init__(self, channels_in: int, channels_out: int, count: int) -> None:
        super().__init__()
        self.conv = nn.Sequential()
        for number in range(count):
            self.conv.append(
                nn.Conv3d(channels_out if number else channels_in, channels_out, 3, 1, 1)
            )
            self.conv.append(nn.InstanceNorm3d(channels_out, affine=True))
            self.conv.append(nn.LeakyReLU(0.01))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.conv(x)
        return features


class TheirNetwork(nn.Module):
    """The authors' network from its description: their names, their order, nothing of ours.

    `config` counts as ours does; their own numbers are depth, n_filters, num_multiscale_levels
    (routes - 1) and n_gate_blocks.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.depth = config.depth
        f = [config.filters * 2**d for d in range(config.depth + 1)]
        self.encoders = nn.ModuleList([Block(config.channels, f[0], 2)])
        self.encoders.extend(Block(f[d - 1], f[d], 2) for d in range(1, config.depth))
        self.bn = Block(f[-2], f[-1], 2)
        self.up_convs, self.decoders = nn.ModuleList(), nn.ModuleList()
        for d in reversed(range(config.depth)):
            self.up_convs.append(nn.ConvTranspose3d(f[d + 1], f[d], 3, 2, 1, output_padding=1))
            self.decoders.append(Block(2 * f[d], f[d], 1))
        self.final_conv = nn.Conv3d(f[0], config.classes, 1)
        scales = range(1, config.routes)
        self.msb_blocks = nn.ModuleList(
            Block(config.channels, f[s], config.gate_blocks) for s in scales
        )
        self.ms_heads = nn.ModuleList(nn.Conv3d(f[s], config.classes, 1) for s in scales)

    def forward(self, x: Tensor, scale: int) -> Tensor:
        x = self.msb_blocks[scale - 1](x) if scale else self.encoders[0](x)
        skips = [x]
        for encoder in list(self.encoders)[scale + 1 :]:
            x = encoder(nn.functional.max_pool3d(x, 2))
            skips.append(x)
        x = self.bn(nn.functional.max_pool3d(x, 2))
        for step in range(self.depth - scale):
            x = self.decoders[step](torch.cat((self.up_convs[step](x), skips.pop()), 1))
        logits: Tensor = (self.ms_heads[scale - 1] if scale else self.final_conv)(x)
        return logits


def their_network(config: NetworkConfig) -> TheirNetwork:
    """Every parameter random, norms and biases too: a swapped pair must change the logits."""
    network = TheirNetwork(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return network


def their_config(config: NetworkConfig) -> dict[str, Any]:
    """Entries of config.yaml: those that are read, and some that are not."""
    architecture = {
        "path": {"_target_": "models.rare_unet.RAREUNet"},
        "name": "rare_unet",
        "depth": config.depth,
        "n_filters": config.filters,
        "dropout": 0.2,
        "norm_type": "instance",
        "activation_type": "leaky_relu",
        "num_multiscale_levels": config.routes - 1,
        "n_gate_blocks": config.gate_blocks,
    }
    dataset = {
        "name": "Task04_Hippocampus",
        "target_shape": [32, 64, 32],
        "num_classes": config.classes,
        "in_channels": config.channels,
    }
    return {"seed": 42, "wandb": {"group": "${dataset.name}"}} | {
        "architecture": architecture,
        "dataset": dataset,
    }


def save_theirs(
    folder: Path, state: dict[str, Tensor], config: dict[str, Any], **more: object
) -> Path:
    """best_model.pth and config.yaml in `folder`."""
    folder.mkdir(exist_ok=True)
    content = {"epoch": 7, "model_state_dict": state, "best_metric": 0.8, "config": config} | more
    torch.save(content, folder / "best_model.pth")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


TINY = NetworkConfig(depth=2, filters=2, gate_blocks=1, channels=1, classes=3, routes=2)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A small checkpoint of the authors, for scans of one channel and three classes."""
    return save_theirs(tmp_path / "theirs", their_network(TINY).state_dict(), their_config(TINY))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, examples: Path) -> Path:
    """Three labelled crops of a real scan, of different shapes, in images/ and labels/."""
    folder = tmp_path_factory.mktemp("labelled")
    for part, source in (("images", "hippocampus_1mm.nii.gz"), ("labels", "truth/1mm.nii.gz")):
        (folder / part).mkdir()
        image = nib.load(examples / source)
        for number in range(1, 4):
            cut = image.slicer[number:, 2 * number :, :]
            nib.save(cut, folder / part / f"case_{number:03d}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return replace(load_recipe("hippocampus"), cases_per_subject=1)


def refusal(theirs: Path, labelled: Path, recipe: Recipe) -> str:
    """The message for a checkpoint that must be refused, with nothing written."""
    out = theirs.parent / "out"
    with pytest.raises(RareTrtError) as caught:
        convert(theirs, out, labelled, recipe)
    assert not out.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("config", "wrappers"),
    [
        (NetworkConfig(depth=3, filters=4, gate_blocks=2, channels=1, classes=3, routes=3), ""),
        (TINY, "module."),
        (TINY, "module._orig_mod."),
        (TINY, "_orig_mod.module."),
    ],
)
def test_every_route_gives_their_logits(
    config: NetworkConfig, wrappers: str, tmp_path: Path, labelled: Path, recipe: Recipe
) -> None:
    network = their_network(config)
    state = {wrappers + name: tensor for name, tensor in network.state_dict().items()}
    folder = save_theirs(tmp_path / "theirs", state, their_config(config))
    converted = convert(folder, tmp_path / "out", labelled, recipe).network
    generator = torch.Generator().manual_seed(1)
    for route in range(config.routes):
        multiple = config.multiple(route)
        shape = (2, config.channels, 2 * multiple, multiple, 3 * multiple)
        image = torch.randn(shape, generator=generator)
        with torch.no_grad():
            expected = network(image, route)
            assert expected.std() > 0.1
            torch.testing.assert_close(converted(image, route), expected, atol=1e-5, rtol=0)


def test_their_defaults_are_known(tmp_path: Path, labelled: Path, recipe: Recipe) -> None:
    """Their config.yaml may leave out the multiscale levels (depth - 1) and gate blocks (2)."""
    config = NetworkConfig(depth=3, filters=2, gate_blocks=2, channels=1, classes=3, routes=3)
    written = their_config(config)
    del written["architecture"]["num_multiscale_levels"], written["architecture"]["n_gate_blocks"]
    folder = save_theirs(tmp_path / "theirs", their_network(config).state_dict(), written)
    assert convert(folder, tmp_path / "out", labelled, recipe).network.config == config


def test_from_the_command_line(
    theirs: Path, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["convert", str(theirs), "--data", str(labelled), "--out", str(out)]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["route 0", "route 1", str(out)]
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    checkpoint = load_checkpoint(out)
    assert checkpoint.recipe.network == TINY
    assert checkpoint.recipe.labels == load_recipe("hippocampus").labels
    # `build` takes it as a finished run.
    assert checkpoint.facts.epochs == checkpoint.recipe.epochs == 7
    facts = checkpoint.facts
    # On how many cases it was trained is not known.
    assert (facts.cases, len(facts.dice), len(facts.dice[0])) == (0, 2, 2)
    assert facts.validation
    assert facts.smallest_fov_mm < facts.largest_fov_mm
    assert all(0.0 <= score <= 1.0 for row in facts.dice for score in row)
    before = (out / "model.safetensors").read_bytes()
    assert main(arguments) == 1
    assert "holds a checkpoint already" in capsys.readouterr().err
    assert (out / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("package", ["torch", "yaml"])
def test_without_its_extra_the_command_names_it(
    package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "rare_trt.training.authors")
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["convert", "x", "--data", "y", "--out", "z"]) == 1
    err = capsys.readouterr().err
    assert f"needs the package {package}" in err
    assert "rare-trt[train]" in err


@pytest.mark.parametrize("name", ["best_model.pth", "config.yaml"])
def test_a_missing_file_is_refused(name: str, theirs: Path, labelled: Path, recipe: Recipe) -> None:
    (theirs / name).unlink()
    assert f"has no {name};" in refusal(theirs, labelled, recipe)


class Malicious:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_pickle_is_refused_and_not_run(
    theirs: Path, labelled: Path, recipe: Recipe, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    state = their_network(TINY).state_dict()
    save_theirs(theirs, state, their_config(TINY), more=Malicious(mark))
    assert "names code to run (posix.mkdir)" in refusal(theirs, labelled, recipe)
    # Without the archive around it, as torch wrote long ago.
    (theirs / "best_model.pth").write_bytes(pickle.dumps({"epoch": Malicious(mark)}, protocol=2))
    assert "cannot be read" in refusal(theirs, labelled, recipe)
    assert not mark.exists()


def test_a_damaged_file_is_refused(theirs: Path, labelled: Path, recipe: Recipe) -> None:
    path = theirs / "best_model.pth"
    whole = path.read_bytes()
    for content in (b"", b"junk", whole[: len(whole) // 2]):
        path.write_bytes(content)
        assert "cannot be read" in refusal(theirs, labelled, recipe)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1], "holds a list"),
        ({"epoch": 3}, "model_state_dict is absent"),
        ({"epoch": 3, "model_state_dict": {"bn": 1}}, "model_state_dict is a dict"),
        ({"epoch": "7", "model_state_dict": {}}, "epoch is '7'"),
        ({"epoch": 0, "model_state_dict": {}}, "epoch is 0"),
    ],
)
def test_another_pickle_is_refused(
    content: object, words: str, theirs: Path, labelled: Path, recipe: Recipe
) -> None:
    torch.save(content, theirs / "best_model.pth")
    assert words in refusal(theirs, labelled, recipe)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"final_conv.bias": None}, "(final_conv.bias is missing)"),
        ({"ds_heads.0.bias": torch.zeros(3)}, "(ds_heads.0.bias is unknown)"),
        ({"final_conv.bias": torch.zeros(4)}, "(final_conv.bias has the shape (4,), not (3,))"),
        (
            {"final_conv.bias": torch.tensor([0.0, float("nan"), 0.0])},
            "(final_conv.bias is not fin",
        ),
        (
            dict.fromkeys(("final_conv.bias", "bn.conv.0.bias")),
            "bn.conv.0.bias is missing",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    change: dict[str, Tensor | None], words: str, theirs: Path, labelled: Path, recipe: Recipe
) -> None:
    state = their_network(TINY).state_dict() | change
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_theirs(theirs, kept, their_config(TINY))
    assert words in refusal(theirs, labelled, recipe)


def test_many_faults_are_counted(theirs: Path, labelled: Path, recipe: Recipe) -> None:
    save_theirs(theirs, {}, their_config(TINY))
    tensors = len(their_network(TINY).state_dict())
    assert f"and {tensors - 3} more)" in refusal(theirs, labelled, recipe)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_type": "group"}, "norm_type is 'group'"),
        ({"activation_type": "relu"}, "activation_type is 'relu'"),
        ({"depth": None}, "depth is None"),
        ({"depth": "two"}, "depth is 'two'"),
        ({"depth": 10**9}, "depth is 1000000000"),
        ({"n_gate_blocks": True}, "n_gate_blocks is True"),
        ({"num_multiscale_levels": 2}, "num_multiscale_levels is 2"),
        ({"n_gate_blocks": 2}, "msb_blocks.0.conv.3.weight is missing"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    change: dict[str, object], words: str, theirs: Path, labelled: Path, recipe: Recipe
) -> None:
    config = their_config(TINY)
    config["architecture"] |= change
    (theirs / "config.yaml").write_text(yaml.safe_dump(config))
    assert words in refusal(theirs, labelled, recipe)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"a: [1", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"!!python/object/apply:os.mkdir [mark]", "cannot be read"),
        (b"- 1", "norm_type is None"),
    ],
)
def test_a_file_without_a_configuration_is_refused(
    text: bytes, words: str, theirs: Path, labelled: Path, recipe: Recipe
) -> None:
    (theirs / "config.yaml").write_bytes(text)
    assert words in refusal(theirs, labelled, recipe)


def test_a_recipe_of_other_labels_is_refused(
    tmp_path: Path, labelled: Path, recipe: Recipe
) -> None:
    config = replace(TINY, classes=4)
    network = their_network(config)
    folder = save_theirs(tmp_path / "theirs", network.state_dict(), their_config(config))
    assert "1 channels and 3 labels" in refusal(folder, labelled, recipe)
