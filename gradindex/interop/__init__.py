"""Other people's interfaces: Alibi, scikit-learn, quanda, Parquet and FAISS files."""
