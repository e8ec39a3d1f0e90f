"""What the page shows, as HTML; everything that came from the server or the user is escaped."""

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from html import escape

from PIL import Image

from damoserve_client.draw import colour_of, to_rgb, upright
from damoserve_client.playground.comparison import UNMOVED_IOU, Kind, Mark, intersection_over_union
from damoserve_client.tables import milliseconds
from damoserve_client.types import Box, Detection, DetectionResult, ProfileInfo, Timings

# The longer side of a picture on the page, in pixels: twice the width of a card, for dense screens.
SHOWN_PIXELS = 1100
# Told apart in both colour schemes and in grey; a profile has the colour of its place in the server's list.
PROFILE_COLOURS = ("#3b82b8", "#d98326", "#3f9a68", "#9a63b5", "#c65561", "#7c8796", "#a58b1c", "#2f9aa0")
# One after the other, as a request meets them.
STAGES = ("decode_wait", "decode", "queue", "batch_wait", "inference", "postprocess", "respond")
# Before the score of a box, where the words would hide the picture.
SIGNS: Mapping[Kind, str] = {"missing": "−", "extra": "+", "moved": "~"}
DIFFERENCES: Mapping[Kind, str] = {
    "missing": "only the reference has it",
    "extra": "only this profile has it",
    "moved": f"overlaps the reference's, dotted, by less than {UNMOVED_IOU}",
}


def shown_picture(content: bytes) -> str:
    """A data URL of the picture as a viewer displays it, made small. Raises OSError if Pillow cannot read it."""
    with Image.open(io.BytesIO(content)) as source:
        picture = to_rgb(upright(source))
    picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def overlay(marks: Sequence[Mark], size: tuple[int, int]) -> str:
    """The boxes of one profile, to lie over the picture; the best on top."""
    width, height = size
    font = max(size) / 38
    boxes = "".join(_box(mark) for mark in reversed(marks))
    tags = "".join(_tag(mark, place) for mark, place in zip(marks, _places(marks, font, width), strict=True))
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(findings(marks))}" '
        f'style="font-size:{font:.1f}px">{boxes}{tags}</svg>'
    )


def _box(mark: Mark) -> str:
    detection = mark.detection
    title = f"<title>{escape(detection.label)} {detection.score:.2f}{_remark(mark)}</title>"
    partner = _rect(mark.partner.box, "was") if mark.kind == "moved" and mark.partner else ""
    halo = "" if mark.kind == "same" else _rect(detection.box, "halo")
    rect = _rect(detection.box, mark.kind, colour_of(detection.label_id))
    return f"<g>{title}{partner}{halo}{rect}</g>"


def _rect(box: Box, kind: str, colour: str = "") -> str:
    size = f'width="{box.x_max - box.x_min:.1f}" height="{box.y_max - box.y_min:.1f}"'
    stroke = f'stroke="{colour}"' if colour else ""
    return f'<rect class="{kind}" x="{box.x_min:.1f}" y="{box.y_min:.1f}" {size} {stroke}/>'


def _places(marks: Sequence[Mark], font: float, right: float) -> list[Box]:
    """Where the texts go: above the box, inside it, below it, or beside it, whichever is free first."""
    taken: list[Box] = []
    for mark in marks:
        box = mark.detection.box
        width = 0.62 * font * len(_words(mark))
        tops = (box.y_min - 1.1 * font, box.y_min + 0.1 * font, box.y_max + 0.1 * font, box.y_max - 1.1 * font)
        corners = [(left, top) for left in (box.x_min, box.x_max, box.x_min - width) for top in tops if top >= 0]
        inside = [(max(0.0, min(left, right - width)), top) for left, top in corners]
        places = [Box(left, top, left + width, top + font) for left, top in inside]
        free = (place for place in places if not any(intersection_over_union(place, other) for other in taken))
        taken.append(next(free, places[0]))
    return taken


def _tag(mark: Mark, place: Box) -> str:
    colour = colour_of(mark.detection.label_id)
    return f'<text x="{place.x_min + 2:.1f}" y="{place.y_max - 2:.1f}" stroke="{colour}">{_words(mark)}</text>'


def _words(mark: Mark) -> str:
    sign = f"{SIGNS[mark.kind]} " if mark.kind in SIGNS else ""
    return f"{sign}{mark.detection.score:.2f}"


def _remark(mark: Mark) -> str:
    if mark.kind == "same" and mark.partner:
        return f" (reference {mark.partner.score:.2f})"
    return f", {mark.kind}" if mark.kind in DIFFERENCES else ""


def findings(marks: Sequence[Mark]) -> str:
    """For example `15 RBC, 1 WBC`."""
    found = Counter(mark.detection.label for mark in marks if mark.kind != "missing")
    return ", ".join(f"{count} {label}" for label, count in found.most_common()) or "nothing found"


def differences(marks: Sequence[Mark], reference: str) -> str:
    """How many boxes are not as the reference has them."""
    kinds = Counter(mark.kind for mark in marks)
    chips = "".join(f'<span class="chip {kind}">{kinds[kind]} {kind}</span>' for kind in DIFFERENCES if kinds[kind])
    return chips or f'<span class="chip same">the same boxes as {escape(reference)}</span>'


def legend(labels: Sequence[str]) -> str:
    """The colours of the classes and the lines of the differences."""
    classes = "".join(
        f'<li><span class="swatch" style="background:{colour_of(index)}"></span>{escape(label)}</li>'
        for index, label in enumerate(labels)
    )
    marks = "".join(
        f'<li><span class="line {kind}"></span>{SIGNS[kind]} {kind}: {meaning}</li>'
        for kind, meaning in DIFFERENCES.items()
    )
    return classes + marks


def stages(timings: Timings, longest: float) -> str:
    """Where the time went: a bar on the scale of the longest, in seconds, and the figures."""
    parts = {name.replace("_", " "): getattr(timings, name) for name in STAGES}
    parts["respond"] += max(0.0, timings.total - sum(parts.values()))  # an older server does not tell all of them
    bar = "".join(
        f'<i class="stage-{index}" style="width:{100 * seconds / longest:.2f}%"></i>'
        for index, seconds in enumerate(parts.values())
    )
    figures = "".join(
        f'<div><dt><i class="stage-{index}"></i>{name}</dt><dd>{milliseconds(seconds)}</dd></div>'
        for index, (name, seconds) in enumerate(parts.items())
    )
    total = f'<div class="total"><dt>total, ms</dt><dd>{milliseconds(timings.total)}</dd></div>'
    return f'<div class="bar" aria-hidden="true">{bar}</div><dl class="stages">{figures}{total}</dl>'


def table_of_boxes(marks: Sequence[Mark]) -> str:
    """The rows of a table: every box in words and figures, corners in pixels."""
    rows = "".join(
        f"<tr><td>{escape(mark.detection.label)}</td><td>{mark.detection.score:.2f}</td><td>{_corners(mark)}</td>"
        f"<td>{mark.kind}{_score_of(mark.partner)}</td></tr>"
        for mark in marks
    )
    return (
        '<thead><tr><th scope="col">label</th><th scope="col">score</th><th scope="col">box</th>'
        f'<th scope="col">reference</th></tr></thead><tbody>{rows}</tbody>'
    )


def _score_of(partner: Detection | None) -> str:
    return f", {partner.score:.2f}" if partner else ""


def _corners(mark: Mark) -> str:
    return " ".join(f"{value:.0f}" for value in dataclasses.astuple(mark.detection.box))


def candidates(infos: Sequence[ProfileInfo], served: str | None, budget: float | None) -> str:
    """The rows of a table: every profile, what it promises, and whether it can be the one; seconds."""
    rows = "".join(_candidate(info, index, served, budget) for index, info in enumerate(infos))
    return (
        '<thead><tr><th scope="col">profile</th><th scope="col">AP</th><th scope="col">expected</th>'
        f'<th scope="col">router</th></tr></thead><tbody>{rows}</tbody>'
    )


def _candidate(info: ProfileInfo, index: int, served: str | None, budget: float | None) -> str:
    too_slow = budget is not None and info.expected_latency > budget
    kind = "served" if info.profile == served else "slow" if too_slow else ""
    verdict = {"served": "answers", "slow": "too slow", "": ""}[kind]
    return (
        f'<tr class="{kind}"><th scope="row"><span class="swatch" style="background:{profile_colour(index)}"></span>'
        f"{escape(info.profile)}</th><td>{100 * info.average_precision:.1f}</td>"
        f"<td>{milliseconds(info.expected_latency)} ms</td><td>{verdict}</td></tr>"
    )


def ticks(infos: Sequence[ProfileInfo], position: Callable[[float], float]) -> str:
    """Where the expected times of the profiles lie on a slider; `position` says it of seconds, 0 to 1."""
    return "".join(
        f'<i style="--at:{position(info.expected_latency):.3f};background:{profile_colour(index)}"></i>'
        for index, info in enumerate(infos)
    )


def profile_colour(index: int) -> str:
    return PROFILE_COLOURS[index % len(PROFILE_COLOURS)]


def why(result: DetectionResult, infos: Sequence[ProfileInfo], budget: float | None) -> str:
    """The router's choice in a sentence or two."""
    active = [info for info in infos if info.profile == result.profile]
    accuracy = f" (AP {100 * active[0].average_precision:.1f})" if active else ""
    within = "in time" if budget is None else f"within {1e3 * budget:g} ms"
    sentence = {
        "most_accurate_in_time": f"The most accurate profile{accuracy} that is expected to answer {within}.",
        "quickest": "No profile is expected to meet the tier's objective, so the quickest one answers.",
    }.get(result.selection_reason, result.selection_reason.replace("_", " ").capitalize() + ".")
    quickest = min(infos, key=lambda info: info.expected_latency, default=None)
    if quickest and infos and quickest.average_precision >= max(info.average_precision for info in infos):
        sentence += (
            f" {quickest.profile} is both the most accurate and the quickest here, so every budget that can be met"
            " gets it."
        )
    return escape(sentence)
