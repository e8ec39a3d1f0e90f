"""The report on a model's profiles: measured anew, explained, and drawn, as Markdown and as one HTML page."""

from damoserve_compress.report.compose import PLOTS, ReportConfig, make_report
from damoserve_compress.report.errors import ReportError

__all__ = ["PLOTS", "ReportConfig", "ReportError", "make_report"]
