"""`damoserve playground` itself: one web server for this machine, one client for all of its pages."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
import uvicorn
from fastapi import FastAPI
from fastapi.middleware.trustedhost import TrustedHostMiddleware
from nicegui import ui

from damoserve_client.aio import AsyncClient
from damoserve_client.channel import DEFAULT_ADDRESS
from damoserve_client.playground.guard import Guard
from damoserve_client.playground.page import LARGEST_FILE, Page
from damoserve_client.security import Ca, Cert, Key, Security, Tls, TokenFile

HOST = "127.0.0.1"
# What a form adds to the file in it, with room to spare.
FORM_BYTES = 64 * 1024
FAVICON = Path(__file__).with_name("favicon.svg")


def playground(  # noqa: PLR0913, PLR0917 - typer reads one parameter per option
    server: Annotated[str, typer.Option(envvar="DAMOSERVE_ADDRESS", help="HOST:PORT of the server.")] = DEFAULT_ADDRESS,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page on this machine; 0: any.")] = 8080,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Open a web page on this machine to compare the server's profiles and watch its router."""
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise typer.BadParameter(f"port {port}: {os.strerror(error.errno or 0)}", param_hint="--port") from None
    security = Security(tls, ca, cert, key, token_file)
    security.connect(server).close()  # options that do not fit together are told now, not by a failing web server
    application = _application(server, security)
    typer.echo(f"playground on http://{HOST}:{listener.getsockname()[1]}/ with the server {server}; Ctrl-C ends it")
    # Open tabs hold a connection each and are not waited for.
    config = uvicorn.Config(application, log_level="warning", timeout_graceful_shutdown=1)
    with suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def _application(address: str, security: Security) -> FastAPI:
    clients: list[AsyncClient] = []

    @asynccontextmanager
    async def connected(_: FastAPI) -> AsyncIterator[None]:
        async with security.connect_async(address) as client:
            clients.append(client)
            yield

    @ui.page("/")
    async def page() -> None:
        await Page(clients[0], address).show()

    application = FastAPI(lifespan=connected, docs_url=None, redoc_url=None, openapi_url=None)
    # A page elsewhere must not reach ours by a name of its own that it lets point here.
    application.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    application.add_middleware(Guard, largest_body=LARGEST_FILE + FORM_BYTES)
    ui.run_with(
        application,
        title="damoserve playground",
        favicon=FAVICON,
        dark=None,
        language="en-US",
        tailwind=False,
        show_welcome_message=False,
    )
    return application
