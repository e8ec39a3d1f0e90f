"""Native controls with their labels, which browsers make usable by keyboard and screen reader."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from nicegui import ui
from nicegui.element import Element
from nicegui.events import GenericEventArguments


@dataclass(frozen=True)
class Scale:
    """The positions of a slider, and what a position is called."""

    low: float
    high: float
    step: float
    start: float
    name: Callable[[float], str]


def text(tag: str, content: str = "", classes: str = "") -> ui.html:
    """An element that holds nothing but text."""
    return ui.html(escape(content), sanitize=False, tag=tag).classes(classes)


def markup(tag: str, content: str = "", classes: str = "") -> ui.html:
    """An element with HTML of ours, in which all that came from elsewhere is escaped."""
    return ui.html(content, sanitize=False, tag=tag).classes(classes)


def button(label: str, on_click: Callable[[], Awaitable[None] | None], classes: str = "") -> ui.html:
    element = text("button", label, f"button {classes}")
    element.props("type=button")
    return element.on("click", lambda _: on_click(), args=[])


def slider(label: str, scale: Scale, on_input: Callable[[float], Awaitable[None]]) -> Element:
    """Calls `on_input` while it is moved, but not more often than the page can follow."""
    with ui.element("div").classes("control"):
        heading = text("label", label)
        output = text("output", scale.name(scale.start)).props("aria-live=off")  # the slider itself says it
        control = ui.element("input").props(f"type=range min={scale.low} max={scale.high} step={scale.step}")
    heading.props["for"] = control.html_id
    # As an attribute, which is only where it starts: as a property, every update of the page would put it back.
    control.props["^value"] = str(scale.start)
    control.props["aria-valuetext"] = scale.name(scale.start)

    async def moved(event: GenericEventArguments) -> None:
        name = scale.name(event.args)
        output.set_content(escape(name))
        control.props["aria-valuetext"] = name
        await on_input(event.args)

    return control.on("input", moved, throttle=0.1, js_handler="(event) => emit(Number(event.target.value))")


def choice(legend: str, names: Mapping[str, str], on_change: Callable[[str], Awaitable[None]]) -> None:
    """One of several; the first is chosen at the start."""

    async def chosen(event: GenericEventArguments) -> None:
        await on_change(event.args)

    with ui.element("fieldset").classes("choice"):
        text("legend", legend)
        for index, (value, name) in enumerate(names.items()):
            with ui.element("label"):
                radio = ui.element("input").props("type=radio")
                radio.props.update({"name": legend, "^value": value, **({"^checked": ""} if index == 0 else {})})
                radio.on("change", chosen, js_handler="(event) => emit(event.target.value)")
                text("span", name)


def selection(label: str, names: list[str], on_change: Callable[[str], Awaitable[None]]) -> None:
    """One of many; the first is chosen at the start."""

    async def chosen(event: GenericEventArguments) -> None:
        await on_change(event.args)

    with ui.element("div").classes("control"):
        heading = text("label", label)
        options = "".join(f"<option>{escape(name)}</option>" for name in names)
        control = markup("select", options)
        control.on("change", chosen, js_handler="(event) => emit(event.target.value)")
    heading.props["for"] = control.html_id


def picker(label: str, accept: str, upload: ui.upload) -> None:
    """A field that takes a file by click, by keyboard, and by dropping it anywhere on the page."""
    hand_over = f"getElement({upload.id}).$refs.qRef.addFiles"
    with ui.element("label").classes("drop"):
        control = ui.element("input").props("type=file").classes("unseen")
        control.props["accept"] = accept
        control.on("change", js_handler=f"(event) => {{ {hand_over}(event.target.files); event.target.value = null; }}")
        markup("span", _PICTURE_ICON)
        text("span", label, "drop-label")
    ui.run_javascript(_DROP_ANYWHERE.replace("HAND_OVER", hand_over))


_PICTURE_ICON = (
    '<svg viewBox="0 0 24 24" aria-hidden="true"><rect x="3" y="4" width="18" height="16" rx="3"/>'
    '<circle cx="9" cy="10" r="1.6"/><path d="m4 18 5-4 3 2 4-5 4 4"/></svg>'
)
# Without it a browser leaves the page to show the file that was dropped beside the field.
_DROP_ANYWHERE = """
const over = (on) => document.body.classList.toggle("dropping", on);
document.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(false); });
document.addEventListener("drop", (event) => {
  event.preventDefault();
  over(false);
  HAND_OVER(event.dataTransfer.files);
});
"""


def chart(options: dict[str, Any], label: str) -> ui.echart:
    """Draws an SVG, which takes its colours from the page's style."""
    element = ui.echart(options, renderer="svg").classes("chart")
    element.props.update({"role": "img", "aria-label": label})
    return element
