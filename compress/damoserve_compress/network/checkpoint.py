"""Our own checkpoint: one safetensors file, its header saying which network the tensors belong to.

The tensors' shapes are the channel table: a pruned network is loaded by giving every layer of the variant the shape of
its tensors, so nothing is ever unpickled. A structure that is not one of `VARIANTS` is in the header itself.

CheckpointError   the file is missing, not one of ours, or its tensors do not fit the variant
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from damoserve_compress.network.network import Network, build_network
from damoserve_compress.network.structures import VARIANTS, structure_from_dict, structure_to_dict
from damoserve_profiles.faults import describe_faults
from damoserve_profiles.files import replace_file
from damoserve_profiles.imaging import ResizeMode
from damoserve_profiles.manifest import FileName, InputSpec

HEADER = "damoserve"
STRUCTURE = "structure"


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message says why."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Description:
    """The contents of a checkpoint, in words, and how images are brought to its `width` and `height`."""

    model: FileName
    variant: str
    labels: Annotated[tuple[str, ...], Field(min_length=1)]
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    resize: ResizeMode = "stretch"

    @property
    def input(self) -> InputSpec:
        return InputSpec(width=self.width, height=self.height, resize=self.resize)


def save_checkpoint(path: Path, network: Network, description: Description, dtype: torch.dtype = torch.float32) -> None:
    """Writes the training form of a network, replacing `path` in one step.

    `dtype` is that of the convolutions' weights; the statistics of batch norms, which exceed what 16 bits hold, stay
    in 32. Raises OSError.
    """
    tensors = {
        key: (tensor.to(dtype) if tensor.ndim > 1 else tensor).contiguous()
        for key, tensor in network.state_dict().items()
    }
    header = asdict(description)
    if VARIANTS.get(description.variant) != network.structure:
        header[STRUCTURE] = structure_to_dict(network.structure)
    content = save(tensors, {HEADER: json.dumps(header)})
    replace_file(path, lambda temporary: temporary.write_bytes(content))


def load_checkpoint(path: Path) -> tuple[Network, Description]:
    """Reads a network in training form and eval mode. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(HEADER)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if header is None:
        raise CheckpointError(f"{path} has no {HEADER} header; it was not written by this tool")
    try:
        network, description = _described(json.loads(header))
    except ValueError as error:
        fault = describe_faults(error) if isinstance(error, ValidationError) else error
        raise CheckpointError(f"{path} has a header that this version cannot read: {fault}") from error
    _take_shapes(network, tensors)
    try:
        network.load_state_dict(
            {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
        )
    except RuntimeError as error:
        expected = f"variant {description.variant} with {len(description.labels)} labels"
        raise CheckpointError(f"{path} does not hold {expected}: {error}") from error
    return network.eval(), description


def _described(header: Any) -> tuple[Network, Description]:
    """Raises ValueError."""
    if not isinstance(header, dict):
        raise ValueError("it has no fields")
    description = Description(**{name: value for name, value in header.items() if name != STRUCTURE})
    # The variant is no path here: what a header names is not opened.
    structure = structure_from_dict(header[STRUCTURE]) if STRUCTURE in header else VARIANTS.get(description.variant)
    if structure is None:
        raise ValueError(f"there is no variant {description.variant!r}, and the structure is not given")
    return build_network(structure, len(description.labels)), description


def _take_shapes(network: Network, tensors: Mapping[str, torch.Tensor]) -> None:
    """Gives convolutions and norms the channel counts of their tensors. Grouped convolutions are depthwise here.

    A tensor that can be of neither is left for the loading to refuse.
    """
    for name, module in network.named_modules():
        weight = tensors.get(f"{name}.weight")
        if weight is None or not weight.numel():
            continue
        if isinstance(module, nn.Conv2d) and weight.ndim == 4:
            depthwise = module.groups > 1
            module.in_channels = weight.shape[0 if depthwise else 1]
            if module.bias is None:  # what the head predicts is not for the tensors to decide
                module.out_channels = weight.shape[0]
            if depthwise:
                module.groups = module.in_channels
            shape = (module.out_channels, module.in_channels // module.groups, *module.kernel_size)
            module.weight = nn.Parameter(torch.empty(shape))
        elif isinstance(module, nn.BatchNorm2d) and weight.ndim == 1:
            module.num_features = len(weight)
            module.weight, module.bias = (nn.Parameter(torch.empty(len(weight))) for _ in range(2))
            module.running_mean, module.running_var = (torch.empty(len(weight)) for _ in range(2))
