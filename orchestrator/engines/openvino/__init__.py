"""OpenVINO GenAI, on GGUF files."""
