"""The card of one profile: its picture with boxes, its differences from the reference, and its times."""

from dataclasses import dataclass
from html import escape

from nicegui import ui

from damoserve_client import tables
from damoserve_client.playground import figures
from damoserve_client.playground.comparison import compare
from damoserve_client.playground.controls import markup, text
from damoserve_client.types import DetectionResult, ProfileInfo


@dataclass(frozen=True)
class Measured:
    """The answer of one profile, and what its card compares it with."""

    result: DetectionResult
    reference: DetectionResult
    # The longest total of all profiles, in seconds.
    longest: float


class Card:
    """Made inside the element that holds it."""

    def __init__(self, info: ProfileInfo, palette: figures.Palette) -> None:
        with ui.element("article").classes("card") as self._element:
            self._element.props["data-profile"] = info.profile
            with ui.element("header"):
                markup("h3", f"{palette.swatch(info.profile)}{escape(info.profile)}")
                text("p", f"AP {100 * info.average_precision:.1f} · {tables.megabytes(info)} MB", "quiet")
                self._ratio = markup("p", classes="ratio")
            with ui.element("div").classes("picture"):
                self._picture = ui.element("img").props('alt=""')
                self._overlay = markup("div", classes="overlay")
            self._found = text("p", classes="found")
            self._differences = markup("p", classes="chips")
            self._stages = markup("div")
            with ui.element("details"):
                text("summary", "All boxes")
                with ui.element("div").classes("scroll") as scroll:
                    scroll.props.update({"tabindex": 0, "role": "region", "aria-label": f"Boxes of {info.profile}"})
                    self._boxes = markup("table")

    def show_picture(self, url: str) -> None:
        self._picture.props["src"] = url

    def show(self, measured: Measured) -> None:
        result, reference = measured.result, measured.reference
        marks = compare(result.detections, reference.detections)
        self._overlay.set_content(figures.overlay(marks, result.image_size))
        self._found.set_content(escape(tables.counts(result)))
        self._boxes.set_content(figures.table_of_boxes(marks))
        self._stages.set_content(figures.stages(result.timings, measured.longest))
        if result is reference:
            self._ratio.set_content("<span>the reference</span>")
            self._differences.set_content('<span class="chip">the others are compared with it</span>')
            return
        ratio = reference.timings.inference / max(result.timings.inference, 1e-9)
        self._ratio.set_content(f"<strong>{ratio:.1f}×</strong> <span>as fast as {escape(reference.profile)}</span>")
        self._differences.set_content(figures.differences(marks, reference.profile))
