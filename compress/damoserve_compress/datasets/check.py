"""Looks for everything that is wrong with a data set, annotations and pictures, before anything is trained on it.

The rules are those of the readers: what passes without an error can be read to its end.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.pool import ThreadPool

import numpy as np
from numpy.typing import NDArray

from damoserve_compress.datasets.errors import MissingPicture, PictureError, UnreadablePicture, WrongSize
from damoserve_compress.datasets.findings import FaultKind, Finding, errors_in
from damoserve_compress.datasets.pictures import Picture, Placement, Scan

Progress = Callable[[int, int], object]
"""Called with the numbers of pictures done and to do."""

_EXAMPLES = 10
_TINY = 1 / 200  # of the picture's side: 2 pixels at a training size of 416
_FAULTS = {Placement.CLIPPED: FaultKind.CLIPPED, Placement.OUTSIDE: FaultKind.OUTSIDE, Placement.EMPTY: FaultKind.EMPTY}
_PICTURE_ERRORS: dict[type[PictureError], FaultKind] = {
    MissingPicture: FaultKind.MISSING_PICTURE,
    UnreadablePicture: FaultKind.UNREADABLE_PICTURE,
    WrongSize: FaultKind.WRONG_SIZE,
}


@dataclass(frozen=True)
class SetSummary:
    """The summary of a set: ``boxes`` counts those that a reader keeps, by label."""

    source: str
    pictures: int
    boxes: dict[str, int]
    crowds: int

    def __str__(self) -> str:
        balance = ", ".join(f"{label} {count}" for label, count in self.boxes.items())
        crowds = f", crowd regions left out: {self.crowds}" if self.crowds else ""
        return f"{self.source}: {self.pictures} pictures, {sum(self.boxes.values())} boxes ({balance}){crowds}"


@dataclass(frozen=True)
class CheckReport:
    """Every fault found. As text: the sets, then each kind of fault with its count and its first examples."""

    sets: tuple[SetSummary, ...]
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return errors_in(self.findings)

    def by_kind(self) -> dict[FaultKind, list[Finding]]:
        """The kinds that were found, errors first."""
        groups = {kind: [finding for finding in self.findings if finding.kind is kind] for kind in FaultKind}
        return {kind: group for kind, group in groups.items() if group}

    def as_dict(self) -> dict[str, object]:
        """Everything, for JSON."""
        findings = [
            {
                "severity": finding.kind.severity.value,
                "kind": finding.kind.name.lower(),
                "file": finding.file,
                "annotation": finding.annotation,
                "message": finding.message,
            }
            for finding in self.findings
        ]
        return {"sets": [asdict(summary) for summary in self.sets], "findings": findings}

    def __str__(self) -> str:
        lines = [str(summary) for summary in self.sets]
        for kind, group in self.by_kind().items():
            lines.append(f"{kind.severity}: {kind.title}: {len(group)}")
            lines += [f"  {finding}" for finding in group[:_EXAMPLES]]
            if len(group) > _EXAMPLES:
                lines.append(f"  ... and {len(group) - _EXAMPLES} more; `damoserve-compress check --json` lists all")
        errors = len(self.errors)
        return "\n".join([*lines, f"errors: {errors}, warnings: {len(self.findings) - errors}"])


def check(train: Scan, val: Scan, progress: Progress = lambda done, total: None) -> CheckReport:
    """Checks two scans and decodes every picture of theirs, in threads. Nothing that is wrong with them is raised."""
    (train_set, of_train), (val_set, of_val) = _inspect(train), _inspect(val)
    across = [*_differing_labels(train, val), *_pictures(train, val, progress)]
    return CheckReport((train_set, val_set), (*of_train, *of_val, *across))


def _inspect(scan: Scan) -> tuple[SetSummary, list[Finding]]:
    """Summarises the annotations of a set, and finds what is wrong with them."""
    findings = list(scan.findings)
    counts: Counter[int] = Counter()
    unboxed = []
    for picture in scan.pictures:
        boxes, placements = picture.clipped_boxes()
        kept = picture.labels[placements <= Placement.CLIPPED].tolist()
        counts.update(kept)
        findings += _boxes(picture, boxes, placements)
        if not kept:
            unboxed.append(Finding(FaultKind.UNBOXED, str(picture.path)))
    by_label = {label: counts[rank] for rank, label in enumerate(scan.labels)}
    summary = SetSummary(str(scan.source), len(scan.pictures), by_label, scan.crowds)
    return summary, findings + _gaps(scan, by_label, unboxed)


def _boxes(picture: Picture, boxes: NDArray[np.float32], placements: NDArray[np.int64]) -> Iterator[Finding]:
    sides = (boxes[:, 2:] - boxes[:, :2]) / (picture.size.width, picture.size.height)
    tiny = (placements <= Placement.CLIPPED) & (sides < _TINY).any(1)
    seen: set[tuple[float, ...]] = set()
    for index, (label, corners) in enumerate(zip(picture.labels.tolist(), picture.corners.tolist(), strict=True)):
        kinds = [_FAULTS[placement]] if (placement := Placement(placements[index])) in _FAULTS else []
        kinds += [FaultKind.TINY] if tiny[index] else []
        kinds += [FaultKind.REPEATED_BOX] if (label, *corners) in seen else []
        seen.add((label, *corners))
        for kind in kinds:
            place = ", ".join(f"{corner:g}" for corner in corners)
            message = f"({place}) in {picture.size.width}x{picture.size.height}"
            yield Finding(kind, str(picture.path), message, picture.annotations[index])


def _gaps(scan: Scan, boxes: dict[str, int], unboxed: list[Finding]) -> list[Finding]:
    """Finds what a set lacks; nothing where its annotations could not be read at all."""
    source = str(scan.source)
    if not scan.pictures:
        unread = any(finding.kind is FaultKind.ANNOTATIONS for finding in scan.findings)
        return [] if unread else [Finding(FaultKind.NO_PICTURES, source)]
    if not any(boxes.values()):
        return [Finding(FaultKind.NO_BOXES, source)]
    unused = [Finding(FaultKind.UNUSED_LABEL, source, label) for label, count in boxes.items() if not count]
    return unboxed + unused


def _differing_labels(train: Scan, val: Scan) -> Iterator[Finding]:
    if not train.labels or not val.labels or train.labels == val.labels:
        return
    if set(train.labels) == set(val.labels):
        message = "the same names, but their ids put them into another order"
    else:
        only = [", ".join(sorted(set(a.labels) - set(b.labels))) or "none" for a, b in ((train, val), (val, train))]
        message = f"only in {train.source}: {only[0]}; only here: {only[1]}"
    yield Finding(FaultKind.LABELS_DIFFER, str(val.source), message)


def _pictures(train: Scan, val: Scan, progress: Progress) -> Iterator[Finding]:
    jobs = [(scan, picture) for scan in (train, val) for picture in scan.pictures]
    seen: dict[str, tuple[Scan, Picture]] = {}
    with ThreadPool() as pool:
        results = pool.imap(_digest, [picture for _, picture in jobs])
        for done, ((scan, picture), result) in enumerate(zip(jobs, results, strict=True), 1):
            progress(done, len(jobs))
            if isinstance(result, PictureError):
                yield Finding(_PICTURE_ERRORS[type(result)], str(picture.path), result.reason)
                continue
            first_scan, first = seen.setdefault(result, (scan, picture))
            if first_scan is not scan:
                yield Finding(FaultKind.LEAK, str(picture.path), f"the same pixels as {first.path}")
            elif first.path != picture.path:
                yield Finding(FaultKind.REPEATED_PICTURE, str(picture.path), f"the same pixels as {first.path}")


def _digest(picture: Picture) -> str | PictureError:
    """SHA-256 of the pixels, or why there are none."""
    try:
        image = picture.read_image()
    except PictureError as error:
        return error
    return hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
