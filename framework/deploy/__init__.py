"""Takes a model elsewhere: programs for ONNX Runtime and torch.export, and the model hub."""
