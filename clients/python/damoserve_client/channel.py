"""How both clients reach the server: retries, limits, reconnection, and what goes with every call."""

import ipaddress
import json
import queue

import grpc

DEFAULT_ADDRESS = "127.0.0.1:50051"
DEFAULT_TIMEOUT = 10.0
# The present state comes at once; this bounds the wait should it not.
_STATE_SECONDS = 2.0

# Only UNAVAILABLE is certain to pass: a request refused for its deadline or a full queue would only add to the load.
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.1s",
                "maxBackoff": "1s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # gRPC silently does not retry a message that does not fit here, and its default of 256 KiB is less than a photo.
    ("grpc.per_rpc_retry_buffer_size", 64 * 1024 * 1024),
    # The default waits up to two minutes before it looks again for a server that was restarted.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
)


def channel_options(address: str) -> tuple[tuple[str, str | int], ...]:
    """Options for `grpc.insecure_channel` and its siblings."""
    if is_this_machine(address):
        # gRPC obeys `http_proxy` even for this machine, where no proxy can reach.
        return (*_OPTIONS, ("grpc.enable_http_proxy", 0))
    return _OPTIONS


def open_channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    """Opens a channel, with TLS if there are credentials."""
    options = channel_options(address)
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def is_connected(channel: grpc.Channel) -> bool:
    """Tells whether the other side has answered the handshake of HTTP/2, by what is known of the channel now."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    tell = states.put
    channel.subscribe(tell)  # a thread of gRPC's tells the present state at once, and each change
    try:
        return states.get(timeout=_STATE_SECONDS) is grpc.ChannelConnectivity.READY
    except queue.Empty:
        return False
    finally:
        channel.unsubscribe(tell)


def call_metadata(
    address: str, credentials: grpc.ChannelCredentials | None, token: str | None
) -> tuple[tuple[str, str], ...]:
    """Returns the metadata of every call. Raises ValueError where the token is none, or could be read on its way."""
    if token is None:
        return ()
    if not (token.isascii() and token.isprintable()):
        raise ValueError("the token has characters that cannot be sent: it must be one line of ASCII")
    if credentials is None and not is_this_machine(address):
        raise ValueError(f"a token would go to {address} in plain text: give credentials too (TLS)")
    return (("authorization", f"Bearer {token}"),)


def is_this_machine(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False
