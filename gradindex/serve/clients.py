"""Who asks: the name of a token, or an address, behind a proxy that of the proxy's client."""

import hmac
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from gradindex.serve.asgi import Scope, header
from gradindex.serve.settings import Settings

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

SHARED = ""
"""The name of the one token that all clients share."""
_OF_ONE = 64  # leading bits of an IPv6 address: a household or a server has all addresses behind them


@dataclass(frozen=True)
class Client:
    """A client: `name` is that of its token (`SHARED`, or None without a right one), `key` what it is counted by."""

    name: str | None
    key: str


class Clients:
    """Tells clients apart.

    Parameters
    ----------
    settings
        Tokens, and which proxies are believed.
    """

    def __init__(self, settings: Settings) -> None:
        self._tokens = {name: token.encode() for name, token in settings.named_tokens.items()}
        if settings.token is not None:
            self._tokens[SHARED] = settings.token.encode()
        self._proxies = [ipaddress.ip_network(one) for one in settings.trusted_proxies]
        self._header = settings.client_header.encode()

    def of(self, scope: Scope) -> Client:
        """Return who sent a request. A named token is one client; whoever else is told apart by the address."""
        name = self._name(scope)
        if name:
            return Client(name, f"token {name}")
        return Client(name, f"address {self._address(scope)}")

    def _name(self, scope: Scope) -> str | None:
        kind, _, given = header(scope, b"authorization").partition(b" ")
        if kind.lower() != b"bearer":
            return None
        given, found = given.strip(), None
        for name, token in self._tokens.items():  # all of them, so that the time tells nothing
            if hmac.compare_digest(given, token):
                found = name
        return found

    def _address(self, scope: Scope) -> str:
        """Return the peer's address; if that is a trusted proxy, the last one in its header that is none."""
        peer = str((scope.get("client") or ("unknown",))[0])
        at = _parsed(peer)
        if at is None:
            return peer[:64]
        hops = [part.strip() for part in header(scope, self._header).decode("latin-1").split(",")]
        while _within(at, self._proxies) and hops:
            before = _parsed(hops.pop())
            if before is None:
                break
            at = before
        if at.version == 6:
            return str(ipaddress.ip_network((int(at), _OF_ONE), strict=False))
        return str(at)


def _parsed(text: str) -> Address | None:
    """Return an address that may have a port behind it; None if it is none."""
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def _within(address: Address, networks: Sequence[Network]) -> bool:
    return any(address in one for one in networks)
