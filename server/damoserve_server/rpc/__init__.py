"""Everything that gRPC calls have in common, whichever protocol they belong to.

Interceptors are around every method, the listeners make the servers, and errors become statuses. Knows nothing of what
a detection is, but for how a request is counted that nobody has read.

calls          around every call: a request id, metrics, errors as statuses
authorisation  lets in the calls whose token may make them
listeners      gRPC servers as the settings ask for them: interceptors, limits, TLS
status         errors as `google.rpc.Status`
health         what `grpc.health.v1` says of the server
reflection     what the server offers, for tools without the .proto
probe          asks a server for its health; a program of its own
handlers       the four types of methods that gRPC has
duration       seconds as protobuf writes them
"""
