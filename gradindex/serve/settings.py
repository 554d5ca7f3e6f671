"""What the service lets in, and where it keeps what reviewers decide."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from gradindex.defaults import MAPPED, REVIEWED_SERVED

HOST = "127.0.0.1"
"""Where the service listens: this machine's programs alone reach it."""
_MAY_BE_ZERO = {"linger", "rate_limit", "reload_seconds"}
_NAME, _HEADER = re.compile(r"[\w.@-]{1,64}", re.ASCII), re.compile(r"[a-z0-9-]+")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and access of the service.

    Parameters
    ----------
    token
        What clients send as ``Authorization: Bearer TOKEN``. With no token, named or not, everyone is let in.
    named_tokens
        Tokens of clients by their names, which the audit log of decisions tells and which are limited each by itself.
    hosts
        Names that requests may give as their Host; those of this machine alone, so that a page from elsewhere cannot
        reach the service through a name that resolves to it. ``("*",)`` for all.
    rate_limit, rate_burst
        Requests a second of one client (of a named token, else of an address, or an IPv6 network of 64 bits), and how
        many may come at once after a pause; 0: no limit. More are answered with 429. The page's own files and the paths
        of health are not counted.
    trusted_proxies
        Addresses or networks (``10.0.0.0/8``) of proxies that say whom they ask for; of others it is not believed.
    client_header
        Where these proxies say it.
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
    reload_seconds
        Seconds between two looks at whether the index on the disk was replaced or changed; the service then opens it,
        and answers new requests by it. 0: only at SIGHUP.
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
    named_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    hosts: tuple[str, ...] = (HOST, "localhost", "[::1]")
    rate_limit: float = 0.0
    rate_burst: int = 20
    trusted_proxies: tuple[str, ...] = ()
    client_header: str = "x-forwarded-for"
    max_body: int = 8 << 20
    max_queries: int = 64
    max_k: int = 1000
    max_rerank: int = 10_000
    max_batch: int = 64
    max_waiting: int = 1024
    linger: float = 0.01
    timeout: float = 60.0
    reload_seconds: float = 5.0
    read_only: bool = False
    review_dir: Path | None = None
    review_top: int = REVIEWED_SERVED
    map_points: int = MAPPED
    map_way: str = "tsne"

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not (0 if one.name in _MAY_BE_ZERO else 1) <= value < float("inf"):
                raise ValueError(f"{one.name} must be positive, got {value!r}.")
        tokens = [*self.named_tokens.values(), *([] if self.token is None else [self.token])]
        if any(not one.isascii() or len(one) < 8 or one.split() == [] for one in tokens):
            raise ValueError("token must be at least 8 ASCII characters.")
        if len(set(tokens)) < len(tokens):
            raise ValueError("named_tokens must differ: two clients have the same one.")
        if wrong := [name for name in self.named_tokens if not _NAME.fullmatch(name)]:
            raise ValueError(f"named_tokens takes names of letters, digits, . _ @ and -, up to 64, got {wrong[0]!r}.")
        for proxy in self.trusted_proxies:
            try:
                ipaddress.ip_network(proxy)
            except ValueError as error:
                raise ValueError(f"trusted_proxies takes addresses and networks such as 10.0.0.0/8: {error}.") from None
        if not _HEADER.fullmatch(self.client_header):
            raise ValueError(f"client_header must be the name of a header in lower case, got {self.client_header!r}.")
        if self.max_waiting < self.max_queries:
            raise ValueError(f"max_waiting is {self.max_waiting}, less than one request's {self.max_queries} queries.")
        if self.map_way not in ("tsne", "pca"):
            raise ValueError(f"map_way must be tsne or pca, got {self.map_way!r}.")

    @property
    def need_token(self) -> bool:
        """Whether clients need a token."""
        return self.token is not None or bool(self.named_tokens)

    def to_json(self) -> dict[str, object]:
        """Return everything as JSON-ready values; of the token only whether there is one, of named ones the names."""
        found = asdict(self)
        found |= {"token": None if self.token is None else "(set)", "hosts": list(self.hosts)}
        found |= {"named_tokens": sorted(self.named_tokens), "trusted_proxies": list(self.trusted_proxies)}
        return found | {"review_dir": None if self.review_dir is None else str(self.review_dir)}
