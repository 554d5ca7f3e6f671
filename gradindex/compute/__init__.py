"""Whatever runs the model over samples: embeddings, exact products, queries, landmarks, the watch over rows."""
