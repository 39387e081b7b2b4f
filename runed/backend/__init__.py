"""The engine process, `llama-server`, as an Embedder."""
