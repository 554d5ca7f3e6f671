"""FAISS indexes over a store's rows, and the searches that use them."""
