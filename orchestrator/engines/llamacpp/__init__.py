"""llama.cpp: GGUF files in several formats, and its server in this process."""
