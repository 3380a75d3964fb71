"""The artefact filter, against a frozen set of leaks and look-alikes in several languages."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

LEAKS = Path(__file__).parent / "leaks"
FROZEN = {
    "first": "08e3c48fc718e10ecf864984ee874bef00a8ca4fb945ae197624c71576c4b60b",
    "second": "06cbed815cda7fc5de4251813ca7bc1ee377ddb1f02f44c3a0ca488108ee2fb0",
}
KINDS = {
    "blank", "cut_end", "instruction_echo", "language", "prompt_talk", "refusal", "repeat",
    "role_prefix", "script", "self_disclosure", "tool_box", "tool_footer",
}  # fmt: skip


def rows(half: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (LEAKS / f"{half}.jsonl").read_text("utf-8").splitlines()]


# The set


@pytest.mark.parametrize("half", FROZEN)
def test_the_leak_set_is_frozen(half: str) -> None:
    found = hashlib.sha256((LEAKS / f"{half}.jsonl").read_bytes()).hexdigest()
    assert found == FROZEN[half]


@pytest.mark.parametrize("half", FROZEN)
def test_each_half_holds_leaks_and_look_alikes_of_every_kind(half: str) -> None:
    count = Counter((row["label"], row["kind"]) for row in rows(half))
    assert set(count) == {(label, kind) for label in ("leak", "fine") for kind in KINDS}
    assert all(number >= 3 for number in count.values())


def test_the_set_is_large_and_in_several_languages() -> None:
    both = rows("first") + rows("second")
    labels = Counter(row["label"] for row in both)
    assert min(labels["leak"], labels["fine"]) >= 60
    assert len({row["language"] for row in both}) >= 10
    assert len({row["id"] for row in both}) == len(both)
