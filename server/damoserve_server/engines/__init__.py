"""The runtimes that compute a network. Each is imported by one file only, so that none has to be installed.

Knows nothing of the rest of the server: a model file, its manifest and options go in, an `Engine` comes out.

engine         the protocol of an engine, its options and its errors
choice         which runtime a profile is loaded in
onnxruntime    ONNX Runtime, on a processor or by its execution providers on a GPU
providers      the options of these execution providers
openvino       OpenVINO, on a processor
tensorrt       TensorRT, on an NVIDIA GPU
tensorrt_plan  networks that TensorRT has compiled, shared by the workers
cuda           memory, streams and graphs of CUDA
cache          what a GPU's runtime has built, kept on disk
"""
