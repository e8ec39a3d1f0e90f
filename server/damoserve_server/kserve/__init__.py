"""The KServe v2 protocol (Open Inference Protocol) as Triton speaks it, over the same `Detector`.

tensors     the inputs and outputs, and how BYTES are packed
parameters  a request's parameters: names, types, ranges
decode      a request to images and wishes
encode      results to tensors
targets     what a model name means: a model, or one profile of it
describe    metadata, configuration and index
statistics  what every model has done
infer       one request, all images or none
streaming   many requests, answered in order
service     protobuf in, protobuf out
methods     the gRPC service under the protocol's own name
"""
