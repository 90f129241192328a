"""Where webhooks may lead: nowhere that only this machine or its network should reach."""

import asyncio
import contextlib
import socket
import ssl
import threading
from ipaddress import ip_address

import httpcore2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.errors import MarketError
from node.webhooks import transport as transport_module
from node.webhooks.guard import AddressRefusedError, Guard, check_url, classify
from node.webhooks.sender import Sender
from node.webhooks.transport import CheckedNetwork, CheckedTransport, NameUnknownError, Resolver
from tests.webhook_node import Names

PUBLIC = ["8.8.8.8", "1.1.1.1", "100.63.255.255", "172.32.0.1", "192.167.1.1", "223.255.255.255"]
PUBLIC_V6 = ["2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888"]
PRIVATE = ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "fd00:ec2::254"]
LOOPBACK = ["127.0.0.1", "127.255.255.254", "::1"]
RESERVED = [
    *("0.0.0.0", "0.1.2.3", "169.254.169.254", "192.0.0.1", "192.0.2.1", "192.88.99.1"),
    *("198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1"),
    *("255.255.255.255", "::", "::8.8.8.8", "::ffff:0:8.8.8.8", "fe80::1", "fe80::1%lo", "fec0::1"),
    *("ff02::1", "100::1", "2001::1", "2001:db8::1", "3fff::1", "64:ff9b:1::808:808", "5f00::1"),
]


def carried(address: str) -> list[str]:
    """IPv6 addresses that lead to an IPv4 address."""
    number = int(ip_address(address))
    return [
        f"::ffff:{address}",
        f"64:ff9b::{address}",
        f"2002:{number >> 16:x}:{number & 0xFFFF:x}::1",
    ]


def kinds():
    for kind, addresses in (
        ("public", PUBLIC),
        ("private", PRIVATE),
        ("loopback", LOOPBACK),
        ("reserved", RESERVED),
    ):
        for address in addresses:
            yield address, kind
            if ":" not in address:
                yield from ((form, kind) for form in carried(address))
    yield from ((address, "public") for address in PUBLIC_V6)


@pytest.mark.parametrize(("address", "kind"), list(kinds()))
def test_an_address_is_known_for_what_it_is_in_every_form(address, kind):
    assert classify(ip_address(address)) == kind


@given(st.ip_addresses())
def test_what_is_called_public_is_so_for_the_standard_library_too(address):
    if classify(address) == "public" and not getattr(address, "sixtofour", None):
        mapped = getattr(address, "ipv4_mapped", None) or address
        assert not mapped.is_multicast
        assert mapped.is_global or ip_address("64:ff9b::") <= address < ip_address("64:ff9b::1:0:0")


@pytest.mark.parametrize("reach", ["public", "loopback", "private"])
@pytest.mark.parametrize("is_plain", [True, False])
def test_each_reach_opens_what_it_says_and_no_more(reach, is_plain):
    guard = Guard(reach=reach, is_plain=is_plain)
    opened = {
        kind
        for kind, addresses in (
            ("public", PUBLIC + PUBLIC_V6),
            ("loopback", LOOPBACK),
            ("private", PRIVATE),
            ("reserved", RESERVED),
        )
        for address in addresses
        if guard.allows(ip_address(address))
    }
    steps = {"public": [], "loopback": ["loopback"], "private": ["loopback", "private"]}[reach]
    assert opened == {*steps, *([] if is_plain else ["public"])}


def test_one_bad_address_among_good_ones_refuses_the_name_and_so_does_none():
    guard = Guard(reach="public", is_plain=False)
    guard.check([ip_address("8.8.8.8"), ip_address("2606:4700::1111")])
    for addresses in (["8.8.8.8", "10.0.0.1"], ["::1", "8.8.8.8"], []):
        with pytest.raises(AddressRefusedError):
            guard.check([ip_address(each) for each in addresses])


@pytest.mark.parametrize(
    "url",
    [
        *("", "x", "ftp://a.example/", "file:///etc/passwd", "//a.example/", "https:a.example"),
        *("http://a.example/", "HTTPS://a.example/", "https://", "https:///x", "https://:443/"),
        *("https://user@a.example/", "https://user:pw@a.example/", "https://:pw@a.example/"),
        *("https://a.example/#x", "https://a.example\\@b/", "https://a.example/ x"),
        *("https://a.example/\r\nX: y", "https://a.example/\x00", "https://a.example/ü"),
        *("https://a.example:0/", "https://a.example:65536/", "https://a.example:x/"),
        *("https://a.example:-1/", "https://[::1/", "https://[fe80::1%25lo]/", "https://[v1.x]/"),
        *("https://127.0.0.1/", "https://10.1.2.3:8443/", "https://[::1]/", "https://[fd00::1]/"),
        *("https://169.254.169.254/latest/meta-data", "https://0.0.0.0/", "https://[::]/"),
        *("https://[::ffff:127.0.0.1]/", "https://[64:ff9b::7f00:1]/", "https://[2002:7f00:1::]/"),
        "https://a.example/" + "x" * 2048,
    ],
)
def test_a_url_that_no_webhook_may_have_is_refused_with_its_field(url):
    with pytest.raises(MarketError, match=r"^url: ") as caught:
        check_url(url, "public")
    assert caught.value.code == "VALIDATION_FAILED"


@pytest.mark.parametrize(
    ("url", "reach", "message"),
    [
        ("https://10.0.0.1/", "public", "a public address; this node's operator has not allowed"),
        ("http://10.0.0.1/", "loopback", "or this machine; others need .*--webhook-allow-private"),
        ("https://169.254.169.254/", "private", "a public address, a private one or this machine"),
        ("http://8.8.8.8/", "loopback", "expected https"),
    ],
)
def test_a_refused_address_says_which_ones_are_taken(url, reach, message):
    with pytest.raises(MarketError, match=message):
        check_url(url, reach)


@pytest.mark.parametrize(
    "url",
    [
        *("https://a.example", "https://a.example:8443/x?y=z&u=a@b", "https://8.8.8.8/"),
        *("https://xn--bcher-kva.example/", "https://[2606:4700::1111]:65535/"),
    ],
)
def test_an_honest_url_is_taken(url):
    check_url(url, "public")


def test_plain_http_is_for_those_who_may_reach_this_machine():
    check_url("http://127.0.0.1:9000/", "loopback")
    check_url("http://10.0.0.1:9000/", "private")
    for url, reach in (("http://10.0.0.1/", "loopback"), ("http://8.8.8.8/", "private")):
        with pytest.raises(MarketError):
            check_url(url, reach)


@given(st.text())
def test_no_text_makes_the_check_fail_otherwise(text):
    for url in (text, f"https://{text}", f"https://a.example{text}"):
        with contextlib.suppress(MarketError):
            check_url(url, "private")


class Connections(httpcore2.AsyncNetworkBackend):
    """Notes where connections would go, and makes none."""

    def __init__(self) -> None:
        self.made: list[tuple[str, int]] = []

    async def connect_tcp(self, host, port, **_):
        self.made.append((host, port))
        raise httpcore2.ConnectError


def attempt(names: Names, url: str, reach="public") -> tuple[str | None, list[tuple[str, int]]]:
    """Send to a URL; returns why it failed, and which connections were tried."""
    below = Connections()

    async def run():
        transport = CheckedTransport(
            reach, resolve=names, tls=ssl.create_default_context(), below=below
        )
        async with transport:
            return await Sender(transport, lambda: 0).send(url, b"s", "msg_1", b"{}")

    return asyncio.run(run()).error, below.made


@pytest.mark.parametrize("answer", [*PRIVATE, *LOOPBACK, *RESERVED, *carried("127.0.0.1")])
def test_a_name_that_leads_inside_is_never_connected_to(answer):
    assert attempt(Names(a_example=answer), "https://a.example/") == ("address_refused", [])
    assert attempt(Names(a_example=f"8.8.8.8 {answer}"), "https://a.example/")[1] == []


def test_the_connection_goes_to_the_address_that_was_checked_whatever_the_name_says_next():
    names = Names()
    names.answers["a.example"] = ["8.8.8.8", "127.0.0.1"]
    assert attempt(names, "https://a.example:444/") == ("connection_refused", [("8.8.8.8", 444)])
    assert names.asked == ["a.example"]
    assert attempt(names, "https://a.example:444/") == ("address_refused", [])


def test_plain_http_goes_to_no_public_address():
    names = Names(a_example="8.8.8.8", b_example="10.0.0.1")
    assert attempt(names, "http://a.example/", "private") == ("address_refused", [])
    assert attempt(names, "http://b.example/", "private")[1] == [("10.0.0.1", 80)]


def test_few_of_many_addresses_are_tried():
    names = Names(a_example=" ".join(f"8.8.8.{i}" for i in range(1, 100)))
    assert len(attempt(names, "https://a.example/")[1]) == transport_module.MAX_TRIED_ADDRESSES


@pytest.mark.parametrize("host", ["127.1", "0x7f000001", "2130706433", "0177.0.0.1"])
def test_the_odd_spellings_of_an_address_are_judged_by_where_they_lead(host):
    async def run():
        network = CheckedNetwork(Guard(reach="public", is_plain=False), Resolver(), Connections())
        await network.connect_tcp(host, 443)

    with pytest.raises(AddressRefusedError):
        asyncio.run(run())


def test_names_that_hang_take_a_bounded_number_of_threads(monkeypatch):
    released, began = threading.Event(), threading.Semaphore(0)

    def hang(*_args, **_kwargs):
        began.release()
        released.wait()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 443))]

    monkeypatch.setattr(transport_module.socket, "getaddrinfo", hang)
    resolver = Resolver()

    async def run():
        most = transport_module.MAX_LOOKUPS
        given_up, *waited_for = [
            asyncio.create_task(resolver("a.example", 443)) for _ in range(most)
        ]
        for _ in range(most):
            await asyncio.to_thread(began.acquire)
        with pytest.raises(NameUnknownError):
            await resolver("b.example", 443)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        with pytest.raises(NameUnknownError):
            await resolver("c.example", 443)
        released.set()
        assert set(map(tuple, await asyncio.gather(*waited_for))) == {(ip_address("8.8.8.8"),)}
        assert await resolver("d.example", 443) == [ip_address("8.8.8.8")]

    try:
        asyncio.run(run())
    finally:
        released.set()


def test_a_name_that_cannot_be_looked_up_is_unknown(monkeypatch):
    def fail(*_args, **_kwargs):
        raise socket.gaierror

    monkeypatch.setattr(transport_module.socket, "getaddrinfo", fail)
    with pytest.raises(NameUnknownError):
        asyncio.run(Resolver()("a.example", 443))
