"""Samples to look at before a model is trained again."""
