"""Groups of channels that belong together, the importance of each channel, and the cut.

A channel is cut in more than one layer. The convolution that gives it loses a filter, its norm a factor, and whatever
reads it a slice of its weights. A sum ties the channels of both its terms, for they must stay as many and in the same
places; a concatenation only moves them. torch-pruning follows all this through the graph that autograd records, and
finds every layer that has to change with a given one. Such a set of layers is a group, named by one of its
convolutions, its root.

An example from the neck of variant P: the last fusion, `neck.merge_6`, whose three blocks each add to what they got.

    x0 = conv2(input)
    x1 = x0 + convs.0(x0)
    x2 = x1 + convs.1(x1)
    x3 = x2 + convs.2(x2)
    output = conv3(concatenation of conv1(input), x1, x2 and x3, 64 channels each)

The sums tie x0 to x3: one group, with the root `neck.merge_6.convs.2.conv1.conv`, of 64 channels. To cut channel 5 of
it is to cut, at once,

    filter 5                    of conv2, and of convs.0.conv1, convs.1.conv1 and convs.2.conv1, each with its norm
    input 5                     of both branches of the RepConv that begins each block
    inputs 69, 133 and 197      of conv3, where x1, x2 and x3 lie behind conv1's 64 channels

and the group's importance of channel 5 is taken over all these weights. The channels between the two convolutions of
each block, where the branches of the RepConv are summed, are three further groups. What the head predicts is in no
group: labels and bins are not for cutting.

Groups are told by their roots and not kept as objects, as a group's indices hold for the very copy that was traced.
`cut` traces a copy of its own, in which every cut moves the indices of the later ones along.
"""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
import torch_pruning
from torch import Tensor, nn

from damoserve_compress.network import Network
from damoserve_profiles.recipe import Importance

_TRACED_SIDE: Final = 64  # pixels; which layers belong together does not depend on the size of the image

_IMPORTANCES: Final[Mapping[Importance, Callable[[], Any]]] = {
    "l1": partial(torch_pruning.importance.GroupMagnitudeImportance, p=1),
    "bn_scale": torch_pruning.importance.BNScaleImportance,
    "taylor": torch_pruning.importance.GroupTaylorImportance,
}


Keep = Mapping[str, int]
"""Channels that stay, by the root of their group."""


class PruneError(RuntimeError):
    """The network cannot be cut as wanted; the message says why."""


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Layers whose channels can only be cut together."""

    root: str
    """The convolution that stands for the group."""
    scores: Tensor
    """[C] what each channel is worth, comparable within the group only."""

    @property
    def channels(self) -> int:
        return len(self.scores)

    @property
    def stage(self) -> str:
        """The part of the network that the group is in, such as `backbone.block_list.2` or `neck.merge_3`."""
        parts = self.root.split(".")
        return ".".join(parts[: 3 if parts[0] == "backbone" else 2])


def find_groups(network: Network, importance: Importance) -> list[ChannelGroup]:
    """Finds all groups of a network in training form, but for what its head predicts; the network stays as it is.

    `l1` is the norm of all weights of a channel (Li et al. 2017, arXiv 1608.08710), `bn_scale` the factor of its norm
    (Liu et al. 2017, arXiv 1708.06519), `taylor` the first-order change of the loss without it (Molchanov et al. 2019,
    arXiv 1906.10771), which needs gradients on the parameters. Raises PruneError.
    """
    traced, graph = _traced(network)
    score = _IMPORTANCES[importance]()
    names = {module: name for name, module in traced.named_modules()}
    ignored = [*traced.head.gfl_cls, *traced.head.gfl_reg]
    found = []
    for group in graph.get_all_groups(ignored_layers=ignored, root_module_types=[nn.Conv2d]):
        root = names[group[0].dep.target.module]
        scores = score(group)
        if scores is None:
            raise PruneError(f"the channels of {root} cannot be ranked by {importance}")
        found.append(ChannelGroup(root, scores.detach().cpu()))
    return found


def cut(network: Network, groups: list[ChannelGroup], keep: Keep) -> Network:
    """A smaller copy in training form, in train mode: of each group named in `keep` by its root, so many channels stay.

    Those with the least scores go. `groups` are those of this network.
    """
    smaller, graph = _traced(network)
    modules = dict(smaller.named_modules())
    for group in groups:
        wanted = keep.get(group.root, group.channels)
        if not 0 < wanted <= group.channels:
            raise PruneError(f"{group.root} has {group.channels} channels, of which {wanted} cannot stay")
        doomed = group.scores.argsort(stable=True)[: group.channels - wanted]
        if len(doomed):
            root = modules[group.root]
            prune = graph.get_pruner_of_module(root).prune_out_channels
            graph.get_pruning_group(root, prune, doomed.sort().values.tolist()).prune()
    return smaller.train()


def uniform(groups: Sequence[ChannelGroup], ratio: float, round_to: int) -> Keep:
    """Cuts the same ratio of every group."""
    return {group.root: kept_channels(group.channels, ratio, round_to) for group in groups}


def kept_channels(channels: int, ratio: float, round_to: int) -> int:
    """Counts the channels that stay when the share `ratio` goes: the nearest multiple of `round_to`, at least one."""
    return min(channels, max(round_to, round(channels * (1 - ratio) / round_to) * round_to))


def _traced(network: Network) -> tuple[Network, Any]:
    """A copy in eval mode, with its gradients, and its dependency graph."""
    # Layers are followed through what autograd records, which is nothing for frozen parameters.
    copied = copy.deepcopy(network).eval().requires_grad_(True)
    for original, parameter in zip(network.parameters(), copied.parameters(), strict=True):
        parameter.grad = original.grad  # which a copy leaves behind
    device = next(copied.parameters()).device
    images = torch.zeros(1, 3, _TRACED_SIDE, _TRACED_SIDE, device=device)
    with warnings.catch_warnings(), torch.enable_grad():
        # The three scalar scales of the head belong to no group, which torch-pruning mentions.
        warnings.filterwarnings("ignore", message="Unwrapped parameters")
        return copied, torch_pruning.DependencyGraph().build_dependency(copied, images, forward_fn=_trace)


def _trace(network: Network, images: Tensor) -> Tensor:
    raw = network.raw(images)
    return raw.class_logits.sum() + raw.box_logits.sum()
