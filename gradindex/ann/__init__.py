"""Approximate nearest neighbours: everything that knows FAISS."""
