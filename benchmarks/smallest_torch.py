"""The smallest PyTorch script that does what `rare-trt infer` does, for benchmarks/cold.py.

    python benchmarks/smallest_torch.py MODEL SCAN LABELS

MODEL is a folder with model.safetensors and config.json. The scan must lie at the spacing of a
route and in the network's own order of axes: nothing is resampled, reoriented or checked.
"""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from safetensors.torch import load_file

from rare_trt.training.network import NetworkConfig, RareUNet

folder, scan, labels = (Path(argument) for argument in sys.argv[1:])
config = NetworkConfig(**json.loads((folder / "config.json").read_text())["recipe"]["network"])
network = RareUNet(config).eval()
network.load_state_dict(load_file(folder / "model.safetensors"))
image = nib.load(scan)
voxels = np.asanyarray(image.dataobj)
low, high = np.percentile(voxels, (0.5, 99.5))
voxels = (voxels.clip(low, high) - low) / (high - low)
foreground = voxels[voxels >= 0.15]
voxels = (voxels - foreground.mean()) / foreground.std()
spacing = float(np.mean(image.header.get_zooms()[:3]))
route = min(range(config.routes), key=lambda r: abs(2**r - spacing))
i, j, k = voxels.shape
pad = [(0, -n % config.multiple(route)) for n in voxels.shape]
with torch.inference_mode():
    logits = network(torch.from_numpy(np.pad(voxels, pad)).float()[None, None], route)
found = logits[0, :, :i, :j, :k].argmax(0).numpy().astype(np.uint8)
nib.save(nib.Nifti1Image(found, image.affine), labels)
