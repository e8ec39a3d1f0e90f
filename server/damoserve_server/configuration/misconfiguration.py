"""What an operator got wrong in the settings: where it stands, and what was probably meant.

pydantic tells which setting is wrong. An operator has to know, besides, which of three places said so: an option, an
environment variable or the file.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from inspect import isclass
from itertools import chain
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import SettingsError

from damoserve_server.configuration.settings import Settings

PREFIX = "DAMOSERVE_"
NESTING = "__"
OTHERS = frozenset(
    PREFIX + name
    for name in (
        *("ADDRESS", "ADMIN_ADDRESS", "METRICS", "TOKEN"),  # the client
        "DATA",  # the tools for training and compressing
        *("CHECK_WHEEL", "OBSERVABILITY_SECONDS", "SCREENSHOTS"),  # the tests
        *("CONTAINERS", "IMAGE", "IMAGE_BUILD", "IMAGE_RUN"),  # the check of the image
    )
)
"""Variables of the project that are none of the server's settings."""
SERVICE_LINK = re.compile(PREFIX + r"(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
"""What Kubernetes sets in every pod beside a service that is named `damoserve`."""
ALIKE = 0.6
"""How alike two names have to be, 0 to 1, for one to be a slip of the other."""
MAX_SHOWN = 60
"""Characters of a wrong value that are repeated."""
MAX_LISTED = 8
"""Names that are listed where none is like the wrong one."""

Key = tuple[str, ...]
"""A setting by its names from the outermost on: `("tls", "key")`."""


def unknown_variables(environment: Iterable[str]) -> Iterator[str]:
    """A warning for each variable that looks like a setting of the server and is none."""
    known = {_variable(key).removeprefix(PREFIX) for key in _keys(Settings)}
    for name in sorted(environment):
        upper = name.upper()
        own = upper.removeprefix(PREFIX)
        if own == upper or own in known or upper in OTHERS or SERVICE_LINK.fullmatch(upper):
            continue
        alike = get_close_matches(own, known, 1, ALIKE)
        yield f"{name} is not a setting and has no effect" + (f": did you mean {PREFIX}{alike[0]}?" if alike else "")


def explain(
    error: ValidationError | SettingsError, options: Mapping[str, object], environment: Mapping[str, str]
) -> str:
    """All that is wrong, in one line. `options` are those of the command, by the names of their settings."""
    if isinstance(error, SettingsError):
        return _unreadable(error)
    given = _Given.of(options, environment)
    mistakes = [_Mistake.of(details, given) for details in error.errors()]
    meant = {mistake.meant for mistake in mistakes if mistake.meant}
    # A misspelt name is also missing; to tell it twice would hide what is to be done.
    return "; ".join(mistake.text for mistake in mistakes if not (mistake.missing and mistake.key in meant))


def _unreadable(error: SettingsError) -> str:
    if isinstance(error.__cause__, ValueError):
        for name in Settings.model_fields:
            if f'field "{name}"' in str(error):
                return (
                    f"{_variable((name,))} is not JSON, as a setting with several values has to be: {error.__cause__}"
                )
    return " ".join(str(error).split())


@dataclass(frozen=True)
class _Given:
    """What was said where, in the order of precedence."""

    options: Mapping[str, object]
    variables: Sequence[str]
    path: object
    file: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, options: Mapping[str, object], environment: Mapping[str, str]) -> "_Given":
        variables = [name for name in sorted(environment) if name.upper().startswith(PREFIX)]
        by_name = {name.upper(): environment[name] for name in variables}
        path = options.get("config") or by_name.get(_variable(("config",)))
        try:
            file = yaml.safe_load(Path(str(path)).read_bytes()) if path else None
        except (OSError, yaml.YAMLError):  # the error is about this, then
            file = None
        # As pydantic does, which takes the outermost names in any case.
        outermost = {str(name).lower(): value for name, value in file.items()} if isinstance(file, dict) else {}
        return cls(options, variables, path, outermost)

    def place(self, key: Key) -> "_Place":
        """Where a setting, or what it is a part of, was given."""
        if key and key[0] in self.options:
            return _Place(f"--{key[0].replace('_', '-')}")
        for length in range(len(key), 0, -1):
            name, rest = _variable(key[:length]), ".".join(key[length:])
            inside = [each for each in self.variables if f"{each.upper()}{NESTING}".startswith(name + NESTING)]
            if inside:
                return _Place(", ".join(inside) + (f": {rest}" if rest else ""), tuple(inside))
            if _has(self.file, key[:length]):
                return _Place(f"{self.path}: {'.'.join(key)}")
        return _Place(".".join(key))

    def places_named_in(self, message: str) -> str:
        """Where the settings were given that a message names: it is about several."""
        named = [(word,) for word in re.findall(r"\w+", message) if word in Settings.model_fields]
        places = (self.place(key).text for key in dict.fromkeys(named))
        return ", ".join(place for place in places if place not in Settings.model_fields)


@dataclass(frozen=True)
class _Place:
    """Where something was given; `variables` if it was in these."""

    text: str
    variables: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Mistake:
    """One wrong setting; `meant` is the one whose name was probably misspelt."""

    key: Key
    text: str
    missing: bool = False
    meant: Key | None = None

    @classmethod
    def of(cls, details: ErrorDetails, given: _Given) -> "_Mistake":
        key = tuple(str(part) for part in details["loc"])
        place = given.place(key)
        if details["type"] == "extra_forbidden":
            meant = _nearest(key)
            return cls(key, f"{place.text} is not a setting{_advice(key, meant, place)}", meant=meant)
        what = details["msg"].removeprefix("Value error, ")
        if details["type"] == "missing":
            return cls(key, f"{_variable(key) if place.variables else place.text}: {what}", missing=True)
        where = place.text or given.places_named_in(what)
        value = details["input"]
        if isinstance(value, str | int | float | Path):
            shown = str(value)
            what += f" (given: {shown[:MAX_SHOWN]}{'...' if len(shown) > MAX_SHOWN else ''})"
        return cls(key, f"{where}: {what}" if where else what)


def _advice(key: Key, meant: Key | None, place: _Place) -> str:
    if meant is None:
        beside = sorted(_beside(key))
        return f"; there are {', '.join(beside)}" if 0 < len(beside) <= MAX_LISTED else ""
    if len(place.variables) == 1 and place.text == place.variables[0]:
        rest = place.text[len(_variable(key)) :].upper()  # of a name in the middle of a variable's
        return f": did you mean {_variable(meant)}{rest}?"
    return f": did you mean {'.'.join(meant)}?"


def _nearest(key: Key) -> Key | None:
    """The setting that is most like this one: of those beside it, else of those that are called so elsewhere."""
    name = key[-1].lower()
    for alike in get_close_matches(name, _beside(key), 1, ALIKE):
        return (*key[:-1], alike)
    return next((other for other in _keys(Settings) if other[-1] == name), None)


def _beside(key: Key) -> list[str]:
    return [other[-1] for other in _keys(Settings) if other[:-1] == key[:-1]]


def _keys(model: type[BaseModel], outer: Key = ()) -> Iterator[Key]:
    """Of all settings, the groups that they form included."""
    for name, info in model.model_fields.items():
        yield (*outer, name)
        for kind in chain([info.annotation], get_args(info.annotation)):
            if isclass(kind) and issubclass(kind, BaseModel):
                yield from _keys(kind, (*outer, name))


def _variable(key: Key) -> str:
    return PREFIX + NESTING.join(key).upper()


def _has(values: object, key: Key) -> bool:
    if not key:
        return True
    return isinstance(values, Mapping) and key[0] in values and _has(values[key[0]], key[1:])
