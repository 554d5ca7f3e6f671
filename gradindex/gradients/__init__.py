"""Per-sample gradients: one engine per framework behind one interface."""
