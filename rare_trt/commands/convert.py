"""`rare-trt convert`: a checkpoint from one of the RARE-UNet authors."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rare_trt.commands import missing_extra

if TYPE_CHECKING:
    from rare_trt.commands import Parsers


def add_parser(commands: Parsers) -> None:
    parser = commands.add_parser(
        "convert",
        help="make a checkpoint of the RARE-UNet authors into one for `build`",
        description="Reads best_model.pth and config.yaml as the authors' training leaves them. "
        "The recipe names labels, channels and data; Dice is measured anew, on the cases of --data "
        "that `train` would keep back, whether or not the authors trained on them.",
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what the authors' code wrote")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled scans")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="CHECKPOINT", help="a folder without one"
    )
    parser.add_argument("--recipe", default="hippocampus", metavar="NAME|FILE.json")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        from rare_trt.training.authors import convert
        from rare_trt.training.recipe import load_recipe
    except ImportError as error:
        raise missing_extra(error, "train") from error
    recipe = load_recipe(options.recipe)
    checkpoint = convert(options.folder, options.out, options.data, recipe)
    for route, scores in enumerate(checkpoint.facts.dice):
        print(f"route {route}: validation Dice {' / '.join(f'{s:.3f}' for s in scores)}")
    print(options.out)
    return 0
