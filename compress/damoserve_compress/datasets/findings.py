"""Findings: the faults that a check of a data set reports."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, StrEnum

from pydantic import ValidationError

from damoserve_profiles.faults import describe_faults


class Severity(StrEnum):
    """Errors stop a training before its first step; warnings are only told."""

    ERROR = "error"
    WARNING = "warning"


class FaultKind(Enum):
    """Every fault that is looked for, in the order of reports. A member is its severity and its title."""

    ANNOTATIONS = Severity.ERROR, "annotation file that cannot be read"
    MALFORMED = Severity.ERROR, "malformed record"
    DUPLICATE_CATEGORY = Severity.ERROR, "category listed twice"
    LABELS_DIFFER = Severity.ERROR, "categories differ between training and validation"
    NO_PICTURES = Severity.ERROR, "no pictures"
    NO_BOXES = Severity.ERROR, "no boxes"
    DUPLICATE_PICTURE = Severity.ERROR, "picture listed twice"
    MISSING_PICTURE = Severity.ERROR, "missing picture"
    UNREADABLE_PICTURE = Severity.ERROR, "unreadable picture"
    WRONG_SIZE = Severity.ERROR, "picture of another size than annotated"
    UNKNOWN_PICTURE = Severity.ERROR, "annotation of an unknown picture"
    UNKNOWN_CATEGORY = Severity.ERROR, "annotation of an unknown category"
    NOT_FINITE = Severity.ERROR, "box that is not finite"
    OUTSIDE = Severity.ERROR, "box wholly outside its picture"
    CLIPPED = Severity.WARNING, "box partly outside its picture (will be clipped)"
    EMPTY = Severity.WARNING, "box without width or height (will be dropped)"
    REPEATED_BOX = Severity.WARNING, "box given twice"
    TINY = Severity.WARNING, "box narrower or lower than 1/200 of its picture"
    UNBOXED = Severity.WARNING, "picture without boxes"
    UNUSED_LABEL = Severity.WARNING, "class without boxes"
    LEAK = Severity.WARNING, "validation picture that is also a training picture"
    REPEATED_PICTURE = Severity.WARNING, "same picture under two names"
    CATEGORY_ORDER = Severity.WARNING, "category ids that are not the label indices"

    def __init__(self, severity: Severity, title: str) -> None:
        self.severity = severity
        self.title = title


@dataclass(frozen=True)
class Finding:
    """A fault. ``file`` is the picture or the annotation file; ``annotation`` is the id or position of a box."""

    kind: FaultKind
    file: str
    message: str = ""
    annotation: int | str | None = None

    def __str__(self) -> str:
        place = self.file if self.annotation is None else f"{self.file}, annotation {self.annotation}"
        return f"{place}: {self.message}" if self.message else place


def errors_in(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The findings that stop a training."""
    return tuple(finding for finding in findings if finding.kind.severity is Severity.ERROR)


def malformed(file: str, record: str, error: ValidationError) -> Finding:
    """The finding for a record that pydantic refused: not finite, if that is all, or else malformed."""
    infinite = all(fault["type"] == "finite_number" for fault in error.errors())
    kind = FaultKind.NOT_FINITE if infinite else FaultKind.MALFORMED
    return Finding(kind, file, f"{record}: {describe_faults(error)}")
