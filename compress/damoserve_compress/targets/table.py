"""The targets by their name in recipes."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from damoserve_compress.targets.cpu import Cpu
from damoserve_compress.targets.gpu import Gpu
from damoserve_compress.targets.interface import TargetSteps
from damoserve_compress.targets.npu import Npu
from damoserve_profiles.recipe import Target

TARGETS: Final[Mapping[Target, TargetSteps]] = MappingProxyType({"cpu": Cpu(), "gpu": Gpu(), "npu": Npu()})
