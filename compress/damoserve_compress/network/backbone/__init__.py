"""TinyNAS backbones: searched stages that turn an image into features at strides 8, 16 and 32, one file a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from damoserve_compress.network.backbone.csp import tinynas_csp
from damoserve_compress.network.backbone.mobile import tinynas_mobile
from damoserve_compress.network.backbone.res import tinynas_res
from damoserve_compress.network.backbone.stages import Backbone, Focus
from damoserve_compress.network.structures import Structure

__all__ = ["Backbone", "Focus", "build_backbone"]

_FAMILIES: Final[Mapping[str, Callable[[Structure], Backbone]]] = MappingProxyType(
    {"res": tinynas_res, "csp": tinynas_csp, "mobile": tinynas_mobile}
)


def build_backbone(structure: Structure) -> Backbone:
    """The backbone of the structure's family."""
    return _FAMILIES[structure.family](structure)
