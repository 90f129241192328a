import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from explorer_ui import format as show
from explorer_ui.facts import list_path
from ledger import merkle
from ledger.views import InclusionView

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (0, "0"),
        (1, "0.000001"),
        (380, "0.00038"),
        (1_000_000, "1"),
        (1_500_000, "1.5"),
        (1_234_567_891, "1,234.567891"),
        (-380, "-0.00038"),
        (2**53 - 1, "9,007,199,254.740991"),
    ],
)
def test_micros_read_as_a_decimal_of_at_most_six_places(micros, text):
    assert show.decimal(micros) == text


@given(st.integers(0, 2**53 - 1))
def test_no_micro_is_lost_in_either_form(micros):
    for text in (show.decimal(micros), show.column(micros)):
        whole, _, places = text.replace(",", "").partition(".")
        assert int(whole) * 1_000_000 + int((places or "0").ljust(6, "0")) == micros


def test_money_and_amounts_carry_their_word():
    assert show.money(380) == "0.00038 credits"
    assert show.money(1_000_000) == "1 credit"
    assert show.units(38_000_000, "tokens") == "38 tokens"
    assert show.units(1_000_000, "tokens") == "1 token"
    assert show.units(1_500_000, "gpu_seconds") == "1.5 GPU seconds"
    assert [show.count(n, "block") for n in (0, 1, 2000)] == [
        "no blocks",
        "1 block",
        "2,000 blocks",
    ]


def test_a_unit_price_is_given_only_where_it_is_exact():
    assert show.unit_price(380, 38_000_000) == "0.00001"
    assert show.unit_price(100, 3_000_000) is None
    assert show.unit_price(100, 0) is None


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1 s"),
        (1_240, "1.24 s"),
        (120_000, "2 min"),
        (125_000, "2 min 5 s"),
        (10_800_000, "3 h"),
        (12_000_000, "3 h 20 min"),
    ],
)
def test_durations_read_as_people_say_them(ms, text):
    assert show.duration(ms) == text


def test_times_are_utc_and_keep_their_milliseconds_for_machines():
    assert show.utc(1_785_000_000_123) == "2026-07-25 17:20:00"
    assert show.iso(1_785_000_000_123) == "2026-07-25T17:20:00.123Z"


@given(st.integers(0, 2**53 - 1))
def test_any_time_a_payload_may_carry_can_be_shown(time_ms):
    assert show.utc(time_ms)
    assert (show.iso(time_ms) == "") == (time_ms > show.MAX_TIME_MS)


@pytest.mark.parametrize(
    ("hostile", "text"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\u200bb", "a⟨U+200B⟩b"),
        ("a\x00b", "a⟨U+0000⟩b"),
        ("a\nb", "a⟨U+000A⟩b"),
        ("a\u00a0b", "a⟨U+00A0⟩b"),
        ("\ud800", "⟨U+D800⟩"),
        ("\u3164", "⟨U+3164⟩"),
        ("\U000e0041", "⟨U+E0041⟩"),
        ("e\u0301", "e\u0301"),
        ("e\u0301\u0301\u0301", "e\u0301\u0301⟨U+0301⟩"),
        ("עברית 日本語 é", "עברית 日本語 é"),
    ],
)
def test_what_hides_or_reorders_text_is_written_out(hostile, text):
    assert show.visible(hostile) == text


@given(st.text(max_size=300))
def test_visible_text_holds_nothing_hidden_and_plain_text_is_untouched(text):
    shown = show.visible(text)
    assert not {unicodedata.category(character) for character in shown} & HIDDEN
    shown.encode()
    if text.isascii() and text.isprintable():
        assert shown == text


def test_long_text_is_folded():
    assert show.visible("x" * 5000) == "x" * 4096 + "… (904 more characters)"


@given(st.integers(1, 70), st.data())
def test_the_listed_sides_lead_from_the_leaf_to_the_root(size, data):
    leaf = data.draw(st.integers(0, size - 1))
    leaves = [merkle.hash_leaf(b"%d" % n) for n in range(size)]
    nodes: dict[tuple[int, int], bytes] = {}
    nodes |= merkle.append_leaves(0, leaves, lambda *key: nodes[key])
    path = merkle.build_inclusion_path(leaf, size, lambda *key: nodes[key])
    root = merkle.compute_root(size, lambda *key: nodes[key])
    inclusion = InclusionView(
        leaf=leaf,
        leaf_hash=leaves[leaf].hex(),
        path=tuple(node.hex() for node in path),
        tree_size=size,
        tree_root=root.hex(),
    )
    node = leaves[leaf]
    for step in list_path(inclusion):
        sibling = bytes.fromhex(step.hash)
        left, right = (sibling, node) if step.side == "left" else (node, sibling)
        node = merkle.hash_children(left, right)
    assert node == root
