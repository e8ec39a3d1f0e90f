"""What the page shows, as HTML; everything that came from the server or the user is escaped."""

import base64
import dataclasses
import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from PIL import Image

from damoserve_client.draw import colour_of
from damoserve_client.errors import DamoserveError
from damoserve_client.images import to_rgb, upright
from damoserve_client.labels import place
from damoserve_client.playground.comparison import UNMOVED_IOU, Kind, Mark
from damoserve_client.tables import milliseconds
from damoserve_client.types import Box, Detection, DetectionResult, ProfileInfo, Timings

# The longer side of a picture on the page, in pixels: twice the width of a card, for dense screens.
SHOWN_PIXELS = 1100
# Of copper and olive, which no class has; told apart in both colour schemes and in grey.
PROFILE_COLOURS = ("#a35c22", "#e3b27c", "#77752a", "#c9c583", "#c8873f", "#a19d4e")
# Grey, as the stages in the style sheet are.
TIME_COLOUR = "#838b91"
# The height of a score, in sizes of its font.
LINE = 1.2
# One after the other, as a request meets them.
STAGES = ("decode_wait", "decode", "queue", "batch_wait", "inference", "postprocess", "respond")
# Before the score of a box, where the words would hide the picture.
SIGNS: Mapping[Kind, str] = {"missing": "−", "extra": "+", "moved": "~"}
DIFFERENCES: Mapping[Kind, str] = {
    "missing": "only the reference has it",
    "extra": "only this profile has it",
    "moved": f"overlaps the reference's, dotted, by less than {UNMOVED_IOU}",
}


class Palette:
    """The colours of the profiles of a page; each keeps its own, whatever becomes of the others."""

    def __init__(self) -> None:
        self._colours: dict[str, str] = {}

    def of(self, profile: str) -> str:
        return self._colours.setdefault(profile, PROFILE_COLOURS[len(self._colours) % len(PROFILE_COLOURS)])

    def swatch(self, profile: str) -> str:
        """A round one: those of the classes are square."""
        return f'<span class="swatch round" style="background:{self.of(profile)}"></span>'


@dataclass(frozen=True)
class Choice:
    """A question to the router, and what came of it: a result or an error."""

    # Seconds; None: as long as it takes.
    budget: float | None
    result: DetectionResult | None = None
    error: DamoserveError | None = None


def shown_picture(content: bytes) -> str:
    """A data URL of the picture as a viewer displays it, made small. Raises OSError if Pillow cannot read it."""
    with Image.open(io.BytesIO(content)) as source:
        picture = to_rgb(upright(source))
    picture.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    encoded = io.BytesIO()
    picture.save(encoded, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"


def overlay(marks: Sequence[Mark], size: tuple[int, int]) -> str:
    """The boxes of one profile, to lie over the picture, the best on top, each with its score where there is room."""
    width, height = size
    font = max(size) / 38
    boxes = "".join(_box(mark) for mark in reversed(marks))
    sizes = [(0.62 * font * len(_words(mark)), LINE * font) for mark in marks]
    places = place([mark.detection.box for mark in marks], sizes, size)
    tags = "".join(_tag(mark, where, font) for mark, where in zip(marks, places, strict=True) if where)
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


def _tag(mark: Mark, where: Box, font: float) -> str:
    colour = colour_of(mark.detection.label_id)
    x, y = where.x_min + 0.2 * font, where.y_max - 0.25 * font
    return f'<text x="{x:.1f}" y="{y:.1f}" stroke="{colour}">{_words(mark)}</text>'


def _words(mark: Mark) -> str:
    sign = f"{SIGNS[mark.kind]} " if mark.kind in SIGNS else ""
    return f"{sign}{mark.detection.score:.2f}"


def _remark(mark: Mark) -> str:
    if mark.kind == "same" and mark.partner:
        return f" (reference {mark.partner.score:.2f})"
    return f", {mark.kind}" if mark.kind in DIFFERENCES else ""


def findings(marks: Sequence[Mark]) -> str:
    """Returns the counts by label: `15 RBC, 1 WBC`."""
    found = Counter(mark.detection.label for mark in marks if mark.kind != "missing")
    return ", ".join(f"{count} {label}" for label, count in found.most_common()) or "nothing found"


def differences(marks: Sequence[Mark], reference: str) -> str:
    """Counts the boxes that are not as the reference has them."""
    kinds = Counter(mark.kind for mark in marks)
    chips = "".join(
        f'<span class="chip">{SIGNS[kind]} {kinds[kind]} {kind}</span>' for kind in DIFFERENCES if kinds[kind]
    )
    return chips or f'<span class="chip">the same boxes as {escape(reference)}</span>'


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
    """Draws where the time went: a bar on the scale of the longest, in seconds, and the figures."""
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


def candidates(infos: Sequence[ProfileInfo], choice: Choice, palette: Palette) -> str:
    """The rows of a table: every profile, what its network promises, and what the router makes of it."""
    rows = "".join(_candidate(info, choice, palette) for info in infos)
    return (
        '<thead><tr><th scope="col">profile</th><th scope="col">AP</th><th scope="col">network</th>'
        f'<th scope="col">router</th></tr></thead><tbody>{rows}</tbody>'
    )


def _candidate(info: ProfileInfo, choice: Choice, palette: Palette) -> str:
    answers = choice.result is not None and info.profile == choice.result.profile
    too_slow = choice.budget is not None and info.expected_latency > choice.budget
    kind, verdict = ("served", "✓ answers") if answers else ("slow", "too slow") if too_slow else ("", "")
    return (
        f'<tr class="{kind}"><th scope="row">{palette.swatch(info.profile)}{escape(info.profile)}</th>'
        f"<td>{100 * info.average_precision:.1f}</td>"
        f"<td>{milliseconds(info.expected_latency)} ms</td><td>{verdict}</td></tr>"
    )


def ticks(infos: Sequence[ProfileInfo], position: Callable[[float], float], palette: Palette) -> str:
    """Draws where the times of the networks lie on a slider; `position` says it of seconds, 0 to 1."""
    return "".join(
        f'<i style="--at:{position(info.expected_latency):.3f};background:{palette.of(info.profile)}"></i>'
        for info in infos
    )


def verdict(choice: Choice) -> str:
    """Says who answered and when, or that nobody did."""
    if choice.result is None:
        return "<strong>No answer</strong>"
    took = milliseconds(choice.result.timings.total)
    return f"<strong>{escape(choice.result.profile)}</strong> answered in {took} ms"


def why(choice: Choice, infos: Sequence[ProfileInfo]) -> str:
    """The router's choice in a sentence or two, which say of the profile that answered what the server said of it."""
    if choice.error is not None:
        return escape(f"{_refusal(choice.error)} {choice.error.advice}")
    if choice.result is None:
        return ""
    served = next((info for info in infos if info.profile == choice.result.profile), None)
    accuracy = f" (AP {100 * served.average_precision:.1f})" if served else ""
    within = "" if choice.budget is None else f" and within {1e3 * choice.budget:g} ms"
    match choice.result.selection_reason:
        case "most_accurate_in_time":
            sentence = f"The most accurate profile{accuracy} that was expected in time for the tier{within}."
            return escape(f"{sentence} {_comparison(served, infos)}".strip())
        case "quickest":
            return escape(f"None was expected to meet the objective of the tier, so the quickest{accuracy} serves.")
        case reason:
            return escape(f"{reason.replace('_', ' ').capitalize()}.")


def _refusal(error: DamoserveError) -> str:
    """Says what was compared with the budget: it is the whole answer, not the network alone."""
    if error.reason == "DEADLINE_UNREACHABLE" and {"expected_ms", "budget_ms"} <= error.metadata.keys():
        expected, budget = error.metadata["expected_ms"], error.metadata["budget_ms"]
        return f"The soonest answer, decoding and waiting included, was expected in {expected} ms, not in {budget} ms."
    return f"{error.message[:1].upper()}{error.message[1:]}."


def _comparison(served: ProfileInfo | None, infos: Sequence[ProfileInfo]) -> str:
    """Says what the profile that answered is beside the others."""
    if served is None:
        return ""
    better = [info.profile for info in infos if info.average_precision > served.average_precision]
    if better:
        return f"More accurate, but not expected in time: {', '.join(better)}."
    if len(infos) > 1 and served.expected_latency <= min(info.expected_latency for info in infos):
        return "It is the quickest here as well, so a shorter budget alone does not change the choice."
    return ""
