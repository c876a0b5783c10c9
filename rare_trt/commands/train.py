"""`rare-trt train`: a checkpoint from labelled scans."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.commands import missing_extra, print_validation_dice, require
from rare_trt.errors import ScanError

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


# Heads are read at this spacing, or averaged to it.
HEADS_MM = 2.0


def add_parser(commands: Parsers) -> None:
    """Adds `train` to the command line."""
    parser = commands.add_parser(
        "train",
        help="train a network on labelled scans",
        description="Trains on images/ and labels/ of equal names, or on a folder in the Medical "
        "Segmentation Decathlon's layout or nnU-Net's. A second run resumes after the last "
        "finished epoch.",
    )
    parser.add_argument(
        "--data",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="once per folder; scans of a folder may be coarser than another's",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the checkpoint")
    parser.add_argument(
        "--recipe",
        metavar="NAME|FILE.json",
        help="default: hippocampus, or head without --data, each without the name of its data, "
        "because yours may be others",
    )
    parser.add_argument(
        "--epochs", type=int, help="one cycle of this length; default: the recipe's"
    )
    parser.add_argument(
        "--heads",
        action="append",
        default=[],
        metavar="DIR=PROTOCOL",
        help="whole heads with label maps of a protocol (dlmuse, freesurfer_head, or FILE.json), "
        "which show the network other scanners; without --data the head stage is trained, on label "
        "maps alone too; once per folder",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Trains, or resumes a training, and prints the validation Dice.

    Raises ScanError where no data are named.
    """
    if not options.data and not options.heads:
        raise ScanError("no data are named; expected --data DIR, or --heads DIR=PROTOCOL alone")
    require("train", "matplotlib", "scipy")
    try:
        from rare_trt.training.head_cases import HeadSource, load_training_heads
        from rare_trt.training.head_trainer import train_head
        from rare_trt.training.recipe import load_recipe
        from rare_trt.training.trainer import train
    except ImportError as error:
        raise missing_extra(error, "train") from error
    recipe = load_recipe(options.recipe or ("hippocampus" if options.data else "head"))
    if options.recipe is None:
        # The package's model card names the data that the recipe names.
        recipe = replace(recipe, data_source="", data_licence="")
    if options.epochs is not None:
        recipe = replace(recipe, cycles=(options.epochs,))
    sources = [HeadSource.from_text(text) for text in options.heads]
    if options.data:
        heads = load_training_heads(sources, HEADS_MM, recipe.seed)[0] if sources else []
        checkpoint = train(options.data, options.out, recipe, heads)
        print_validation_dice(checkpoint.facts.dice)
    else:
        train_head(sources, options.out, recipe)
    print(options.out)
    return 0
