"""The table of structures: the DAMO-YOLO family as last released (v0.3), and P.

T and S are residual, M and L cross-stage partial, Ns, Nm and Nl mobile. P is not a published one: T at half its width,
for processors without an accelerator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from types import MappingProxyType
from typing import Final

from damoserve_compress.network.structures.structure import NeckStructure, StageStructure, Structure


def _stages(stem: int, *rows: tuple[int, int, int, int]) -> tuple[StageStructure, ...]:
    """Rows (width, bottleneck, stride, depth), each stage taking what the one before gives."""
    widths = pairwise((stem, *(row[0] for row in rows)))
    return tuple(
        StageStructure(taken, given, bottleneck=bottleneck, depth=depth, stride=stride)
        for (taken, given), (_, bottleneck, stride, depth) in zip(widths, rows, strict=True)
    )


T: Final = Structure(
    name="T",
    stem_channels=24,
    stages=_stages(24, (64, 24, 2, 2), (96, 64, 2, 2), (192, 96, 2, 2), (192, 152, 1, 2), (384, 192, 2, 1)),
    neck=NeckStructure((64, 128, 256)),
)

S: Final = Structure(
    name="S",
    stem_channels=32,
    stages=_stages(32, (128, 24, 2, 1), (128, 88, 2, 5), (256, 128, 2, 3), (256, 120, 1, 2), (512, 144, 2, 1)),
    neck=NeckStructure((128, 256, 512), hidden_ratio=0.75),
)

M: Final = Structure(
    name="M",
    family="csp",
    activation="silu",
    stem_channels=32,
    stages=_stages(32, (128, 64, 2, 2), (128, 64, 2, 4), (256, 256, 2, 4), (256, 256, 1, 4), (512, 256, 2, 3)),
    bottleneck_kernel=3,
    neck=NeckStructure((128, 256, 512), blocks=4),
)

L: Final = replace(
    M,
    name="L",
    stages=_stages(32, (128, 96, 2, 3), (128, 96, 2, 5), (256, 384, 2, 5), (256, 384, 1, 5), (512, 384, 2, 4)),
    neck=NeckStructure((128, 256, 512), blocks=6),
)

NS: Final = Structure(
    name="Ns",
    family="mobile",
    activation="silu",
    stem_channels=16,
    stages=_stages(16, (24, 88, 2, 1), (40, 160, 2, 2), (64, 288, 2, 2), (80, 400, 1, 2), (160, 880, 2, 2)),
    bottleneck_kernel=5,
    neck=NeckStructure((40, 80, 160), blocks=2, hidden_ratio=3.0),
    head_kernel=1,
    reg_max=7,
    input_size=416,
    score_threshold=0.03,
    nms_iou=0.65,
)

NM: Final = replace(
    NS,
    name="Nm",
    stages=_stages(16, (40, 144, 2, 2), (64, 256, 2, 2), (112, 504, 2, 2), (128, 640, 1, 2), (256, 1408, 2, 1)),
    neck=NeckStructure((64, 128, 256), blocks=2, hidden_ratio=3.0),
)

NL: Final = replace(
    NS,
    name="Nl",
    stem_channels=24,
    stages=_stages(24, (48, 168, 2, 1), (80, 320, 2, 2), (160, 720, 2, 2), (160, 800, 1, 3), (320, 1760, 2, 2)),
    neck=NeckStructure((80, 160, 320), blocks=2, hidden_ratio=3.0),
)

P: Final = Structure(
    name="P",
    stem_channels=16,
    stages=_stages(16, (32, 16, 2, 2), (48, 32, 2, 2), (96, 48, 2, 2), (96, 80, 1, 2), (192, 96, 2, 1)),
    neck=NeckStructure((32, 64, 128)),
    input_size=416,
)

VARIANTS: Final[Mapping[str, Structure]] = MappingProxyType(
    {structure.name: structure for structure in (T, S, M, L, NS, NM, NL, P)}
)
