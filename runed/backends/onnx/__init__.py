"""The engine process, a worker with ONNX Runtime, as an Embedder."""
