"""Files from elsewhere: a path, an address on the web, ModelScope or Hugging Face.

Why one could not be got: `damoserve_compress.fetch.errors`.
"""

from damoserve_compress.fetch.errors import (
    ClientMissing,
    FetchError,
    SourceGone,
    SourceInvalid,
    TargetUnusable,
    TransferFailed,
    WrongContent,
)
from damoserve_compress.fetch.sources import fetch
from damoserve_compress.fetch.web import ReportProgress

__all__ = [
    "ClientMissing",
    "FetchError",
    "ReportProgress",
    "SourceGone",
    "SourceInvalid",
    "TargetUnusable",
    "TransferFailed",
    "WrongContent",
    "fetch",
]
