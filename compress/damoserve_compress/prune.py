"""Structured pruning: whole channels are cut, over groups of layers that must agree on them.

A residual sum, a concatenation or the two branches of a RepConv tie channels of several layers together; torch-pruning
finds these groups by tracing the network, and one decision then holds for the whole group.
"""

import copy
import warnings

import torch
import torch_pruning
from torch import Tensor, nn

from damoserve_compress.network import Network
from damoserve_profiles.imaging import Size
from damoserve_profiles.recipe import Prune


def prune(network: Network, size: Size, options: Prune) -> Network:
    """A smaller copy of a network in training form, to be fine-tuned.

    Within every group the channels with the smallest L1 norm go, as many as leave the multiple of `options.round_to`
    nearest to the wanted share. What the head predicts stays as it is.
    """
    pruned = copy.deepcopy(network).eval()
    convolutions = [module for module in pruned.modules() if isinstance(module, nn.Conv2d)]
    with warnings.catch_warnings():
        # The three scalar scales of the head belong to no group, which torch-pruning mentions.
        warnings.filterwarnings("ignore", message="Unwrapped parameters")
        torch_pruning.MetaPruner(
            pruned,
            example_inputs=torch.zeros(1, 3, size.height, size.width),
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=1),
            pruning_ratio=options.ratio,
            pruning_ratio_dict={module: _ratio(module.out_channels, options) for module in convolutions},
            ignored_layers=[*pruned.head.gfl_cls, *pruned.head.gfl_reg],
            forward_fn=_trace,
        ).step()
    return pruned


def kept_channels(channels: int, options: Prune) -> int:
    """How many of a layer's channels stay."""
    multiple = options.round_to
    return min(channels, max(multiple, round(channels * (1 - options.ratio) / multiple) * multiple))


def _ratio(channels: int, options: Prune) -> float:
    # Half a channel less than exact: the pruner rounds what stays down, and a fraction may miss the whole number.
    return max(0.0, (channels - kept_channels(channels, options) - 0.5) / channels)


def _trace(network: Network, images: Tensor) -> Tensor:
    raw = network.raw(images)
    return raw.class_logits.sum() + raw.box_logits.sum()
