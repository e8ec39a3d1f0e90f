"""The fidelity monitor: sampled answers are compared with those of a reference profile, while no request is there.

Knows nothing of the queue, the workers or the latency estimates; a request interrupts what it computes.

monitor   samples answers, runs the reference in a thread of its own, stands back for requests
samples   an answer that is kept until it is compared, and the buffers for that
metrics   the series in which the monitor shows what it found
settings  what an operator sets
"""
