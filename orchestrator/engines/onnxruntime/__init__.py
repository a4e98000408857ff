"""ONNX Runtime GenAI: a model built once from its safetensors, run on the CPU."""
