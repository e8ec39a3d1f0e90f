"""The errors of quantisation.

QuantisationError   the graph is not one of ours, the images do not serve, a convolution would run in float that should
                    not, or the budget cannot be kept
"""


class QuantisationError(RuntimeError):
    """The quantised graph cannot be made as wanted; the message says why."""
