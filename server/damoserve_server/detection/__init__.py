"""The use case: one detection, from a request with an absolute deadline to its boxes, whatever protocol it came by.

Knows nothing of protobuf, of gRPC's calls, or of how models come and go.

request      what a caller asks for, what is answered, and the seconds of each stage
detector     the way of a request: admitted, decoded, computed, answered
gate         lets requests in until the server stops, and waits for those inside
worker_pool  all workers of a device, the lock around their queue, and the watchdog
worker       one thread that computes batches; a job is one request in it
startup      calls that come before the models are loaded, or while the server stops
outcomes     every request is counted once, by what became of it
trace        what tracing and the access log are told of a request
"""
