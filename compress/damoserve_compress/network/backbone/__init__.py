"""TinyNAS backbones: searched stages that turn an image into features at strides 8, 16 and 32, one file a family."""

from damoserve_compress.network.backbone.families import build_backbone
from damoserve_compress.network.backbone.stages import Backbone, Focus

__all__ = ["Backbone", "Focus", "build_backbone"]
