"""Per-sample gradients of single layers, one small rule per kind of layer and framework."""
