"""Bodies of OpenAI's completions: what is asked for is done, or refused by its name."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.errors import RequestError
from api.openai.bodies import IGNORED, parse_chat_body, parse_completion_body
from ledger.chat import MAX_MESSAGES, ChatMessage, parse_chat
from ledger.jobs import JobOrder
from tests.strategies import draw_changed_byte

USER = {"role": "user", "content": "Why?"}
CHAT = {"model": "m", "messages": [USER]}
COMPLETION = {"model": "m", "prompt": "Why?"}


def chat(**changes):
    return parse_chat_body(json.dumps(CHAT | changes).encode(), default_model="default")


def complete(**changes):
    return parse_completion_body(json.dumps(COMPLETION | changes).encode(), default_model="default")


def refused(path: str):
    """Expect a refusal that blames this parameter."""
    return pytest.raises(
        RequestError,
        check=lambda error: (
            error.code == "VALIDATION_FAILED" and [field.path for field in error.errors] == [path]
        ),
    )


@pytest.mark.parametrize("parse", [chat, complete])
def test_the_defaults_are_those_of_openai_but_for_the_length(parse):
    wanted = parse()
    assert wanted.order == JobOrder(
        prompt="Why?",
        model="m",
        max_tokens=1024,
        temperature_micros=1_000_000,
        top_p_micros=1_000_000,
    )
    assert (wanted.stream, wanted.include_usage) == (False, False)
    assert parse(model=None).order.model == "default"


@pytest.mark.parametrize("parse", [chat, complete])
def test_null_is_as_good_as_absent(parse):
    names = ("temperature", "top_p", "max_tokens", "stop", "seed", "stream", "stream_options")
    unsupported = ("n", "logprobs", "logit_bias", "user", "tools", "anything")
    assert parse(**dict.fromkeys(names + unsupported)) == parse()


@pytest.mark.parametrize(
    ("given", "order"),
    [
        ({"max_tokens": 7}, {"max_tokens": 7}),
        ({"max_tokens": 7.0}, {"max_tokens": 7}),
        ({"temperature": 0.25}, {"temperature_micros": 250_000}),
        ({"top_p": 0}, {"top_p_micros": 1}),
        ({"top_p": 0.1}, {"top_p_micros": 100_000}),
        ({"seed": 9}, {"seed": 9}),
        ({"stop": "\n"}, {"stop": ("\n",)}),
        ({"stop": ["a", "b", "c", "d"]}, {"stop": ("a", "b", "c", "d")}),
        ({"stop": []}, {"stop": ()}),
    ],
    ids=str,
)
@pytest.mark.parametrize("parse", [chat, complete])
def test_what_a_job_knows_becomes_a_part_of_it(parse, given, order):
    got = parse(**given).order
    assert {name: getattr(got, name) for name in order} == order


def test_both_names_of_the_length_are_understood():
    assert chat(max_completion_tokens=5).order.max_tokens == 5
    assert chat(max_completion_tokens=5, max_tokens=5).order.max_tokens == 5
    with refused("max_tokens"):
        chat(max_completion_tokens=5, max_tokens=6)
    with refused("max_completion_tokens"):
        chat(max_completion_tokens=0)


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("max_tokens", {"max_tokens": 8193}),
        ("max_tokens", {"max_tokens": 1.5}),
        ("temperature", {"temperature": 2.1}),
        ("temperature", {"temperature": "1"}),
        ("top_p", {"top_p": -0.1}),
        ("top_p", {"top_p": 1.1}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 2**53}),
        ("stop", {"stop": ["a", "b", "c", "d", "e"]}),
        ("stop", {"stop": ""}),
        ("stop", {"stop": "x" * 65}),
        ("stop[1]", {"stop": ["a", "\0"]}),
        ("stop[0]", {"stop": [3]}),
        ("model", {"model": ""}),
        ("model", {"model": "a\n"}),
        ("stream", {"stream": 1}),
        ("stream_options", {"stream_options": {"include_usage": True}}),
        ("stream_options.other", {"stream": True, "stream_options": {"other": True}}),
        ("n", {"n": 2}),
        ("n", {"n": 2, "stream": True}),
        ("logit_bias", {"logit_bias": {"50256": -100}}),
        ("presence_penalty", {"presence_penalty": 0.1}),
        ("frequency_penalty", {"frequency_penalty": -1}),
        ("service_tier", {"service_tier": "priority"}),
        ("temprature", {"temprature": 0}),
        ("x" * 100, {"x" * 5000: 0}),
    ],
    ids=lambda value: str(value)[:50],
)
@pytest.mark.parametrize("parse", [chat, complete])
def test_what_cannot_be_done_is_refused_by_its_name(parse, path, given):
    with refused(path):
        parse(**given)


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("logprobs", {"logprobs": True}),
        ("top_logprobs", {"top_logprobs": 2}),
        ("response_format", {"response_format": {"type": "json_object"}}),
        ("tools", {"tools": [{"type": "function"}]}),
        ("tool_choice", {"tool_choice": "required"}),
        ("functions", {"functions": [{}]}),
        ("function_call", {"function_call": {"name": "f"}}),
        ("modalities", {"modalities": ["text", "audio"]}),
        ("audio", {"audio": {"voice": "x"}}),
        ("prediction", {"prediction": {"type": "content"}}),
        ("reasoning_effort", {"reasoning_effort": "high"}),
        ("verbosity", {"verbosity": "low"}),
        ("web_search_options", {"web_search_options": {}}),
        ("messages", {"messages": []}),
        ("messages", {"messages": [USER] * (MAX_MESSAGES + 1)}),
        ("messages", {"messages": "Why?"}),
        ("messages[0]", {"messages": ["Why?"]}),
        ("messages[0].role", {"messages": [{"content": "x"}]}),
        ("messages[1].role", {"messages": [USER, {"role": "tool", "content": "x"}]}),
        ("messages[0].role", {"messages": [{"role": "function", "content": "x"}]}),
        ("messages[0].role", {"messages": [{"role": "USER", "content": "x"}]}),
        ("messages[0].content", {"messages": [{"role": "user"}]}),
        ("messages[0].content", {"messages": [{"role": "assistant", "content": None}]}),
        ("messages[0].content", {"messages": [{"role": "user", "content": "a\0"}]}),
        ("messages[0].tool_calls", {"messages": [USER | {"tool_calls": [{"id": "c"}]}]}),
        ("messages[0].weight", {"messages": [USER | {"weight": 1}]}),
        (
            "messages[0].content[1].type",
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"type": "text", "text": "x"},
                            {"type": "image_url", "image_url": {"url": "data:"}},
                        ],
                    }
                ]
            },
        ),
        (
            "messages[0].content[0].text",
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        ),
        (
            "messages[0].content[0].extra",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "", "extra": 1}]}]},
        ),
        ("prompt", {"prompt": "Why?"}),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_a_chat_cannot_do_is_refused_by_its_name(path, given):
    with refused(path):
        chat(**given)


@pytest.mark.parametrize(
    ("path", "given"),
    [
        ("echo", {"echo": True}),
        ("best_of", {"best_of": 2}),
        ("suffix", {"suffix": "x"}),
        ("logprobs", {"logprobs": 0}),
        ("prompt", {"prompt": ["a", "b"]}),
        ("prompt", {"prompt": []}),
        ("prompt[0]", {"prompt": [1, 2]}),
        ("prompt", {"prompt": "\0"}),
        ("messages", {"messages": [USER]}),
        ("max_completion_tokens", {"max_completion_tokens": 5}),
    ],
    ids=str,
)
def test_what_a_completion_cannot_do_is_refused_by_its_name(path, given):
    with refused(path):
        complete(**given)


HARMLESS = {
    **dict.fromkeys(IGNORED, "x"),
    "n": 1,
    "logit_bias": {},
    "presence_penalty": 0.0,
    "frequency_penalty": 0,
    "service_tier": "auto",
}


@pytest.mark.parametrize("parse", [chat, complete])
@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_changes_nothing_is_accepted(parse, name):
    assert parse(**{name: HARMLESS[name]}) == parse()


def test_a_chat_that_asks_for_nothing_special_is_accepted():
    nothing = {
        "response_format": {"type": "text"},
        "tools": [],
        "tool_choice": "none",
        "logprobs": False,
        "modalities": ["text"],
        "stream": False,
    }
    assert chat(**nothing) == chat()


def test_a_message_of_the_user_that_is_alone_is_the_plain_prompt():
    assert chat().order.prompt == "Why?"
    two = chat(messages=[USER | {"role": "developer"}, USER]).order.prompt
    assert two == '[{"content":"Why?","role":"system"},{"content":"Why?","role":"user"}]'


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@given(texts)
def test_no_text_of_a_user_gains_another_role(text):
    expected = (ChatMessage(role="user", content=text),)
    turn = {"role": "user", "content": text}
    assert parse_chat(chat(messages=[turn]).order.prompt) == expected
    assert parse_chat(complete(prompt=text).order.prompt) == expected


@given(st.data())
def test_a_body_with_a_changed_byte_is_parsed_or_refused_and_never_breaks(data):
    sound = json.dumps(CHAT | {"stop": ["a"], "temperature": 0.5, "stream": True}).encode()
    body = draw_changed_byte(data, sound)
    with contextlib.suppress(RequestError):
        assert parse_chat(parse_chat_body(body, default_model="default").order.prompt)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b'{"messages":' + b"[" * 100_000,
        b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"x"}],"messages":[]}',
        b'{"messages":[{"role":"user","content":"x","content":"y"}]}',
        b'{"messages":[{"role":"user","content":"x"}],"max_tokens":1e400}',
        b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 400 + b"}",
        b'{"messages":[{"role":"user","content":"x"}],"n":NaN}',
        b'{"messages":[{"role":"user","content":{}}]}',
        b'{"messages":[[]]}',
        b'{"messages":{}}',
        b'{"":1}',
    ],
    ids=lambda body: body[:60],
)
def test_hostile_bodies_are_refused(body):
    with pytest.raises(RequestError) as caught:
        parse_chat_body(body, default_model="default")
    assert caught.value.code in {"VALIDATION_FAILED", "VALIDATION_MALFORMED_JSON"}
