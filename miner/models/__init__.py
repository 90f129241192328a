"""Model files: read a GGUF, convert it to ONNX exactly, keep the embedded model, name a model."""
