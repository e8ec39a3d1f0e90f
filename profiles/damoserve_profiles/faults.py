"""Errors of pydantic, in one line."""

from pydantic import ValidationError


def describe_faults(error: ValidationError) -> str:
    """Describes an error like `stages.0.depth: Input should be greater than 0; neck: Field required`."""
    faults = []
    for fault in error.errors():
        own = fault.get("ctx", {}).get("error")  # what a validator raised, without pydantic's preface
        message = str(own) if isinstance(own, ValueError) else fault["msg"]
        faults.append(": ".join(filter(None, (".".join(map(str, fault["loc"])), message))))
    return "; ".join(faults)
