"""Gradients of Keras models on TensorFlow."""
