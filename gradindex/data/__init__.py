"""Datasets, batches, labels and columns: what goes in, and in which form."""
