"""The browser's verifier against the two in Python: one verdict, claim by claim, on everything.

The modules run as they are served, in a page with the explorer's policy, and again inside the page
that works offline.
"""

import json
from pathlib import Path

import pytest
from nacl.exceptions import CryptoError
from nacl.signing import VerifyKey

from explorer_ui.format import visible
from ledger.block import hash_genesis
from ledger.encoding import encode, encode_base64url
from ledger.keys import encode_account
from scripts import verify_receipt as script
from scripts.offline_verifier import main as write_offline
from tests import edwards
from tests.browser import Server, launch_browser, open_page
from tests.builders import build_chain, build_members, build_receipt
from tests.fake_views import FakeViews, build_app
from tests.test_explorer_pages import HOSTILE
from tests.verify_node import last_bundle

VECTORS = Path(__file__).parent / "vectors"
MANY_CHANGES = 12

# Defines window.judge(cases): for each {bundle, genesis, disclosure} as text, or with the bytes of
# the bundle changed at [place, byte], the verdict without its sentences, or null for no bundle.
JUDGE = """(modules) => {
  const { verify } = modules["verify/claims.js"];
  const { parseBundle, parseDisclosure, parseGenesis } = modules["verify/documents.js"];
  const { MalformedError } = modules["verify/encoding.js"];
  const bytes = (text) => new TextEncoder().encode(text);
  const one = ({ bundle, genesis, disclosure = null, change = null }) => {
    const trusted = parseGenesis(bytes(genesis));
    const shown = disclosure === null ? {} : parseDisclosure(bytes(disclosure));
    const data = bytes(bundle);
    if (change !== null) data[change[0]] = change[1];
    try {
      const checks = verify(parseBundle(data), trusted, shown);
      let step;
      do step = checks.next(); while (!step.done);
      const claims = step.value.claims.map(({ name, status }) => ({ name, status }));
      return { ...step.value, claims };
    } catch (error) {
      if (error instanceof MalformedError) return null;
      throw error;
    }
  };
  window.modules = modules;
  window.judge = (cases) => cases.map(one);
}"""
LOAD = """async (names) => {
  const base = new URL(".", document.querySelector("script[type=module]").src);
  const modules = {};
  for (const name of names) modules[`verify/${name}`] = await import(new URL(name, base));
  return modules;
}"""
NAMES = ["claims.js", "documents.js", "encoding.js", "keys.js", "hashing.js", "dom.js", "report.js"]


@pytest.fixture(scope="module", name="browser")
def start_browser():
    with launch_browser() as browser:
        yield browser


@pytest.fixture(scope="module", name="page", params=["served", "offline"])
def open_verifier(request, browser, tmp_path_factory):
    """A page in which window.judge and window.modules are the verifier's."""
    if request.param == "offline":
        file = tmp_path_factory.mktemp("offline") / "verifier.html"
        assert write_offline([str(file)]) == 0
        context = browser.new_context(offline=True)
        page = context.new_page()
        page.goto(file.as_uri())
        page.evaluate(f"({JUDGE})(modules)")
        yield page
        context.close()
    else:
        with (
            Server(build_app(FakeViews())) as server,
            open_page(browser, server, "/verify") as page,
        ):
            page.evaluate(f"async (names) => ({JUDGE})(await ({LOAD})(names))", NAMES)
            yield page


def vector(name):
    return json.loads((VECTORS / f"{name}.json").read_text(encoding="utf-8"))


def judge_in_python(case):
    """The verdict of the stand-alone script in the form of window.judge."""
    data = bytearray(case["bundle"].encode())
    if "change" in case:
        place, byte = case["change"]
        data[place] = byte
    shown = {}
    if case.get("disclosure") is not None:
        shown = script.parse_disclosure(case["disclosure"].encode())
    try:
        bundle = script.parse_bundle(bytes(data))
    except script.MalformedError:
        return None
    verdict = script.verify(bundle, script.parse_genesis(case["genesis"].encode()), shown)
    for claim in verdict["claims"]:
        del claim["detail"]
    return verdict


def judge_in_browser(page, cases):
    return page.evaluate("(cases) => window.judge(cases)", cases)


# --- bundles --------------------------------------------------------------------------------------


def test_every_vector_bundle_gets_the_verdict_of_python(page):
    vectors = vector("bundles")
    cases = [
        {
            "bundle": case["bundle"],
            "genesis": vectors["genesis"][case["genesis"]],
            "disclosure": json.dumps(case["disclosure"]) if "disclosure" in case else None,
        }
        for case in vectors["cases"]
    ]
    verdicts = judge_in_browser(page, cases)
    assert len(verdicts) == len(cases) >= 163
    for case, described, verdict in zip(cases, vectors["cases"], verdicts, strict=True):
        if described["failed"] is None:
            assert verdict is None, described["why"]
            continue
        claims = [[claim["name"], claim["status"]] for claim in verdict["claims"]]
        assert claims == described["claims"], described["why"]
        assert verdict == judge_in_python(case), described["why"]


def chain_of_changes(count):
    """A network whose authorities change `count` times, with one receipt after the last."""
    chain = build_chain(4, blocks=[1])
    for epoch in range(1, count + 1):
        members = build_members(3 + epoch % 3, epoch=epoch)
        chain.change_authorities(members, build_receipt(chain.genesis, 1 + epoch))
    chain.append(build_receipt(chain.genesis, 2 + count))
    return chain


def test_many_changes_of_the_authorities_are_followed_one_by_one(page):
    chain = chain_of_changes(MANY_CHANGES)
    document = json.loads(encode(last_bundle(chain)))
    genesis = encode(chain.genesis).decode()
    assert len(document["epochs"]) == MANY_CHANGES

    def case(epochs):
        return {"bundle": encode(document | {"epochs": epochs}).decode(), "genesis": genesis}

    whole = document["epochs"]
    cases = [case(whole)]
    cases += [case(whole[:place] + whole[place + 1 :]) for place in range(MANY_CHANGES)]
    cases += [
        case([*whole[:place], whole[place + 1], whole[place], *whole[place + 2 :]])
        for place in range(MANY_CHANGES - 1)
    ]
    genuine, *tampered = judge_in_browser(page, cases)
    assert genuine["verified"] is True
    assert genuine["genesis"] == hash_genesis(chain.genesis).hex()
    for verdict in tampered:
        failed = [c["name"] for c in verdict["claims"] if c["status"] == "failed"]
        assert failed == ["quorum", "authority_chain", "coordinator"]
    assert [genuine, *tampered] == [judge_in_python(case) for case in cases]


def test_any_changed_byte_is_judged_as_python_judges_it(page):
    chain = chain_of_changes(2)
    bundle, genesis = encode(last_bundle(chain)).decode(), encode(chain.genesis).decode()
    cases = [
        {"bundle": bundle, "genesis": genesis, "change": [place, byte]}
        for place in range(0, len(bundle), 23)
        for byte in b'1"\xff'
        if bundle.encode()[place] != byte
    ]
    assert len(cases) > 500
    verdicts = judge_in_browser(page, cases)
    assert verdicts == [judge_in_python(case) for case in cases]
    judged = [verdict for verdict in verdicts if verdict]
    assert len(judged) > 20
    assert not [verdict for verdict in judged if verdict["verified"]]


# --- what the verdict rests on --------------------------------------------------------------------

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


@pytest.mark.parametrize("text", [*HOSTILE, "ait1\u2066x", "\ue000\uffff", "a\u0301\u0301\u0301"])
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
