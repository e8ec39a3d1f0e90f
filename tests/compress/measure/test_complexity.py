"""Parameters and operations of networks."""

import torch
from torch import nn

from damoserve_compress.measure.complexity import complexity
from damoserve_compress.network import build_network, fuse
from damoserve_profiles.imaging import Size


def test_operations_are_counted_as_on_paper() -> None:
    """Every weight of a convolution multiplies once for every pixel that it gives."""
    counted: list[int] = []

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        counted.append(module.weight.numel() * output.shape[2] * output.shape[3])

    network = build_network("P", 3)
    deployed = fuse(network)
    for module in deployed.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    with torch.no_grad():
        deployed(torch.zeros(1, 3, 64, 96))
    assert complexity(network, Size(96, 64))[1] == sum(counted)
    # The stem alone: 16 channels of 3x3 over the 12 of Focus, on a map of half the size.
    assert counted[0] == 16 * 12 * 9 * 32 * 48
