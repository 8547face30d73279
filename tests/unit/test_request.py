"""What is said of a request: whose address counts, and what is left of what clients send."""

import ipaddress
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgaudit_ctx import ContextInvalid, audit_context, current_context
from pgaudit_ctx.context import current_scope
from pgaudit_ctx.errors import UsageError
from pgaudit_ctx.integrations.request import TrustedProxies, defaults, merge
from pgaudit_ctx.message import encode_context, plain_context

OURS = ["10.0.0.0/8", "2001:db8:1::/48"]


@pytest.mark.parametrize(
    ("peer", "headers", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["6.6.6.6, 198.51.100.7, 10.2.3.4"], "198.51.100.7"),
        ("10.0.0.1", ["6.6.6.6", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["10.9.9.9, 10.2.3.4"], "10.9.9.9"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, unknown, 10.2.3.4"], "10.2.3.4"),
        ("10.0.0.1", ["198.51.100.7:4711"], "198.51.100.7"),
        ("10.0.0.1", ["[2001:db8:2::7]:4711"], "2001:db8:2::7"),
        ("10.0.0.1", ["2001:DB8:2:0::7"], "2001:db8:2::7"),
        ("2001:db8:1::1", ["198.51.100.7"], "198.51.100.7"),
        ("::ffff:10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ("testclient", ["198.51.100.7"], None),
        (None, ["198.51.100.7"], None),
        ("", [], None),
    ],
)
def test_the_client_is_the_rightmost_hop_that_is_no_trusted_proxy(
    peer: str | None, headers: list[str], client: str | None
) -> None:
    assert TrustedProxies(OURS).client(peer, headers) == client


def test_without_trusted_proxies_no_header_counts() -> None:
    assert TrustedProxies().client("10.0.0.1", ["198.51.100.7"]) == "10.0.0.1"


@pytest.mark.parametrize("peer", [None, ""])
def test_a_proxy_on_a_unix_socket_is_trusted_by_that_name(peer: str | None) -> None:
    assert TrustedProxies(["unix"]).client(peer, ["198.51.100.7"]) == "198.51.100.7"
    assert TrustedProxies(["unix"]).client("10.0.0.1", ["198.51.100.7"]) == "10.0.0.1"


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        (["for=6.6.6.6, for=198.51.100.7;proto=https;by=10.0.0.1"], "198.51.100.7"),
        (['For="[2001:db8:2::7]:4711"'], "2001:db8:2::7"),
        (['proto=https;for="198.51.100.7:80"', "for=10.2.3.4"], "198.51.100.7"),
        (["for=198.51.100.7, for=_hidden"], "10.0.0.1"),
        (["for=198.51.100.7, proto=https"], "10.0.0.1"),
        (['for="a,b", for=198.51.100.7'], "198.51.100.7"),
    ],
)
def test_the_standard_header_is_read_where_it_is_the_one_that_was_named(
    headers: list[str], client: str
) -> None:
    assert TrustedProxies(OURS, "Forwarded").client("10.0.0.1", headers) == client


@pytest.mark.parametrize("wrong", ["10.0.0.0/33", "proxy.example", "10.0.0.1/8", ""])
def test_a_proxy_that_is_no_address_is_refused_by_name(wrong: str) -> None:
    with pytest.raises(UsageError, match="neither an address nor a network"):
        TrustedProxies([wrong])


def test_objects_of_ipaddress_and_one_text_alone_name_proxies_too() -> None:
    by_object = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_address("192.0.2.9")]
    assert TrustedProxies(by_object).client("192.0.2.9", ["1.2.3.4"]) == "1.2.3.4"
    assert TrustedProxies("10.0.0.0/8").client("10.0.0.1", ["1.2.3.4"]) == "1.2.3.4"


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
GARBAGE = st.text(st.characters(max_codepoint=255), max_size=40)


@given(
    spoofed=st.lists(st.one_of(ADDRESSES, GARBAGE), max_size=4),
    hops=st.lists(st.ip_addresses(network="10.0.0.0/8").map(str), max_size=3),
    header=st.sampled_from(["X-Forwarded-For", "Forwarded"]),
)
def test_nothing_that_a_client_writes_changes_its_address(
    spoofed: list[str], hops: list[str], header: str
) -> None:
    proxies = TrustedProxies(OURS, header)
    form = "for={}" if header == "Forwarded" else "{}"
    told = [form.format(hop) for hop in ["198.51.100.7", *hops]]
    written = ",".join(spoofed)
    assert proxies.client("10.0.0.1", [written, ", ".join(told)]) == "198.51.100.7"


@given(st.lists(GARBAGE, max_size=4), st.sampled_from(["X-Forwarded-For", "Forwarded"]))
def test_no_header_is_so_malformed_that_it_raises(headers: list[str], header: str) -> None:
    found = TrustedProxies(OURS, header).client("10.0.0.1", headers)
    assert found is not None
    ipaddress.ip_address(found)


@given(st.text(), st.text(), st.text(), st.text())
def test_whatever_a_client_sends_can_be_carried(
    method: str, path: str, request_id: str, user_agent: str
) -> None:
    values = defaults(
        method=method, path=path, request_id=request_id, ip=None, user_agent=user_agent
    )
    encode_context(plain_context(values))
    assert len(values["user_agent"]) <= 256


def test_what_is_long_is_cut() -> None:
    values = defaults(
        method="GET", path="/é" * 40_000, request_id=None, ip=None, user_agent="x" * 9999
    )
    assert len(encode_context(plain_context(values))) < 10_000


@pytest.mark.parametrize("given_id", [None, "", "a b", "é", "x" * 129, "a\n"])
def test_an_illegible_request_id_is_replaced_by_a_new_one(given_id: str | None) -> None:
    values = defaults(method="GET", path="/", request_id=given_id, ip=None, user_agent=None)
    assert str(uuid.UUID(values["request_id"])) == values["request_id"]


def test_what_the_application_says_goes_over_the_defaults_key_by_key_and_none_removes_one() -> None:
    with audit_context(method="GET", ip="192.0.2.1"):
        merge(current_scope(), {"ip": None, "method": "get", "user": "dr.who", "unset": None})
        assert current_context() == {"method": "get", "user": "dr.who"}
        merge(current_scope(), None)
        assert current_context() == {"method": "get", "user": "dr.who"}
        with pytest.raises(ContextInvalid):
            merge(current_scope(), {"user": object()})


@pytest.mark.parametrize("junk", ["dr.who", ["user"], 7, True])
def test_what_is_no_mapping_is_refused_by_what_it_is(junk: object) -> None:
    with (
        audit_context(),
        pytest.raises(ContextInvalid, match=rf"returned a {type(junk).__name__}: let it return"),
    ):
        merge(current_scope(), junk)


def test_a_coroutine_function_where_none_is_awaited_is_told() -> None:
    async def get_context() -> dict[str, str]:
        return {"user": "dr.who"}

    with audit_context(), pytest.raises(ContextInvalid, match="returned a coroutine"):
        merge(current_scope(), get_context())


@pytest.mark.parametrize("zone", ["eth0", "\0", "x" * 70_000])
def test_the_zone_of_an_address_which_may_be_any_text_is_left_out(zone: str) -> None:
    assert TrustedProxies(["10.0.0.1"]).client("10.0.0.1", [f"fe80::1%{zone}"]) == "fe80::1"
    assert TrustedProxies().client(f"fe80::1%{zone}", []) == "fe80::1"
