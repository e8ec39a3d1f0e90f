"""Parameters and operations of a network."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from damoserve_compress.network import Network, fuse
from damoserve_profiles.imaging import Size


def complexity(network: Network, size: Size) -> tuple[int, int]:
    """Parameters and multiply-accumulate operations of the deploy form, for one image."""
    deployed = fuse(network).to("cpu")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        deployed(torch.zeros(1, 3, size.height, size.width))
    return sum(parameter.numel() for parameter in deployed.parameters()), counter.get_total_flops() // 2
