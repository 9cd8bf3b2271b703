"""Sparse models as files: ONNX export with sparse weights and metadata, what such a file says, and a model made from it again."""
