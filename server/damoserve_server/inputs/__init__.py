"""Pictures as they come in: limits, decoding, and the buffers that hold a network's input.

Knows nothing of networks, requests or protocols: it brings a picture into a row of memory of a given size.

images   limits of pictures, and their decoding and resizing in threads
buffers  rows for network inputs, allocated once, leased to requests
"""
