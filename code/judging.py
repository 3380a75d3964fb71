"""Judges: what they are asked, what they have to show, and what their answers come to.

    bench = Bench.of(root)
    row = await judge(source, "strict", backend, bench)  # one line of data/assessments/strict.jsonl
    combined = combine(source, {"strict": row, "mild": other}, bench)

Assessment, baseline, repair and evaluation all use it, so that what they compare was judged in the
same way. A judge answers the rubric about a whole conversation; each NO, and each YES on a safety
gate, has to quote its place, and code looks whether the words are there. What was not answered, or
rests on words that nobody said, is an ERROR: never a pass, never a NO, asked again by the next run.
Works alone when copied, beside `infrastructure` and `settings`. Importing it opens nothing.
"""

import functools
import glob
import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ValidationError, create_model

from infrastructure import (
    RETRIED,
    SCHEMA,
    AssessmentResult,
    CompletionResult,
    FinetuneError,
    LLMBackend,
    ModelFailure,
    ReadReport,
    Rubric,
    atomic_write,
    canonical_hash,
    combine_verdicts,
    compute_length_stats,
    encode_line,
    fill_prompt,
    id_of,
    is_done,
    iter_records,
    load_rubric,
    normalise_answer,
    score_answers,
)
from settings import Judging, ModelSpec, backend_arguments, load_project, load_prompt

VERSION = 1  # of what a judge is shown; a new number makes every verdict stale
ROOM = 2  # times the room for a reply that was cut
WHOLE = ""  # the slot of the one call for all criteria

Pair = tuple[str, str]
Row = dict[str, Any]
Answers = dict[str, "Answer"]
# (side, text, what this side was told, its earlier messages) -> what is wrong, in words
Inspect = Callable[[str, str, Sequence[str], Sequence[str]], list[str]]

# ══ 1 What is judged ══════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Source:
    """One conversation to judge, as it stands in its file."""

    id: str
    file: str  # from the project's root
    pairs: tuple[Pair, ...] = field(hash=False)  # `hash` says as much, and is quicker
    hash: str  # of the words alone: what a judge sees
    batch: str = ""
    trial: bool = False

    @property
    def turns(self) -> int:
        return len(self.pairs)


def read_source(path: Path, root: Path) -> Source:
    """A transcript's words; also under the names that other tools give its parts."""
    shown = path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
    try:
        found = json.loads(path.read_bytes())
        rows = found.get("exchanges", found.get("conversations"))
        pairs = tuple((row["user"], row["assistant"]) for row in rows)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FinetuneError(f"{shown}: no transcript ({type(error).__name__}: {error})") from None
    item, about = id_of(found), found.get("provenance") or {}
    if item is None or any(not isinstance(text, str) for pair in pairs for text in pair):
        raise FinetuneError(f"{shown}: a transcript needs an id, and texts in its exchanges")
    marks = (str(about.get("batch") or ""), bool(about.get("trial")))
    return Source(item, shown, pairs, words_hash(pairs), *marks)


def words_hash(pairs: Iterable[Sequence[str]]) -> str:
    """The hash of what was said, and of nothing else: notes beside a message change no verdict."""
    return canonical_hash([list(pair) for pair in pairs])


def find_sources(root: Path, originals: bool = False) -> Iterator[Path]:
    """Every transcript's file, each id once: a repaired one stands for its original, unless you ask
    for what was made first."""
    if originals:
        yield from sorted((root / "data/raw/transcripts").rglob("*.json"))
        return
    repaired = {path.name: path for path in sorted((root / "data/repaired").rglob("*.json"))}
    for path in sorted((root / "data/raw/transcripts").rglob("*.json")):
        yield repaired.pop(path.name, path)
    yield from repaired.values()


# ══ 2 What a judge is asked ═══════════════════════════════════════════════════════════════════════


class Evidence(BaseModel):
    """Where an answer rests: the exchange, counted from 1, and words of it, exactly."""

    exchange: int
    quote: str


def _tidy(given: object) -> object:
    """Another case or a full stop is no other answer; anything else is for the schema to refuse."""
    known = normalise_answer(given)
    return given if known == "ERROR" else known


class Answer(BaseModel):
    """One criterion's answer. Reasoning and evidence come first, so that they are thought first."""

    reasoning: str
    evidence: list[Evidence]
    answer: Annotated[Literal["YES", "NO", "NA", "ERROR"], BeforeValidator(_tidy)]


@functools.lru_cache(maxsize=64)
def answer_model(names: tuple[str, ...]) -> type[BaseModel]:
    """What a judge fills in: one field for each criterion, in the rubric's order."""
    fields: dict[str, Any] = dict.fromkeys(names, (Answer, ...))
    return create_model("AssessmentOutput", **fields)


@dataclass(frozen=True)
class Bench:
    """All that is fixed for a run: the rubric, the prompt, the rules."""

    rubric: Rubric
    sections: Mapping[str, str]  # of assessor.md
    domain: str
    judging: Judging

    @classmethod
    def of(cls, root: Path) -> "Bench":
        """Everything from a project's files; their mistakes are errors."""
        project, rubric = load_project(root), load_rubric(root / "config/rubric.yaml")
        return cls(rubric, load_prompt(root, "assessor"), project.domain, project.judging)

    @functools.cached_property
    def hash(self) -> str:
        """Of everything besides rubric and transcript that an answer depends on."""
        return canonical_hash([VERSION, dict(self.sections), self.domain, self.judging.calls])

    def groups(self) -> dict[str, tuple[str, ...]]:
        """The criteria of each call: all of them in one, or one call for each category."""
        if self.judging.calls == "transcript":
            return {WHOLE: tuple(self.rubric.criteria)}
        named = {f"category-{name}": names for name, names in self.rubric.categories.items()}
        return {**named, "gates": self.rubric.safety_gates}

    @functools.cached_property
    def _systems(self) -> dict[tuple[str, ...], str]:
        return {}

    def system(self, names: tuple[str, ...]) -> str:
        """The same for every transcript, so that a provider can keep it in its cache."""
        if names not in self._systems:
            text = "\n\n".join(describe(self.rubric, name) for name in names)
            known = {"domain": self.domain, "criteria": text}
            self._systems[names] = fill_prompt(self.sections["System"], known)
        return self._systems[names]

    def asked(self, names: Iterable[str], turns: int) -> list[str]:
        """The criteria among these that a conversation of this length is judged by."""
        return [name for name in names if self.rubric.criteria[name].min_turns <= turns]


def describe(rubric: Rubric, name: str) -> str:
    """One criterion for the prompt: its question, its rules, its examples."""
    criterion, gate = rubric.criteria[name], name in rubric.safety_gates
    lines = [f"### {name}: {criterion.name}", criterion.question]
    lines.append("NA is allowed." if criterion.na_valid else "NA is not allowed.")
    if criterion.min_turns > 1:
        later = f"Counts only in conversations of {criterion.min_turns} exchanges or more."
        lines.append(f"{later} In a shorter one write NA.")
    if gate:
        lines.append("Safety gate: a YES needs evidence too.")
    lines += ["Examples:", *map(_example, criterion.calibration_examples)]
    return "\n".join(lines)


def _example(example: Mapping[str, Any]) -> str:
    context = f"  Before: {example['context']}\n" if example.get("context") else ""
    rest = f"  Reply: {example['response']}\n  Why: {example['reasoning']}"
    return f"- {example['type']}\n{context}{rest}"


@functools.lru_cache(maxsize=64)
def nonce(source: Source) -> str:
    """A word that marks the conversation's borders and does not occur in it; the same each time."""
    for number in itertools.count():
        word = hashlib.sha256(f"{source.hash}/{number}".encode()).hexdigest()[:16]
        if not any(word in text.lower() for pair in source.pairs for text in pair):
            return word
    raise AssertionError("unreachable: counting does not end")


@functools.lru_cache(maxsize=64)  # each judge is shown the same
def shown(source: Source) -> Mapping[str, str]:
    """The conversation between two marks, and the figures about it."""
    word = nonce(source)
    lines = itertools.chain.from_iterable(
        (f"<<{word} exchange {number}, {side}>>", text)
        for number, pair in enumerate(source.pairs, 1)
        for side, text in zip(("user", "assistant"), pair, strict=True)
    )
    marks = {"begin": f"<<{word} begin>>", "end": f"<<{word} end>>"}
    return marks | {"transcript": "\n".join(lines), "statistics": statistics_of(source)}


def statistics_of(source: Source) -> str:
    """What models can't count: words on each side, and their ratio."""
    stats = compute_length_stats(source.pairs)
    mean, middle = (_figure(stats[name]) for name in ("mean_ratio", "median_ratio"))
    ratio = f"reply to message, in words: mean {mean}, median {middle}"
    longer = f"replies above twice the message: {stats['over_2']} of {stats['exchanges']}"
    sides = (f"words of the {side}, by exchange: {_list(stats[f'{side}_words'])}"
             for side in ("user", "assistant"))  # fmt: skip
    return "\n".join((f"exchanges: {stats['exchanges']}", ratio, longer, *sides))


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _list(values: Sequence[int]) -> str:
    return " ".join(map(str, values))


# ══ 3 Evidence ════════════════════════════════════════════════════════════════════════════════════

# What two ways of writing the same words may differ in: quotes, dashes, stops, marks of bold and
# code, the dot of the Turkish i.
SAME = str.maketrans({
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u02bc`\u00b4", "'"),
    **dict.fromkeys('"\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u300c\u300d\u300e\u300f', None),
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
    **dict.fromkeys("*_#", None),
    **dict.fromkeys("\u3002\u0964\u06d4", "."), **dict.fromkeys("\u060c\u3001", ","),
    "\u061b": ";", "\u061f": "?", "\u0131": "i",
})  # fmt: skip
# Scripts that put no space between words: Thai to Khmer, Chinese, Japanese.
UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3001-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
# A letter or digit that is half a word without its neighbour. Hebrew and Arabic write their "and"
# and "the" together with the word, so there a quote may begin inside.
JOINED = rf"[^\W{UNSPACED}\u05d0-\u05ea\u0620-\u064a\u066e-\u06d3]"
QUOTED = re.compile(r"(?<!\w)'|'(?!\w)")  # a single quote that is no apostrophe
GAP = re.compile(rf" (?=[^\w -]|[{UNSPACED}])|(?<=[{UNSPACED}]) ")  # a space that tells nothing
ELLIPSIS = re.compile(r"\s*(?:\[\s*\.{3}\s*\]|\(\s*\.{3}\s*\)|\.{3,})\s*")
EDGES = " \t\n\"'.,;:!?-()[]"
FALSE, NONE = "nobody said", "no evidence was given"
UNPROVEN = (FALSE, NONE)
LEAST = 3  # signs of a quote, or of a part of one, unless the message is as short


@functools.lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """Text as it is compared: one form of each sign, no invisible ones, single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold().translate(SAME)
    seen = (c for c in text if unicodedata.category(c) not in ("Cf", "Mn", "Cc") or c.isspace())
    text = re.sub("-+", "-", QUOTED.sub("", "".join(seen)))
    return GAP.sub("", " ".join(text.split()))


def place_of(quote: str, exchange: int, pairs: Sequence[Pair]) -> int | None:
    """The exchange where these words stand: the one that is named, else the first that has them."""
    if not _parts(quote):
        return _bare_sign(quote, exchange, pairs)
    named = [exchange] if 1 <= exchange <= len(pairs) else []
    for number in itertools.chain(named, range(1, len(pairs) + 1)):
        if any(_stands_in(quote, plain(text)) for text in pairs[number - 1]):
            return number
    return None


@functools.lru_cache(maxsize=256)
def _parts(quote: str) -> tuple[str, ...]:
    """A quote's pieces, where the judge left something out."""
    whole = plain(quote).strip(EDGES)
    parts = tuple(part.strip(EDGES) for part in ELLIPSIS.split(whole))
    return tuple(part for part in parts if part)


def _stands_in(quote: str, text: str) -> bool:
    """All pieces, in order, in one message; a piece of a letter or two proves nothing."""
    at, parts = 0, _parts(quote)
    if plain(quote).strip(EDGES) == text.strip(EDGES):
        return True
    for part in parts:
        found = _whole_words(part).search(text, at)
        if not found or (len(part) < LEAST and part.isascii()):
            return False
        at = found.end()
    return bool(parts)


@functools.lru_cache(maxsize=256)
def _whole_words(part: str) -> re.Pattern[str]:
    """These words, not begun or ended inside of a word or a number: "cannot" holds no "can"."""
    before = rf"(?<!{JOINED})" if re.match(JOINED, part) else ""
    after = rf"(?!'?{JOINED})" if re.match(JOINED, part[-1]) else ""
    before += r"(?<!\d[.,:])" if part[0].isdigit() else ""
    after += r"(?![.,:]\d)" if part[-1].isdigit() else ""
    return re.compile(before + re.escape(part) + after)


def _bare_sign(quote: str, exchange: int, pairs: Sequence[Pair]) -> int | None:
    """A message that is nothing but punctuation can only be quoted whole."""
    for number, pair in enumerate(pairs, 1):
        if number == exchange and quote.strip() and quote.strip() in map(str.strip, pair):
            return number
    return None


def needs_evidence(rubric: Rubric, name: str, answer: str) -> bool:
    return answer == "NO" or (answer == "YES" and name in rubric.safety_gates)


def check_evidence(answer: Answer, needed: bool, pairs: Sequence[Pair]) -> tuple[list[Row], str]:
    """The quotes that are true, each at its place, and what is wrong; a false one is always."""
    placed = [(each, place_of(each.quote, each.exchange, pairs)) for each in answer.evidence]
    good = [{"exchange": at, "quote": each.quote} for each, at in placed if at is not None]
    bad = [each.quote for each, at in placed if at is None]
    if not needed or (good and not bad):
        return good, ""
    return good, f"{FALSE}: {bad[0]}" if bad else NONE


# ══ 4 One judge, one transcript ═══════════════════════════════════════════════════════════════════


@dataclass
class _Case:
    """A judge at work on one transcript: what it was paid for, and what is known so far."""

    source: Source
    backend: LLMBackend
    bench: Bench
    scope: str
    replies: list[CompletionResult] = field(default_factory=list)
    answers: Answers = field(default_factory=dict)
    quotes: dict[str, list[Row]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)

    async def ask(self, names: tuple[str, ...], slot: str) -> None:
        """Answers with evidence; one more try for those that rest on words that nobody said."""
        system, told = self.bench.system(names), shown(self.source)
        text = fill_prompt(self.bench.sections["Transcript"], told)
        self.take(names, await self.answer(system, text, names, slot))
        again = tuple(name for name in names if self.errors.get(name, "").startswith(UNPROVEN))
        if again:
            mend = "\n\n".join(map(self._objection, again))
            later = await self.answer(system, f"{text}\n\n{mend}", again, f"{slot}.quote-1")
            self.take(again, later)

    def _objection(self, name: str) -> str:
        """What is wrong with an answer; the quote is the judge's own, and still only data."""
        word, said = nonce(self.source), self.errors[name].removeprefix(f"{FALSE}: ")
        said = re.sub(word, "...", said, flags=re.IGNORECASE)  # it must not end its own marks
        quote = f"<<{word} quote>>{said}<<{word} end of quote>>"
        known = {"criterion": name, "quote": quote}
        return fill_prompt(self.bench.sections["Wrong quote"], known)

    async def answer(
        self, system: str, text: str, names: tuple[str, ...], slot: str
    ) -> Answers | ModelFailure:
        """One structured call; a reply that was cut is asked for once more with more room."""
        asked = [{"role": "system", "content": system}, {"role": "user", "content": text}]
        room, place = self.backend.o.max_tokens, f"{self.scope}{slot}"
        known: dict[str, Any] = {"replies": self.replies}
        got = await self.backend.complete_structured(
            asked, answer_model(names), scope=place, **known
        )
        if isinstance(got, ModelFailure) and got.kind == "length":
            known |= {"max_tokens": ROOM * room, "scope": f"{place}.room-1"}
            got = await self.backend.complete_structured(asked, answer_model(names), **known)
        if not isinstance(got, ModelFailure):
            return {name: getattr(got, name) for name in names}
        if got.kind in RETRIED:
            raise got  # nobody answered: no verdict, not even an ERROR
        return salvage(got.text, names) or got

    def take(self, names: Sequence[str], got: Answers | ModelFailure) -> None:
        """Keep what was answered; what was not, or has no true evidence, is an ERROR."""
        failed = f"no answer: {got.kind}" if isinstance(got, ModelFailure) else "no answer"
        answers = {} if isinstance(got, ModelFailure) else got
        for name in names:
            self.errors.pop(name, None)
            if name not in answers:
                self.errors[name] = failed
                continue
            self.answers[name] = answer = answers[name]
            needed = needs_evidence(self.bench.rubric, name, answer.answer)
            self.quotes[name], wrong = check_evidence(answer, needed, self.source.pairs)
            if answer.answer == "ERROR":
                self.errors[name] = "the judge could not tell"
            elif wrong:
                self.errors[name] = wrong


def salvage(text: str, names: Sequence[str]) -> Answers:
    """The usable answers of a reply that as a whole does not fit."""
    try:
        found = json.loads(text[text.index("{") : text.rindex("}") + 1])
    except ValueError:
        return {}
    good: Answers = {}
    for name in names:
        try:
            good[name] = Answer.model_validate(found.get(name))
        except ValidationError:
            continue
    return good


async def judge(
    source: Source,
    name: str,
    backend: LLMBackend,
    bench: Bench,
    *,
    identity: str = "",
    before: Mapping[str, Any] | None = None,
    repeat: int = 0,
    scope: str = "assess",
) -> Row:
    """One judge's verdict on one transcript, as its line of data/assessments/<judge>.jsonl.

    `before` is its verdict on the same thing that has an ERROR: only that is asked again. `repeat`
    asks for the same once more, as call number so and so, to see whether the answers stay.
    """
    attempt = int(before.get("attempt", 1)) + 1 if before else 1
    again = f"/repeat-{repeat}" if repeat else ""
    again += f"/try-{attempt}" if attempt > 1 else ""
    case = _Case(source, backend, bench, f"{scope}/{name}/{source.id}{again}")
    kept = _kept(before)
    for slot, names in bench.groups().items():
        names = tuple(n for n in names if n not in kept)
        if bench.asked(names, source.turns):
            await case.ask(names, f".{slot}" if slot else "")
    head = {"schema": SCHEMA, "id": source.id, "judge": name, "model": backend.name}
    row = head | _inputs(source, bench, identity) | {"attempt": attempt}
    return row | _verdict(case, kept, before or {})


def _kept(before: Mapping[str, Any] | None) -> dict[str, str]:
    """The answers of an earlier try that stand."""
    given = dict(before["answers"]) if before else {}
    return {name: answer for name, answer in given.items() if answer != "ERROR"}


def _inputs(source: Source, bench: Bench, identity: str) -> Row:
    """Where it stands and the hashes of all that a verdict depends on."""
    hashes = {"transcript_hash": source.hash, "rubric_hash": bench.rubric.hash}
    hashes |= {"prompt_hash": bench.hash, "judge_hash": identity}
    return {"source_file": source.file, "exchanges": source.turns, **hashes}


def is_fresh(row: Mapping[str, Any], source: Source, bench: Bench, identity: str) -> bool:
    """Whether a verdict was made from what is there now; one without hashes never was."""
    now = _inputs(source, bench, identity)
    return all(row.get(name) == now[name] for name in now if name.endswith("_hash"))


def _verdict(case: _Case, kept: Mapping[str, str], before: Mapping[str, Any]) -> Row:
    rubric, source = case.bench.rubric, case.source
    asked = case.bench.asked(rubric.criteria, source.turns)
    errors = {name: why for name, why in case.errors.items() if name in asked}
    given = {name: answer.answer for name, answer in case.answers.items()} | dict(kept)
    given = {name: "ERROR" if name in errors else given.get(name, "ERROR") for name in asked}
    reasons = {name: case.answers[name].reasoning for name in asked if name in case.answers}
    reasons = {**{n: t for n, t in before.get("reasonings", {}).items() if n in kept}, **reasons}
    quotes = {n: q for n, q in before.get("quotes", {}).items() if n in kept}
    quotes |= {name: found for name, found in case.quotes.items() if found and name in asked}
    result = score_answers(rubric, given, reasons, source.id, source.turns)
    for name, answer in result.answers.items():
        if answer == "ERROR" and name not in errors:
            errors[name] = "NA, where it is not allowed"
    return _result(result) | {"quotes": quotes, "errors": errors, "usage": _usage(case.replies)}


def _result(result: AssessmentResult) -> Row:
    """A verdict's own part of a line."""
    told = {name: value for name, value in result.to_dict().items() if name != "id"}
    return told | {"failed_checks": list(result.failed_checks)}


def _usage(replies: Sequence[CompletionResult]) -> Row:
    costs = [reply.cost for reply in replies]
    told = {"calls": len(replies), "input": sum(r.usage.input_tokens for r in replies)}
    told |= {"output": sum(r.usage.output_tokens for r in replies)}
    known = None not in costs
    return told | {"dollars": sum(c for c in costs if c is not None) if known else None}


# ══ 5 Several judges ══════════════════════════════════════════════════════════════════════════════


def judge_names(specs: Iterable[ModelSpec]) -> dict[str, ModelSpec]:
    """Each judge by the name that its verdicts are filed under; there has to be one."""
    named: dict[str, ModelSpec] = {}
    for spec in specs:
        name = re.sub(r"[^A-Za-z0-9_-]+", "-", spec.label or spec.model).strip("-")[:100]
        if not name or name in named or name == "combined":
            said = f"config/project.yaml roles.judges: {spec.label or spec.model!r} makes the file"
            raise FinetuneError(f"{said} name {name!r}, which is taken. Give it another `label`.")
        named[name] = spec
    if not named:
        said = "config/project.yaml roles.judges: no judge is chosen"
        raise FinetuneError(f'{said}. Write `- model: "kind:MODEL"` there, best two families.')
    return named


def identity_of(spec: ModelSpec, root: Path) -> str:
    """The hash of who judges and how it is set: another model under an old name is another judge.
    A server's port is chance, as in the journal."""
    model, options = backend_arguments(spec)
    told = [options.get(name) for name in ("parameters", "preset", "label")]
    told.append(urlsplit(options.get("base_url", "")).hostname)
    kind, _, place = model.partition(":")
    path = root / f"{place.partition(':')[0].replace('.', '/')}.py"
    source = hashlib.sha256(path.read_bytes()).hexdigest() if _is_code(kind, path) else ""
    return canonical_hash([model, *told, source])


def _is_code(kind: str, path: Path) -> bool:
    return kind == "python" and path.is_file()


def combine(source: Source, rows: Mapping[str, Mapping[str, Any] | None], bench: Bench) -> Row:
    """One verdict from the rows of all judges, as a line of combined.jsonl. It depends on their
    answers alone; a judge without a fresh row is missing, and nothing passes without it."""
    results = {name: result_of(row, source, bench) if row else None for name, row in rows.items()}
    head: Row = {"schema": SCHEMA, "id": source.id, "batch": source.batch, "trial": source.trial}
    head |= {
        name: value for name, value in _inputs(source, bench, "").items() if name != "judge_hash"
    }
    if not is_assessable(source, bench):
        made = _result(score_answers(bench.rubric, {}, id=source.id, turns=0))
        return head | made | {"state": "not assessable", "judges": {}, "errors": {}}
    result = combine_verdicts(bench.rubric, results, bench.judging.rule)
    whose = {name: rows[name] or {} for name in sorted(rows)}
    told = {name: _told(row) for name, row in whose.items()}
    more: Row = {"rule": rule_used(bench, len(rows)), "judges": told}
    more |= {"quotes": _quotes(result, whose)}
    more |= {"disagreements": disagreements(results), "spread": spread(results)}
    more |= {"errors": _errors(whose), "state": STATES[result.passed]}
    return head | _result(result) | more


def is_assessable(source: Source, bench: Bench) -> bool:
    """Long enough to be judged: a short one must not win by what could not happen in it."""
    return source.turns >= bench.judging.min_exchanges


STATES = {True: "passed", False: "failed", None: "unscored"}


def result_of(row: Mapping[str, Any], source: Source, bench: Bench) -> AssessmentResult:
    """A judge's verdict, scored again from its answers."""
    told = (row["answers"], row.get("reasonings"), source.id, source.turns)
    return score_answers(bench.rubric, *told)


def rule_used(bench: Bench, judges: int) -> str:
    """What `auto` comes to."""
    auto = "majority" if judges >= 3 else "strictest"
    return auto if bench.judging.rule == "auto" else bench.judging.rule


def _told(row: Mapping[str, Any]) -> Row:
    """A judge's part of a combined line; empty while it has not answered."""
    return {name: row[name] for name in ("pass", "score", "answers") if name in row}


def _errors(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """By judge and criterion; a judge without a line has answered nothing."""
    missing = {"": "has not answered"}
    found = {name: dict(row["errors"]) if row else missing for name, row in rows.items()}
    return {name: errors for name, errors in found.items() if errors}


def _quotes(
    result: AssessmentResult, rows: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Row]]:
    """The evidence of the judges who gave the answer that counts."""
    found: dict[str, list[Row]] = {}
    for name, answer in result.answers.items():
        for row in rows.values():
            if row and row["answers"].get(name) == answer:
                new = (
                    each for each in row["quotes"].get(name, ()) if each not in found.get(name, ())
                )
                found.setdefault(name, []).extend(new)
    return {name: quotes for name, quotes in found.items() if quotes}


def disagreements(results: Mapping[str, AssessmentResult | None]) -> list[str]:
    """The criteria on which two judges gave different answers; an ERROR is no answer."""
    there = [result.answers for result in results.values() if result is not None]
    names = dict.fromkeys(name for answers in there for name in answers)
    given = {name: {answers.get(name, "ERROR") for answers in there} - {"ERROR"} for name in names}
    return [name for name, answers in given.items() if len(answers) > 1]


def spread(results: Mapping[str, AssessmentResult | None]) -> float | None:
    """Highest less lowest score; None with fewer than two."""
    there = [result for result in results.values() if result is not None]
    scores = [result.score for result in there if result.score is not None]
    return max(scores) - min(scores) if len(scores) > 1 else None


# ══ 6 What is on the disk ═════════════════════════════════════════════════════════════════════════

FOLDER = "data/assessments"


def judge_files(folder: Path, name: str) -> list[Path]:
    """A judge's file, and those of its parts."""
    parts = sorted(folder.glob(f"{glob.escape(name)}.*-of-*.jsonl"))
    return [path for path in (folder / f"{name}.jsonl", *parts) if path.exists()]


def read_verdicts(folder: Path, name: str, fresh: Callable[[Row], bool]) -> dict[str, Row]:
    """A judge's line for each transcript: a fresh one that is done, else a fresh one, else the
    newest. Lines that can't be read are reported and count for nothing."""
    known: dict[str, tuple[int, Row]] = {}
    for path in judge_files(folder, name):
        report = ReadReport(str(path))
        for row in iter_records(path, report):
            rank = (1 + is_done(row)) if fresh(row) else 0
            item = id_of(row) or ""
            if rank >= known.get(item, (0, {}))[0]:
                known[item] = (rank, row)
        report.tell()
    return {item: row for item, (_, row) in known.items() if item}


def write_combined(root: Path, rows: Sequence[Row]) -> None:
    """combined.jsonl, and the manifest of what passes: whole files, the same for the same rows."""
    ordered = sorted(rows, key=lambda row: str(row["id"]))
    atomic_write(root / FOLDER / "combined.jsonl", b"".join(map(encode_line, ordered)), 0o644)
    passing = [_passing(row) for row in ordered if row["pass"]]
    manifest = {"schema": SCHEMA, "count": len(passing), "transcripts": passing}
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    atomic_write(root / "data/processed/passing_transcripts.json", text, 0o644)


def _passing(row: Mapping[str, Any]) -> Row:
    told = {name: row[name] for name in ("id", "source_file", "score")}
    told |= {"judges": sorted(row["judges"]), "transcript_hash": row["transcript_hash"]}
    return told | ({"trial": True} if row["trial"] else {})


@dataclass(frozen=True)
class Court:
    """The judges of a project, the transcripts that are there, and the verdicts on them."""

    bench: Bench
    judges: Mapping[str, ModelSpec]
    identities: Mapping[str, str]
    sources: Mapping[str, Source]
    verdicts: Mapping[str, Mapping[str, Row]]  # by judge and transcript
    damaged: Sequence[str] = ()  # transcripts that can't be read, in words

    @classmethod
    def of(
        cls, root: Path, items: Collection[str] | None = None, originals: bool = False
    ) -> "Court":
        """Everything that is on the disk now, or only these transcripts; repaired ones as they are,
        or as they were made."""
        judges, bench = judge_names(load_project(root).roles.judges), Bench.of(root)
        identities = {name: identity_of(spec, root) for name, spec in judges.items()}
        sources, damaged = dict[str, Source](), []
        for path in find_sources(root, originals):
            if items is not None and path.stem not in items:
                continue
            try:
                source = read_source(path, root)
                sources[source.id] = source
            except FinetuneError as error:
                damaged.append(str(error))
        court = cls(bench, judges, identities, sources, {}, damaged)
        found = {name: read_verdicts(root / FOLDER, name, court.is_fresh) for name in judges}
        return cls(bench, judges, identities, sources, found, damaged)

    def is_fresh(self, row: Mapping[str, Any]) -> bool:
        """Whether a judge's line was made from what is there now."""
        source = self.sources.get(str(row.get("id")))
        identity = self.identities.get(str(row.get("judge")), "")
        return source is not None and is_fresh(row, source, self.bench, identity)

    def fresh(self, judge: str, source: Source) -> Row | None:
        """A judge's verdict on what is there now."""
        row = self.verdicts[judge].get(source.id)
        return row if row and self.is_fresh(row) else None

    def combined(self) -> list[Row]:
        """The verdict on each transcript, from whatever is fresh."""
        return [combine(each, {name: self.fresh(name, each) for name in self.judges}, self.bench)
                for each in self.sources.values()]  # fmt: skip


# ══ 7 Figures ═════════════════════════════════════════════════════════════════════════════════════


def answers_by_criterion(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Row]]:
    """For each criterion and transcript what each judge answered; None for an ERROR, because it is
    no answer."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        for judge, verdict in row["judges"].items():
            for name, answer in verdict.get("answers", {}).items():
                kept = None if answer == "ERROR" else answer
                found.setdefault(name, {}).setdefault(str(row["id"]), {})[judge] = kept
    return found


def repeated(root: Path, court: Court, judge: str) -> Iterator[tuple[str, Row]]:
    """The lines of a judge that was asked again about what is there now, each with its transcript;
    one with an ERROR is no answer yet."""
    for row in iter_records(root / FOLDER / "repeats" / f"{judge}.jsonl"):
        item = str(row["id"]).rpartition(".repeat-")[0]
        if court.is_fresh(row | {"id": item}) and is_done(row):
            yield item, row


def repeated_answers(root: Path, court: Court, judge: str) -> dict[str, list[list[str]]]:
    """By transcript: for each criterion what the judge said each time, the verdict that counts
    first."""
    runs: dict[str, dict[str, list[str]]] = {}
    for item, row in repeated(root, court, judge):
        first = court.fresh(judge, court.sources[item])
        for name, answer in row["answers"].items():
            begun = [first["answers"].get(name, "ERROR")] if first else []
            runs.setdefault(item, {}).setdefault(name, begun).append(answer)
    return {item: list(asked.values()) for item, asked in runs.items()}


def would_pass(rows: Iterable[Mapping[str, Any]], bench: Bench, rule: str) -> int:
    """How many transcripts would pass by another rule, from the same answers."""
    count = 0
    for row in rows:
        given = {n: v["answers"] if v else None for n, v in row["judges"].items()}
        turns = int(row["exchanges"])
        known = {name: answers and score_answers(bench.rubric, answers, turns=turns)
                 for name, answers in given.items()}  # fmt: skip
        count += bool(known) and combine_verdicts(bench.rubric, known, rule).passed is True
    return count


def failures(rows: Iterable[Mapping[str, Any]], most: int = 3) -> dict[str, Row]:
    """By criterion: how many transcripts it fails, and the clearest quotes, those on which most
    judges agree first, then the longest; one from a transcript."""
    found: dict[str, list[tuple[int, int, Row]]] = {}
    for row in rows:
        for name in row["failed_checks"]:
            if name not in row["answers"]:
                continue  # coverage is no criterion
            agree = sum(v["answers"].get(name) == "NO" for v in row["judges"].values() if v)
            quotes = sorted(row["quotes"].get(name, ()), key=lambda each: -len(each["quote"]))
            quote = {"id": row["id"], **quotes[0]} if quotes else {"id": row["id"]}
            found.setdefault(name, []).append((agree, len(quote.get("quote", "")), quote))
    ordered = sorted(found.items(), key=lambda each: (-len(each[1]), each[0]))
    best = {name: sorted(each, key=lambda one: (-one[0], -one[1], one[2]["id"]))
            for name, each in ordered}  # fmt: skip
    return {name: {"failed": len(each), "quotes": [one[2] for one in each[:most]]}
            for name, each in best.items()}  # fmt: skip


# ══ 8 Models that fail, which is no matter of taste ═══════════════════════════════════════════════

# What the artefact filter calls a reply that no user could use. In a test of a model it counts as a
# failed conversation, without asking a judge: judges have praised replies in the wrong language.
UNUSABLE = ("blank", "script", "language", "repeat")


def unusable(pairs: Sequence[Pair], inspect: Inspect, system: str) -> list[str]:
    """`exchange 3: language: ...` for each reply that is no reply at all."""
    found = []
    for number, (_, reply) in enumerate(pairs, 1):
        earlier = [text for _, text in pairs[: number - 1]]
        kinds = inspect("assistant", reply, [system], earlier)
        found += [f"exchange {number}: {said}" for said in kinds if said.startswith(UNUSABLE)]
    return found


def fail(row: Row, why: Sequence[str], bench: Bench) -> Row:
    """The verdict on a model that did not play its part: score 0, whatever a judge has said."""
    answers = dict.fromkeys(bench.asked(bench.rubric.criteria, int(row["exchanges"])), "NO")
    none = {"pass": False, "score": 0.0, "state": "failed", "answers": answers, "errors": {}}
    return row | none | {"failed_checks": list(answers), "model_failure": list(why)}


# ══ 9 What became of every transcript ═════════════════════════════════════════════════════════════

FATES = ("accepted", "repaired", "truncated", "rejected", "pending")


class Fate(NamedTuple):
    """What became of one transcript that was generated or imported, and why."""

    state: str  # one of FATES
    why: str = ""


def events(root: Path) -> Iterator[Row]:
    """Every line about a transcript, of all parts, in the order of the files."""
    for path in sorted((root / "data").glob("candidates*.jsonl")):
        yield from iter_records(path)


def fates(root: Path, rows: Iterable[Mapping[str, Any]]) -> dict[str, Fate]:
    """One fate for each transcript that a line of candidates or a verdict knows. What passes now
    has passed, whatever was said of older words; what is not scored or not repaired yet, waits."""
    last: dict[str, list[Row]] = {}
    for event in events(root):
        last.setdefault(id_of(event) or "", []).append(event)
    verdicts = {str(row["id"]): row for row in rows}
    known = dict.fromkeys([*last, *verdicts])
    return {item: _fate(verdicts.get(item), last.get(item, [])) for item in known if item}


def _fate(row: Mapping[str, Any] | None, told: Sequence[Row]) -> Fate:
    fixed = [event for event in told if event["event"] == "fixup"]
    begun = told[0] if told else {}
    if row is None:
        gone = begun.get("fate") == "rejected"
        return Fate("rejected", "; ".join(begun.get("why", ()))) if gone else Fate("pending")
    now = [event for event in fixed if event.get("transcript_hash") == row["transcript_hash"]]
    if row["pass"]:
        made = now[-1]["fate"] if now and now[-1]["fate"] in FATES[1:3] else ""
        return Fate(made or ("truncated" if begun.get("fate") == "truncated" else "accepted"))
    if now and now[-1]["fate"] == "rejected":
        return Fate("rejected", "; ".join(now[-1].get("why", ())))
    return Fate("pending", str(row["state"]))


def tally(found: Mapping[str, Fate]) -> dict[str, int]:
    """How many of each; their sum is what was generated and imported."""
    counts = Counter(fate.state for fate in found.values())
    return {state: counts[state] for state in FATES}


def needed_repair(root: Path, rows: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """How many generated and judged transcripts failed as they were made, of how many. Imported
    ones say nothing about our prompts."""
    told: dict[str, set[str]] = {}
    for event in events(root):
        told.setdefault(str(event["event"]), set()).add(str(event["id"]))
    own = {str(r["id"]): r["state"] for r in rows if r["id"] in told.get("generated", ())}
    fixed = told.get("fixup", set())
    judged = [item for item, state in own.items() if state in ("passed", "failed")]
    return sum(item in fixed or own[item] == "failed" for item in judged), len(judged)
