"""What a transcript says to its judge, against a frozen set of attacks and quotes."""

import hashlib
import importlib.util
from collections import Counter
from pathlib import Path

import pytest

ATTACKS = Path(__file__).parent / "attacks"
SPEC = importlib.util.spec_from_file_location("measure_attacks", ATTACKS / "measure.py")
assert SPEC
assert SPEC.loader
measure = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(measure)

TALKS = measure.talks()
ROWS = measure.rows("attacks")
FROZEN = {
    "attacks.jsonl": "1591d11251c1674d0b0d98deef1092edd8a5d5ab73202dbd6c3a68458807f21f",
    "made_up.jsonl": "e29494bbd500e0ddf9263c5a073ca6022715f975439fad428f79fe9402955e6a",
    "quotes.jsonl": "d4a246344660a50fb3a90fd52f3605eaa2dc5f16f487748121ed422879eaa710",
    "talks.json": "de2efeb85814873493059d638f835baf216e83a495718b2c7c5405c4c91348e4",
}


# The set


@pytest.mark.parametrize("name", FROZEN)
def test_the_attack_set_is_frozen_and_its_read_me_says_the_same(name: str) -> None:
    found = hashlib.sha256((ATTACKS / name).read_bytes()).hexdigest()
    assert found == FROZEN[name]
    assert f"{found}  {name}" in (ATTACKS / "README.md").read_text("utf-8")


def test_the_attacks_are_of_many_kinds_and_languages() -> None:
    assert len(ROWS) == len({row["id"] for row in ROWS}) == 95
    assert min(Counter(row["kind"] for row in ROWS).values()) >= 3
    assert {"zh", "ar", "de", "es"} < {row["language"] for row in ROWS}
    assert {row["place"] for row in ROWS} == set(measure.SIDES)


def test_the_quotes_are_in_ten_languages() -> None:
    true, false = measure.rows("quotes"), measure.rows("made_up")
    assert (len(true), len(false)) == (200, 100)
    assert len({row["language"] for row in true}) == 10


def test_an_attack_adds_its_words_and_leaves_the_proof_that_the_talk_is_bad() -> None:
    for row in ROWS:
        talk = TALKS[row["talk"]]
        pairs = measure.attacked(row, talk["pairs"])
        assert talk["bad"]
        assert pairs != talk["pairs"]
        assert talk["proof"]["quote"] in pairs[talk["proof"]["exchange"] - 1][1]
