"""Turns errors into `google.rpc.Status` with the details that the contract promises."""

import logging
from collections.abc import Iterator

from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from damoserve_server.errors import DamoserveError, InternalError, forget_origin
from damoserve_server.rpc.duration import to_duration
from damoserve_server.telemetry.records import request_id

DOMAIN = "damoserve"
"""The domain of every ErrorInfo."""

log = logging.getLogger(__name__)


def to_known(error: Exception, subject: str) -> DamoserveError:
    """Returns the error for the caller, without its origin. An unexpected one is logged, and told as InternalError.

    `subject`, for the log, is what has failed.
    """
    if not isinstance(error, DamoserveError):
        log.error("%s failed", subject, exc_info=error)
    forget_origin(error)
    return error if isinstance(error, DamoserveError) else InternalError("internal error")


def to_status(error: DamoserveError) -> status_pb2.Status:
    """Returns the status with an ErrorInfo, the request id if a call is being answered, and the other details."""
    status = status_pb2.Status(code=error.code.value[0], message=str(error))
    for detail in _details(error):
        status.details.add().Pack(detail)
    return status


def _details(error: DamoserveError) -> Iterator[Message]:
    details, message, identifier = error_details_pb2, str(error), request_id.get()
    metadata = error.details | ({"request_id": identifier} if identifier else {})
    yield details.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    if identifier:
        yield details.RequestInfo(request_id=identifier)
    if error.field is not None:
        violation = details.BadRequest.FieldViolation(field=error.field, description=message)
        yield details.BadRequest(field_violations=[violation])
    if error.name is not None:
        yield details.ResourceInfo(resource_type=error.resource_type, resource_name=error.name, description=message)
    if error.retry_after is not None:
        yield details.RetryInfo(retry_delay=to_duration(error.retry_after))
