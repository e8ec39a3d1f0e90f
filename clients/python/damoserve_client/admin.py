"""`damoserve admin`: changes what a running server serves, through its admin service."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import grpc
import typer
from rich.console import Console

from damoserve.v1 import admin_pb2 as pb
from damoserve.v1.admin_pb2_grpc import AdminServiceStub
from damoserve_client import tables
from damoserve_client.channel import is_connected
from damoserve_client.security import Ca, Cert, Key, Security, Tls, TokenFile
from damoserve_client.status import Attempt, from_rpc_error

app = typer.Typer(no_args_is_help=True)

Address = Annotated[str, typer.Option(envvar="DAMOSERVE_ADMIN_ADDRESS", help="HOST:PORT of the admin service.")]
Timeout = Annotated[float, typer.Option(help="Seconds after which a load is given up; nothing is changed then.")]
Model = Annotated[str, typer.Argument(help="Name of the model.")]
Profile = Annotated[str, typer.Argument(help="Name of the profile.")]

PATIENCE = 300.0


@app.callback()
def admin(  # noqa: PLR0913, PLR0917 - one argument for each option
    context: typer.Context,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Change what a running server serves (its setting ADMIN_PORT)."""
    context.obj = Security(tls, ca, cert, key, token_file)


@app.command()
def models(context: typer.Context, address: Address) -> None:
    """List the models, their versions and aliases."""
    with _admin(context, address) as (stub, metadata):
        found = stub.ListModels(pb.ListModelsRequest(), timeout=PATIENCE, metadata=metadata).models
    Console().print(tables.models(found))


@app.command()
def load(context: typer.Context, model: Model, profile: Profile, address: Address, timeout: Timeout = PATIENCE) -> None:
    """Load a profile of the version that serves."""
    with _admin(context, address, timeout) as (stub, metadata):
        stub.LoadProfile(pb.LoadProfileRequest(model=model, profile=profile), timeout=timeout, metadata=metadata)


@app.command()
def unload(context: typer.Context, model: Model, profile: Profile, address: Address) -> None:
    """Stop serving a profile, and free its memory."""
    with _admin(context, address) as (stub, metadata):
        stub.UnloadProfile(pb.UnloadProfileRequest(model=model, profile=profile), timeout=PATIENCE, metadata=metadata)


@app.command()
def reload(  # noqa: PLR0913, PLR0917 - one argument for each option
    context: typer.Context,
    model: Model,
    address: Address,
    version: Annotated[int | None, typer.Option(help="Default: the version named `serving`, else the newest.")] = None,
    alias: Annotated[str | None, typer.Option(help="Name of a version.")] = None,
    timeout: Timeout = PATIENCE,
) -> None:
    """Serve another version, or the same loaded again, once it is checked and warm."""
    if version is not None and alias is not None:
        raise typer.BadParameter("give a version or an alias, not both")
    request = pb.ReloadModelRequest(model=model)
    if version is not None:
        request.version = version
    if alias is not None:
        request.alias = alias
    with _admin(context, address, timeout) as (stub, metadata):
        status = stub.ReloadModel(request, timeout=timeout, metadata=metadata)
    Console().print(tables.models([status]))


@app.command()
def alias(
    context: typer.Context,
    model: Model,
    name: Annotated[str, typer.Argument(help="`serving` is the version that is served instead of the newest.")],
    version: Annotated[int, typer.Argument(min=0, help="0 removes the alias.")],
    address: Address,
) -> None:
    """Name a version in the repository; `reload` then serves the one named `serving`."""
    with _admin(context, address) as (stub, metadata):
        status = stub.SetAlias(
            pb.SetAliasRequest(model=model, alias=name, version=version), timeout=PATIENCE, metadata=metadata
        )
    Console().print(tables.models([status]))


@contextmanager
def _admin(
    context: typer.Context, address: str, timeout: float = PATIENCE
) -> Iterator[tuple[AdminServiceStub, tuple[tuple[str, str], ...]]]:
    security: Security = context.obj
    channel, metadata = security.open_channel(address)
    with channel:
        try:
            yield AdminServiceStub(channel), metadata
        except grpc.RpcError as error:
            attempt = Attempt(address, timeout, lambda: is_connected(channel))
            typer.echo(f"error: {from_rpc_error(error, attempt)}", err=True)
            raise typer.Exit(1) from None
