"""Records that a build has left in its work folder about the profiles of a model."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from damoserve_compress.build.steps import QUANTISATION
from damoserve_compress.build.work_folder import RECORD
from damoserve_compress.naive import NaiveReport, NaiveRow
from damoserve_compress.prune.recover import NETWORK, REPORT, Cut
from damoserve_compress.quantise import QuantisationReport
from damoserve_compress.report.errors import ReportError
from damoserve_profiles.faults import describe_faults
from damoserve_profiles.manifest import MODEL_FILE, Manifest, Source

T = TypeVar("T")


@dataclass(frozen=True)
class FinishedStep:
    """A finished step of a build."""

    folder: Path
    inputs: Mapping[str, Any]
    files: Mapping[str, str]
    """SHA-256 of each."""
    seconds: float

    @property
    def step(self) -> str:
        return self.folder.name.partition("-")[0]


@dataclass(frozen=True)
class PruningRecord:
    """A pruning of the model's source network."""

    stage: FinishedStep
    cuts: tuple[Cut, ...]
    profiles: tuple[str, ...]
    """The profiles that were made from the result."""


@dataclass(frozen=True)
class BuildRecords:
    """The records of the profiles; empty where the folder has nothing of them."""

    prunings: tuple[PruningRecord, ...] = ()
    quantisations: Mapping[str, QuantisationReport] = field(default_factory=dict)
    """The report of each profile's quantisation."""
    seconds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """The seconds that each step of a profile took, by profile and step."""


def read_build_records(folder: Path, manifests: Sequence[Manifest]) -> BuildRecords:
    """Reads what was done for these profiles, found by the hashes of their files. Raises ReportError."""
    stages = list(_stages(folder))
    made = {manifest.profile: _chain(manifest, stages) for manifest in manifests}
    quantisations = {
        profile: _read(chain["quantise"].folder / QUANTISATION, QuantisationReport)
        for profile, chain in made.items()
        if "quantise" in chain
    }
    sources = {manifest.source.sha256 for manifest in manifests}
    prunings = [
        PruningRecord(
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
    return BuildRecords(tuple(prunings), quantisations, seconds)


def read_naive(path: Path, source: Source) -> Sequence[NaiveRow]:
    """Reads what `damoserve-compress naive --json` wrote of the profiles' source network. Raises ReportError."""
    found = _read(path, NaiveReport)
    if found.sha256 != source.sha256:
        raise ReportError(
            f"{path} is of {found.checkpoint} (SHA-256 {found.sha256}), the profiles are of {source.checkpoint} "
            f"(SHA-256 {source.sha256}): measure that with damoserve-compress naive --json"
        )
    return found.rows


def _stages(folder: Path) -> Iterator[FinishedStep]:
    """The finished ones; a folder without a record is of a step that was interrupted."""
    for path in sorted(folder.glob(f"*/{RECORD}")):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            yield FinishedStep(path.parent, dict(record["inputs"]), dict(record["files"]), float(record["seconds"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReportError(
                f"{path} is not the record of a step ({error}); remove its folder, build again"
            ) from error


def _chain(manifest: Manifest, stages: Sequence[FinishedStep]) -> dict[str, FinishedStep]:
    """The steps that led to a profile, backwards: what each took in is what another gave out."""
    chain: dict[str, FinishedStep] = {}
    wanted = manifest.files[MODEL_FILE].sha256
    for step, result, taken in (
        ("quantise", MODEL_FILE, "graph"),
        ("export", MODEL_FILE, "checkpoint"),
        ("prune", NETWORK, "checkpoint"),
    ):
        made = [stage for stage in stages if stage.step == step and stage.files.get(result) == wanted]
        if made:
            # Other options may have led to the same file, but not to the same account of it.
            options = manifest.recipe.model_dump()[step]
            chain[step] = next((stage for stage in made if stage.inputs.get("options") == options), made[0])
            wanted = chain[step].inputs.get(taken, "")
    return chain


def _read(path: Path, kind: type[T]) -> T:
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = describe_faults(error) if isinstance(error, ValidationError) else error
        raise ReportError(f"{path} cannot be used: {reason}; have it written again") from error
