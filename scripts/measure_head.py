"""Measures a checkpoint of the head stage on held-out heads and prints a table in Markdown.

    python scripts/measure_head.py models/head --heads ../shared/data/heads_2mm=dlmuse \
        --part validation

`--part` selects what the trainer held out of that folder; without it all heads are measured (those
of a folder that was never trained on).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from rare_trt.training.checkpoint import load_checkpoint
from rare_trt.training.head_cases import PARTS, HeadSource, load_heads, names_of_part
from rare_trt.training.head_validation import acquisitions, table, validate_heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--heads", type=HeadSource.from_text, required=True, metavar="DIR=PROTOCOL")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--count", type=int, help="the first so many heads alone")
    parser.add_argument("--routes", type=int, nargs="+", default=[2, 1])
    names = list(acquisitions())
    parser.add_argument("--scans", nargs="+", choices=names, default=names)
    parser.add_argument("--json", type=Path, help="every head's scores")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = load_checkpoint(options.checkpoint)
    names = [name for name, _, _ in options.heads.files()]
    names = names_of_part(names, options.part, checkpoint.recipe.seed)
    names = names[: options.count]
    base = checkpoint.recipe.base_spacing_mm
    heads = load_heads([options.heads], base, names)
    scores = validate_heads(checkpoint, heads, options.scans, options.routes)
    print(f"epoch {checkpoint.facts.epochs}, {len(heads)} heads of {options.heads.folder.name}\n")
    print(table(scores))
    if options.json:
        rows = [
            {"scan": scan, "route": route, "head": head.name, **asdict(score)}
            for (scan, route), of_heads in scores.items()
            for head, score in zip(heads, of_heads, strict=True)
        ]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
