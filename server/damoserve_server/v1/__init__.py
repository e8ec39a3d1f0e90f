"""The project's own protocol, `damoserve.v1`: messages in, messages out.

Checks the arguments of a message, makes a `DetectionRequest` of it and a message of the result, and keeps the streams.
Knows nothing of queues and engines, nor of the other protocol.

convert         messages to requests, results to messages
service         DetectionService and ProfileService
admin           AdminService: loads, unloads and replaces what is served
window          which frames of a stream are computed, which are dropped, which is answered next
stream          one stream on the event loop: its tasks, its timer and its ends
stream_handler  the messages of a stream: frames out of them, answers into them
"""
