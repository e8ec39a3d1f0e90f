"""TLS, and mutual TLS, with certificates that can be replaced while the server runs."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Self

import grpc
from pydantic import BaseModel, ConfigDict, model_validator

from damoserve_server.access.reloading import Reloading


class TlsSettings(BaseModel):
    """The PEM files of TLS. Raises ValidationError for files with which no handshake could succeed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    certificate: Path
    """The server's certificate, followed by those between it and its authority."""
    key: Path
    """The key of that certificate, not encrypted."""
    client_ca: Path | None = None
    """Authorities of the clients' certificates. If set, a client without such a certificate is turned away."""

    @property
    def files(self) -> list[Path]:
        return [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]

    @model_validator(mode="after")
    def _usable(self) -> Self:
        self.read()
        return self

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Reads the files into what gRPC wants. Raises ValueError if they are unreadable or do not belong together."""
        certificate, key = _content(self.certificate), _content(self.key)
        client_ca = _content(self.client_ca) if self.client_ca else None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # The password keeps a locked key from asking on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.certificate} and {self.key} are not a certificate and its key: {error}") from None
        if self.client_ca:
            try:
                context.load_verify_locations(self.client_ca)
            except OSError as error:
                raise ValueError(f"{self.client_ca} has no certificates of authorities: {error}") from None
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def server_credentials(settings: TlsSettings, report: Callable[[bool], None]) -> grpc.ServerCredentials:
    """Returns credentials that follow their files: each new connection gets what they hold, if it is usable.

    `report` is called at every change of the files, with whether it was accepted.
    """
    files = Reloading(settings.files, settings.read, report)
    served = files.current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal served
        current = files.current()
        if current is served:
            return None  # gRPC goes on with what it has
        served = current
        return current

    return grpc.dynamic_ssl_server_credentials(
        served,
        fetch,  # type: ignore[arg-type]  # the stubs forget that it may return None
        require_client_authentication=bool(settings.client_ca),
    )
