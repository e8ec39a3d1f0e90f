"""The page of one browser tab: its controls and what they do."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from html import escape
from pathlib import Path
from typing import get_args

from nicegui import ui
from nicegui.element import Element
from nicegui.events import UiEventArguments, UploadEventArguments

from damoserve_client import tables
from damoserve_client.aio import AsyncClient
from damoserve_client.errors import DamoserveError, NotFound, ProfileUnavailable, Unavailable
from damoserve_client.playground import figures
from damoserve_client.playground.cards import Card, Measured
from damoserve_client.playground.controls import Scale, button, choice, markup, picker, selection, slider, text
from damoserve_client.playground.load import MOST_CALLERS, SECONDS, Load
from damoserve_client.playground.load_view import LoadView
from damoserve_client.sample import SAMPLE
from damoserve_client.types import DetectionResult, DetectOptions, ProfileInfo, Tier

STYLE = Path(__file__).with_name("style.css")
FORMATS = "image/jpeg,image/png,image/webp,image/bmp"
# What the page takes from a browser; the server has a limit of its own and says so.
LARGEST_FILE = 64 * 1024 * 1024
RETRY_SECONDS = 2.0
# Every profile is asked so often, all in turn; what else the machine did disturbs the quickest run least.
ROUNDS = 3
SCORE = Scale(0.05, 0.95, 0.05, 0.5, lambda score: f"{score:.2f}")
# Twenty steps to a factor of ten, from 1 ms; the last position is no budget at all.
STEPS_PER_DECADE, LAST_STEP = 20, 61
BUDGET = Scale(0, LAST_STEP, 1, 34, lambda step: _budget_name(_budget(step)))
CALLERS = Scale(1, MOST_CALLERS, 1, 8, lambda callers: f"{callers:.0f}")
THEMES = {None: "automatic", False: "light", True: "dark"}


def _budget(step: float) -> float | None:
    """Seconds, rounded to two digits; None: no budget."""
    return None if step >= LAST_STEP else float(f"{10 ** (step / STEPS_PER_DECADE):.2g}") / 1e3


def _position(seconds: float) -> float:
    """Returns where a budget lies on the slider, 0 to 1."""
    return min(1.0, max(0.0, STEPS_PER_DECADE * math.log10(1e3 * seconds) / LAST_STEP))


def _budget_name(budget: float | None) -> str:
    return "none" if budget is None else f"{1e3 * budget:g} ms"


class Newest:
    """One piece of work at a time; of those that wait only the newest is done."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._asked = 0

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        self._asked += 1
        mine = self._asked
        async with self._lock:
            if mine == self._asked:
                await work()


class Page:
    """The state of one tab, and how it got there."""

    def __init__(self, client: AsyncClient, address: str) -> None:
        self._client = client
        self._address = address
        self._infos: tuple[ProfileInfo, ...] = ()
        self._model = ""
        self._cards: dict[str, Card] = {}
        self._palette = figures.Palette()
        self._content, self._content_name = b"", ""
        self._score = SCORE.start
        self._tier: Tier | None = None
        self._budget = _budget(BUDGET.start)
        self._callers = int(CALLERS.start)
        self._comparing, self._routing = Newest(), Newest()
        self._load: asyncio.Task[None] | None = None
        self._away = True

    async def show(self) -> None:
        """Builds the page; what the server has to say comes once the browser is connected."""
        ui.add_css(STYLE)
        self._dark = ui.dark_mode(None)
        self._upload = ui.upload(
            auto_upload=True, max_file_size=LARGEST_FILE, on_upload=self._take_upload, on_rejected=self._refuse_upload
        ).classes("unseen-upload")
        with ui.element("div").classes("page"):
            self._add_header()
            self._alert = ui.element("div").props("role=alert")
            with ui.element("div").classes("columns"):
                with ui.element("aside").props('aria-label="Controls"'):
                    self._add_controls()
                with ui.element("div").classes("results"):
                    self._add_results()
        ui.timer(0, self._connect, once=True)
        ui.timer(RETRY_SECONDS, self._connect_once_up, immediate=False)
        ui.context.client.on_delete(self._leave)

    # What the page is made of.

    def _add_header(self) -> None:
        with ui.element("header").classes("top"):
            text("h1", "damoserve playground")
            self._server = text("p", f"asking {self._address} …", "quiet")
            self._theme = button("Theme: automatic", self._next_theme, "subtle")

    def _add_controls(self) -> None:
        with _panel("Picture"):
            picker("Choose a picture, or drop one anywhere", FORMATS, self._upload)
            self._name = text("p", classes="quiet")
            button("Take the sample", self._take_sample)
            slider("Lowest score shown", SCORE, self._set_score)
            self._models = ui.element("div")
        with _panel("Which profile answers in time?"):
            with ui.element("div"):
                slider("Latency budget", BUDGET, self._set_budget)
                self._ticks = markup("div", classes="ticks").props("aria-hidden=true")
            tiers = {"": "default", **{tier: tier for tier in get_args(Tier)}}
            choice("Latency tier", tiers, self._set_tier)
            with ui.element("div").classes("choice-made").props("role=status"):
                self._served = markup("p", classes="answer")
                self._why = text("p", classes="quiet")
            self._candidates = markup("table", classes="candidates")

    def _add_results(self) -> None:
        with ui.element("section").props('aria-labelledby="profiles"'):
            text("h2", "Profiles side by side").props("id=profiles")
            how = f"Each is asked {ROUNDS} times, all in turn; its quickest run counts. Speed is the network's alone."
            text("p", how, "quiet")
            self._legend = markup("ul", classes="legend")
            self._grid = ui.element("div").classes("cards")
            self._progress = text("p", classes="unseen").props("role=status")
        with _panel("Under load").classes("load"):
            text("p", f"Callers send this picture for {SECONDS:.0f} s, with the budget and the tier chosen.", "quiet")
            with ui.element("div").classes("load-controls"):
                slider("Callers", CALLERS, self._set_callers)
                self._start = button("Start the load", self._start_load, "primary")
            self._load_view = LoadView()

    # What the controls do.

    async def _connect(self) -> None:
        with self._explained():
            self._infos = await self._client.profiles()
            self._away = False
            models = list(dict.fromkeys(info.model for info in self._infos))
            models.sort(key=lambda model: model != self._model)  # the one that was chosen stays
            self._models.clear()
            if len(models) > 1:
                with self._models:
                    selection("Model", models, self._take_model)
            await self._take_model(models[0] if models else "")
            if not self._content:
                await self._take_sample()

    async def _connect_once_up(self) -> None:
        """Without a word while the server is still away: that was said."""
        if self._away:
            with suppress(DamoserveError):
                await self._client.profiles()
                await self._connect()

    async def _take_model(self, model: str) -> None:
        self._model = model
        infos = self._active()
        version = f" {infos[0].model_version}" if infos else ""
        self._server.set_content(escape(f"{model}{version} on {self._address}"))
        self._legend.set_content(figures.legend(infos[0].labels if infos else ()))
        self._grid.clear()
        with self._grid:
            reference = _reference(infos) if infos else None
            shown = sorted(infos, key=lambda info: info is not reference)
            self._palette = figures.Palette()
            for info in infos:
                self._palette.of(info.profile)  # in the order of the tables
            self._cards = {info.profile: Card(info, self._palette) for info in shown}
            for line in tables.failures([info for info in self._infos if info.model == model]):
                text("p", line, "failed")
        if self._content:
            await self._take(self._content, self._content_name)

    async def _take_sample(self) -> None:
        await self._take(SAMPLE.read_bytes(), "the sample, a rendered blood smear")

    async def _take_upload(self, event: UploadEventArguments) -> None:
        self._upload.reset()
        await self._take(await event.file.read(), event.file.name)

    def _refuse_upload(self, _: UiEventArguments) -> None:
        advice = f"Choose one file of at most {LARGEST_FILE // 2**20} MiB: JPEG, PNG, WebP or BMP."
        self._complain("The file was not taken.", advice)

    async def _take(self, content: bytes, name: str) -> None:
        """Shows a picture once the server has found it good; until then the one before stays."""
        with self._explained(name):
            await self._client.detect(content, model=self._model)
            try:
                url = await asyncio.to_thread(figures.shown_picture, content)
            except Exception as error:  # Pillow raises what it likes on a damaged file
                return self._complain(f"{name}: only the server can read it ({error}).", "Convert it to JPEG.")
            self._content, self._content_name = content, name
            self._name.set_content(escape(name))
            for card in self._cards.values():
                card.show_picture(url)
            await self._compare()
            await self._route()
        return None

    async def _set_score(self, score: float) -> None:
        self._score = score
        with self._explained():
            await self._compare()

    async def _set_budget(self, step: float) -> None:
        self._budget = _budget(step)
        with self._explained():
            await self._route()

    async def _set_tier(self, tier: str) -> None:
        self._tier = next((known for known in get_args(Tier) if known == tier), None)
        with self._explained():
            await self._route()

    async def _set_callers(self, callers: float) -> None:
        self._callers = int(callers)

    def _next_theme(self) -> None:
        order = list(THEMES)
        self._dark.value = order[(order.index(self._dark.value) + 1) % len(order)]
        self._theme.set_content(f"Theme: {THEMES[self._dark.value]}")

    # What the server is asked.

    def _active(self) -> list[ProfileInfo]:
        return [info for info in self._infos if info.model == self._model and info.active]

    async def _compare(self) -> None:
        if self._content and self._cards:
            await self._comparing.run(self._ask_all_profiles)

    async def _ask_all_profiles(self) -> None:
        infos, cards = self._active(), self._cards
        rounds = [[await self._ask(info) for info in infos] for _ in range(ROUNDS)]
        results = [min(runs, key=lambda run: run.timings.total) for runs in zip(*rounds, strict=True)]
        reference = results[infos.index(_reference(infos))]
        longest = max(result.timings.total for result in results)
        for result in results:
            cards[result.profile].show(Measured(result, reference, longest))
        self._progress.set_content(f"{len(results)} profiles have answered")

    async def _ask(self, info: ProfileInfo) -> DetectionResult:
        return await self._client.detect(
            self._content, model=info.model, profile=info.profile, score_threshold=self._score
        )

    async def _route(self) -> None:
        if self._content:
            await self._routing.run(self._ask_router)

    async def _ask_router(self) -> None:
        wishes = self._wishes()  # what is asked now is what is told below, wherever the slider goes meanwhile
        budget = wishes["budget"]
        learned = await self._client.profiles(self._model)  # what it expects of them changes with every answer
        infos = [info for info in learned if info.active]
        try:
            choice = figures.Choice(budget, result=await self._client.detect(self._content, **wishes))
        except DamoserveError as error:
            choice = figures.Choice(budget, error=error)
        self._ticks.set_content(figures.ticks(infos, _position, self._palette))
        self._served.set_content(figures.verdict(choice))
        self._why.set_content(figures.why(choice, infos))
        self._candidates.set_content(figures.candidates(infos, choice, self._palette))

    def _wishes(self) -> DetectOptions:
        return {"model": self._model, "tier": self._tier, "budget": self._budget}

    async def _start_load(self) -> None:
        if not self._content:
            return self._complain("There is no picture to send yet.", "Choose one first.")
        if self._load is None or self._load.done():
            load = Load(self._content, self._wishes(), self._callers)
            self._load = asyncio.create_task(load.run(self._client))
            self._start.props("aria-disabled=true")
            colours = {info.profile: self._palette.of(info.profile) for info in self._active()}
            while not self._load.done():
                self._load_view.show(load, colours, running=True)
                await asyncio.wait([self._load], timeout=0.5)
            self._load_view.show(load, colours, running=False)
            self._start.props(remove="aria-disabled")
        return None

    def _leave(self) -> None:
        """Nobody looks at this tab any more."""
        if self._load:
            self._load.cancel()

    # What went wrong.

    @contextmanager
    def _explained(self, subject: str = "") -> Iterator[None]:
        self._alert.clear()
        try:
            yield
        except DamoserveError as error:
            self._away = self._away or isinstance(error, Unavailable)
            what = f"{subject}: {error.message}." if subject else f"{_capitalised(error.message)}."
            self._complain(what, error.advice, again=isinstance(error, Unavailable | NotFound | ProfileUnavailable))

    def _complain(self, what: str, advice: str, again: bool = False) -> None:
        self._alert.clear()
        with self._alert, ui.element("div").classes("alert"):
            text("strong", what)
            text("span", f" {advice}")
            if again:
                button("Try again", self._connect)


def _panel(heading: str) -> Element:
    with ui.element("section").classes("panel") as panel:
        text("h2", heading)
    return panel


def _capitalised(message: str) -> str:
    return message[:1].upper() + message[1:]


def _reference(infos: list[ProfileInfo]) -> ProfileInfo:
    """The trained network as it is: what is cut has fewer operations, what is quantised fewer bytes."""
    return max(infos, key=lambda info: (info.mac_count, info.model_bytes))
