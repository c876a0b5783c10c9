"""`rare-trt convert`: a checkpoint for `build` from one of the RARE-UNet authors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.commands import missing_extra, print_validation_dice

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    """Adds `convert` to the command line."""
    parser = commands.add_parser(
        "convert",
        help="convert a checkpoint of the RARE-UNet authors into one for `build`",
        description="Reads best_model.pth and config.yaml as the authors' training writes them. "
        "The recipe names labels, channels and data; Dice is measured anew, on the cases of --data "
        "that `train` would hold out, whether or not the authors trained on them.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="output of the authors' code")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled scans")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="CHECKPOINT", help="a folder without one"
    )
    parser.add_argument("--recipe", default="hippocampus", metavar="NAME|FILE.json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Writes the checkpoint and prints its validation Dice."""
    try:
        from rare_trt.training.authors import convert
        from rare_trt.training.recipe import load_recipe
    except ImportError as error:
        raise missing_extra(error, "train") from error
    recipe = load_recipe(options.recipe)
    checkpoint = convert(options.folder, options.out, options.data, recipe)
    print_validation_dice(checkpoint.facts.dice)
    print(options.out)
    return 0
