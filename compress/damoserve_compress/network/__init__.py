"""DAMO-YOLO in PyTorch: build a variant, train it, fuse it for deployment.

The architecture follows "DAMO-YOLO: A Report on Real-Time Object Detection Design" (arXiv 2211.15444).
"""

from damoserve_compress.network.head import RawPredictions
from damoserve_compress.network.network import Network, build_network
from damoserve_compress.network.reparameterise import fuse
from damoserve_compress.network.structures import VARIANTS, Structure, StructureError

__all__ = ["VARIANTS", "Network", "RawPredictions", "Structure", "StructureError", "build_network", "fuse"]
