"""The table of the article that the project answers: computed from one row, not measured.

Its figures of DAMO-YOLO-M are the float row's times 0.8 (pruned), divided by 4 (int8), or both; 8 bits in fact change
neither the number of parameters nor that of operations, but the bytes of each. The float row is that of the model zoo
but for 28.6 million parameters (the zoo: 28.2) and 5.09 ms, which is a T4's time in Ultralytics' comparison.
"""

from dataclasses import dataclass
from typing import Final

VARIANT: Final = "M"
AP: Final = 49.2
"""The average precision of the float row on COCO val2017, times 100."""


@dataclass(frozen=True)
class PublishedRow:
    """A row of the article's table."""

    profile: str
    parameters: float
    """Millions."""
    operations: float
    """Thousand millions, as DAMO-YOLO counts FLOPs."""
    change: float
    """The change of the average precision, in points."""
    speed: float | None
    """The speed-up over the float row, where the article has it."""


PUBLISHED: Final = (
    PublishedRow("fp32", 28.6, 61.8, 0.0, 1.0),
    PublishedRow("int8", 7.2, 15.5, -0.4, None),
    PublishedRow("pruned", 22.9, 49.4, -0.3, None),
    PublishedRow("int8+pruned", 5.7, 12.4, -1.1, 2.6),
)
