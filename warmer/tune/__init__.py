"""CUDA-graph capture sizes from the batch sizes that a server has seen."""
