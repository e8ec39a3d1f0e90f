"""Targets: which graph is written for which hardware, and which operators it may hold.

TargetError   the graph holds what the target does not take
"""

from damoserve_compress.targets.interface import TargetSteps
from damoserve_compress.targets.npu import FLOAT_NPU, INTEGER_NPU
from damoserve_compress.targets.operators import AllowList, TargetError, check_operators
from damoserve_compress.targets.table import TARGETS

__all__ = ["FLOAT_NPU", "INTEGER_NPU", "TARGETS", "AllowList", "TargetError", "TargetSteps", "check_operators"]
