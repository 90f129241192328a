"""What the browser's verdict rests on: signatures, accounts, canonical bytes, other documents."""

import pytest
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from explorer_ui.format import visible
from ledger.encoding import encode, encode_base64url
from ledger.keys import encode_account
from scripts import verify_receipt as script
from tests import edwards
from tests.browser import launch_browser
from tests.builders import build_chain, build_key
from tests.hostile import CORPUS
from tests.verify_modules import WAYS, open_modules, vector

LOWER, HIGHER = sorted(build_key(name).account for name in ("one", "another"))


@pytest.fixture(scope="module", name="page", params=WAYS)
def start_page(request, tmp_path_factory):
    with (
        launch_browser() as browser,
        open_modules(browser, request.param, tmp_path_factory.mktemp("verifier")) as page,
    ):
        yield page


ACCEPTS = """([account, message, signature]) => {
  try {
    modules["verify/keys.js"].checkSignature(account, new TextEncoder().encode(message), signature);
    return true;
  } catch (error) {
    if (error instanceof modules["verify/encoding.js"].ClaimError) return false;
    throw error;
  }
}"""


def accepted_in_browser(page, cases):
    return page.evaluate(f"(cases) => cases.map({ACCEPTS})", cases)


def test_signatures_are_accepted_exactly_as_libsodium_accepts_them(page):
    vectors = vector("signatures")
    cases = [[c["account"], vectors["message"], c["signature"]] for c in vectors["cases"]]
    assert accepted_in_browser(page, cases) == [case["accepted"] for case in vectors["cases"]]


def accepted_by_libsodium(key, message, signature):
    try:
        VerifyKey(key).verify(message, signature)
    except (CryptoError, ValueError):
        return False
    return True


def test_keys_and_nonces_of_every_torsion_are_accepted_as_libsodium_accepts_them(page):
    message, secret, nonce = "aitbc/test/v1\n", 0xABCDEF << 160, 0xFEDCBA << 100
    secrets = [(secret, nonce), (secret, nonce + 1), (secret, nonce + 2)]
    small_order = [(0, nonce), (0, nonce + 1), (secret, 0)]
    forged = [
        edwards.forge(
            message.encode(), secret=a, nonce=r, key_torsion=key_torsion, nonce_torsion=moved
        )[:2]
        for a, r in secrets + small_order
        for key_torsion in edwards.SMALL_ORDER
        for moved in edwards.SMALL_ORDER
    ]
    expected = [accepted_by_libsodium(key, message.encode(), sig) for key, sig in forged]
    half = len(forged) // 2
    assert 20 < sum(expected[:half]) < half - 20, "both verdicts are common"
    assert not any(expected[half:]), "keys and nonces of small order are refused"
    cases = [[encode_account(key), message, encode_base64url(sig)] for key, sig in forged]
    assert accepted_in_browser(page, cases) == expected


def test_accounts_are_read_as_python_reads_them(page):
    vectors = vector("accounts")
    texts = [case["account"] for case in vectors["valid"]] + [
        case["account"] for case in vectors["invalid"]
    ]
    keys = page.evaluate(
        """(texts) => texts.map((text) => {
          const key = modules["verify/keys.js"].decodeAccount(text);
          return key && modules["verify/encoding.js"].toHex(key);
        })""",
        texts,
    )
    assert keys == [case["public_key"] for case in vectors["valid"]] + [None] * len(
        vectors["invalid"]
    )


def test_canonical_bytes_are_those_of_the_vectors(page):
    cases = vector("canonical")["canonical"]
    written = page.evaluate(
        """(texts) => texts.map((text) => new TextDecoder().decode(
          modules["verify/encoding.js"].encode(JSON.parse(text))))""",
        [case["text"] for case in cases],
    )
    assert written == [case["canonical"] for case in cases]


def test_texts_are_ordered_by_code_point(page):
    texts = ["", "a", "ab", "b", "\ue000", "\uffff", "\U00010000", "\U0010ffffa", "a\U00010000"]
    ordered = page.evaluate(
        "(texts) => texts.sort(modules['verify/encoding.js'].compareText)", texts[::-1]
    )
    assert ordered == sorted(texts)


@pytest.mark.parametrize(
    "text", [*CORPUS.values(), "ait1\u2066x", "\ue000\uffff", "a\u0301\u0301\u0301"]
)
def test_nothing_hides_in_a_text_that_is_shown(page, text):
    assert page.evaluate("(text) => modules['verify/dom.js'].visible(text)", text) == visible(text)


def parsed_in_browser(page, parse, text):
    return page.evaluate(
        """([parse, text]) => {
          try {
            modules["verify/documents.js"][parse](new TextEncoder().encode(text));
            return "parsed";
          } catch (error) { return error.constructor.name; }
        }""",
        [parse, text],
    )


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""), ('"epoch":0', '"epoch":1'), ('"network":"test-net"', '"network":"-"'),
        ('"v":1', '"v":2'), ('"settlement":"off_chain"', '"settlement":"on_chain"'),
        ('"account":"ait1', '"account":"ait2'), ('"max_block_bytes":8', '"max_block_bytes":99'),
        ('"coordinators":[]', '"coordinators":["ait1"]'), ('"url":""', '"url":"a b"'),
        ('"coordinators":[]', f'"coordinators":["{HIGHER}","{LOWER}"]'),
        ('"coordinators":[]', f'"coordinators":["{LOWER}","{LOWER}"]'),
        ('"name":"authority 0"', '"name":""'), ("{", "{ "), ('"created_ms":', '"created_ms":-'),
    ],
)  # fmt: skip
def test_a_genesis_is_refused_where_python_refuses_it(page, old, new):
    text = encode(build_chain(1).genesis).decode().replace(old, new, 1)
    try:
        script.parse_genesis(text.encode())
        expected = "parsed"
    except script.MalformedError:
        expected = "MalformedError"
    assert expected == ("parsed" if old == new else "MalformedError")
    assert parsed_in_browser(page, "parseGenesis", text) == expected


@pytest.mark.parametrize(
    "disclosure",
    [
        "[]", "null", "{}", "", "{", '{"prompt":null}', '{"prompt":1}', '{"prompt_salt":null}',
        '{"prompt":"a","more":1}', '{"result":"a","result_salt":1}', '{"output_token_ids":"1"}',
        '{"output_token_ids":[1.5]}', '{"output_token_ids":["1"]}', '{"prompt":"\\ud800"}',
        '{"disclosure":{"prompt_salt":"a"},"prompt":1}', '{"__proto__":1,"prompt":"a"}', "\ufeff{}",
        '{"prompt":"a"', '{"disclosure":[],"prompt":"a"}', '{"toString":"x","prompt":"a"}',
    ],
)  # fmt: skip
def test_what_is_no_disclosure_in_python_is_none_in_the_browser(page, disclosure):
    with pytest.raises(script.MalformedError):
        script.parse_disclosure(disclosure.encode())
    assert parsed_in_browser(page, "parseDisclosure", disclosure) == "MalformedError"


def test_an_answer_of_the_api_is_a_disclosure_too(page):
    shown = page.evaluate(
        "(text) => modules['verify/documents.js'].parseDisclosure(new TextEncoder().encode(text))",
        '{"status":"completed","prompt":"p","result":null,"disclosure":{"prompt_salt":"s"}}',
    )
    assert shown == {"prompt": "p", "result": None, "prompt_salt": "s"}
