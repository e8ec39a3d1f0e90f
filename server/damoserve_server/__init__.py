"""The gRPC server: holds a model in several profiles and answers each request with the best one that is in time.

Every room is a package whose docstring says what is in it; docs/architecture.md has the floors on which they lie.

__main__, cli   the command
app             one server: started and stopped
assembly        builds what a server computes with
errors          the errors of a call
v1, kserve      the protocols
rpc             everything that gRPC calls have in common
detection       one request, from arrival to answer
lifecycle       changes of what is served
scheduling      the queue, and the choice of what is computed next
models, engines, inputs    what is loaded; the runtimes; pictures and buffers
metrics, telemetry, fidelity, access, configuration    what their names say
"""
