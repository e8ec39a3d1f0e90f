"""The error that stops a report.

ReportError (ValueError)   something that the report is to be made from cannot be used; the message says what to do
"""


class ReportError(ValueError):
    """The report cannot be made."""
