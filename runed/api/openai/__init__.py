"""The embeddings part of OpenAI's API on top of the host."""
