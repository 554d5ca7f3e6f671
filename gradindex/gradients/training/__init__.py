"""Gradients along a training run: checkpoints, their callbacks, TracIn."""
