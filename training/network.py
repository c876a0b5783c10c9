"""RARE-UNet as a torch module, with static control flow per route.

Source: Albertsen, Bjørnstrup, Mehdipour Ghazi, "Resolution-Aligned Routing Entry for Adaptive
Medical Image Segmentation", arXiv 2507.15524 (2025). Nothing here loads data or parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

MAX_CHANNELS = 320


@dataclass(frozen=True)
class NetworkConfig:
    """The architecture of a RARE-UNet; raises ValueError where an entry is out of range.

    `depth` counts the encoder levels above the bottleneck, `filters` the channels of level 0,
    `gate_blocks` the conv-norm-act blocks of a gateway and `routes` the entries into the encoder
    (route 0 is the plain U-Net). `classes` includes the background.
    """

    depth: int = 4
    filters: int = 16
    gate_blocks: int = 2
    channels: int = 1
    classes: int = 3
    routes: int = 4
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("depth", "filters", "gate_blocks", "channels", "classes", "routes"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; expected 1, 2, 3, ...")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is {self.dropout}; expected 0 to less than 1")
        if not 1 <= self.routes <= self.depth:
            raise ValueError(f"routes is {self.routes}; expected 1 to depth ({self.depth})")

    def width(self, level: int) -> int:
        """Returns the channels at encoder `level`; the bottleneck is level `depth`."""
        return min(self.filters << level, MAX_CHANNELS)

    def multiple(self, route: int) -> int:
        """Returns the voxels of which every axis of the input of `route` must be a multiple."""
        return 1 << (self.depth - route)


class InstanceNorm(nn.InstanceNorm3d):
    """torch's instance norm, which also accepts a volume of one voxel: the result is the bias, as
    in ONNX. The bottleneck of a deep network has such volumes for a small field of view."""

    def forward(self, features: Tensor) -> Tensor:
        """Normalises each channel of features [n, c, i, j, k]."""
        normed: Tensor = torch.instance_norm(
            features, self.weight, self.bias, None, None, True, 0.0, self.eps, False
        )
        return normed


class Convolution(nn.Conv3d):
    """torch's 3D convolution, faster for one small float32 volume in training on a CPU.

    For such a volume torch unfolds the input, serially and with 27 times its memory, and uses
    oneDNN for larger ones only. oneDNN takes less than half of the time, with the same result to
    rounding.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Convolves features [n, c, i, j, k]."""
        kind = features.device.type
        plain = features.dtype == torch.float32 and not torch.is_autocast_enabled(kind)
        has_onednn = kind == "cpu" and torch.backends.mkldnn.is_available()
        if not (self.training and plain and has_onednn):
            return super().forward(features)
        convolved: Tensor = super().forward(features.to_mkldnn()).to_dense()
        return convolved


class ConvBlock(nn.Sequential):
    """`blocks` times a 3³ convolution, an affine instance norm and a leaky ReLU (slope 0.01)."""

    def __init__(self, channels_in: int, channels_out: int, blocks: int) -> None:
        layers: list[nn.Module] = []
        for index in range(blocks):
            layers += [
                Convolution(channels_out if index else channels_in, channels_out, 3, padding=1),
                InstanceNorm(channels_out, affine=True),
                nn.LeakyReLU(0.01),
            ]
        super().__init__(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """Returns [n, channels_out, i, j, k] for features [n, channels_in, i, j, k]."""
        return _run(super().forward, features)


def _run(layer: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
    """Applies `layer` to `features`, in float32 where an axis has at most two voxels.

    Under bf16 autocast torch 2.13 leaves gradients there unset on CPUs (tests/test_network.py):
    those of the weights of 3³ convolutions where the first axis has two voxels, and those of the
    input of transposed convolutions where the last axis has one.
    """
    kind = features.device.type
    if torch.is_autocast_enabled(kind) and min(features.shape[2:]) <= 2:
        with torch.autocast(kind, enabled=False):
            return layer(features.float())
    return layer(features)


class RareUNet(nn.Module):
    """A 3D U-Net that a scan of lower resolution enters at a deeper encoder level.

    The input of route r is a batch float [n, channels, i, j, k] at 2^r times the base spacing, each
    axis a multiple of `config.multiple(r)`; the output is logits [n, classes, i, j, k] on the same
    grid. Encoder, bottleneck and decoder are shared between the routes; gateways and heads are not.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.encoder = nn.ModuleList(
            ConvBlock(width(d - 1) if d else config.channels, width(d), 2)
            for d in range(config.depth)
        )
        self.bottleneck = ConvBlock(width(config.depth - 1), width(config.depth), 2)
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(width(d + 1), width(d), 3, stride=2, padding=1, output_padding=1)
            for d in range(config.depth)
        )
        self.decoder = nn.ModuleList(
            ConvBlock(2 * width(d), width(d), 1) for d in range(config.depth)
        )
        self.gateways = nn.ModuleDict(
            {
                str(r): ConvBlock(config.channels, width(r), config.gate_blocks)
                for r in range(1, config.routes)
            }
        )
        self.heads = nn.ModuleList(
            nn.Conv3d(width(r), config.classes, 1) for r in range(config.routes)
        )
        self.pool = nn.MaxPool3d(2)
        self.dropout = nn.Dropout3d(config.dropout)

    def enter(self, image: Tensor, route: int) -> Tensor:
        """Returns the features of encoder level `route` for an image [n, channels, i, j, k]: the
        output of the gateway, or on route 0 of the first encoder block."""
        entry = self.gateways[str(route)] if route else self.encoder[0]
        features: Tensor = entry(image)
        return features

    def encode(self, features: Tensor, level: int) -> list[Tensor]:
        """Returns the skips of levels `level` to depth - 1; `features` are those of `level`."""
        skips = [features]
        for d in range(level + 1, self.config.depth):
            skips.append(self.encoder[d](self.dropout(self.pool(skips[-1]))))
        return skips

    def deepen(self, skips: list[Tensor]) -> Tensor:
        """Returns the features of the bottleneck, from the skip of level depth - 1."""
        features: Tensor = self.bottleneck(self.dropout(self.pool(skips[-1])))
        return features

    def decode(self, features: Tensor, skips: list[Tensor], route: int) -> Tensor:
        """Returns the logits of `route` from the features of the bottleneck and the skips of
        levels `route` to depth - 1."""
        for d in reversed(range(route, self.config.depth)):
            joined = torch.cat([_run(self.up[d], features), skips[d - route]], dim=1)
            features = self.dropout(self.decoder[d](joined))
        logits: Tensor = self.heads[route](features)
        return logits

    def forward(self, image: Tensor, route: int = 0) -> Tensor:
        """Returns logits [n, classes, i, j, k] of `image` [n, channels, i, j, k] along `route`."""
        skips = self.encode(self.enter(image, route), route)
        return self.decode(self.deepen(skips), skips, route)

    def route_parameters(self, route: int) -> int:
        """Counts the parameters that `route` uses."""
        levels = range(route, self.config.depth)
        parts: list[nn.Module] = [self.bottleneck, self.heads[route]]
        parts += [self.up[d] for d in levels] + [self.decoder[d] for d in levels]
        parts += [self.encoder[d] for d in range(route + 1, self.config.depth)]
        parts.append(self.gateways[str(route)] if route else self.encoder[0])
        return sum(p.numel() for part in parts for p in part.parameters())
