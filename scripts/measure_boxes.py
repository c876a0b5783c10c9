"""Measures a checkpoint of hippocampus crops on boxes of whole heads; prints a table in Markdown.

    python scripts/measure_boxes.py models/hippocampus --heads ../shared/data/heads_2mm=dlmuse \
        --part validation

Each box lies about the true centre. The head is averaged to each spacing, labels are computed at
base spacing, and the majority of each of the head's own voxels is compared with the label map's
whole hippocampus.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from rare_trt.evaluation.simulation import acquire, whole_voxel_grid
from rare_trt.plan.resampling import majority_vote, subvoxel_counts
from rare_trt.plan.routing import choose_route
from rare_trt.scan.field_of_view import box_at, box_grid
from rare_trt.scan.geometry import Triple
from rare_trt.training.checkpoint import Checkpoint, load_checkpoint
from rare_trt.training.head_cases import PARTS, HeadCase, HeadSource, load_heads, names_of_part
from rare_trt.training.head_labels import LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS
from rare_trt.training.inputs import route_inputs

SCANS: dict[str, Triple] = {
    "2 mm": (2.0, 2.0, 2.0),
    "4 mm": (4.0, 4.0, 4.0),
    "2 x 2 x 6 mm": (2.0, 2.0, 6.0),
    "2 x 6 x 2 mm": (2.0, 6.0, 2.0),
}
# Heads are read at this spacing, or averaged to it.
HEADS_MM = 2.0

SIDES = (LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--heads", type=HeadSource.from_text, required=True, metavar="DIR=PROTOCOL")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--json", type=Path, help="every box's volumes and Dice")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = load_checkpoint(options.checkpoint)
    names = [name for name, _, _ in options.heads.files()]
    names = names_of_part(names, options.part, checkpoint.recipe.seed)
    heads = load_heads([options.heads], HEADS_MM, names)
    rows = []
    for head in tqdm(heads, "measuring", unit="head"):
        for scan, spacing in SCANS.items():
            for side in SIDES:
                found, truth, both = measure(checkpoint, head, side, spacing)
                dice = 2 * both / (found + truth)
                row = {"head": head.name, "scan": scan, "side": side}
                voxel = float(np.prod(head.grid.spacing_mm))
                volumes = {"mm3": found * voxel, "truth_mm3": truth * voxel}
                rows.append({**row, **volumes, "dice": dice})
    print(f"epoch {checkpoint.facts.epochs}, {len(heads)} heads of {options.heads.folder.name}\n")
    print("| scan | Dice | lowest | volume | correlation, left / right |\n|---|---|---|---|---|")
    for scan in SCANS:
        of_scan = [row for row in rows if row["scan"] == scan]
        dice = [row["dice"] for row in of_scan]
        ratio = np.mean([row["mm3"] / row["truth_mm3"] for row in of_scan])
        sides = []
        for side in SIDES:
            pairs = [(row["mm3"], row["truth_mm3"]) for row in of_scan if row["side"] == side]
            sides.append(f"{np.corrcoef(np.array(pairs).T)[0, 1]:.2f}")
        cells = (
            scan,
            f"{np.mean(dice):.3f}",
            f"{min(dice):.3f}",
            f"{ratio:.2f}",
            " / ".join(sides),
        )
        print(f"| {' | '.join(cells)} |")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


@torch.no_grad()
def measure(
    checkpoint: Checkpoint, head: HeadCase, side: int, spacing_mm: Triple
) -> tuple[int, int, int]:
    """Voxels found, true, and both, of one hippocampus of `head` as a scan of `spacing_mm`."""
    assert head.image is not None
    recipe = checkpoint.recipe
    truth = head.labels == side
    x, y, z = head.grid.world_mm(np.argwhere(truth).mean(axis=0)).tolist()
    grid = whole_voxel_grid(head.grid, spacing_mm)
    voxels = acquire(head.image[None], head.grid, grid)
    size = checkpoint.facts.typical_fov_mm
    box = box_at(grid, (x, y, z), size)
    part = box_grid(grid, box)
    own = box_at(head.grid, (x, y, z), size)
    target = box_grid(head.grid, own)
    parts = subvoxel_counts(target, recipe.base_spacing_mm)
    routes = [recipe.route(n) for n in range(recipe.network.routes)]
    chosen = choose_route(part.spacing_mm, routes, recipe.acquisition.spacing_mm, None).route
    inputs = route_inputs(
        voxels[(slice(None), *box)],
        part,
        chosen,
        target.subdivide(parts),
        recipe,
        torch.device("cpu"),
    )
    fine = inputs.predict(checkpoint.network, chosen)[0].argmax(0).numpy().astype(np.uint8)
    found = majority_vote((fine > 0).astype(np.uint8), parts, 2) > 0
    inside = truth[own]
    return int(found.sum()), int(truth.sum()), int((found & inside).sum())


if __name__ == "__main__":
    main()
