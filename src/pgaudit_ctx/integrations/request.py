"""What is said of a request, whatever serves it; pure.

Everything here comes from a client or a proxy, so nothing of it is trusted to be well-formed: what
cannot be read is left out, and no header makes a request fail.
"""

import inspect
import ipaddress
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, TypeAlias

from pgaudit_ctx.context import Scope
from pgaudit_ctx.errors import ContextInvalid, UsageError
from pgaudit_ctx.message import measured_context

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MARK: Final = "pgaudit_ctx"
"""The key under which a middleware leaves word that it has spoken for a request."""

UNIX: Final = "unix"
"""Stands among the trusted proxies for one that connects through a Unix socket."""

FORWARDED_FOR: Final = "X-Forwarded-For"

_LONGEST_PATH: Final = 1024
_LONGEST_USER_AGENT: Final = 256
_REQUEST_ID: Final = re.compile(r"[\x21-\x7e]{1,128}")
_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")
# RFC 7239, section 4.
_FORWARDED_FOR: Final = re.compile(r'(?:^|;)\s*for\s*=\s*"?([^;"]*)', re.IGNORECASE)


def storable(text: str, longest: int) -> str:
    """Cut a text, and replace what PostgreSQL cannot store."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text[:longest])


def defaults(
    *,
    method: str,
    path: str,
    request_id: str | None,
    ip: str | None,
    user_agent: str | None,
) -> dict[str, str]:
    """Give the context that every request has.

    Args:
        method: ``"GET"`` and so on, or ``"WEBSOCKET"``.
        path: What was asked for; stands in for the route's template until that is known.
        request_id: The client's, or a proxy's; one is made if there is none, or if it is longer
            than 128 characters or has others than the visible ones of ASCII.
        ip: The client's address.
        user_agent: Cut to 256 characters.

    Returns:
        ``method``, ``endpoint`` and ``request_id``; ``ip`` and ``user_agent`` where known.
    """
    if request_id is None or not _REQUEST_ID.fullmatch(request_id):
        request_id = str(uuid.uuid4())
    values = {
        "method": storable(method, _LONGEST_USER_AGENT),
        "endpoint": storable(path, _LONGEST_PATH),
        "request_id": request_id,
    }
    if ip is not None:
        values["ip"] = ip
    if user_agent is not None:
        values["user_agent"] = storable(user_agent, _LONGEST_USER_AGENT)
    return values


def merge(scope: Scope, given: object) -> None:
    """Merge what an application says of a request over what the scope has, key by key.

    Args:
        scope: The request's scope.
        given: What the application's ``get_context`` returned; ``None`` for a key removes it.

    Raises:
        ContextInvalid: If it is no mapping, or a value cannot be carried.
    """
    if given is None:
        return
    if not isinstance(given, Mapping):
        if inspect.iscoroutine(given):
            given.close()  # or it would warn that nobody has awaited it
        raise ContextInvalid(
            f"get_context returned a {type(given).__name__}: let it return a mapping, or None"
        )
    if not given:
        return
    removed = [key for key, value in given.items() if value is None]
    if removed:
        scope.unbind(removed)
    values = {key: value for key, value in given.items() if value is not None}
    scope.bind(*measured_context(values))


class TrustedProxies:
    """Finds the client's address behind proxies that may be believed.

    Each proxy appends the address it was asked from, so the header is read from its right end: the
    first hop that is not a trusted proxy is the client, and what stands to the left of it anybody
    may have written.

    Args:
        proxies: Addresses and networks, as text or as objects of ``ipaddress``; ``"unix"`` is a
            proxy that connects through a Unix socket.
        header: The header that these proxies set: ``X-Forwarded-For``, ``Forwarded`` (RFC 7239),
            or the name of one that has a single address. Only this one is read, for proxies pass
            on the others as the client sent them.

    Raises:
        UsageError: If an entry is neither an address nor a network.
    """

    def __init__(
        self, proxies: Iterable[str | Address | Network] = (), header: str = FORWARDED_FOR
    ) -> None:
        if isinstance(proxies, str):
            proxies = (proxies,)
        self.header: Final = header.lower()
        self._networks: list[Network] = []
        self._unix = False
        for proxy in proxies:
            if proxy == UNIX:
                self._unix = True
                continue
            try:
                self._networks.append(ipaddress.ip_network(proxy))
            except ValueError:
                raise UsageError(
                    f"trusted_proxies: {proxy!r} is neither an address nor a network: write it "
                    "like '10.0.0.7', '10.0.0.0/8', '2001:db8::/32', or 'unix'"
                ) from None

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def client(self, peer: str | None, headers: Sequence[str]) -> str | None:
        """Give the address of who asks.

        Args:
            peer: The address at the other end of the connection; ``None`` or empty for a Unix
                socket.
            headers: The values of the header, in the order in which they arrived.

        Returns:
            The rightmost hop that is not a trusted proxy, as ``ipaddress`` writes it; the outermost
            trusted one if all are, or if the next is not legible; ``None`` if not even the peer
            has an address.
        """
        address = _address(peer or "")
        if not (self._unix if not peer else self._trusts(address)):
            return None if address is None else str(address)
        for hop in reversed(self._hops(headers)):
            further = _address(hop)
            if further is None:
                break
            address = further
            if not self._trusts(address):
                break
        return None if address is None else str(address)

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)

    def _hops(self, headers: Sequence[str]) -> list[str]:
        # Quotes are not heeded: no address has a comma, and a quote that a client leaves open must
        # not swallow what the proxies append.
        hops = ",".join(headers).split(",")
        if self.header != "forwarded":
            return hops
        found = [_FORWARDED_FOR.search(hop.strip()) for hop in hops]
        return ["" if one is None else one[1] for one in found]


def _address(hop: str) -> Address | None:
    """Read ``192.0.2.1``, ``192.0.2.1:80``, ``2001:db8::1``, ``[2001:db8::1]`` or ``[…]:80``."""
    hop = hop.strip()
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        address = ipaddress.ip_address(hop)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return address
    # A server that listens on both calls an IPv4 client ::ffff:192.0.2.1. The zone, fe80::1%eth0,
    # means something on its own machine only, and may be any text of any length.
    return address.ipv4_mapped or ipaddress.IPv6Address(int(address))
