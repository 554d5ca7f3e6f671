"""What the service lets in, and where it keeps what reviewers decide."""

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from gradindex.defaults import MAPPED, REVIEWED_SERVED

HOST = "127.0.0.1"
"""Where the service listens: this machine's programs alone reach it."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and access of the service.

    Parameters
    ----------
    token
        What clients send as ``Authorization: Bearer TOKEN``; None lets everyone in.
    hosts
        Names that requests may give as their Host; those of this machine alone, so that a page from elsewhere cannot
        reach the service through a name that resolves to it. ``("*",)`` for all.
    max_body
        Bytes of a request's body.
    max_queries
        Queries in one request, and items in one answer.
    max_k, max_rerank
        Neighbours of each side, and exact checks, that a request may ask for.
    max_batch
        Queries of several requests that share a forward pass; 1 answers one request after the other.
    max_waiting
        Queries that may wait; beyond that requests are answered with 429.
    linger
        Seconds to wait for requests that are likely to come, when the last batch held several.
    timeout
        Seconds until a request is answered with 504, and until a body must have arrived.
    read_only
        Refuse decisions with 403; the page then offers none.
    review_dir
        Where decisions, the review and the map are kept; None: ``OUT.review`` beside the index. An index behind a URL
        needs one for decisions.
    review_top
        Lines of each kind in the page's review.
    map_points, map_way
        Samples on the map, and how they are laid out, see `gradindex.review.projection.project`.
    """

    token: str | None = field(default=None, repr=False)
    hosts: tuple[str, ...] = (HOST, "localhost", "[::1]")
    max_body: int = 8 << 20
    max_queries: int = 64
    max_k: int = 1000
    max_rerank: int = 10_000
    max_batch: int = 64
    max_waiting: int = 1024
    linger: float = 0.01
    timeout: float = 60.0
    read_only: bool = False
    review_dir: Path | None = None
    review_top: int = REVIEWED_SERVED
    map_points: int = MAPPED
    map_way: str = "tsne"

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in ("token", "hosts", "read_only", "review_dir", "map_way"):
                continue
            if value < (0 if one.name == "linger" else 1):
                raise ValueError(f"{one.name} must be positive, got {value!r}.")
        if self.token is not None and (not self.token.isascii() or len(self.token) < 8 or self.token.split() == []):
            raise ValueError("token must be at least 8 ASCII characters.")
        if self.max_waiting < self.max_queries:
            raise ValueError(f"max_waiting is {self.max_waiting}, less than one request's {self.max_queries} queries.")
        if self.map_way not in ("tsne", "pca"):
            raise ValueError(f"map_way must be tsne or pca, got {self.map_way!r}.")

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON-ready values; of the token only whether there is one."""
        found = asdict(self)
        found |= {"token": None if self.token is None else "(set)", "hosts": list(self.hosts)}
        return found | {"review_dir": None if self.review_dir is None else str(self.review_dir)}
