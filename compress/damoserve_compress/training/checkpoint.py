"""Files of a training run, and what can go wrong with it.

TrainingError
├── ResumeMismatch    the state in the output folder is of a run with another configuration, data or start
├── UnusableWeights   the checkpoint to start from is of another variant
└── Diverged          the loss is no finite number
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from damoserve_profiles.files import replace_file, replace_text


class TrainingError(Exception):
    """A training run cannot start or go on."""


class ResumeMismatch(TrainingError):
    """Resuming would not give the curve that either configuration describes."""


class UnusableWeights(TrainingError):
    """The weights are not those of such a network."""


class Diverged(TrainingError):
    """Going on would only waste time."""


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    replace_file(path, lambda temporary: torch.save(dict(state), temporary))


def load_state(path: Path) -> dict[str, Any]:
    """Only tensors and plain values are accepted: no code of the file is run."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_json(path: Path, values: Any) -> None:
    replace_text(path, json.dumps(values, indent=2) + "\n")
