"""One conversation between a simulated person and an assistant. Works alone when copied.

    rules = Rules.of(root, seed=3, inspect=inspect)
    made = await simulate_conversation(persona, fields, user_model, assistant_model, rules)
    made.transcript, made.fate, made.why

Generation, the baseline, documents and the evaluation all use it, so that what they compare was
made in the same way. Both agents get the whole history as chat messages, each from its own side;
what is only for one message stands at the end of the last one, so that a provider's cache keeps the
rest. What is drawn for a message (stage, reaction, flaws, the ending) is drawn by key: the same
persona gets the same draws with every model, in any order and in both arms. Importing it opens
nothing.
"""

import functools
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from infrastructure import (
    PLACEHOLDER,
    SCHEMA,
    LLMBackend,
    ModelFailure,
    count_words,
    fill_prompt,
    rng,
)
from settings import (
    Artefacts,
    PersonaFile,
    ProjectSettings,
    load_artefacts,
    load_persona_template,
    load_project,
    load_prompt,
)

LENGTH_TRIES = 2  # times that a message of the wrong length is asked for again
OPENING = "(Nobody has written yet.)"  # the simulator's first turn, the same in every call
# A reply that the model withheld or spoiled: another try may help, and no rerun would.
SPOILT = frozenset({"length", "refusal", "filter", "tool_call", "too_long", "empty"})
SPOILT |= {"context_full"}

Message = dict[str, str]
Persona = Mapping[str, Any]
# (side, text, what this side was told, its earlier messages) -> what is wrong, in words
Inspect = Callable[[str, str, Sequence[str], Sequence[str]], list[str]]


@dataclass(frozen=True)
class Rules:
    """All that is fixed for a run: prompts, templates, limits, the seed of chance."""

    project: ProjectSettings
    template: PersonaFile
    artefacts: Artefacts
    simulator: Mapping[str, str]  # sections of user_sim.md
    assistant: Mapping[str, str]  # sections of assistant.md
    seed: int
    inspect: Inspect
    system: str | None = None  # instead of assistant.md, for a model that gets the short prompt

    @classmethod
    def of(cls, root: Path, seed: int, inspect: Inspect, fields: Sequence[str] = ()) -> "Rules":
        """Everything from a project's files; their mistakes are a SettingsError."""
        prompts = load_prompt(root, "user_sim", fields), load_prompt(root, "assistant")
        files = load_project(root), load_persona_template(root), load_artefacts(root)
        return cls(*files, *prompts, seed, inspect)


@dataclass(frozen=True)
class Turn:
    """What was drawn for one message of the person."""

    number: int  # from 1
    stage: str
    response: str  # name of the reaction; empty in the first message
    flaws: tuple[str, ...]
    least: int
    most: int
    day: int
    last: bool


@dataclass
class Said:
    """One message as it was accepted or given up, and what it took."""

    text: str
    words: int = 0
    asked_again: int = 0  # because of its length
    made_again: int = 0  # because of what was found in it
    found: list[str] = field(default_factory=list)  # in tries that were thrown away
    wrong: list[str] = field(default_factory=list)  # in the text itself
    off: int = 0  # words beyond the range


@dataclass(frozen=True)
class Made:
    """A transcript and what became of it: accepted, truncated or rejected, and why."""

    transcript: dict[str, Any]
    fate: str
    why: tuple[str, ...] = ()


async def simulate_conversation(
    persona: Persona,
    fields: Mapping[str, str],
    user_model: LLMBackend,
    assistant_model: LLMBackend,
    rules: Rules,
    *,
    scope: str = "generate",
    transcript_id: str = "",
) -> Made:
    """Play one conversation to its end. `fields` are the persona's texts for the prompt."""
    name = transcript_id or str(persona["id"])
    talk = _Talk(persona, fields, rules, f"{scope}/{name}")
    models = {"user": _Voice(user_model), "assistant": _Voice(assistant_model)}
    why, thrown, reply = list[str](), dict[str, list[str]](), None
    for turn in plan(persona, rules):
        user = await talk.person(models["user"], turn)
        reply = await talk.answer(models["assistant"], turn, user) if not user.wrong else None
        why = user.wrong if reply is None else reply.wrong
        if reply is None or why:
            sides = {"user": user, "assistant": reply}
            thrown = {side: said.found for side, said in sides.items() if said and said.found}
            break
        talk.exchanges.append(talk.exchange(turn, user, reply))
    early = bool(talk.exchanges) and len(talk.exchanges) < int(persona["target_exchanges"])
    ended = "error" if why else "user" if early else "target"
    transcript = talk.transcript(name, ended, models)
    if not why:
        return Made(transcript, "accepted")
    at = len(talk.exchanges)
    side = "assistant" if reply is not None else "user"
    transcript["cut"] = {"after": at, "side": side, "why": why, "found": thrown}
    enough = at >= rules.project.limits.min_exchanges
    return Made(transcript, "truncated" if enough else "rejected", tuple(why))


def text_of(transcript: Mapping[str, Any]) -> str:
    """A transcript as it stands on disk: a line for each part and each exchange. Several times as
    quick as `json.dumps` with an indent, and easier to compare line by line."""
    dump = functools.partial(json.dumps, ensure_ascii=False)
    lines = {name: dump(value) for name, value in transcript.items()}
    exchanges = ",\n  ".join(map(dump, transcript["exchanges"]))
    lines["exchanges"] = f"[\n  {exchanges}\n ]" if exchanges else "[]"
    return "{\n" + ",\n".join(f" {dump(name)}: {text}" for name, text in lines.items()) + "\n}\n"


# ── chance ────────────────────────────────────────────────────────────────────────────────────────


def plan(persona: Persona, rules: Rules) -> Iterator[Turn]:
    """The draws for every message of this persona, the last one included."""
    ends, day = ending(persona, rules), 1
    style = rules.template.persona_template.communication_style
    least, most = style.words[persona["communication_style"]]
    for number in range(1, ends + 1):
        chance = _chance(persona, rules, number)
        if number > 1 and rules.template.time == "new day":
            day += 1 + int(chance("days") * 5)  # start value: news after one to five days
        response = _pick(rules.template.response_types, chance("response")) if number > 1 else ""
        flaws = tuple(_active(persona, rules, chance))
        stage = _stage(rules, number, int(persona["target_exchanges"]))
        yield Turn(number, stage, response, flaws, least, most, day, number == ends)


def ending(persona: Persona, rules: Rules) -> int:
    """The number of exchanges that this conversation is meant to have."""
    target, least = int(persona["target_exchanges"]), rules.project.limits.min_exchanges
    chance = _chance(persona, rules, 0)
    if chance("ends early") >= rules.template.endings.early or target <= least:
        return target
    return least + int(chance("ends at") * (target - least))


def _chance(persona: Persona, rules: Rules, turn: int) -> Callable[..., float]:
    return lambda *purpose: rng(rules.seed, persona["id"], turn, *purpose).random()


def _pick(options: Mapping[str, Any], drawn: float) -> str:
    edges = list(accumulate(option.weight for option in options.values()))
    return list(options)[min(bisect_right(edges, drawn * edges[-1]), len(edges) - 1)]


def _active(persona: Persona, rules: Rules, chance: Callable[..., float]) -> Iterator[str]:
    for flaw in persona["flaws"]:
        family = getattr(rules.template.flaw_patterns, flaw["family"])
        if chance("flaw", flaw["name"]) < family.probability:
            yield str(flaw["name"])


def _stage(rules: Rules, number: int, target: int) -> str:
    edges = list(accumulate(stage.share for stage in rules.template.stages))
    place = bisect_right(edges, (number - 0.5) / target)
    return rules.template.stages[min(place, len(edges) - 1)].guidance


# ── what each side is told ────────────────────────────────────────────────────────────────────────


def messages_for_person(
    talk: Sequence[Mapping[str, Any]], turn: Turn, fields: Mapping[str, str], rules: Rules
) -> list[Message]:
    """The history from the person's side: the assistant speaks as `user`. What is only for this
    message stands at the end of the last one."""
    known = (*fields.items(), *_about(rules))
    messages = [_message("system", _filled(rules.simulator["System"], known))]
    heard = OPENING
    for exchange in talk:
        messages += [_message("user", heard), _message("assistant", exchange["user"])]
        heard = str(exchange["assistant"])
    return [*messages, _message("user", f"{heard}\n\n{guidance(turn, rules)}")]


def guidance(turn: Turn, rules: Rules) -> str:
    """What the simulator is told for one message: the stage, the reaction, the flaws active now."""
    template = rules.template
    families = (template.flaw_patterns.primary.patterns, template.flaw_patterns.secondary.patterns)
    shows = {name: flaw.shows for family in families for name, flaw in family.items()}
    flaws = " ".join(f"In this message the person {shows[name]}." for name in turn.flaws)
    stage = f"{turn.stage} {template.endings.shows}" if turn.last else turn.stage
    known = {"stage": stage, "flaws": flaws, "least": str(turn.least), "most": str(turn.most)}
    known["time"] = f"This is day {turn.day}." if template.time == "new day" else ""
    if turn.response:
        known["response"] = template.response_types[turn.response].shows
    section = "Next message" if turn.number > 1 else "First message"
    return _filled(rules.simulator[section], tuple(known.items()))


def messages_for_assistant(
    talk: Sequence[Mapping[str, Any]], user: str, rules: Rules
) -> list[Message]:
    """What the assistant sees: its prompt and the words that were really said, nothing else."""
    system = rules.system or _filled(rules.assistant["System"], _about(rules))
    messages = [_message("system", system)]
    for exchange in talk:
        messages += [_message("user", exchange["user"])]
        messages += [_message("assistant", exchange["assistant"])]
    return [*messages, _message("user", user)]


def _about(rules: Rules) -> tuple[tuple[str, str], ...]:
    return (("domain", rules.project.domain), ("language", rules.project.language))


def _message(role: str, content: object) -> Message:
    return {"role": role, "content": str(content)}


@functools.lru_cache(4096)  # a system prompt is the same for a whole conversation
def _filled(section: str, pairs: tuple[tuple[str, str], ...]) -> str:
    """The section with its values; a line that holds only an empty value goes."""
    known = dict(pairs)
    found = (PLACEHOLDER.fullmatch(line.strip()) for line in section.splitlines())
    lines = zip(section.splitlines(), found, strict=True)
    text = "\n".join(line for line, only in lines if only is None or known[only[1]])
    return fill_prompt(text, {name: known[name] for name in set(PLACEHOLDER.findall(text))})


# ── one message ───────────────────────────────────────────────────────────────────────────────────


@dataclass
class _Voice:
    """One side's model, and what it has used so far."""

    model: LLMBackend
    used: dict[str, Any] = field(
        default_factory=lambda: {"calls": 0, "input": 0, "output": 0, "dollars": 0.0}
    )

    async def say(self, messages: Sequence[Message], scope: str) -> str:
        reply = await self.model.chat(messages, scope=scope)
        self._count(reply.usage, reply.cost)
        return reply.content

    def failed(self, failure: ModelFailure) -> None:
        self._count(failure.usage, failure.cost)

    def _count(self, usage: Any, cost: float | None) -> None:
        self.used["calls"] += 1
        self.used["input"] += usage.input_tokens
        self.used["output"] += usage.output_tokens
        known = cost is not None and self.used["dollars"] is not None
        self.used["dollars"] = self.used["dollars"] + cost if known else None


@dataclass
class _Talk:
    """One conversation in the making."""

    persona: Persona
    fields: Mapping[str, str]
    rules: Rules
    scope: str
    exchanges: list[dict[str, Any]] = field(default_factory=list)

    async def person(self, voice: _Voice, turn: Turn) -> Said:
        """The person's next message, within the words of their style if that can be had."""
        messages = messages_for_person(self.exchanges, turn, self.fields, self.rules)
        again = self.rules.simulator["Wrong length"]
        bounds = {"least": turn.least, "most": turn.most}
        told = [guidance(turn, self.rules), messages[0]["content"]]
        return await self._message(voice, "user", turn, messages, (again, bounds, told))

    async def answer(self, voice: _Voice, turn: Turn, user: Said) -> Said:
        """The assistant's reply, at most so many times the words of the message."""
        messages = messages_for_assistant(self.exchanges, user.text, self.rules)
        limits = self.rules.project.thresholds
        most = max(limits.reply_floor, int(limits.reply_ratio_limit * user.words))
        again = "" if self.rules.system else self.rules.assistant["Too long"]
        bounds = {"least": 0, "most": most, "user_words": user.words}
        told = [messages[0]["content"]]
        return await self._message(voice, "assistant", turn, messages, (again, bounds, told))

    async def _message(
        self,
        voice: _Voice,
        side: str,
        turn: Turn,
        messages: list[Message],
        how: tuple[str, dict[str, int], list[str]],
    ) -> Said:
        """The best of a few tries: nothing found in it, then the nearest to its length."""
        slot, thrown = f"{self.scope}/t{turn.number:02}.{side}", list[str]()
        for repair in range(self.rules.artefacts.regenerate + 1):
            place = f"{slot}.repair-{repair}" if repair else slot
            said = await self._sized(voice, side, messages, how, place)
            said.made_again, said.found = repair, thrown + said.found
            if not said.wrong:
                return said
            thrown = said.found + said.wrong
        return said

    async def _sized(
        self,
        voice: _Voice,
        side: str,
        messages: list[Message],
        how: tuple[str, dict[str, int], list[str]],
        slot: str,
    ) -> Said:
        again, bounds, told = how
        best = await self._once(voice, side, messages, bounds, told, slot)
        said, asked = best, 0
        for attempt in range(1, LENGTH_TRIES + 1):
            if best.wrong or not best.off or not again:
                break
            known = (("words", str(said.words)), *((k, str(v)) for k, v in bounds.items()))
            more = [_message("assistant", said.text), _message("user", _filled(again, known))]
            place = f"{slot}.length-{attempt}"
            said = await self._once(voice, side, [*messages, *more], bounds, told, place)
            asked = attempt
            if said.wrong:
                best.found += said.wrong
                break
            best = min(best, said, key=lambda each: each.off)
        best.asked_again = asked
        return best

    async def _once(
        self,
        voice: _Voice,
        side: str,
        messages: list[Message],
        bounds: Mapping[str, int],
        told: Sequence[str],
        slot: str,
    ) -> Said:
        try:
            text = self._normal(await voice.say(messages, slot))
        except ModelFailure as failure:
            if failure.kind not in SPOILT:
                raise
            voice.failed(failure)
            return Said("", wrong=[f"no reply: {failure.kind}"])
        words = count_words(text)
        off = max(bounds["least"] - words, words - bounds["most"], 0)
        earlier = [str(exchange[side]) for exchange in self.exchanges]
        return Said(text, words, wrong=self.rules.inspect(side, text, told, earlier), off=off)

    def _normal(self, text: str) -> str:
        """Characters that the project does not want, replaced as artefacts.yaml says."""
        for old, new in self.rules.artefacts.replace.items():
            text = text.replace(old, new)
        return text.strip()

    def exchange(self, turn: Turn, user: Said, reply: Said) -> dict[str, Any]:
        """One exchange with what was drawn for it, measured in it, and thrown away before it."""
        sides = {"user": user, "assistant": reply}
        meta: dict[str, Any] = {"stage": turn.stage, "response": turn.response}
        meta |= {"flaws": list(turn.flaws), "words": {k: s.words for k, s in sides.items()}}
        meta["range"] = [turn.least, turn.most]
        if self.rules.template.time == "new day":
            meta["day"] = turn.day
        for key in ("asked_again", "made_again", "found"):
            meta[key] = {k: getattr(s, key) for k, s in sides.items() if getattr(s, key)}
        meta["violations"] = [f"{k} words" for k, said in sides.items() if said.off]
        return {"user": user.text, "assistant": reply.text, "meta": meta}

    def transcript(self, name: str, ended: str, models: Mapping[str, _Voice]) -> dict[str, Any]:
        persona = dict(self.persona)
        head = {"schema": SCHEMA, "id": name, "persona": persona, "exchanges": self.exchanges}
        used = {side: voice.used for side, voice in models.items()}
        target = int(persona["target_exchanges"])
        return head | {"target_exchanges": target, "ended": ended, "source": "generated",
                       "usage": used}  # fmt: skip
