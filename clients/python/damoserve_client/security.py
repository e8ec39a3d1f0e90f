"""The options of the command for TLS and tokens."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import grpc
import typer

from damoserve_client.aio import AsyncClient
from damoserve_client.channel import call_metadata, open_channel
from damoserve_client.client import Client

TOKEN_VARIABLE = "DAMOSERVE_TOKEN"

Tls = Annotated[bool, typer.Option("--tls", help="Talk TLS. The options below imply it.")]
Ca = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help="PEM file of the authorities to trust. Default: gRPC's list."),
]
Cert = Annotated[
    Path | None, typer.Option(exists=True, dir_okay=False, help="PEM file of our own certificate, for mutual TLS.")
]
Key = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="PEM file of its key.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(exists=True, dir_okay=False, help=f"File with the token. Default: the variable {TOKEN_VARIABLE}."),
]


@dataclass(frozen=True)
class Security:
    """The options that were given. Not the token itself: every user of a machine can read a command line."""

    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    token_file: Path | None = None

    def connect(self, address: str) -> Client:
        """Raises BadParameter for options that do not fit together."""
        with _explained():
            return Client(address, credentials=self._credentials(), token=self._token())

    def connect_async(self, address: str) -> AsyncClient:
        """Only inside an event loop. Raises BadParameter like `connect`."""
        with _explained():
            return AsyncClient(address, credentials=self._credentials(), token=self._token())

    def open_channel(self, address: str) -> tuple[grpc.Channel, tuple[tuple[str, str], ...]]:
        """A channel, and the metadata that calls have to bring. Raises BadParameter like `connect`."""
        with _explained():
            credentials = self._credentials()
            return open_channel(address, credentials), call_metadata(address, credentials, self._token())

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if (self.cert is None) != (self.key is None):
            raise typer.BadParameter("--cert and --key go together")
        if not (self.tls or self.ca or self.cert):
            return None
        return grpc.ssl_channel_credentials(_content(self.ca), _content(self.key), _content(self.cert))

    def _token(self) -> str | None:
        token = self.token_file.read_text() if self.token_file else os.environ.get(TOKEN_VARIABLE, "")
        return token.strip() or None


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise typer.BadParameter(f"{error} (--tls, --token-file)") from None


def _content(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None
