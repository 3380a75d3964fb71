"""Personal data and secrets that have a form: found, taken out, and nothing else called one."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import personal_data, redact

FOUND = [
    ("write to a.b+c@ex-ample.co.uk", "email"),
    ("m\u00fcller@example.de", "email"),
    ("call +49 30 1234567", "phone"),
    ("call 030 1234 5678 today", "phone"),
    ("(415) 555-2671", "phone"),
    ("it is 415-555-2671.", "phone"),
    ("0049 171 1234567", "phone"),
    ("DE89 3704 0044 0532 0130 00", "iban"),
    ("GB29NWBK60161331926819", "iban"),
    ("4111 1111 1111 1111", "card"),
    ("5500-0000-0000-0004", "card"),
    ("from 8.8.8.8", "ip address"),
    ("2001:4860:4860::8888", "ip address"),
    ("sk-" + "proj-abcdefghijklmnop1234", "key"),
    ("AKIA" + "IOSFODNN7EXAMPLE", "key"),
    ("ghp_" + "a1" * 18, "key"),
    ("Authorization: Bearer abcdef0123456789abcd", "key"),
    ("-----BEGIN RSA PRIVATE" + " KEY-----\nMIIabc\n-----END RSA PRIVATE KEY-----", "private key"),
    ("password=hunter2", "password"),
    ('"api_key": "x7f8k2"', "password"),
]  # fmt: skip
NOTHING = [
    "order 123456789 of 2026-01-31", "on 01.02.2026 at 10:30:45", "12.50 - 13.75, 1,234,567,890",
    "DE89 3704 0044 0532 0130 01", "4111 1111 1111 1112", "open 192.168.1.1 or 127.0.0.1",
    "version 1.2.3.4.5", "Password: ask your admin",
    "the token: it counts words", "a@b", "sk-short",
    "ratio 3:4:5", "0.123456789", "ends @example.com", "10 000 000 people in 2026",
]  # fmt: skip
NASTY = {
    "letters": "a" * 50_000, "at": "a@" * 25_000, "dots": "x@" + "a." * 25_000,
    "digits": "1" * 50_000,
    "spaced digits": "4 " * 25_000, "plus": "+1 " * 16_000, "iban": "DE89 " * 10_000,
    "colons": ":" * 50_000, "heads": "-----BEGIN PRIVATE KEY-----" * 1_800,
    "words": "password=" * 5_500,
    "jwt": ("eyJ" + "a" * 100 + ".") * 480, "bearer": "bearer    " * 5_000, "octets": "1." * 25_000,
    "key": "-----BEGIN PRIVATE KEY-----" + "x " * 24_000, "brackets": "(" * 50_000,
}  # fmt: skip
PARTS = st.one_of(st.sampled_from([text for text, _ in FOUND] + NOTHING), st.text(max_size=6))


@pytest.mark.parametrize(("text", "kind"), FOUND)
def test_what_has_the_form_is_found_and_taken_out(text: str, kind: str) -> None:
    (hit,) = personal_data(text)
    assert hit.kind == kind
    assert f"[{kind}]" in redact(text)


@pytest.mark.parametrize("text", NOTHING)
def test_look_alikes_are_left_alone(text: str) -> None:
    assert personal_data(text) == []
    assert redact(text) == text


def test_the_place_is_that_of_the_thing_alone() -> None:
    text = "mail a@example.com, please"
    ((kind, start, end),) = personal_data(text)
    assert (kind, text[start:end]) == ("email", "a@example.com")
    assert redact(text) == "mail [email], please"


@given(st.lists(PARTS, max_size=6).map(" ".join) | st.lists(PARTS, max_size=6).map("".join))
@settings(max_examples=300, deadline=None)
def test_nothing_is_left_and_a_second_time_changes_nothing(text: str) -> None:
    clean = redact(text)
    assert personal_data(clean) == []
    assert redact(clean) == clean


@pytest.mark.parametrize("name", NASTY)
def test_a_hostile_text_takes_no_longer_than_others(name: str) -> None:
    begun = time.process_time()
    personal_data(NASTY[name])
    assert time.process_time() - begun < 0.5
