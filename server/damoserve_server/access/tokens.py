"""The file of tokens: who has one, with which rights and limits. Nothing here repeats a token to anyone."""

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, model_validator

from damoserve_server.access.limits import Allowance, Clock, Limits
from damoserve_server.access.reloading import Reloading

T = TypeVar("T")

SHORTEST_TOKEN = 32
"""128 bits in hexadecimal. A digest without salt keeps only what cannot be guessed."""


class Right(StrEnum):
    """What a token may do. Neither includes the other."""

    DETECT = "detect"
    """To have images looked at, and to see the profiles."""
    ADMIN = "admin"
    """To change what the server serves."""


class Entry(BaseModel):
    """One token of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Stands for the token in the log and in errors."""
    token: SecretStr | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Instead of the token: its digest, so that the file holds no secret."""
    rights: Annotated[frozenset[Right], Field(min_length=1)] = frozenset({Right.DETECT})
    rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Calls a second."""
    burst: Annotated[int, Field(gt=0)] | None = None
    concurrency: Annotated[int, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.token is None) == (self.sha256 is None):
            raise ValueError("needs either token or sha256")
        if self.token is not None and len(self.token.get_secret_value()) < SHORTEST_TOKEN:
            raise ValueError(f"token must have at least {SHORTEST_TOKEN} characters, made at random")
        if self.burst and not self.rate:
            raise ValueError("burst needs a rate")
        return self

    @property
    def digest(self) -> bytes:
        if self.token is not None:
            return digest_of(self.token.get_secret_value())
        return bytes.fromhex(self.sha256 or "")

    @property
    def limits(self) -> Limits:
        return Limits(self.rate, self.burst, self.concurrency)


class TokenFile(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    tokens: tuple[Entry, ...]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if not self.tokens:
            raise ValueError("the list of tokens is empty")
        if twice := _repeated(entry.name for entry in self.tokens):
            raise ValueError(f"two tokens have the name {twice}")
        if same := _repeated(entry.digest for entry in self.tokens):
            names = " and ".join(entry.name for entry in self.tokens if entry.digest == same)
            raise ValueError(f"{names} have the same token")
        return self


def _repeated(values: Iterable[T]) -> T | None:
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def read_tokens(path: Path) -> tuple[Entry, ...]:
    """Raises ValueError, which says what is wrong and where, without the text that stands there."""
    try:
        content = yaml.safe_load(path.read_bytes())
        return TokenFile.model_validate(content).tokens
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark else ""
        raise ValueError(f"{path} is not YAML{where}") from None
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(_shown, wrong['loc']))}: {wrong['msg']}" for wrong in error.errors())
        raise ValueError(f"{path}: {mistakes}") from None


def _shown(part: int | str) -> str:
    """A part of a path in the file; who takes a token for a name in it is not to find the token in the log."""
    return str(part) if len(str(part)) < SHORTEST_TOKEN else "(a long name)"


@dataclass(frozen=True)
class Holder:
    """A token in force."""

    name: str
    digest: bytes
    rights: frozenset[Right]
    allowance: Allowance


class Tokens:
    """Those of a file, which may be replaced at any time: the next call sees the new ones."""

    def __init__(self, path: Path, report: Callable[[bool], None], clock: Clock = time.monotonic) -> None:
        """`report` hears of every change of the file, and whether it was taken. Raises ValueError."""
        self._path = path
        self._clock = clock
        self._allowances: dict[str, Allowance] = {}
        self._holders = Reloading([path], self._read, report)

    def find(self, token: str) -> Holder | None:
        # Every digest is compared, each in constant time: how long it takes says nothing about any of them.
        given = digest_of(token)
        found = None
        for holder in self._holders.current():
            if hmac.compare_digest(holder.digest, given):
                found = holder
        return found

    def _read(self) -> list[Holder]:
        holders = [self._holder(entry) for entry in read_tokens(self._path)]
        self._allowances = {holder.name: holder.allowance for holder in holders}
        return holders

    def _holder(self, entry: Entry) -> Holder:
        allowance = self._allowances.get(entry.name)
        if allowance is None or allowance.limits != entry.limits:
            allowance = Allowance(entry.name, entry.limits, self._clock)
        return Holder(entry.name, entry.digest, entry.rights, allowance)
