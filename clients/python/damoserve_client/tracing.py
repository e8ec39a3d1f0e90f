"""Where OpenTelemetry is installed, every call names the span that it was made in."""

from collections.abc import MutableMapping

try:
    from opentelemetry.propagate import inject
except ImportError:

    def inject(carrier: MutableMapping[str, str]) -> None:  # type: ignore[misc]  # theirs takes more
        """There is no span."""


Metadata = tuple[tuple[str, str], ...]


def with_trace(metadata: Metadata) -> Metadata:
    """The metadata of a call that is made now."""
    carrier: dict[str, str] = {}
    inject(carrier)
    return (*metadata, *carrier.items())
