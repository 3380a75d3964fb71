"""One conversation: what each side is told, what is asked again, what becomes of it."""

import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from children import CODE
from designs import EXAMPLE, example

sys.path.append(str(CODE / "templates/scripts"))
sys.path.append(str(EXAMPLE))

import simulated
from personas import draw_persona, persona_fields, persona_sheet

from infrastructure import CompletionResult, ModelFailure, Usage, count_words
from settings import load_persona_template, load_taxonomy
from simulation import Made, Rules, plan, simulate_conversation

Messages = list[dict[str, str]]
Said = str | Exception | Callable[..., str]
FEW = "one two three four five six"  # words that every style and limit lets through


class Voice:
    """A model with scripted replies by slot; keeps what it was asked."""

    def __init__(self, usual: Said, **slots: Said) -> None:
        self.usual, self.slots = usual, slots
        self.asked: dict[str, Messages] = {}

    async def chat(self, messages: Sequence[Mapping[str, str]], scope: str) -> CompletionResult:
        slot = scope.rpartition("/")[2]
        self.asked[slot] = [dict(message) for message in messages]
        said = self.slots.get(slot.replace(".", "_").replace("-", ""), self.usual)
        if isinstance(said, Exception):
            raise said
        text = said if isinstance(said, str) else said(messages, scope=scope)
        return CompletionResult(text, "fake", Usage(2, 3), "stop", 0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example(tmp_path_factory.mktemp("talk") / "demo")


def spoilt(side: str, text: str, told: Sequence[str], earlier: Sequence[str]) -> list[str]:
    return ["tool_footer: BAD"] if "BAD" in text else []


@pytest.fixture
def rules(root: Path) -> Rules:
    return Rules.of(root, 3, spoilt)


def persona(root: Path, number: int = 1, **other: Any) -> dict[str, Any]:
    """A persona of the example, without an early ending."""
    drawn = draw_persona(load_taxonomy(root), load_persona_template(root), 1, number)
    return drawn | {"communication_style": "terse"} | other


def talk(
    rules: Rules, user: Voice, assistant: Voice, who: Mapping[str, Any], early: float = 0.0
) -> Made:
    ends = rules.template.endings.model_copy(update={"early": early})
    rules = replace(rules, template=rules.template.model_copy(update={"endings": ends}))
    fields = persona_fields(who) | {"persona": persona_sheet(who)}
    pair: Any = (user, assistant)
    return asyncio.run(simulate_conversation(who, fields, *pair, rules))


def few(rules: Rules, exchanges: int) -> Rules:
    """The same rules for conversations that may be so short."""
    limits = rules.project.limits.model_copy(update={"min_exchanges": exchanges})
    return replace(rules, project=rules.project.model_copy(update={"limits": limits}))


# what each side is told

SHEET = "name: Ann\ntrajectory: stuck"
SIMULATOR = {
    "System": "Play this person about {{domain}} in {{language}}.\n{{persona}}",
    "First message": "{{time}}\n{{stage}}\n{{flaws}}\n{{least}} to {{most}} words.",
    "Next message": "{{time}}\n{{stage}} Now: {{response}}.\n{{flaws}}\n{{least}} to {{most}}.",
    "Wrong length": "It had {{words}} words, not {{least}} to {{most}}.",
}
ASSISTANT = {"System": "Help with {{domain}} in {{language}}.", "Too long": "{{words}}, {{most}}"}


@pytest.fixture
def scripted(rules: Rules) -> Rules:
    """Short prompts, and draws that leave no choice."""
    primary = rules.template.flaw_patterns.primary.model_copy(update={"probability": 1.0})
    stages = [
        stage.model_copy(update={"guidance": f"Part {number}."})
        for number, stage in enumerate(rules.template.stages, 1)
    ]
    changes: dict[str, Any] = {
        "flaw_patterns": rules.template.flaw_patterns.model_copy(update={"primary": primary}),
        "response_types": {"engages": rules.template.response_types["engages"]},
        "stages": stages,
        "endings": rules.template.endings.model_copy(update={"shows": "Say goodbye.", "early": 0}),
    }
    template = rules.template.model_copy(update=changes)
    project = rules.project.model_copy(update={"domain": "water", "language": "en"})
    prompts = {"simulator": SIMULATOR, "assistant": ASSISTANT}
    return few(replace(rules, template=template, project=project, **prompts), 3)


def three(rules: Rules, root: Path) -> tuple[Voice, Voice, Made]:
    """Ann and an assistant talk three times; each counts its messages."""
    said = {f"t{n:02}_{side}": f"{side} says {n} {FEW}" for n in (1, 2, 3)
            for side in ("user", "assistant")}  # fmt: skip
    user, assistant = Voice("", **said), Voice("", **said)
    who = persona(root, flaws=[{"name": "vague", "family": "primary"}], target_exchanges=3)
    pair: Any = (user, assistant)
    made = asyncio.run(simulate_conversation(who, {"persona": SHEET}, *pair, rules))
    return user, assistant, made


VAGUE = "In this message the person says that it is not right somehow, and not what, where or since"
VAGUE += " when."
ENGAGES = "Now: answers what was asked."


def test_what_the_simulator_is_told_literally(scripted: Rules, root: Path) -> None:
    user, _, _ = three(scripted, root)
    system = {"role": "system", "content": f"Play this person about water in en.\n{SHEET}"}
    nobody = {"role": "user", "content": "(Nobody has written yet.)"}
    first = f"(Nobody has written yet.)\n\nPart 1.\n{VAGUE}\n5 to 30 words."
    second = f"assistant says 1 {FEW}\n\nPart 2. {ENGAGES}\n{VAGUE}\n5 to 30."
    third = f"assistant says 2 {FEW}\n\nPart 3. Say goodbye. {ENGAGES}\n{VAGUE}\n5 to 30."
    said = [{"role": "assistant", "content": f"user says {n} {FEW}"} for n in (1, 2)]
    heard = {"role": "user", "content": f"assistant says 1 {FEW}"}
    assert user.asked == {
        "t01.user": [system, {"role": "user", "content": first}],
        "t02.user": [system, nobody, said[0], {"role": "user", "content": second}],
        "t03.user": [system, nobody, said[0], heard, said[1], {"role": "user", "content": third}],
    }


def test_what_the_assistant_is_told_literally(scripted: Rules, root: Path) -> None:
    _, assistant, _ = three(scripted, root)
    system = {"role": "system", "content": "Help with water in en."}
    user = [{"role": "user", "content": f"user says {n} {FEW}"} for n in (1, 2, 3)]
    reply = [{"role": "assistant", "content": f"assistant says {n} {FEW}"} for n in (1, 2)]
    assert assistant.asked == {
        "t01.assistant": [system, user[0]],
        "t02.assistant": [system, user[0], reply[0], user[1]],
        "t03.assistant": [system, user[0], reply[0], user[1], reply[1], user[2]],
    }


def test_a_new_day_is_told_to_the_simulator_and_kept(scripted: Rules, root: Path) -> None:
    template = scripted.template.model_copy(update={"time": "new day"})
    user, assistant, made = three(replace(scripted, template=template), root)
    days = [exchange["meta"]["day"] for exchange in made.transcript["exchanges"]]
    assert days[0] == 1 < days[1] < days[2]
    assert f"This is day {days[2]}." in user.asked["t03.user"][-1]["content"]
    assert "This is day" not in str(assistant.asked)


def played(rules: Rules, root: Path, number: int) -> tuple[Voice, Voice, Made]:
    """A whole conversation of the example's own simulated models and prompts."""
    user, assistant = Voice(simulated.user), Voice(simulated.assistant)
    who = draw_persona(load_taxonomy(root), load_persona_template(root), 1, number)
    return user, assistant, talk(rules, user, assistant, who)


def first_tries(voice: Voice) -> list[Messages]:
    return [asked for slot, asked in voice.asked.items() if slot.count(".") == 1]


@pytest.mark.parametrize("number", range(1, 6))
def test_the_assistant_sees_its_prompt_and_the_words_that_were_said_and_nothing_else(
    number: int, rules: Rules, root: Path
) -> None:
    _, assistant, made = played(rules, root, number)
    said = [made.transcript["exchanges"][n][side] for n in range(len(first_tries(assistant)))
            for side in ("user", "assistant")]  # fmt: skip
    for turn, messages in enumerate(first_tries(assistant), 1):
        assert [message["content"] for message in messages[1:]] == said[: 2 * turn - 1]
    told = str(assistant.asked)
    who = made.transcript["persona"]
    secrets = [who["trajectory_shows"], who["style_reads"], "In this message the person"]
    secrets += [stage.guidance for stage in rules.template.stages]
    assert [secret for secret in secrets if secret in told] == []


@pytest.mark.parametrize("number", range(1, 6))
def test_the_simulator_never_sees_the_training_prompt_nor_the_assistants(
    number: int, rules: Rules, root: Path
) -> None:
    user, assistant, _ = played(rules, root, number)
    files = ("config/system-prompt.md", "config/prompts/assistant.md")
    lines = {line.strip() for name in files for line in (root / name).read_text().splitlines()}
    lines |= set(assistant.asked["t01.assistant"][0]["content"].splitlines())
    told = str(list(user.asked.values()))
    assert [line for line in lines if len(line) > 30 and line in told] == []


@pytest.mark.parametrize("side", [0, 1])
def test_each_call_begins_with_all_that_the_one_before_it_sent(
    side: int, rules: Rules, root: Path
) -> None:
    calls = first_tries(played(rules, root, 1)[side])
    assert len(calls) == 14
    for before, after in pairwise(calls):
        assert after[: len(before) - 1] == before[:-1]
        heard = after[len(before) - 1]["content"]  # without what was only for that message
        assert before[-1]["content"].startswith(heard)


def test_draws_do_not_depend_on_what_the_models_say(rules: Rules, root: Path) -> None:
    who = persona(root)
    made = [talk(rules, Voice(f"{FEW} {n}"), Voice(FEW), who) for n in (1, 2)]
    drawn = [[(e["meta"]["stage"], e["meta"]["response"], e["meta"]["flaws"])
              for e in each.transcript["exchanges"]] for each in made]  # fmt: skip
    assert drawn[0] == drawn[1]
    assert len({turn.response for turn in plan(who, rules)}) > 2


# lengths and characters


def test_a_user_who_ignores_the_limit_is_asked_twice_with_the_count_and_then_recorded(
    rules: Rules, root: Path
) -> None:
    user = Voice("word " * 50)
    made = talk(rules, user, Voice(FEW), persona(root, target_exchanges=10))
    first = [slot for slot in user.asked if slot.startswith("t01.")]
    assert first == ["t01.user", "t01.user.length-1", "t01.user.length-2"]
    assert "had 50 words" in user.asked["t01.user.length-1"][-1]["content"]
    meta = made.transcript["exchanges"][0]["meta"]
    assert (meta["violations"], meta["asked_again"]) == (["user words"], {"user": 2})
    assert (made.fate, meta["words"]) == ("accepted", {"user": 50, "assistant": 6})


def test_a_shorter_second_try_is_taken(rules: Rules, root: Path) -> None:
    user = Voice(FEW, t01_user="word " * 50, t01_user_length1=f"{FEW} at last")
    made = talk(rules, user, Voice(FEW), persona(root, target_exchanges=10))
    exchange = made.transcript["exchanges"][0]
    assert exchange["user"] == f"{FEW} at last"
    assert (exchange["meta"]["violations"], exchange["meta"]["asked_again"]) == ([], {"user": 1})


def test_of_three_wrong_lengths_the_nearest_is_kept(rules: Rules, root: Path) -> None:
    tries = {"t01_user": "a " * 50, "t01_user_length1": "b " * 35, "t01_user_length2": "c " * 90}
    made = talk(rules, Voice(FEW, **tries), Voice(FEW), persona(root, target_exchanges=10))
    assert made.transcript["exchanges"][0]["meta"]["words"]["user"] == 35


def test_an_assistant_over_twice_the_message_is_asked_twice_and_then_recorded(
    rules: Rules, root: Path
) -> None:
    assistant = Voice("word " * 61)
    user = Voice("word " * 30)
    made = talk(rules, user, assistant, persona(root, target_exchanges=10))
    first = [slot for slot in assistant.asked if slot.startswith("t01.")]
    assert first == ["t01.assistant", "t01.assistant.length-1", "t01.assistant.length-2"]
    again = assistant.asked["t01.assistant.length-1"]
    assert again[-2] == {"role": "assistant", "content": ("word " * 61).strip()}
    assert "had 61 words, the message had 30" in again[-1]["content"]
    assert "at most 60 words" in again[-1]["content"]
    assert made.transcript["exchanges"][0]["meta"]["violations"] == ["assistant words"]


def test_a_short_message_may_still_be_answered_with_thirty_words(rules: Rules, root: Path) -> None:
    assistant = Voice("word " * 30)
    made = talk(rules, Voice(FEW), assistant, persona(root, target_exchanges=10))
    assert made.transcript["exchanges"][0]["meta"]["violations"] == []
    assert "t01.assistant.length-1" not in assistant.asked


def test_a_request_to_be_shorter_is_not_part_of_the_history(rules: Rules, root: Path) -> None:
    user = Voice(FEW, t01_user="word " * 50, t01_user_length1=FEW)
    talk(rules, user, Voice(FEW), persona(root, target_exchanges=10))
    assert "had 50 words" not in str(user.asked["t02.user"])


def test_words_are_counted_by_script(rules: Rules, root: Path) -> None:
    chinese = "水" * 48  # a language without spaces: 48 signs, and not one word
    user = Voice(chinese)
    made = talk(rules, user, Voice(FEW), persona(root, target_exchanges=10))
    counted = made.transcript["exchanges"][0]["meta"]
    assert counted["words"]["user"] == count_words(chinese) > 5
    assert (counted["violations"] == []) == (count_words(chinese) <= 30)


def test_unwanted_characters_are_replaced_before_anything_is_measured(
    rules: Rules, root: Path
) -> None:
    user, assistant = Voice("one\u00a0two three four five six \n"), Voice(FEW)
    made = talk(rules, user, assistant, persona(root, target_exchanges=10))
    assert made.transcript["exchanges"][0]["user"] == FEW
    assert assistant.asked["t01.assistant"][-1]["content"] == FEW


# what becomes of a conversation


def test_a_spoilt_message_is_made_again_once_and_what_was_found_is_kept(
    rules: Rules, root: Path
) -> None:
    assistant = Voice(FEW, t02_assistant="BAD")
    made = talk(rules, Voice(FEW), assistant, persona(root, target_exchanges=10))
    meta = made.transcript["exchanges"][1]["meta"]
    assert (made.fate, made.transcript["ended"]) == ("accepted", "target")
    assert meta["found"] == {"assistant": ["tool_footer: BAD"]}
    assert (meta["made_again"], "BAD" in str(assistant.asked)) == ({"assistant": 1}, False)


def test_what_was_found_in_a_try_for_its_length_is_kept_too(rules: Rules, root: Path) -> None:
    user = Voice(FEW, t01_user="word " * 50, t01_user_length1="BAD")
    made = talk(rules, user, Voice(FEW), persona(root, target_exchanges=10))
    meta = made.transcript["exchanges"][0]["meta"]
    assert meta["found"] == {"user": ["tool_footer: BAD"]}
    assert (meta["asked_again"], meta["violations"]) == ({"user": 1}, ["user words"])


BOTH = {"t12_assistant": "BAD", "t12_assistant_repair1": "BAD"}


def test_a_conversation_is_cut_where_it_stays_spoilt_if_enough_of_it_remains(
    rules: Rules, root: Path
) -> None:
    made = talk(rules, Voice(FEW), Voice(FEW, **BOTH), persona(root, target_exchanges=14))
    assert (made.fate, made.why) == ("truncated", ("tool_footer: BAD",))
    assert (len(made.transcript["exchanges"]), made.transcript["ended"]) == (11, "error")
    thrown = {"assistant": ["tool_footer: BAD"]}
    cut = {"after": 11, "side": "assistant", "why": ["tool_footer: BAD"], "found": thrown}
    assert made.transcript["cut"] == cut
    assert "BAD" not in str(made.transcript["exchanges"])


@pytest.mark.parametrize(("turn", "fate"), [(10, "rejected"), (11, "truncated")])
def test_ten_exchanges_are_enough_and_nine_are_not(
    turn: int, fate: str, rules: Rules, root: Path
) -> None:
    bad = {f"t{turn}_user": "BAD", f"t{turn}_user_repair1": "BAD"}
    made = talk(rules, Voice(FEW, **bad), Voice(FEW), persona(root, target_exchanges=14))
    assert (made.fate, len(made.transcript["exchanges"])) == (fate, turn - 1)
    assert made.why == ("tool_footer: BAD",)


@pytest.mark.parametrize("kind", ["refusal", "length", "filter", "empty", "context_full"])
def test_a_withheld_reply_counts_as_spoilt_and_gets_one_more_try(
    kind: str, rules: Rules, root: Path
) -> None:
    assistant = Voice(FEW, t02_assistant=ModelFailure(kind, "no"))
    made = talk(rules, Voice(FEW), assistant, persona(root, target_exchanges=10))
    found = made.transcript["exchanges"][1]["meta"]["found"]
    assert (made.fate, found) == ("accepted", {"assistant": [f"no reply: {kind}"]})
    assert made.transcript["usage"]["assistant"]["calls"] == 11


def test_a_reply_that_is_withheld_twice_ends_the_conversation_with_the_reason(
    rules: Rules, root: Path
) -> None:
    said = ModelFailure("refusal", "no")
    assistant = Voice(FEW, t02_assistant=said, t02_assistant_repair1=said)
    made = talk(rules, Voice(FEW), assistant, persona(root))
    assert (made.fate, made.why) == ("rejected", ("no reply: refusal",))


def test_a_provider_that_does_not_answer_is_no_fault_of_the_conversation(
    rules: Rules, root: Path
) -> None:
    gone = ModelFailure("transport", "connection refused")
    with pytest.raises(ModelFailure, match="refused"):
        talk(rules, Voice(FEW), Voice(FEW, t02_assistant=gone), persona(root))


def test_an_early_ending_is_drawn_by_code_and_said_to_the_person(rules: Rules, root: Path) -> None:
    user = Voice(FEW)
    made = talk(rules, user, Voice(FEW), persona(root, target_exchanges=40), early=1.0)
    count = len(made.transcript["exchanges"])
    assert 10 <= count < 40
    assert made.transcript["ended"] == "user"
    assert rules.template.endings.shows in user.asked[f"t{count:02}.user"][-1]["content"]


def test_dollars_are_unknown_once_one_price_is(rules: Rules, root: Path) -> None:
    class Unpriced(Voice):
        async def chat(self, messages: Any, scope: str) -> CompletionResult:
            return replace(await super().chat(messages, scope), cost=None)

    made = talk(rules, Voice(FEW), Unpriced(FEW), persona(root, target_exchanges=10))
    assert made.transcript["usage"]["user"] == {
        "calls": 10, "input": 20, "output": 30, "dollars": 5.0
    }  # fmt: skip
    assert made.transcript["usage"]["assistant"]["dollars"] is None
    assert json.loads(json.dumps(made.transcript)) == made.transcript
