"""The Triton kernels; `ops` calls their `launch` functions for CUDA tensors."""
