"""Single files of repositories on Hugging Face and ModelScope, by their own clients: these resume, cache and log in."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from damoserve_compress.fetch.errors import ClientMissing, SourceGone, SourceInvalid, TransferFailed

NOT_GIVEN: Final = frozenset({401, 403, 404, 410})
"""Status codes that say that there is no such file, or not for this caller."""


@dataclass(frozen=True)
class HubFile:
    """A file in a repository of a hub; `revision` None is the hub's default."""

    source: str
    repository: str
    name: str
    revision: str | None


def parse(source: str) -> HubFile:
    """Reads HUB:OWNER/NAME/FILE[@REVISION]; FILE may have folders. Raises SourceInvalid."""
    location, _, revision = source.partition(":")[2].partition("@")
    owner, _, rest = location.partition("/")
    name, _, file = rest.partition("/")
    if not (owner and name and file):
        raise SourceInvalid(f"{source} should be HUB:OWNER/NAME/FILE or HUB:OWNER/NAME/FILE@REVISION")
    return HubFile(source, f"{owner}/{name}", file, revision or None)


def from_hugging_face(file: HubFile) -> Path:
    """Downloads a file; gives its path in the client's cache. Raises ClientMissing, SourceGone or TransferFailed."""
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise _client_missing(file, error) from error
    return _ask(hf_hub_download, file)


def from_modelscope(file: HubFile) -> Path:
    """Downloads a file; gives its path in the client's cache. Raises ClientMissing, SourceGone or TransferFailed."""
    try:
        from modelscope.hub.file_download import model_file_download
    except ImportError as error:
        raise _client_missing(file, error) from error
    return _ask(model_file_download, file)


def _client_missing(file: HubFile, error: ImportError) -> ClientMissing:
    package = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or package not in ("huggingface_hub", "modelscope"):
        return ClientMissing(f"{file.source}: the client of its hub is installed, but does not load: {error}")
    return ClientMissing(f"{file.source} needs the client of its hub: pip install 'damoserve[fetch]'")


def _ask(download: Callable[..., str], file: HubFile) -> Path:
    try:
        return Path(download(file.repository, file.name, revision=file.revision))
    except Exception as error:  # the library's own, those of its HTTP client, OSError ...
        said = next(filter(None, str(error).splitlines()), type(error).__name__).rstrip(".")
        if _status(error) in NOT_GIVEN:
            raise SourceGone(file.source, f"the hub says {said}") from error
        raise TransferFailed(f"{file.source} did not arrive: {said}") from error


def _status(error: Exception) -> int | None:
    """The HTTP status behind an error, whatever its class, which differs by hub and by version.

    Hugging Face's has the response. ModelScope's own has the status, and is the cause of one without a response.
    """
    places = (error, getattr(error, "response", None), error.__cause__)
    return next(filter(None, (getattr(place, "status_code", None) for place in places)), None)
