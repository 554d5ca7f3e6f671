"""Gradients of PyTorch models."""
