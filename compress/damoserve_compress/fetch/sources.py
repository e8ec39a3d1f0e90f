"""Fetching a file, wherever it is: one function for paths, addresses and hubs."""

import re
import shutil
from functools import partial
from pathlib import Path

from damoserve_compress.fetch.errors import SourceGone, SourceInvalid, TargetUnusable, WrongContent, target_errors
from damoserve_compress.fetch.hubs import from_hugging_face, from_modelscope, parse
from damoserve_compress.fetch.web import DEFAULT_RETRIES, PartialDownload, ReportProgress, RetryPolicy, download
from damoserve_profiles.files import replace_file
from damoserve_profiles.repository import describe_file


def fetch(
    source: str,
    out: Path,
    sha256: str | None = None,
    report: ReportProgress = lambda done, total: None,
    attempts: RetryPolicy = DEFAULT_RETRIES,
) -> str:
    """Puts the file that `source` names at `out` in one step; returns its SHA-256.

    `source` is a path, an http or https address, or modelscope: or hf: and OWNER/NAME/FILE[@REVISION]. What is at `out`
    already is taken if it has the wanted hash, and else replaced. Raises FetchError; `out` is then as it was, and what
    arrived from an address lies beside it, to go on from, unless it is the wrong file.
    """
    if out.is_dir():
        raise TargetUnusable(f"{out} is a folder: name a file")
    wanted = _read_hash(sha256) if sha256 is not None else None
    if wanted is not None and out.is_file() and describe_file(out).sha256 == wanted:
        return wanted
    with target_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    if source.startswith(("http://", "https://")):
        part = PartialDownload(out.with_name(f"{out.name}.part"), verified=wanted is not None)
        download(source, part, report, attempts)
        try:
            found = _check(source, part.data, wanted)
        except WrongContent:
            part.discard()
            raise
        with target_errors(out):
            part.data.replace(out)
        part.discard()
        return found
    path = _locate(source)
    found = _check(source, path, wanted)
    with target_errors(out):
        replace_file(out, partial(shutil.copyfile, path))
    return found


def _read_hash(text: str) -> str:
    if re.fullmatch("[0-9a-fA-F]{64}", text) is None:
        raise SourceInvalid(f"{text!r} is no SHA-256: it has 64 hexadecimal digits")
    return text.lower()


def _locate(source: str) -> Path:
    """Finds the file on this machine, once a hub's client has got it."""
    if source.startswith("hf:"):
        return from_hugging_face(parse(source))
    if source.startswith("modelscope:"):
        return from_modelscope(parse(source))
    if "://" in source:
        raise SourceInvalid(f"{source} is no http or https address")
    path = Path(source)
    if not path.is_file():
        raise SourceGone(source, "there is no such file")
    return path


def _check(source: str, path: Path, wanted: str | None) -> str:
    found = describe_file(path).sha256
    if wanted not in (None, found):
        raise WrongContent(f"{source} is not the wanted file: its SHA-256 is {found}, not {wanted}")
    return found
