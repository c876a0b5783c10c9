"""Conversion of a checkpoint of the RARE-UNet authors.

Their training leaves a folder with best_model.pth (a pickle of `model_state_dict` and more) and
config.yaml. The network is the same as ours, number for number: the same blocks, slopes
and epsilons, and in the decoder the upsampled features stand before the skip. So every tensor is
copied unchanged under another name. For level d of `depth` and route r:

| theirs                        | ours             |
|-------------------------------|------------------|
| encoders.{d}.conv             | encoder.{d}      |
| bn.conv                       | bottleneck       |
| up_convs.{depth - 1 - d}      | up.{d}           |
| decoders.{depth - 1 - d}.conv | decoder.{d}      |
| msb_blocks.{r - 1}.conv       | gateways.{r}     |
| final_conv                    | heads.0          |
| ms_heads.{r - 1}              | heads.{r}, r > 0 |

The input is not the same: the authors rescale intensities to 0..1, rare-trt gives the foreground
mean 0 and deviation 1. The instance norm after the first convolution removes any gain and offset,
but not at the borders, where the convolution pads with zeros. So the labels of a converted network
differ a little from theirs, and its Dice is measured anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint

from rare_trt.errors import RareTrtError
from rare_trt.evaluation.cases import find_cases, load_cases
from rare_trt.training.checkpoint import Checkpoint, TrainingFacts
from rare_trt.training.network import NetworkConfig, RareUNet
from rare_trt.training.recipe import Recipe
from rare_trt.training.validation import validate

WEIGHTS: Final = "best_model.pth"
CONFIG: Final = "config.yaml"

# Far beyond any network that fits in memory, so that a typing error is reported at once.
LARGEST: Final = 1024

FAULTS_NAMED: Final = 3


def convert(folder: Path, out: Path, data: Path, recipe: Recipe) -> Checkpoint:
    """Converts the authors' checkpoint in `folder` and writes the result to `out`.

    Entries that their files do not have (labels, channels and others) are those of `recipe`; fields
    of view, volumes and Dice those of the labelled scans in `data`. Dice is measured on the cases
    that training by `recipe` would hold out. Their files do not name the cases they trained on, so
    the checkpoint records them as unknown.

    Raises RareTrtError, with nothing written, where a file is missing or does not fit.
    """
    if (out / "config.json").exists():
        raise RareTrtError(
            f"{out}: holds a checkpoint already; expected a folder without one: name another"
        )
    missing = [name for name in (WEIGHTS, CONFIG) if not (folder / name).is_file()]
    if missing:
        raise RareTrtError(
            f"{folder}: has no {' and no '.join(missing)}; expected {WEIGHTS} and {CONFIG} side by "
            "side, as the authors' training leaves them: name that folder"
        )
    config = _network_config(folder / CONFIG)
    state, epochs = _weights(folder / WEIGHTS)
    # One cycle as long as theirs: a checkpoint of fewer epochs than its recipe has is unfinished.
    recipe = replace(recipe, network=config, cycles=(epochs,))
    network = _network(folder / WEIGHTS, state, config)
    cases = load_cases(find_cases(data), config.channels, config.classes, recipe.intensity)
    _, held_out = recipe.split(cases)
    dice = validate(network, held_out, recipe).mean(axis=0)
    facts = replace(
        TrainingFacts.from_cases(cases, held_out, config.classes),
        cases=0,
        epochs=epochs,
        dice=tuple(tuple(row) for row in dice.round(4).tolist()),
    )
    checkpoint = Checkpoint(network.eval(), recipe, facts)
    checkpoint.save(out)
    return checkpoint


def _network_config(path: Path) -> NetworkConfig:
    """The network that the authors' config.yaml describes."""
    try:
        sections = yaml.safe_load(path.read_bytes())
    except (yaml.YAMLError, ValueError) as error:
        raise RareTrtError(
            f"{path}: cannot be read ({' '.join(str(error).split())}); expected the YAML that the "
            "authors' training writes: restore the file"
        ) from error
    values = {
        f"{section}.{key}": value
        for section in ("architecture", "dataset")
        for key, value in _table(sections, section).items()
    }
    for key, expected in (("norm_type", "instance"), ("activation_type", "leaky_relu")):
        found = values.get(f"architecture.{key}")
        if str(found).lower() != expected:
            raise RareTrtError(
                f"{path}: architecture.{key} is {found!r}; expected {expected!r}, the only one "
                "rare-trt has: train a network with it"
            )
    depth = _whole(path, values, "architecture.depth")
    levels = _whole(path, values, "architecture.num_multiscale_levels", default=depth - 1)
    if levels >= depth:
        raise RareTrtError(
            f"{path}: architecture.num_multiscale_levels is {levels}; expected less than the depth "
            f"({depth}): correct it"
        )
    return NetworkConfig(
        depth=depth,
        filters=_whole(path, values, "architecture.n_filters"),
        gate_blocks=_whole(path, values, "architecture.n_gate_blocks", default=2),
        channels=_whole(path, values, "dataset.in_channels"),
        classes=_whole(path, values, "dataset.num_classes"),
        routes=levels + 1,
    )


def _table(sections: object, name: str) -> Mapping[str, Any]:
    found = sections.get(name) if isinstance(sections, dict) else None
    return found if isinstance(found, dict) else {}


def _whole(path: Path, values: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The entry `key`, a whole number; `default` is the default of the authors' code."""
    value = values.get(key, default)
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise RareTrtError(
            f"{path}: {key} is {value!r}; expected a whole number from 1 to {LARGEST}: take the "
            "file that was saved with the weights"
        )
    return value


def _weights(path: Path) -> tuple[dict[str, Tensor], int]:
    """The tensors of best_model.pth under the authors' names, and the epochs trained."""
    content = _load_pickle(path)
    # Their training loops also save the epoch; published files may hold weights alone.
    state, epoch = content.get("model_state_dict"), content.get("epoch", 1)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise RareTrtError(
            f"{path}: its model_state_dict is {_kind(state)}; expected a table of named tensors: "
            "take the file that the authors' training wrote"
        )
    if type(epoch) is not int or epoch < 1:
        raise RareTrtError(
            f"{path}: its epoch is {epoch!r}; expected the number of epochs trained: take the file "
            "that the authors' training wrote"
        )
    # torch.compile and parallel training, possibly nested, prefix every name.
    for prefix in ("module.", "_orig_mod.", "module."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state, epoch


def _load_pickle(path: Path) -> dict[str, Any]:
    """Loads a file written by torch.save without running any code that the file names."""
    try:
        code = get_unsafe_globals_in_checkpoint(path)
        content = None if code else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged file can raise nearly anything.
        raise RareTrtError(
            f"{path}: cannot be read ({type(error).__name__}); expected what the authors' training "
            "wrote with torch.save: fetch the file again"
        ) from error
    if code:
        raise RareTrtError(
            f"{path}: names code to run ({', '.join(code)}); expected tensors and plain values, so "
            "it was not loaded: take the file from whoever trained the network"
        )
    if not isinstance(content, dict):
        raise RareTrtError(
            f"{path}: holds {_kind(content)}; expected a table with model_state_dict: take the "
            "file that the authors' training wrote"
        )
    return content


def _kind(value: object) -> str:
    return "absent" if value is None else f"a {type(value).__name__}"


def _network(path: Path, state: Mapping[str, Tensor], config: NetworkConfig) -> RareUNet:
    """Our network with their weights; raises RareTrtError that lists what does not fit."""
    with torch.device("meta"):
        network = RareUNet(config)
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    theirs = {name: _their_name(name, config.depth) for name in shapes}
    known = set(theirs.values())
    faults = [f"{name} is missing" for name in theirs.values() if name not in state]
    faults += [f"{name} is unknown" for name in state if name not in known]
    for name, shape in shapes.items():
        tensor = state.get(theirs[name])
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            faults.append(f"{theirs[name]} has the shape {tuple(tensor.shape)}, not {shape}")
        elif not torch.isfinite(tensor.float()).all():
            faults.append(f"{theirs[name]} is not finite")
    if faults:
        more = len(faults) - FAULTS_NAMED
        named = "; ".join(faults[:FAULTS_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise RareTrtError(
            f"{path}: does not fit {CONFIG} ({named}); expected exactly the weights of the network "
            "described there, all finite: take both files from one training"
        )
    network.to_empty(device="cpu")
    network.load_state_dict({name: state[theirs[name]] for name in shapes})
    return network


def _their_name(name: str, depth: int) -> str:
    """The authors' name of our tensor `name`."""
    part, _, rest = name.partition(".")
    if part == "bottleneck":
        return f"bn.conv.{rest}"
    number, _, rest = rest.partition(".")
    index = int(number)
    # Their decoder is counted from the bottleneck upwards, their gateways and heads from 0.
    modules = {
        "encoder": f"encoders.{index}.conv",
        "up": f"up_convs.{depth - 1 - index}",
        "decoder": f"decoders.{depth - 1 - index}.conv",
        "gateways": f"msb_blocks.{index - 1}.conv",
        "heads": f"ms_heads.{index - 1}" if index else "final_conv",
    }
    return f"{modules[part]}.{rest}"
