"""What a build has left in its work folder about the profiles of a model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from damoserve_compress.naive import NaiveRow
from damoserve_compress.prune.recover import NETWORK, REPORT, Cut
from damoserve_compress.quantise import QuantisationReport
from damoserve_compress.report.errors import ReportError
from damoserve_compress.stages import RECORD
from damoserve_compress.steps import QUANTISATION
from damoserve_profiles.faults import describe_faults
from damoserve_profiles.manifest import MODEL_FILE, Manifest

T = TypeVar("T")


@dataclass(frozen=True)
class Stage:
    """One finished step."""

    folder: Path
    inputs: Mapping[str, Any]
    files: Mapping[str, str]
    """SHA-256 of each."""
    seconds: float


@dataclass(frozen=True)
class Pruned:
    """One pruning of the model's source network."""

    stage: Stage
    cuts: tuple[Cut, ...]
    profiles: tuple[str, ...]
    """Those that were made from the result."""


@dataclass(frozen=True)
class Work:
    """What is known; empty where the folder has nothing of the profiles."""

    prunings: tuple[Pruned, ...] = ()
    quantisations: Mapping[str, QuantisationReport] = field(default_factory=dict)
    """By profile."""
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What each step of a profile took, by profile and step."""


def read_work(folder: Path, manifests: Sequence[Manifest]) -> Work:
    """What was done for these profiles, found by the hashes of their files. Raises ReportError."""
    stages = list(_stages(folder))
    made = {manifest.profile: _chain(manifest, stages) for manifest in manifests}
    quantisations = {
        profile: _read(chain["quantise"].folder / QUANTISATION, QuantisationReport)
        for profile, chain in made.items()
        if "quantise" in chain
    }
    sources = {manifest.source.sha256 for manifest in manifests}
    prunings = [
        Pruned(
            stage,
            tuple(_read(stage.folder / REPORT, list[Cut])),
            tuple(profile for profile, chain in made.items() if chain.get("prune") is stage),
        )
        for stage in stages
        if REPORT in stage.files and stage.inputs.get("checkpoint") in sources
    ]
    seconds = {
        profile: {step: stage.seconds for step, stage in chain.items()} for profile, chain in made.items() if chain
    }
    return Work(tuple(prunings), quantisations, seconds)


def read_naive(path: Path) -> list[NaiveRow]:
    """What `damoserve-compress naive --json` wrote. Raises ReportError."""
    rows = _read(path, list[NaiveRow])
    if not rows:
        raise ReportError(f"{path} holds no settings; write it with damoserve-compress naive --json")
    return rows


def _stages(folder: Path) -> Iterator[Stage]:
    """The finished ones; a folder without a record is of a step that was interrupted."""
    for path in sorted(folder.glob(f"*/{RECORD}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            yield Stage(path.parent, record["inputs"], record["files"], float(record["seconds"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReportError(
                f"{path} is not the record of a step ({error}); remove its folder, build again"
            ) from error


def _chain(manifest: Manifest, stages: Sequence[Stage]) -> dict[str, Stage]:
    """The steps that led to a profile, backwards: what each took in is what another gave out."""
    chain: dict[str, Stage] = {}
    wanted = manifest.files[MODEL_FILE].sha256
    for step, result, taken in (
        ("quantise", MODEL_FILE, "graph"),
        ("export", MODEL_FILE, "checkpoint"),
        ("prune", NETWORK, "checkpoint"),
    ):
        for stage in stages:
            if stage.folder.name.startswith(f"{step}-") and stage.files.get(result) == wanted:
                chain[step], wanted = stage, stage.inputs[taken]
                break
    return chain


def _read(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = describe_faults(error) if isinstance(error, ValidationError) else error
        raise ReportError(f"{path} cannot be used: {reason}; have it written again") from error
