"""llama.cpp: GGUF files in several formats, its server in this process, quality through it."""
