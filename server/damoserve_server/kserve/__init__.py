"""The KServe v2 protocol (Open Inference Protocol) as Triton speaks it: messages in, messages out.

Turns a ModelInferRequest into a DetectionRequest for each image, and the results into tensors. Knows nothing of queues
and engines, nor of the other protocol.

tensors          the inputs and outputs, and how BYTES are packed
parameters       the parameters of a request that mean something here: names, types, ranges
reserved         the parameters that Triton reserves: which values are accepted, and why others are refused
values           the value of one parameter, if it has the right type
decode           a request to images and options
encode           results to tensors
targets          what a model name means: a model, or one profile of it
describe         metadata, configuration and index
statistics       how often and how long each model and profile has computed
server_settings  settings of the trace and of the log, to be read
administration   loading and unloading
infer            one request, all images or none
streaming        many requests, answered in order
service          the methods, over all of these
descriptor       the service as the protocol names it
methods          registers the service under that name
"""
