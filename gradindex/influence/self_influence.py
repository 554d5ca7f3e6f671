"""Self-influence and labels that disagree; the code is in `gradindex.influence.labels`."""

from gradindex.influence.labels import label_disagreement, self_influence

__all__ = ["label_disagreement", "self_influence"]
