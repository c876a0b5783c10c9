"""RARE-UNet has the parameter counts of the paper, and its gradients are right."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rare_trt.training.losses import consistency_loss, one_hot, segmentation_loss
from rare_trt.training.network import ConvBlock, Convolution, NetworkConfig, RareUNet

HIPPOCAMPUS = NetworkConfig(depth=5, filters=8, gate_blocks=4, channels=1, classes=3)
BRAIN_TUMOUR = NetworkConfig(depth=5, filters=32, gate_blocks=4, channels=4, classes=4)


@pytest.mark.parametrize(
    ("config", "total", "per_route"),
    [
        (HIPPOCAMPUS, 6_338_636, (5.90, 5.90, 5.89, 5.87)),
        (BRAIN_TUMOUR, 37_421_520, (30.4, 30.4, 30.3, 29.9)),
    ],
)
def test_parameter_counts_of_the_paper(
    config: NetworkConfig, total: int, per_route: tuple[float, ...]
) -> None:
    with torch.device("meta"):
        network = RareUNet(config)
    assert sum(p.numel() for p in network.parameters()) == total
    digits = 2 if config is HIPPOCAMPUS else 1
    found = tuple(round(network.route_parameters(r) / 1e6, digits) for r in range(4))
    assert found == per_route


def test_a_route_uses_exactly_its_own_parameters() -> None:
    """The parameters of a route are those that get a gradient."""
    network = RareUNet(NetworkConfig(depth=3, filters=2, gate_blocks=1, routes=3))
    for route in range(3):
        network.zero_grad(set_to_none=True)
        network(torch.randn(1, 1, 16, 16, 16), route).sum().backward()
        used = sum(p.numel() for p in network.parameters() if p.grad is not None)
        assert used == network.route_parameters(route)


def test_the_lower_half_is_shared_and_each_route_has_its_own_gateway_and_head() -> None:
    network = RareUNet(NetworkConfig(depth=3, filters=2, gate_blocks=1, routes=3))
    touched = []
    for route in range(3):
        network.zero_grad(set_to_none=True)
        network(torch.randn(1, 1, 16, 16, 16), route).sum().backward()
        touched.append({n for n, p in network.named_parameters() if p.grad is not None})
    assert touched[0] & touched[1] & touched[2] == {
        n
        for n, _ in network.named_parameters()
        if n.startswith(("bottleneck", "up.2", "decoder.2"))
    }
    assert {n.split(".")[1] for n in touched[2] if n.startswith("gateways")} == {"2"}
    assert {n.split(".")[1] for n in touched[2] if n.startswith("heads")} == {"2"}


@pytest.mark.parametrize("route", range(4))
def test_logits_lie_on_the_routes_own_grid(route: int) -> None:
    network = RareUNet(NetworkConfig(depth=4, filters=2, channels=2, classes=5)).eval()
    multiple = network.config.multiple(route)
    shape = (multiple * 2, multiple, multiple * 3)
    assert network(torch.randn(2, 2, *shape), route).shape == (2, 5, *shape)


def test_more_routes_than_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="routes is 4"):
        NetworkConfig(depth=3, routes=4)


def test_the_loss_is_small_for_the_truth_and_large_for_its_opposite() -> None:
    truth = one_hot(torch.randint(0, 3, (1, 4, 4, 4)), 3)
    sure = 20.0 * truth
    assert segmentation_loss(sure, truth) < 1e-3
    assert segmentation_loss(-sure, truth) > 1.0


def test_the_background_has_no_part_in_dice() -> None:
    """Swapping foreground labels costs Dice; the weights of both terms are the paper's."""
    labels = torch.zeros(1, 4, 4, 4, dtype=torch.long)
    labels[0, 0] = 1
    flat = torch.zeros(1, 2, 4, 4, 4)
    share, truth = 0.5 * 64, 16.0
    expected = 0.35 * torch.log(torch.tensor(2.0)) + 0.65 * (
        1 - (2 * 0.5 * truth + 1) / (share + truth + 1)
    )
    assert segmentation_loss(flat, one_hot(labels, 2)) == pytest.approx(float(expected), rel=1e-5)


def test_consistency_pulls_the_gateway_and_never_the_encoder() -> None:
    gateway = torch.zeros(1, 2, 3, 3, 3, requires_grad=True)
    encoder = torch.ones(1, 2, 3, 3, 3, requires_grad=True)
    loss = consistency_loss([gateway], [encoder])
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0)
    assert gateway.grad is not None
    assert encoder.grad is None


def test_gradients_under_bf16_are_those_of_float32_on_the_smallest_volumes() -> None:
    """On CPUs torch 2.13 leaves some of them unset; memory full of NaN would show through."""
    for shape in ((2, 4, 2), (2, 2, 2), (1, 2, 1), (4, 6, 4)):
        torch.manual_seed(0)
        block = ConvBlock(16, 32, 2)
        features, towards = torch.randn(1, 16, *shape), torch.randn(1, 32, *shape)
        block(features).backward(towards)
        weights = [block[0].weight, block[3].weight]
        expected = [weight.grad.clone() for weight in weights]
        for _ in range(4):
            block.zero_grad(set_to_none=True)
            junk = [torch.full((32 * 32 * 27 * 4,), float("nan")) for _ in range(4)]
            del junk
            with torch.autocast("cpu", torch.bfloat16):
                found = block(features)
            found.backward(towards.to(found.dtype))
            for weight, gradient in zip(weights, expected, strict=True):
                assert (weight.grad - gradient).norm() < 0.2 * gradient.norm(), shape


@pytest.mark.parametrize("shape", [(1, 5, 1), (3, 3, 1), (2, 3, 2), (3, 3, 3)])
def test_gradients_through_the_decoder_under_bf16_are_those_of_float32(
    shape: tuple[int, int, int],
) -> None:
    """As above; here the gradient of the input of a transposed convolution can stay unset."""
    torch.manual_seed(0)
    network = RareUNet(NetworkConfig(depth=1, filters=16, routes=1))
    features = torch.randn(1, 32, *shape)
    skips = [torch.randn(1, 16, *(2 * size for size in shape))]
    gradients = []
    for mixed in (False, *4 * [True]):
        read = features.clone().requires_grad_()
        junk = [torch.full((features.numel(),), float("nan")) for _ in range(8)]
        del junk
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = network.decode(read, skips, 0)
        logits.float().square().sum().backward()
        assert read.grad is not None
        gradients.append(read.grad)
    for gradient in gradients[1:]:
        assert (gradient - gradients[0]).norm() < 0.2 * gradients[0].norm()


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 2, 2), (3, 5, 7), (8, 12, 12)])
@pytest.mark.parametrize("channels", [(1, 16), (2, 8), (64, 32)])
def test_convolutions_and_their_gradients_are_torchs(
    channels: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    torch.manual_seed(0)
    ours = Convolution(*channels, 3, padding=1)
    theirs = nn.Conv3d(*channels, 3, padding=1).double()
    theirs.load_state_dict(ours.state_dict())
    features, towards = torch.randn(1, channels[0], *shape), torch.randn(1, channels[1], *shape)
    found = []
    for convolution in (ours, theirs):
        dtype = convolution.weight.dtype
        read = features.detach().clone().to(dtype).requires_grad_()
        convolved = convolution(read)
        convolved.backward(towards.to(dtype))
        gradients = [tensor.grad for tensor in (read, convolution.weight, convolution.bias)]
        found.append([convolved.detach(), *gradients])
    for mine, reference in zip(*found, strict=True):
        assert (mine.double() - reference).abs().max() <= 3e-6 * reference.abs().max()


def test_a_bottleneck_of_one_voxel_is_accepted() -> None:
    """The paper's hippocampus configuration on a small crop at 8 mm."""
    network = RareUNet(NetworkConfig(depth=5, filters=4, gate_blocks=4))
    logits = network(torch.randn(1, 1, 4, 4, 4), 3)
    assert logits.shape == (1, 3, 4, 4, 4)
    logits.sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
