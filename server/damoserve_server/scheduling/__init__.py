"""The queue of a device, and the choice of what it computes next: objects without threads, event loop, gRPC or files.

Every time comes from a clock that is passed in, so that tests and the simulator run the very code that serves.

policy     what a policy is told (`QueueState`) and may answer (`Start`, `Pause`), and the order of urgency
deadline   the server's policy: the most accurate profile and batch by which everybody is still in time
ranking    the queue in the order of urgency, with the slack of every request
baselines  the policies that the server's is compared with
scheduler  the queue itself: admits requests, hands out batches, drops what cannot be in time
latency    seconds of batches and of decoding, and the rate of arrivals, learned while serving
selection  latency tiers, and the profiles that are accurate enough for a request
"""
