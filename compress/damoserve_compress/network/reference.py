"""Checkpoints of the reference implementation, tinyvision/DAMO-YOLO: `.pth` files.

There are two generations. Those before v0.3 (and all on ModelScope) have a class channel more than labels, the last
one, which means nothing; they were trained and evaluated on images that keep their aspect ratio. Later ones have a
channel for each label and were trained on stretched images. The tensors tell which network they are of.
"""

import pickle
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from torch import Tensor

from damoserve_compress.datasets.labels import COCO_LABELS, read_labels
from damoserve_compress.network.checkpoint import CheckpointError
from damoserve_compress.network.network import Network, build_network
from damoserve_compress.network.structures import VARIANTS, Structure, find_structure
from damoserve_profiles.imaging import ResizeMode

Generation = Literal["legacy", "v0.3"]
RESIZE: Final[Mapping[Generation, ResizeMode]] = MappingProxyType({"legacy": "fit", "v0.3": "stretch"})

CLASS_HEAD: Final = "head.gfl_cls."
SHOWN: Final = 3
"""Keys of each kind that an error names."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class ReferenceOptions:
    """The facts that are known beforehand; the rest is read off the tensors."""

    variant: str | None = None
    """The variant or structure file, as `find_structure` takes it."""
    labels: tuple[str, ...] | None = None
    """The labels; None stands for those of COCO."""
    resize: ResizeMode | None = None
    """The way to resize; None stands for that of the generation."""


@dataclass(frozen=True, eq=False)
class Reference:
    """A checkpoint as read: the network in training form and eval mode, with as many classes as labels."""

    network: Network
    labels: tuple[str, ...]
    generation: Generation
    """Legacy where there is a class channel more than labels."""
    resize: ResizeMode


def load_reference(path: Path, options: ReferenceOptions = ReferenceOptions()) -> Reference:
    """Reads a checkpoint without unpickling anything but tensors and plain values.

    Raises CheckpointError; StructureError for an unknown `variant`.
    """
    tensors = _read(path)
    channels = _class_channels(tensors)
    structure = _structure(path, tensors, channels, options.variant)
    labels = options.labels if options.labels is not None else _coco_labels(path, channels)
    if channels - len(labels) not in (0, 1):
        raise CheckpointError(
            f"{path} has {channels} class channels: it needs {channels} labels, or {channels - 1} if it is a "
            f"legacy checkpoint; {len(labels)} are given"
        )
    network = build_network(structure, len(labels))
    network.load_state_dict(
        {key: tensor[: len(labels)] if key.startswith(CLASS_HEAD) else tensor for key, tensor in tensors.items()}
    )
    generation: Generation = "legacy" if channels > len(labels) else "v0.3"
    return Reference(network.eval(), labels, generation, options.resize or RESIZE[generation])


def _read(path: Path) -> dict[str, Tensor]:
    """The weights in a file: its `model`, or all of it, without the `module.` of a distributed run."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (unknown := re.search(r"GLOBAL ([\w.]+)", str(error))) is None:
            raise CheckpointError(f"{path} is not a PyTorch checkpoint, or a damaged one") from error
        raise CheckpointError(
            f"{path} holds an object of {unknown[1]}, which would run code to be read. Where the file can be trusted, "
            "save its weights alone: torch.save({'model': model.state_dict()}, ...)"
        ) from error
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # what damage leads to: RuntimeError, EOFError, KeyError, OSError ...
        raise CheckpointError(f"{path} is not a PyTorch checkpoint, or a damaged one") from error
    weights = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(weights, Mapping) or not all(isinstance(tensor, Tensor) for tensor in weights.values()):
        raise CheckpointError(f"{path} holds neither a `model` nor a bare dictionary of tensors")
    return {str(key).removeprefix("module."): tensor for key, tensor in weights.items()}


def _class_channels(tensors: Mapping[str, Tensor]) -> int:
    """The channels of the first class predictor; where there is none, the comparison of keys will tell."""
    predictors = (tensor for key, tensor in tensors.items() if key.startswith(CLASS_HEAD) and tensor.ndim)
    return next((len(tensor) for tensor in predictors), 1)


def _coco_labels(path: Path, channels: int) -> tuple[str, ...]:
    labels = read_labels(COCO_LABELS)
    if channels - len(labels) not in (0, 1):
        raise CheckpointError(
            f"{path} has {channels} class channels, so its labels are not COCO's: give a list of them"
        )
    return labels


def _structure(path: Path, tensors: Mapping[str, Tensor], channels: int, variant: str | None) -> Structure:
    """The wanted structure, or else the variant that the tensors are of. Raises CheckpointError if they do not fit."""
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    wanted = None if variant is None else find_structure(variant)
    if wanted is not None and (expected := _expected(wanted, channels)) == shapes:
        return wanted
    known = {name: _expected(structure, channels) for name, structure in VARIANTS.items()}
    likeliest = max(known, key=lambda name: _likeness(shapes, known[name]))
    if wanted is None:
        wanted, expected = VARIANTS[likeliest], known[likeliest]
        if expected == shapes:
            return wanted
    matching = sum(known[likeliest].get(key) == shape for key, shape in shapes.items())
    raise CheckpointError(
        f"{path} is not DAMO-YOLO {wanted.name}: {_differences(shapes, expected)}. The likeliest variant is "
        f"{likeliest}, which has {matching} of the file's {len(shapes)} tensors"
    )


@cache
def _expected(structure: Structure, channels: int) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in build_network(structure, channels).state_dict().items()}


def _likeness(shapes: Shapes, expected: Shapes) -> float:
    """Share of the keys of either that both have with the same shape."""
    return sum(expected.get(key) == shape for key, shape in shapes.items()) / len(shapes.keys() | expected.keys())


def _differences(shapes: Shapes, expected: Shapes) -> str:
    """Says what is wrong: how many tensors of each kind, and the first few."""
    kinds = {
        "missing": [key for key in expected if key not in shapes],
        "unexpected": [key for key in shapes if key not in expected],
        "of another shape": [
            f"{key} is {shapes[key]} instead of {shape}"
            for key, shape in expected.items()
            if shapes.get(key, shape) != shape
        ],
    }
    return "; ".join(f"{len(found)} {kind}: {_first(found)}" for kind, found in kinds.items() if found)


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" and so on" if len(names) > SHOWN else "")
