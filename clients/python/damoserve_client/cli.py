"""The `damoserve` command.

Exit codes: 0 done, 1 a call failed, 2 wrong usage or a picture that cannot be read.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console

from damoserve_client import admin, tables
from damoserve_client import demo as demonstration
from damoserve_client.channel import DEFAULT_ADDRESS
from damoserve_client.client import Client
from damoserve_client.draw import annotate
from damoserve_client.errors import DamoserveError, InvalidImage
from damoserve_client.images import UnreadableImage, read_picture
from damoserve_client.sample import SAMPLE
from damoserve_client.security import Ca, Cert, Key, Security, Tls, TokenFile
from damoserve_client.terminal import plain
from damoserve_client.top.command import top
from damoserve_client.types import DetectionResult, DetectOptions, Tier

# Which extra brings the commands that other packages add.
EXTRAS = {"serve": "server"}
# Any other name given to --save is a folder.
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

app.add_typer(admin.app, name="admin")
app.command()(top)

Address = Annotated[str, typer.Option(envvar="DAMOSERVE_ADDRESS", help="HOST:PORT of the server.")]
Images = Annotated[list[Path], typer.Argument(help="JPEG, PNG, WebP or BMP files.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"damoserve {version('damoserve')}")
        raise typer.Exit


@app.callback()
def damoserve(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Finds objects in images with a damoserve server."""


@app.command()
def detect(  # noqa: PLR0913, PLR0917 - typer reads one parameter per option
    images: Images,
    address: Address = DEFAULT_ADDRESS,
    model: Annotated[str | None, typer.Option(help="Default: the server's.")] = None,
    profile: Annotated[str | None, typer.Option(help="Use this profile and no other.")] = None,
    tier: Annotated[Tier | None, typer.Option(help="How quick the answer should be.")] = None,
    budget_ms: Annotated[float | None, typer.Option(help="The longest time that the answer may take.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="Lowest average precision of the profile, 0 to 1.")] = None,
    score: Annotated[float | None, typer.Option(help="Leave out detections with a lower score, 0 to 1.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per image, times in seconds.")] = False,
    save: Annotated[Path | None, typer.Option(help="Save annotated pictures: OUT.png, or a folder.")] = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """Detect the objects in images."""
    options = DetectOptions(
        model=model,
        profile=profile,
        tier=tier,
        budget=None if budget_ms is None else budget_ms / 1000,
        min_accuracy=min_accuracy,
        score_threshold=score,
    )
    targets = _targets(images, save)
    readable = _readable(images)
    refused = False
    if readable:
        with _connect(address, Security(tls, ca, cert, key, token_file)) as client:
            for image, read in readable:
                content = read or image.read_bytes()
                try:
                    result = client.detect(content, **options)
                except InvalidImage as error:  # the next image may still be a good one
                    _report(error, f"{image}: ")
                    refused = True
                    continue
                if as_json:
                    typer.echo(json.dumps({"image": str(image), **dataclasses.asdict(result)}))
                else:
                    _print_result(image, result)
                if image in targets:
                    targets[image].parent.mkdir(parents=True, exist_ok=True)
                    annotate(content, result.detections).save(targets[image])
    if refused or len(readable) < len(images):
        raise typer.Exit(1 if refused else 2)


@app.command()
def profiles(  # noqa: PLR0913, PLR0917 - as above
    address: Address = DEFAULT_ADDRESS,
    model: Annotated[str | None, typer.Option(help="Default: all models.")] = None,
    tls: Tls = False,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    token_file: TokenFile = None,
) -> None:
    """List the server's profiles, the most accurate first."""
    with _connect(address, Security(tls, ca, cert, key, token_file)) as client:
        infos = client.profiles(model)
    Console().print(tables.profiles(infos))
    for line in tables.failures(infos):
        typer.echo(line)


@app.command()
def demo(
    image: Annotated[Path | None, typer.Argument(help="Default: a rendered blood smear.")] = None,
    output: Annotated[Path, typer.Option(help="Folder for profiles.png.")] = Path("demo"),
) -> None:
    """Start a server, send one picture to every profile and tier, and show how they compare."""
    if image is None and not SAMPLE.is_file():
        raise typer.BadParameter("this install has no picture of its own: give one")
    image = image or SAMPLE
    if not _readable([image]):
        raise typer.Exit(2)
    try:
        demonstration.run(image, output)
    except DamoserveError as error:
        _fail(error)
    except demonstration.ServerDidNotStart as error:
        typer.echo("\n".join(map(plain, f"error: {error}".splitlines())), err=True)
        raise typer.Exit(1) from None


def _readable(images: list[Path]) -> list[tuple[Path, bytes | None]]:
    """The images that can be sent, with the content of what is read only once; of the others a line says why not."""
    readable: list[tuple[Path, bytes | None]] = []
    for image in images:
        try:
            content = read_picture(image)
        except UnreadableImage as error:
            typer.echo(plain(f"error: {image}: {error}."), err=True)
        else:
            readable.append((image, None if image.is_file() else content))
    return readable


def _targets(images: list[Path], save: Path | None) -> dict[Path, Path]:
    """Returns the path of the annotated picture of each image."""
    if save is None:
        return {}
    if save.suffix.lower() in PICTURE_SUFFIXES and not save.is_dir():
        targets = dict.fromkeys(images, save)
    else:
        targets = {image: save / f"{image.stem}.png" for image in images}
    if len(set(targets.values())) < len(images):
        raise typer.BadParameter("several images need a folder, and different names", param_hint="--save")
    if {image.resolve() for image in images} & {target.resolve() for target in targets.values()}:
        raise typer.BadParameter("this would overwrite an image with its annotated picture", param_hint="--save")
    return targets


def _print_result(image: Path, result: DetectionResult) -> None:
    Console().print(tables.detections(result))
    took = f"{tables.served(result)}, {tables.milliseconds(result.timings.total)} ms"
    typer.echo(f"{plain(str(image))}: {tables.counts(result)} ({took})")


@contextmanager
def _connect(address: str, security: Security) -> Iterator[Client]:
    try:
        with security.connect(address) as client:
            yield client
    except DamoserveError as error:
        _fail(error)


def _fail(error: DamoserveError) -> NoReturn:
    _report(error)
    raise typer.Exit(1) from None


def _report(error: DamoserveError, subject: str = "") -> None:
    request = f" Request {error.request_id}." if error.request_id else ""
    typer.echo(plain(f"error: {subject}{error}. {error.advice}{request}"), err=True)


def add_commands(target: typer.Typer, invoked: str | None) -> None:
    """Adds the commands of the entry-point group `damoserve.commands`, each a function that typer can read.

    Only the invoked one is loaded, so that `damoserve detect` does not import a server.
    """
    for entry in entry_points(group="damoserve.commands"):
        command = _load(entry) if entry.name == invoked else _placeholder(entry)
        target.command(entry.name)(command)


def _load(entry: EntryPoint) -> Callable[..., Any]:
    try:
        command: Callable[..., Any] = entry.load()
    except ImportError as error:
        extra = EXTRAS.get(entry.name, entry.name)
        typer.echo(
            f"error: `damoserve {entry.name}` cannot start ({error}). Install it: pip install 'damoserve[{extra}]'",
            err=True,
        )
        raise SystemExit(1) from None
    return command


def _placeholder(entry: EntryPoint) -> Callable[[], None]:
    def command() -> None:
        pass

    command.__doc__ = f"See `damoserve {entry.name} --help` (extra `{EXTRAS.get(entry.name, entry.name)}`)."
    return command


def main() -> None:
    add_commands(app, invoked=sys.argv[1] if len(sys.argv) > 1 else None)
    app()
