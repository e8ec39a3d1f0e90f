"""Every metric that Prometheus sees, the endpoint that serves them, and the page that lists them.

Knows nothing of who counts: the other rooms call the methods here.

metrics     all metrics of a server, by their subjects
calls       calls of gRPC
requests    requests: arrivals, ends, routing, times
device      queue, batches, workers and buffers
models      profiles and tiers as loaded, reloads, versions of the build
rows        series that are counted and written by the row, as quick as a busy server needs them
exposition  writes all of it, and serves it over HTTP
buckets     the edges of the histograms
reference   writes docs/metrics.md
"""
