"""Which graph is written for which hardware, and which operators it may hold.

TargetError   the graph holds what the target does not take
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from damoserve_compress.targets.cpu import Cpu
from damoserve_compress.targets.gpu import Gpu
from damoserve_compress.targets.interface import TargetSteps
from damoserve_compress.targets.npu import FLOAT_NPU, INTEGER_NPU, Npu
from damoserve_compress.targets.operators import AllowList, TargetError, check_operators
from damoserve_profiles.recipe import Target

__all__ = ["FLOAT_NPU", "INTEGER_NPU", "TARGETS", "AllowList", "TargetError", "TargetSteps", "check_operators"]

TARGETS: Final[Mapping[Target, TargetSteps]] = MappingProxyType({"cpu": Cpu(), "gpu": Gpu(), "npu": Npu()})
