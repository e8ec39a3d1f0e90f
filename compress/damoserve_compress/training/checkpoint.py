"""Files of a training run, and what can go wrong with it.

TrainingError
├── ResumeMismatch    the state in the output folder is of a run with another configuration, data or start
├── UnusableState     the state in the output folder is damaged or not one
├── UnusableWeights   the checkpoint to start from, or the teacher's, does not fit
└── Diverged          the loss is no finite number
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from damoserve_profiles.files import replace_file, replace_text


class TrainingError(Exception):
    """A training run cannot start or go on."""


class ResumeMismatch(TrainingError):
    """Resuming would not give the curve that either configuration describes."""


class UnusableState(TrainingError):
    """The state to resume from cannot be read."""


class UnusableWeights(TrainingError):
    """The weights are not those of such a network."""


class Diverged(TrainingError):
    """Going on would only waste time."""


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    replace_file(path, lambda temporary: torch.save(dict(state), temporary))


def load_state(path: Path, entries: Iterable[str] = ()) -> dict[str, Any]:
    """Reads a training's state. Only tensors and plain values are accepted: no code of the file is run.

    Raises UnusableState where the file is damaged or lacks one of `entries`.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = set(entries).difference(state)
    except Exception as error:  # whatever the damage leads torch and its unpickler to
        raise UnusableState(f"{path} is damaged ({error}): remove it, or do not resume") from error
    if missing:
        raise UnusableState(f"{path} lacks {', '.join(sorted(missing))}: remove it, or do not resume")
    return dict(state)


def save_json(path: Path, values: Any) -> None:
    replace_text(path, json.dumps(values, indent=2) + "\n")
