"""Our own checkpoint: one safetensors file, its header saying which network the tensors belong to.

The tensors' shapes are the channel table: a pruned network is loaded by giving every layer of the variant the shape of
its tensors, so nothing is ever unpickled.

CheckpointError   the file is missing, not one of ours, or its tensors do not fit the variant
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from damoserve_compress.network.network import Network, build_network
from damoserve_profiles.files import replace_file


class CheckpointError(ValueError):
    """The checkpoint cannot be used; the message says why."""


@dataclass(frozen=True)
class Description:
    """What a checkpoint is of."""

    model: str
    variant: str
    labels: tuple[str, ...]
    width: int
    height: int


def save_checkpoint(path: Path, network: Network, description: Description, dtype: torch.dtype = torch.float32) -> None:
    """Writes the training form of a network, replacing `path` in one step.

    `dtype` is that of the convolutions' weights; the statistics of batch norms, which exceed what 16 bits hold, stay
    in 32.
    """
    tensors = {
        key: (tensor.to(dtype) if tensor.ndim > 1 else tensor).contiguous()
        for key, tensor in network.state_dict().items()
    }
    header = {"damoserve": json.dumps(asdict(description))}
    replace_file(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def load_checkpoint(path: Path) -> tuple[Network, Description]:
    """Reads a network in training form and eval mode. Raises CheckpointError."""
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("damoserve")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
    if header is None:
        raise CheckpointError(f"{path} has no damoserve header; it was not written by this tool")
    try:
        fields = json.loads(header)
        description = Description(**(fields | {"labels": tuple(fields["labels"])}))
        network = build_network(description.variant, len(description.labels))
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} has a header that this version cannot read: {error}") from error
    _take_shapes(network, tensors)
    try:
        network.load_state_dict(
            {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
        )
    except RuntimeError as error:
        expected = f"variant {description.variant} with {len(description.labels)} labels"
        raise CheckpointError(f"{path} does not hold {expected}: {error}") from error
    return network.eval(), description


def _take_shapes(network: Network, tensors: dict[str, torch.Tensor]) -> None:
    """Gives convolutions and norms the channel counts of their tensors. Convolutions are not grouped in this family."""
    for name, module in network.named_modules():
        weight = tensors.get(f"{name}.weight")
        if weight is None:
            continue
        if isinstance(module, nn.Conv2d):
            module.in_channels = weight.shape[1]
            if module.bias is None:  # what the head predicts is not for the tensors to decide
                module.out_channels = weight.shape[0]
            shape = (module.out_channels, module.in_channels, *module.kernel_size)
            module.weight = nn.Parameter(torch.empty(shape))
        elif isinstance(module, nn.BatchNorm2d):
            module.num_features = len(weight)
            module.weight, module.bias = (nn.Parameter(torch.empty(len(weight))) for _ in range(2))
            module.running_mean, module.running_var = (torch.empty(len(weight)) for _ in range(2))
