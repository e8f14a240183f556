"""GGUF files, as llama.cpp has them: what their headers say, and how they become model directories."""
