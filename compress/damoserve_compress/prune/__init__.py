"""Structured pruning: whole channels are cut, over groups of layers that must agree on them, then won back by training.

A residual sum, a concatenation or the two branches of a RepConv tie channels of several layers together; torch-pruning
finds these groups by tracing the network, and one decision then holds for the whole group. Cuts are made in the form
with branches and norms, which can be trained on.

PruneError   the network cannot be cut as wanted
"""

from damoserve_compress.prune.cut import ChannelGroup, PruneError, cut, find_groups, kept_channels, uniform

__all__ = ["ChannelGroup", "PruneError", "cut", "find_groups", "kept_channels", "uniform"]
