"""Triton kernels of detection's operators; ``tasks.detection`` says where they serve."""
