"""ONNX Runtime as an Embedder."""
