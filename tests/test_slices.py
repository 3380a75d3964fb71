"""Training examples: each reply carries loss once, nothing is over its limit, nothing gets lost."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as rules_of_test
from hypothesis import strategies as st

from children import TESTS, child
from estimates import Room, examples_of, expected_slices, yield_of
from infrastructure import FinetuneError, TokenCount, get_slice_points
from settings import LengthClass, Slicing
from slicing import (
    BLANK,
    CUT,
    FEW,
    FITS,
    LONG,
    NO_LOSS,
    NOTHING,
    ONLY_LAST,
    OVER,
    REWRITES,
    SHORT,
    Conversation,
    Example,
    Gauge,
    Rules,
    Skipped,
    conversation_of,
    example_id,
    examples,
    faults_of,
    files_of,
    keeps_history,
    line_of,
    lost_share,
    messages_of,
    read_rows,
    row_of,
    taught_by,
)
from test_tokens import CHATML, own
from test_tokens import REWRITES as THINKS

SYSTEM = "Be kind."


@dataclass(frozen=True)
class Words(Gauge):
    """A token for each word; with `doubt`, the bound is twice the count."""

    doubt: bool = False

    def _count(self, words: int) -> TokenCount:
        return TokenCount(words, "words", "exact", words * (1 + self.doubt))

    def messages(self, messages: Sequence[Any]) -> TokenCount:
        return self._count(sum(len(message["content"].split()) for message in messages))

    def prefixes(self, pairs: Sequence[Any], system: str) -> Sequence[TokenCount]:
        return [self.messages(messages_of(pairs[:n], system)) for n in range(1, len(pairs) + 1)]

    def text(self, text: str) -> TokenCount:
        return self._count(len(text.split()))


def talk(total: int, name: str = "t1", source: str = "generated", **replies: str) -> Conversation:
    """Exchanges of two words each, but for the replies that are given as r7="..."."""
    pairs = [(f"q{n}", replies.get(f"r{n}", f"a{n}")) for n in range(1, total + 1)]
    return Conversation(name, tuple(pairs), source=source, hash="h")


def cut(
    about: Conversation, limit: int = 10_000, **how: Any
) -> tuple[list[Example], list[Skipped]]:
    gauge = how.pop("gauge", Words())
    render = how.pop("render", None)
    return examples(about, SYSTEM, Rules(Slicing(**how), limit, render), gauge)


def taught(made: Sequence[Example]) -> list[int]:
    return sorted(exchange for example in made for exchange in taught_by(example))


def reasons(skipped: Sequence[Skipped]) -> dict[str, list[int]]:
    """The exchanges without loss, by reason."""
    found: dict[str, list[int]] = {}
    for each in skipped:
        if each.exchange is not None:
            found.setdefault(each.reason, []).append(each.exchange)
    return found


# Whole or slices


def test_a_conversation_that_fits_is_one_example_with_loss_on_every_reply() -> None:
    made, skipped = cut(talk(20))
    assert (len(made), skipped, made[0].id, made[0].way) == (1, [], "t1.whole", FITS)
    assert taught(made) == list(range(1, 21))
    assert made[0].messages[0] == {"role": "system", "content": SYSTEM}
    assert all(made[0].messages[at]["role"] == "assistant" for at in made[0].supervised)


def test_one_that_does_not_fit_is_cut_at_the_kernels_points() -> None:
    made, _ = cut(talk(20), limit=30)
    points = get_slice_points(20, "t1")
    assert [each.point for each in made] == [point for point in points if 2 * point + 2 <= 30]
    assert {each.way for each in made} == {LONG}


def test_slices_can_be_asked_for_and_their_points_tuned() -> None:
    made, _ = cut(talk(40), mode="slices")
    assert [each.point for each in made] == get_slice_points(40, "t1")
    assert made[0].id == "t1.s3"
    fewer, _ = cut(talk(40), mode="slices", min_gap=4)
    more, _ = cut(talk(40), mode="slices", max_gap=2)
    assert len(fewer) < len(made) < len(more)


def test_a_slice_carries_loss_since_the_point_before_it() -> None:
    made, _ = cut(talk(17, "t_0042"), mode="slices")  # 3, 5, 10, 13, 17
    assert [taught_by(each) for each in made][:3] == [[1, 2, 3], [4, 5], [6, 7, 8, 9, 10]]
    assert made[1].supervised == (8, 10)
    assert made[1].messages[8]["content"] == "a4"


def test_all_learns_early_replies_again_and_last_only_one_of_each_slice() -> None:
    points = get_slice_points(30, "t1")
    made, _ = cut(talk(30), mode="slices", supervise="all")
    assert Counter(taught(made))[1] == len(points)
    made, skipped = cut(talk(30), mode="slices", supervise="last")
    assert taught(made) == points
    assert reasons(skipped) == {ONLY_LAST: [n for n in range(1, 31) if n not in points]}
    made, _ = cut(talk(30), supervise="last")
    assert taught(made) == [30]


# Templates


def test_a_template_that_changes_earlier_turns_makes_slices(tmp_path: Path) -> None:
    for name, template, way in (("plain", CHATML, FITS), ("thinks", THINKS, REWRITES)):
        gauge = Gauge(own(tmp_path / name, template))
        about = talk(9, **{f"r{n}": f"think so a{n}" for n in range(1, 10)})
        made, skipped = cut(about, gauge=gauge, render=gauge.render())
        assert {each.way for each in made} == {way}
        assert len(made) == (1 if way == FITS else len(get_slice_points(9, "t1")))
        assert (taught(made), skipped) == (list(range(1, 10)), [])


def test_what_a_template_does_is_asked_of_each_conversation(tmp_path: Path) -> None:
    render = Gauge(own(tmp_path / "thinks", THINKS)).render()
    assert render is not None
    assert keeps_history(render, messages_of(talk(5).pairs, SYSTEM))
    assert not keeps_history(render, messages_of(talk(5, r2="think hm").pairs, SYSTEM))


def test_an_examples_tokens_are_those_of_its_own_messages(tmp_path: Path) -> None:
    gauge = Gauge(own(tmp_path / "model"))
    made, _ = cut(talk(12), mode="slices", gauge=gauge)
    assert all(each.tokens == gauge.messages(each.messages) for each in made)


# Limits


def test_what_does_not_fit_is_left_out_and_every_reply_of_it_listed() -> None:
    made, skipped = cut(talk(30), limit=31, mode="slices")
    points = get_slice_points(30, "t1")
    fits = max(point for point in points if 2 * point + 2 <= 31)
    assert taught(made) == list(range(1, fits + 1))
    assert reasons(skipped) == {OVER: list(range(fits + 1, 31))}
    left = [each for each in skipped if each.example]
    assert [each.example for each in left] == [f"t1.s{point}" for point in points if point > fits]
    assert left[0].tokens == 2 * points[len(made)] + 2
    rows = [each.row() for each in skipped]
    assert lost_share(len(made), rows) == len(left) / len(points)


def test_where_no_count_is_exact_the_upper_bound_decides() -> None:
    sure, _ = cut(talk(20), limit=60, mode="whole")
    unsure, skipped = cut(talk(20), limit=60, mode="whole", gauge=Words(doubt=True))
    assert (len(sure), len(unsure), skipped[0].reason) == (1, 0, OVER)


def test_truncating_drops_the_oldest_and_keeps_system_prompt_and_target() -> None:
    made, skipped = cut(talk(30), limit=22, mode="slices", over_limit="truncate")
    assert [each.point for each in made] == get_slice_points(30, "t1")
    assert (taught(made), skipped) == (list(range(1, 31)), [])
    last = made[-1]
    assert (last.dropped, last.tokens, last.messages[0]["role"]) == (20, 22, "system")
    assert last.messages[-1]["content"] == "a30"
    assert last.messages[1]["content"] == "q21"


def test_a_truncated_whole_lists_what_was_cut_away() -> None:
    made, skipped = cut(talk(30), limit=22, mode="whole", over_limit="truncate")
    assert (made[0].dropped, taught(made)) == (20, list(range(21, 31)))
    assert reasons(skipped) == {CUT: list(range(1, 21))}


def test_when_not_even_three_exchanges_fit_the_example_is_left_out() -> None:
    made, skipped = cut(talk(30), limit=7, mode="slices", over_limit="truncate")
    assert made == []
    assert reasons(skipped) == {OVER: list(range(1, 31))}


@pytest.mark.parametrize("policy", ["skip", "truncate"])
def test_one_giant_message_costs_what_holds_it_and_no_more(policy: Any) -> None:
    about = talk(30, r12="word " * 500)
    made, skipped = cut(about, limit=100, over_limit=policy)
    points = get_slice_points(30, "t1")
    before = max(point for point in points if point < 12)
    lost = reasons(skipped)[OVER]
    assert sorted(taught(made) + lost) == list(range(1, 31))
    assert set(range(1, before + 1)) <= set(taught(made))
    assert 12 in lost
    assert (30 in taught(made)) == (policy == "truncate")


# Lengths and blanks


def test_no_exchange_at_all_is_said_so() -> None:
    assert cut(talk(0)) == ([], [Skipped("t1", NOTHING)])


@pytest.mark.parametrize("total", [1, 2])
def test_one_or_two_exchanges_are_whole_where_slices_are_not_forced(total: int) -> None:
    made, skipped = cut(talk(total))
    assert (taught(made), skipped) == (list(range(1, total + 1)), [])
    made, skipped = cut(talk(total), mode="slices")
    assert (made, reasons(skipped)) == ([], {SHORT: list(range(1, total + 1))})


@pytest.mark.parametrize("source", ["imported", "document"])
def test_what_was_extracted_is_kept_whole_however_short(source: str) -> None:
    made, skipped = cut(talk(2, source=source), mode="slices")
    assert ([each.way for each in made], taught(made), skipped) == ([FEW], [1, 2], [])
    assert len(cut(talk(9, source=source), mode="slices")[0]) > 1


def test_two_hundred_exchanges_are_all_learned() -> None:
    made, skipped = cut(talk(200), mode="slices")
    assert (taught(made), skipped) == (list(range(1, 201)), [])


def test_a_blank_reply_is_context_and_never_learned() -> None:
    made, skipped = cut(talk(10, r4="  ", r10=""), mode="slices")
    assert taught(made) == [n for n in range(1, 11) if n not in (4, 10)]
    assert reasons(skipped) == {BLANK: [4, 10]}
    whole, _ = cut(talk(10, r4=" "))
    assert whole[0].messages[8]["content"] == " "


def test_an_example_with_nothing_to_learn_is_not_made() -> None:
    made, skipped = cut(talk(3, r1="", r2="", r3=""))
    assert made == []
    assert [each.reason for each in skipped] == [NO_LOSS, BLANK, BLANK, BLANK]
    assert lost_share(0, [each.row() for each in skipped]) == 0


def test_half_a_character_names_its_transcript() -> None:
    with pytest.raises(FinetuneError, match="t1: holds half a character"):
        line_of({"id": "t1", "messages": "\ud800"})


# How many


@pytest.mark.parametrize(
    ("exchanges", "mean", "least", "most"),
    [(15, 5, 4, 7), (25, 8, 6, 12), (50, 15, 11, 19), (100, 29, 23, 37)],
)
def test_slices_per_transcript_are_as_many_as_expected(
    exchanges: int, mean: int, least: int, most: int
) -> None:
    found = [len(cut(talk(exchanges, f"t{n}"), mode="slices")[0]) for n in range(300)]
    average = sum(found) / len(found)
    assert round(average) == mean
    assert abs(average - expected_slices(exchanges, Slicing())) < 0.25
    inside = sum(least <= count <= most for count in found)
    assert inside >= 0.99 * len(found)


@pytest.mark.parametrize("mode", ["auto", "slices", "whole"])
@pytest.mark.parametrize("policy", ["skip", "truncate"])
@pytest.mark.parametrize("supervise", ["once", "all", "last"])
def test_the_estimate_promises_what_is_made(mode: Any, policy: Any, supervise: Any) -> None:
    slicing = Slicing(mode=mode, over_limit=policy, supervise=supervise)
    room, lengths = Room(2, 2, 1, 42), [LengthClass(exchanges=n, weight=0.5) for n in (12, 30)]
    promised = yield_of(lengths, slicing, room)
    how = slicing.model_dump(exclude_unset=True)
    talks = [talk(total, f"t{n}") for n in range(400) for total in (12, 30)]
    made = [each for about in talks for each in cut(about, 42, **how)[0]]
    assert abs(len(made) / 800 - promised.examples) < 0.25
    learned = sum(len(each.supervised) for each in made) / 800
    assert abs(learned - promised.learned) < 0.06 * promised.learned + 0.01
    assert max(each.tokens for each in made) <= promised.longest
    assert examples_of(12, slicing, room.fits)


# Whatever it is


@st.composite
def conversations(draw: Any) -> Conversation:
    sizes = st.integers(0, 12)
    pairs = draw(st.lists(st.tuples(sizes, sizes), max_size=40))
    words = tuple(("u " * user, "a " * assistant) for user, assistant in pairs)
    source = draw(st.sampled_from(["generated", "imported"]))
    return Conversation(f"t{draw(st.integers(0, 999))}", words, source=source)


SETTINGS = st.builds(
    lambda first, gap, more, **rest: Slicing(first=first, min_gap=gap, max_gap=gap + more, **rest),
    first=st.integers(1, 5),
    gap=st.integers(1, 4),
    more=st.integers(0, 4),
    mode=st.sampled_from(["auto", "slices", "whole"]),
    supervise=st.sampled_from(["once", "all", "last"]),
    over_limit=st.sampled_from(["skip", "truncate"]),
)


@rules_of_test(max_examples=400, deadline=None)
@given(conversations(), SETTINGS, st.integers(3, 400), st.booleans())
def test_every_reply_is_learned_once_or_listed_and_no_example_is_over(
    about: Conversation, slicing: Slicing, limit: int, doubt: bool
) -> None:
    made, skipped = examples(about, SYSTEM, Rules(slicing, limit), Words(doubt=doubt))
    learned = Counter(taught(made))
    listed = [each.exchange for each in skipped if each.exchange is not None]
    assert sorted([*learned, *listed]) == list(range(1, len(about.pairs) + 1))
    if slicing.supervise != "all":
        assert not learned or max(learned.values()) == 1
    rows = [row_of(each, about, "g", {}) | {"split": "train"} for each in made]
    assert list(faults_of(rows, limit)) == []
    for each in made:
        expected = messages_of(about.pairs[each.dropped : each.point], SYSTEM)
        assert each.messages == expected
        assert each.dropped == 0 or each.point - each.dropped >= 3


# Lines and files


def test_an_id_is_never_longer_than_120_characters_and_stays_its_own() -> None:
    long = ["x" * 119 + end for end in "ab"]
    ids = {example_id(name, ending) for name in [*long, "t"] for ending in ("s3", "s17", "whole")}
    assert len(ids) == 9
    assert max(map(len, ids)) == 120
    assert example_id("t", "s3") == "t.s3"


def golden() -> bytes:
    found = {"id": "t_0042", "source": "imported", "provenance": {"simulated": True}}
    about = conversation_of(found, [("Hé?", "Ja, 好。"), ("And?", "Done.")], "0123")
    made, _ = examples(about, SYSTEM, Rules(Slicing(), 100), Words())
    row = row_of(made[0], about, "t_0001", {"rubric_hash": "r", "prompt_hash": "p", "code": "c"})
    return files_of([row | {"split": "train"}])["train.jsonl"]


def test_a_line_of_train_jsonl_never_changes_its_form() -> None:
    assert golden() == (TESTS / "golden_train.jsonl").read_bytes()


def test_a_set_is_the_same_bytes_in_any_order_and_reads_back(tmp_path: Path) -> None:
    rows = []
    for name, side in (("b", "train"), ("a", "validation"), ("c", "train")):
        about = talk(30, name)
        rows += [row_of(each, about, name, {}) | {"split": side}
                 for each in cut(about, mode="slices")[0]]  # fmt: skip
    files = files_of(rows)
    assert files_of(rows[::-1]) == files
    assert files["training_data.jsonl"].count(b"\n") == len(rows)
    (tmp_path / "x.jsonl").write_bytes(files["training_data.jsonl"])
    read = read_rows(tmp_path / "x.jsonl")
    assert files_of(read) == files
    assert [row["transcript"] for row in read] == sorted(row["transcript"] for row in read)


def test_a_line_that_is_none_is_an_error_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_bytes(b'{"id":1}\n[1]\n')
    with pytest.raises(FinetuneError, match=r"train\.jsonl:2: no line of ours"):
        read_rows(tmp_path / "train.jsonl")


def good() -> list[dict[str, Any]]:
    rows = []
    for name, side in (("a", "train"), ("b", "validation")):
        made, _ = cut(talk(4, name))
        rows.append(row_of(made[0], talk(4, name), name, {}) | {"split": side})
    return json.loads(json.dumps(rows))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"group": "b"}, "group b: is in train and in validation"),
        ({"id": "b.whole"}, "b.whole: stands 2 times"),
        ({"supervised": []}, "at least one index"),
        ({"supervised": [2, 2]}, "rising"),
        ({"supervised": [1]}, "no message of the assistant"),
        ({"supervised": [99]}, "no message of the assistant"),
        ({"tokens_at_most": 101}, r"limits.max_tokens is 100"),
        ({"tokens": 0}, "limits"),
        ({"split": "test"}, "split"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "not user and assistant in turn"),
        ({"messages": []}, "not user and assistant in turn"),
        ({"messages": None}, "is no example"),
        ({"tokens": "9"}, "is no example"),
    ],
)
def test_what_must_not_be_in_a_set_is_found(change: dict[str, Any], words: str) -> None:
    rows = good()
    assert list(faults_of(rows, 100)) == []
    rows[0] |= change
    assert any(words in said for said in faults_of(rows, 100)), list(faults_of(rows, 100))


def test_a_blank_reply_that_carries_loss_is_found() -> None:
    rows = good()
    rows[0]["messages"][2]["content"] = " "
    assert any("blank reply" in said for said in faults_of(rows, 100))


EXAMPLES = """
import hashlib
from test_slices import cut, files_of, golden, row_of, talk
rows = [row_of(e, talk(n, f"t{n}"), "g", {}) | {"split": "train"}
        for n in range(3, 60) for e in cut(talk(n, f"t{n}"), 50)[0]]
print(hashlib.sha256(golden() + files_of(rows)["train.jsonl"]).hexdigest())
"""


def test_the_bytes_are_the_same_in_every_process() -> None:
    done = [child("-c", EXAMPLES, PYTHONHASHSEED=seed) for seed in ("0", "1", "random")]
    assert len({each.stdout for each in done}) == 1
    assert len(done[0].stdout) == 65, done[0].stderr
