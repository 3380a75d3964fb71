"""Lineage and split: what is related stays on one side, and every source is on both."""

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from children import child
from infrastructure import FinetuneError
from slicing import Conversation, conversation_of, groups, nearest_sum, shared_people, split

PAIRS = (("Hello.", "Hi."),)


def talk(name: str, **more: Any) -> Conversation:
    """A transcript as on the disk; the words differ unless they are given."""
    words = more.pop("words", f"words of {name}")
    return conversation_of({"id": name, "source": "generated"} | more, PAIRS, words)


def person(name: str, seed: int, topic: str = "billing", **more: Any) -> dict[str, Any]:
    topics = [{"category": topic, "subtopic": "late", "complexity": "low"}]
    return {"id": name, "name": f"{name} of {seed}", "seed": seed, "topic_seeds": topics} | more


def part(document: str, start: int, end: int) -> dict[str, Any]:
    return {"spans": [{"document": document, "start": start, "end": end}]}


def together(*talks: Conversation, **how: Any) -> bool:
    return len(set(groups(talks, **how).values())) == 1


# What is related


def test_strangers_are_groups_of_their_own() -> None:
    one, other = talk("a", persona=person("p1", 1)), talk("b", persona=person("p2", 2))
    assert groups([one, other]) == {"a": "a", "b": "b"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"persona": person("p1", 1)}, {"persona": person("p1", 2)}),
        ({"persona": person("p1", 7)}, {"persona": person("p2", 7)}),
        ({"persona": person("p1", 1)}, {"persona": person("p1", 1) | {"id": "x", "seed": 9}}),
        ({}, {"repaired_from": "a"}),
        ({}, {"provenance": {"repaired_from": {"id": "a", "hash": "0"}}}),
        ({"words": "w"}, {"repaired_from": "w"}),
        ({"words": "same"}, {"words": "same"}),
        ({"scenario_seed": 5}, {"provenance": {"scenario_seed": 5}}),
        ({"scenario_seed": 5}, {"persona": person("p1", 5)}),
        ({"provenance": part("d", 0, 10)}, {"provenance": part("d", 9, 20)}),
    ],
)
def test_related_ones_are_one_group(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert together(talk("a", **one), talk("b", **other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"provenance": part("d", 0, 10)}, {"provenance": part("d", 10, 20)}),
        ({"provenance": part("d", 0, 10)}, {"provenance": part("e", 0, 10)}),
        ({"persona": {"name": "user"}}, {"persona": {"name": "user"}}),
        ({"persona": {}}, {"persona": {}}),
        ({"persona": None}, {"persona": None}),
        ({"provenance": {"seed": 3}}, {"provenance": {"seed": 3}}),  # of a run, not of a scenario
    ],
)
def test_what_many_share_relates_nobody(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert not together(talk("a", **one), talk("b", **other))


def test_a_whole_document_joins_all_that_was_made_of_it_when_asked() -> None:
    far = [talk("a", provenance=part("d", 0, 10)), talk("b", provenance=part("d", 90, 99))]
    assert not together(*far)
    assert together(*far, whole_documents=True)


def test_a_long_part_reaches_over_a_short_one_inside_of_it() -> None:
    inner = [part("d", 0, 100), part("d", 10, 20), part("d", 50, 60)]
    assert together(*(talk(f"t{n}", provenance=each) for n, each in enumerate(inner)))


def test_near_duplicates_join_and_so_does_what_they_are_related_to() -> None:
    talks = [talk("a"), talk("b", scenario_seed=1), talk("c", scenario_seed=1), talk("d")]
    assert groups(talks, [("a", "b", 0.93)]) == {"a": "a", "b": "a", "c": "a", "d": "d"}


def test_a_part_that_is_no_part_is_an_error_with_its_transcript() -> None:
    for wrong in (part("d", 5, 5), part("", 0, 5), part("d", -1, 5), {"spans": ["x"]}):
        with pytest.raises(FinetuneError, match="transcript a: provenance"):
            talk("a", provenance=wrong)


# 10,000 lineage graphs


def graph(chance: random.Random) -> tuple[list[Conversation], list[tuple[str, str, float]]]:
    """A few transcripts with keys, parts of documents and near-duplicates, as chance has it."""
    talks = []
    for n in range(chance.randint(2, 14)):
        keys = {f"k{chance.randint(0, 12)}" for _ in range(chance.randint(0, 2))}
        start = chance.randint(0, 40)
        spans = ((chance.choice("de"), start, start + chance.randint(1, 6)),)
        spans = spans[: chance.randint(0, 1)]
        source, topic = chance.choice(["generated", "imported"]), chance.choice(["x", "y", ""])
        talks.append(Conversation(f"t{n:02}", PAIRS, frozenset(keys), spans, source, topic))
    names = [each.id for each in talks]
    pairs = [(*chance.sample(names, 2), 0.9) for _ in range(chance.randint(0, 2))]
    return talks, pairs  # type: ignore[return-value]


def related(one: Conversation, other: Conversation) -> bool:
    spans = itertools.product(one.spans, other.spans)
    over = any(a[0] == b[0] and a[1] < b[2] and b[1] < a[2] for a, b in spans)
    return over or bool(one.keys & other.keys)


def by_walking(
    talks: list[Conversation], near: list[tuple[str, str, float]]
) -> dict[str, frozenset[str]]:
    """The same question asked slowly: who can be reached from whom."""
    edges = {frozenset(pair[:2]) for pair in near}
    edges |= {frozenset((a.id, b.id)) for a, b in itertools.combinations(talks, 2) if related(a, b)}
    reach = {each.id: {each.id} for each in talks}
    for _ in talks:
        for edge in edges:
            both = set().union(*(reach[item] for item in edge))
            for item in both:
                reach[item] = both
    return {item: frozenset(each) for item, each in reach.items()}


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_ten_thousand_lineage_graphs_share_no_group_between_the_sides() -> None:
    chance, splits = random.Random(9), 0
    for number in range(10_000):
        talks, near = graph(chance)
        family = groups(talks, near)
        if number % 20 == 0:  # the slow way is for some of them
            reach = by_walking(talks, near)
            assert all((family[a] == family[b]) == (b in reach[a]) for a in family for b in family)
            chance.shuffle(talks)
            assert groups(reversed(talks), near[::-1]) == family
        if len(set(family.values())) < 2:
            continue
        sides = split(family, {each.id: each.stratum for each in talks}, 0.8, number)
        on = {
            side: {family[item] for item in sides if sides[item] == side} for side in sides.values()
        }
        assert set(on) == {"train", "validation"}
        assert not on["train"] & on["validation"]
        splits += 1
    assert splits > 9_000


# The split


def singles(count: int, stratum: str = "s") -> tuple[dict[str, str], dict[str, str]]:
    names = [f"{stratum}{n:03}" for n in range(count)]
    return dict(zip(names, names, strict=True)), dict.fromkeys(names, stratum)


def test_each_source_meets_the_share_and_is_on_both_sides() -> None:
    family, strata = {}, {}
    for name, count in (("big", 100), ("small", 10), ("tiny", 2)):
        more = singles(count, name)
        family, strata = family | more[0], strata | more[1]
    sides = split(family, strata, 0.8, 4)
    apart = Counter(strata[item] for item in sides if sides[item] == "validation")
    assert apart == {"big": 20, "small": 2, "tiny": 1}


def test_whole_groups_come_as_near_to_the_share_as_they_can() -> None:
    sizes = {"a": 7, "b": 5, "c": 4, "d": 3, "e": 1}  # of 20, so 4 are to validate
    family = {f"{group}{n}": group for group, size in sizes.items() for n in range(size)}
    sides = split(family, dict.fromkeys(family, "s"), 0.8, 1)
    assert Counter(sides.values()) == {"train": 16, "validation": 4}
    assert all(len({sides[i] for i in family if family[i] == group}) == 1 for group in sizes)


def test_sources_of_one_group_are_split_together() -> None:
    family = {f"t{n}": f"t{n}" for n in range(10)}
    sides = split(family, {item: f"topic {item}" for item in family}, 0.8, 1)
    assert Counter(sides.values()) == {"train": 8, "validation": 2}


def test_two_groups_of_two_sources_still_give_a_validation_set() -> None:
    sides = split({"a": "a", "b": "b"}, {"a": "x", "b": "y"}, 0.8, 1)
    assert sorted(sides.values()) == ["train", "validation"]


def test_a_group_of_two_sources_belongs_to_that_of_most() -> None:
    family = {"a": "a", "b": "a", "c": "a", "d": "d", "e": "e"}
    sides = split(family, {"a": "x", "b": "y", "c": "y", "d": "x", "e": "x"}, 0.5, 1)
    assert sides["a"] == sides["b"] == sides["c"]
    assert sides["d"] != sides["e"]


@pytest.mark.parametrize("count", [1, 5])
def test_one_single_group_is_an_error_that_says_what_to_do(count: int) -> None:
    family = {f"t{n}": "t0" for n in range(count)}
    with pytest.raises(FinetuneError, match=r"no validation set: .* other personas"):
        split(family, dict.fromkeys(family, "s"), 0.8, 1)


def test_another_seed_is_another_split_and_the_same_seed_the_same() -> None:
    family, strata = singles(60)
    found = [split(family, strata, 0.8, seed) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2]


def test_every_group_is_as_likely_to_validate() -> None:
    family, strata = singles(10)
    seen = Counter(item for seed in range(1000) for item, side in
                   split(family, strata, 0.8, seed).items() if side == "validation")  # fmt: skip
    assert all(150 < seen[item] < 250 for item in family)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=9), st.floats(0.05, 0.95), st.booleans())
def test_the_nearest_sum_is_the_nearest(sizes: list[int], share: float, some: bool) -> None:
    want = share * sum(sizes)
    best = min(
        abs(sum(each) - want)
        for count in range(some, len(sizes))
        for each in itertools.combinations(sizes, count)
    )
    places = nearest_sum(sizes, want, int(some))
    assert abs(abs(sum(sizes[at] for at in places) - want) - best) < 1e-6
    assert some <= len(places) == len(set(places)) < len(sizes)


AGAIN = """
from test_lineage import graph, groups, split
import random
chance = random.Random(3)
talks = [t for _ in range(40) for t in graph(chance)[0]]
talks = list({t.id: t for t in talks}.values())
family = groups(talks)
print(family, split(family, {t.id: t.stratum for t in talks}, 0.7, 5))
"""


def test_groups_and_sides_are_the_same_in_every_process() -> None:
    said = {child("-c", AGAIN, PYTHONHASHSEED=seed).stdout for seed in ("0", "1", "random")}
    assert len(said) == 1
    assert "validation" in said.pop()


# Evaluation


def test_the_evaluations_personas_are_found_by_id_by_seed_and_by_content() -> None:
    anna = person("eval-1", 11)
    same = (person("eval-1", 5), person("train-1", 11), anna | {"id": "train-1", "seed": 6})
    for who in same:
        assert list(shared_people([talk("a", persona=who)], [anna])) == [("a", "eval-1")]
    assert list(shared_people([talk("eval-1")], [anna])) == [("eval-1", "eval-1")]
    assert list(shared_people([talk("a", persona=person("train-1", 5))], [anna])) == []
