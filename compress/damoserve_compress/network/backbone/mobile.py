"""The mobile family: Ns, Nm and Nl."""

from __future__ import annotations

from functools import partial

from damoserve_compress.network.backbone.stages import Backbone, build_stages
from damoserve_compress.network.blocks import ConvKXBNAct, InvertedResidual
from damoserve_compress.network.structures import Structure


def tinynas_mobile(structure: Structure) -> Backbone:
    """A stride-2 convolution and stages of inverted residuals."""
    kernel, act = structure.bottleneck_kernel, structure.activation
    stem = ConvKXBNAct(3, structure.stem_channels, 3, stride=2, act=act)
    block = partial(InvertedResidual, kernel=kernel, act=act, placeholder=True)
    return Backbone("block_list", (stem, *build_stages(structure, block)), structure.taps)
