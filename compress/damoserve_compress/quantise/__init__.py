"""Static 8-bit quantisation for ONNX Runtime on CPUs, to an accuracy budget.

QDQ with QUInt8 activations and QInt8 weights per channel: the only combination that ONNX Runtime fuses into 8-bit
kernels on x86 (with its default, signed activations, nothing fuses and the graph is slower than fp32). Everything up to
the head's convolutions may be quantised, so that no float island costs a round trip; what is behind them stays float.

QuantisationError   the graph is not one of ours, the images do not serve, a convolution would run in float that should
                    not, or the budget cannot be kept
"""

from damoserve_compress.quantise.errors import QuantisationError
from damoserve_compress.quantise.observe import Images
from damoserve_compress.quantise.quantise import quantise_onnx
from damoserve_compress.quantise.report import QuantisationReport

__all__ = ["Images", "QuantisationError", "QuantisationReport", "quantise_onnx"]
