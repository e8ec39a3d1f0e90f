"""Files of a training run: the state it resumes from, and weights to start with.

TrainingError
├── ResumeMismatch    the state in the output folder is of a run with another configuration
└── UnusableWeights   a file of weights has nothing that fits the network
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from damoserve_profiles.files import replace_file


class TrainingError(Exception):
    """A training run cannot start or go on."""


class ResumeMismatch(TrainingError):
    """Resuming would not give the curve that either configuration describes."""


class UnusableWeights(TrainingError):
    """The weights are not those of such a network."""


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    replace_file(path, lambda temporary: torch.save(dict(state), temporary))


def load_state(path: Path) -> dict[str, Any]:
    """Only tensors and plain values are accepted: no code of the file is run."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def save_json(path: Path, values: Any) -> None:
    replace_file(path, lambda temporary: _write_json(temporary, values))


def _write_json(path: Path, values: Any) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def load_weights(network: nn.Module, path: Path) -> list[str]:
    """Takes from `path` all that fits `network` by name and shape, as when a head has another number of classes.

    Returns the names that kept their initial values. Raises UnusableWeights where nothing fits.
    """
    given, state = load_file(path), network.state_dict()
    fitting = {name: value for name, value in given.items() if name in state and state[name].shape == value.shape}
    if not fitting:
        raise UnusableWeights(f"{path} holds no weights of a network like this one")
    network.load_state_dict(fitting, strict=False)
    return sorted(set(state) - set(fitting))
