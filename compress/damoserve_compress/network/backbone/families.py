"""The families of backbones, and the one that a structure asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from damoserve_compress.network.backbone.csp import tinynas_csp
from damoserve_compress.network.backbone.mobile import tinynas_mobile
from damoserve_compress.network.backbone.res import tinynas_res
from damoserve_compress.network.backbone.stages import Backbone
from damoserve_compress.network.structures import Structure

_FAMILIES: Final[Mapping[str, Callable[[Structure], Backbone]]] = MappingProxyType(
    {"res": tinynas_res, "csp": tinynas_csp, "mobile": tinynas_mobile}
)


def build_backbone(structure: Structure) -> Backbone:
    """The backbone of the structure's family."""
    return _FAMILIES[structure.family](structure)
