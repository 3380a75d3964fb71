"""What the transcripts of a project hold, in figures. Works alone when copied.

    write_generation_stats(root, evidence.wilson)   # design/generation_stats.md and .json

Counts and lengths, artefacts, flaws scheduled against realised, verdicts, tokens and dollars; equal
files give equal bytes. Importing it opens nothing.
"""

import json
import math
import re
import textwrap
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import infrastructure
from settings import (
    Flaw,
    PersonaFile,
    ProjectSettings,
    load_persona_template,
    load_project,
    load_taxonomy,
)

Interval = Callable[[int, int, float], tuple[float, float]]  # such as evidence.wilson
LEVEL = 0.999  # of the intervals: of a thousand right figures, one lies outside
# What a file that is not what it should be may raise.
DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
)
SIDES = ("user", "assistant")
FATES = ("accepted", "truncated", "rejected")
OPENING_WORDS = 8  # first messages that begin with the same ones are alike; start value
TEMPLATE = "persona-template.yaml#/"
WORDS = re.compile(r"[^\W\d_]+")
_Seen = tuple[tuple[str, ...], float]  # a key, and what it counts or measures


def write_generation_stats(root: Path, interval: Interval | None = None) -> dict[str, Any]:
    """design/generation_stats.md and .json from the files that are there; equal files, equal bytes.

    A later stage adds its own figures to `batches` before it writes them again with `stats_page`.
    """
    stats = generation_stats(root, interval)
    page, data = stats_page(stats), json.dumps(stats, indent=1, ensure_ascii=False) + "\n"
    for suffix, text in ((".json", data), (".md", page)):
        clean = text.encode("utf-8", "replace")
        infrastructure.atomic_write(root / f"design/generation_stats{suffix}", clean, 0o644)
    return stats


def generation_stats(root: Path, interval: Interval | None = None) -> dict[str, Any]:
    """What the transcripts of a project hold, per batch and in all."""
    known = _Known(load_project(root), load_persona_template(root), _template_hash(root))
    frozen, damaged = _frozen(root)
    whole, each = _Figures(), defaultdict[str, _Figures](_Figures)
    openings, there = Counter[str](), Counter[str]()
    for path in sorted((root / "data/raw").glob("*/**/*.json")):
        name = path.relative_to(root).as_posix()
        try:
            transcript = _transcript_of(path)
            fate = _fate(transcript, path.relative_to(root / "data/raw").parts[0])
            seen = list(_observed(transcript, fate, known))
        except DAMAGE as error:
            damaged.append({"file": name, "why": type(error).__name__})
            continue
        batch = str(_about(transcript).get("batch") or path.parent.name)
        for figures in (whole, each[batch]):
            figures.add(seen)
        openings[_opening(transcript)] += 1
        there[str(infrastructure.id_of(transcript))] += 1
    for batch in frozen:
        each[batch].add(())
    planned = {name: _planned(batch) for name, batch in frozen.items()}
    verdicts = _verdicts(root)
    for name in verdicts.keys() - {ALL}:
        each[name].add(())
    planned = {name: about | verdicts.get(name, {}) for name, about in planned.items()}
    none: dict[str, Any] = {"kind": "unknown", "trial": None, "planned": None}
    return {
        "schema": infrastructure.SCHEMA,
        "damaged": damaged,
        "candidates": _candidates(root, there),
        "yield": yields(root, interval),
        "near_identical_openings": sum(n for text, n in openings.items() if text and n > 1),
        "all": whole.told(known, interval) | verdicts.get(ALL, {}),
        "batches": {name: planned.get(name, none | verdicts.get(name, {}))
                    | each[name].told(known, interval)
                    for name in sorted(each)},
    }  # fmt: skip


@dataclass(frozen=True)
class _Known:
    """What the project's configuration says now."""

    project: ProjectSettings
    template: PersonaFile
    template_hash: str

    @property
    def flaws(self) -> dict[str, Flaw]:
        patterns = self.template.flaw_patterns
        return patterns.primary.patterns | patterns.secondary.patterns


@dataclass
class _Figures:
    """Counts by key, and every measured value by key."""

    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    values: "defaultdict[tuple[str, ...], array[float]]" = field(
        default_factory=lambda: defaultdict(lambda: array("d"))
    )

    def add(self, seen: Iterable[_Seen]) -> None:
        for key, value in seen:
            if key[0] in MEASURED:
                self.values[key].append(value)
            else:
                self.counts[key] += int(value)

    def by(self, *start: str) -> dict[str, int]:
        """Counts of the keys that begin so, by the word that follows."""
        at, found = len(start), Counter[str]()
        for key, count in self.counts.items():
            if key[:at] == start and len(key) > at:
                found[key[at]] += count
        return dict(sorted(found.items()))

    def told(self, known: _Known, interval: Interval | None) -> dict[str, Any]:
        """All of it as plain data."""
        count, words = self.counts, {side: self._spread("words", side) for side in SIDES}
        fates = {fate: count["fate", fate] for fate in FATES}
        return {
            "transcripts": sum(fates.values()),
            "sources": self.by("source"),
            **fates,
            "rejected_for": self.by("reason", "rejected"),
            "truncated_for": self.by("reason", "truncated"),
            "simulated": count["mark", "simulated"],
            "made_for_trial": count["mark", "trial"],
            "exchanges": count["exchanges",],
            "words": words,
            "styles": self._styles(),
            "reply_ratio": self._ratio("all"),
            "violations": self.by("violation"),
            "artefacts_made_again": {side: self.by("found", side) for side in SIDES},
            "flaws": self._flaws(known),
            "drawn_with_another_template": count["other template",],
            "responses": self._responses(known, interval),
            "stages": self._stages(known),
            "ended": self.by("ended"),
            "usage": {role: self._usage(role) for role in self.by("usage")},
            "models": {role: list(self.by("model", role)) for role in self.by("model")},
        }

    def _spread(self, *key: str) -> dict[str, Any]:
        found = self.values.get(key)
        if not found:
            return {"mean": None, "median": None}
        return {"mean": _short(fmean(found)), "median": _short(median(found))}

    def _ratio(self, style: str) -> dict[str, Any]:
        of = len(self.values.get(("ratio", style), ()))
        long = self.counts["long reply", style]
        return self._spread("ratio", style) | {"of": of, "above_limit": long}

    def _styles(self) -> dict[str, Any]:
        """Messages within the words of their style, and after how many requests for it."""
        told = {}
        for style in self.by("messages"):
            tries = {str(n): self.counts["within", style, str(n)] for n in range(LENGTH_TRIES + 1)}
            inside = sum(self.by("within", style).values())
            of = self.counts["messages", style]
            row: dict[str, Any] = {"messages": of, "within": inside, "share": _short(inside / of)}
            told[style] = row | {"within_after": tries, "reply_ratio": self._ratio(style)}
        return told

    def _responses(self, known: _Known, interval: Interval | None) -> dict[str, Any]:
        drawn, told = self.by("response"), {}
        of = sum(drawn.values())
        options = known.template.response_types
        for name in sorted(set(drawn) | set(options)) if of else ():
            expected, k = (options[name].weight if name in options else 0.0), drawn.get(name, 0)
            row: dict[str, Any] = {"expected": expected, "drawn": _short(k / of)}
            row |= {"count": k, "of": of}
            if interval:
                low, high = interval(k, of, LEVEL)
                outside = not low - 1e-9 <= expected <= high + 1e-9
                row |= {"low": _short(low), "high": _short(high), "outside": outside}
            told[name] = row
        return told

    def _stages(self, known: _Known) -> dict[str, Any]:
        drawn, told = self.by("stage"), dict[str, Any]()
        shares = {stage.guidance: stage.share for stage in known.template.stages}
        for name in [*shares, *sorted(set(drawn) - set(shares))] if drawn else ():
            share = _short(drawn.get(name, 0) / sum(drawn.values()))
            told[name] = {"count": drawn.get(name, 0), "share": share}
            told[name] |= {"configured": shares.get(name)}
        return told

    def _flaws(self, known: _Known) -> dict[str, Any]:
        """Scheduled messages, and where code can see the flaw: how many show it, and how many of
        the messages for which it was not scheduled."""
        told = {}
        for name in self.by("flaw"):
            eye = observer(name, known.flaws.get(name))
            told[name] = {"scheduled": self.counts["flaw", name], "seen_as": eye and eye.shows}
            if eye:
                rest = {
                    key: self.counts[f"flaw {key}", name] for key in ("seen", "other", "chance")
                }
                told[name] |= {"realised": rest["seen"], "not_scheduled": rest["other"]}
                told[name] |= {"shown_unscheduled": rest["chance"]}
        return told

    def _usage(self, role: str) -> dict[str, Any]:
        told: dict[str, Any] = self.by("usage", role)
        unknown = told.pop("unknown", 0)
        known = math.fsum(self.values.get(("dollars", role), ()))
        told |= {"dollars": None if unknown else round(known, 6)}
        return told | {"dollars_known": round(known, 6), "transcripts_of_unknown_cost": unknown}


# ── one transcript ────────────────────────────────────────────────────────────────────────────────

LENGTH_TRIES = 2  # as in simulation.py
MEASURED = frozenset({"words", "ratio", "dollars"})


def _transcript_of(path: Path) -> dict[str, Any]:
    """A transcript whose exchanges are what they should be; anything else is an error."""
    found: dict[str, Any] = json.loads(path.read_bytes())
    rows = found.get("exchanges", found.get("conversations"))
    found["exchanges"] = [{"meta": {}} | dict(row) for row in rows or ()]
    if rows is None or any(not isinstance(each[s], str) for each in rows for s in SIDES):
        raise ValueError("no exchanges")
    return found


def _fate(transcript: Mapping[str, Any], folder: str) -> str:
    return "rejected" if folder == "rejected" else "truncated" if _cut(transcript) else "accepted"


def _cut(transcript: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(transcript.get("cut") or {})


def _about(transcript: Mapping[str, Any]) -> Mapping[str, Any]:
    return dict(transcript.get("provenance") or {})


def _kind(reason: str) -> str:
    """The kind of a fault: what stands before the first colon."""
    return reason.partition(":")[0].strip()[:60] or "no reason"


def _opening(transcript: Mapping[str, Any]) -> str:
    """How a conversation begins, without case, digits and punctuation."""
    first = transcript["exchanges"][0]["user"] if transcript["exchanges"] else ""
    return " ".join(WORDS.findall(first.casefold())[:OPENING_WORDS])


def _observed(transcript: Mapping[str, Any], fate: str, known: _Known) -> Iterator[_Seen]:
    """What one transcript adds to the figures."""
    about, person = _about(transcript), dict(transcript.get("persona") or {})
    style = str(person.get("communication_style") or "no style")
    yield ("fate", fate), 1
    yield ("source", str(transcript.get("source"))), 1
    yield ("ended", str(transcript.get("ended"))), 1
    yield ("exchanges",), len(transcript["exchanges"])
    yield from ((("mark", mark), 1) for mark in ("simulated", "trial") if about.get(mark))
    yield from ((("reason", fate, _kind(str(why))), 1) for why in _cut(transcript).get("why", ()))
    for side, found in dict(_cut(transcript).get("found") or {}).items():
        yield from ((("found", side, _kind(str(each))), 1) for each in found)
    yield from ((("model", *pair), 1) for pair in dict(about.get("models") or {}).items())
    yield from _paid(transcript)
    for exchange in transcript["exchanges"]:
        yield from _lengths(exchange, style, known)
    if transcript.get("source") == "generated":
        inputs = dict(about.get("inputs") or {})
        made_with = str(inputs.get(TEMPLATE, known.template_hash))
        alike = known.template_hash.startswith(made_with)
        yield from _draws(transcript["exchanges"], known, alike)


def _paid(transcript: Mapping[str, Any]) -> Iterator[_Seen]:
    """Calls, tokens and dollars by role; what an imported one cost elsewhere is not ours."""
    usage = dict(transcript.get("usage") or {}) if transcript.get("source") == "generated" else {}
    for role, used in usage.items():
        yield from ((("usage", role, key), int(used[key])) for key in ("calls", "input", "output"))
        dollars = used.get("dollars")
        unknown = dollars is None
        yield ("usage", role, "unknown"), unknown
        if not unknown:
            yield ("dollars", role), float(dollars)


def _lengths(exchange: Mapping[str, Any], style: str, known: _Known) -> Iterator[_Seen]:
    """Words of both sides, whether they are within their limits, and after how many requests."""
    meta, limits = exchange["meta"], known.project.thresholds
    user, reply = (infrastructure.count_words(exchange[side]) for side in SIDES)
    yield ("words", "user"), user
    yield ("words", "assistant"), reply
    long = reply > max(limits.reply_floor, int(limits.reply_ratio_limit * user))
    for group in ("all", style):
        if user:
            yield ("ratio", group), reply / user
        yield ("long reply", group), long
    if "range" in meta:
        least, most = meta["range"]
        tries = str(dict(meta.get("asked_again") or {}).get("user", 0))
        yield ("messages", style), 1
        yield ("within", style, tries), least <= user <= most
    yield from ((("violation", str(each)), 1) for each in meta.get("violations", ()))
    for side, found in dict(meta.get("found") or {}).items():
        yield from ((("found", side, _kind(str(each))), 1) for each in found)


def _draws(exchanges: Sequence[Mapping[str, Any]], known: _Known, alike: bool) -> Iterator[_Seen]:
    """What was drawn for each message, and where code can see it: whether it shows."""
    yield ("other template",), not alike
    eyes = {name: eye for name, flaw in known.flaws.items() if (eye := observer(name, flaw))}
    earlier: set[str] = set()
    for exchange in exchanges:
        meta, said = exchange["meta"], _sentences(exchange["user"]) if eyes else []
        if alike:
            yield from (
                ((key, str(meta[key])), 1) for key in ("response", "stage") if meta.get(key)
            )
        drawn = set(meta.get("flaws", ()))
        yield from ((("flaw", str(name)), 1) for name in drawn)
        for name, eye in eyes.items():
            shows = eye.sees(Sent(exchange["user"], said, earlier, meta.get("range")))
            yield (f"flaw {'seen' if name in drawn else 'chance'}", name), shows
            yield ("flaw other", name), name not in drawn
        earlier.update(said)


def flaws_shown(
    exchanges: Iterable[Mapping[str, Any]], flaws: Mapping[str, Flaw]
) -> Iterator[tuple[int, str, bool]]:
    """For each scheduled flaw that code can see: the exchange from 1, its name, if it shows."""
    eyes = {name: eye for name, flaw in flaws.items() if (eye := observer(name, flaw))}
    earlier: set[str] = set()
    for number, exchange in enumerate(exchanges, 1):
        said = _sentences(exchange["user"])
        for name in (each for each in exchange["meta"].get("flaws", ()) if each in eyes):
            sent = Sent(exchange["user"], said, earlier, exchange["meta"].get("range"))
            yield number, name, eyes[name].sees(sent)
        earlier.update(said)


# ── flaws that code can see ───────────────────────────────────────────────────────────────────────


class Sent(NamedTuple):
    """One message of a person, as a detector sees it."""

    text: str
    said: list[str]  # its sentences, normalised; a question keeps its mark
    earlier: set[str]  # the sentences of this person's messages before it
    limits: Sequence[int] | None  # fewest and most words


class Observer(NamedTuple):
    """What code can see of a flaw, without understanding it."""

    shows: str  # in words, for the report
    words: str  # a flaw whose name or `shows` has such words is one of this sort
    sees: Callable[[Sent], bool]


SENTENCE = re.compile(r"[^.!?\u3002\uff01\uff1f\n]+[.!?\u3002\uff01\uff1f]*")


def _sentences(text: str) -> list[str]:
    parts = SENTENCE.findall(text.casefold())
    found = (
        (" ".join(WORDS.findall(part)), part.rstrip()[-1:] in ("?", "\uff1f")) for part in parts
    )
    return [words + "?" * asks for words, asks in found if words]


def _repeats(message: Sent) -> bool:
    return any(each in message.earlier for each in message.said if each.count(" ") > 1)


def _asks_again(message: Sent) -> bool:
    return any(each in message.earlier for each in message.said if each.endswith("?"))


def _asks_much(message: Sent) -> bool:
    return sum(each.endswith("?") for each in message.said) > 1


def _is_short(message: Sent) -> bool:
    return _place(message) <= 0.25


def _is_long(message: Sent) -> bool:
    return _place(message) >= 0.75


def _place(message: Sent) -> float:
    """Where in its range of words a message is, 0 to 1; a half where there is no range."""
    least, most = message.limits or (0, 0)
    words = infrastructure.count_words(message.text)
    return (words - least) / max(most - least, 1) if most else 0.5


def _shouts(message: Sent) -> bool:
    return any(len(word) > 2 and word.isupper() for word in message.text.split())


OBSERVERS = (
    Observer("a question word for word again", r"\bask\w* again|\bsame question", _asks_again),
    Observer("a sentence word for word again", r"\brepeat(s|ed|ing)?\b", _repeats),
    Observer("two questions or more", r"(several|many|two|more) questions", _asks_much),
    Observer(
        "the lowest quarter of its words", r"\bone[- ]word|\bvery short|\bfew words", _is_short
    ),
    Observer("the highest quarter of its words", r"\brambl|\bvery long|\bwall of text", _is_long),
    Observer("words in capital letters", r"\bcapitals?\b|\ball caps\b|\bshouts?\b", _shouts),
)


def observer(name: str, flaw: Flaw | None) -> Observer | None:
    """The detector for a flaw by the words that describe it; None: not observable by code."""
    text = f"{name}: {flaw.shows}" if flaw else ""
    found = (eye for eye in OBSERVERS if flaw and re.search(eye.words, text, re.IGNORECASE))
    return next(found, None)


# ── the files around them ─────────────────────────────────────────────────────────────────────────


def _template_hash(root: Path) -> str:
    return infrastructure.selector_hash(root, TEMPLATE) or ""


def _frozen(root: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, str]]]:
    """The frozen batches by id, and the files among them that cannot be read. One that was drawn
    from imports holds no transcript of its own."""
    found, damaged = {}, []
    for path in sorted((root / "data/batches").glob("*.json")):
        try:
            batch = dict(json.loads(path.read_bytes()))
            if not batch.get("drawn_from"):
                found[str(batch["id"])] = batch | {"ids": list(batch["ids"])}
        except DAMAGE as error:
            name = path.relative_to(root).as_posix()
            damaged.append({"file": name, "why": type(error).__name__})
    return found, damaged


def _planned(batch: Mapping[str, Any]) -> dict[str, Any]:
    head = {"kind": str(batch.get("kind")), "trial": bool(batch.get("trial"))}
    return head | {"planned": len(batch["ids"])}


ALL = "all batches"
STATES = ("passed", "failed", "unscored", "not assessable")


def _verdicts(root: Path) -> dict[str, dict[str, Any]]:
    """What the judges say, by batch, as assess.py has combined it; nothing before it has run."""
    states, failed = (
        defaultdict[str, Counter[str]](Counter),
        defaultdict[str, Counter[str]](Counter),
    )
    for row in infrastructure.iter_records(root / "data/assessments/combined.jsonl"):
        for batch in (str(row.get("batch") or "no batch"), ALL):
            states[batch][str(row.get("state"))] += 1
            failed[batch].update(map(str, row.get("failed_checks") or ()))
    return {batch: {"verdicts": {state: found[state] for state in STATES},
                    "failed_checks": dict(sorted(failed[batch].items()))}
            for batch, found in states.items()}  # fmt: skip


def _candidates(root: Path, there: Counter[str]) -> dict[str, Any]:
    """The lines of data/candidates*.jsonl, and where they and the transcripts do not fit."""
    events, told, bad = Counter[str](), set[str](), 0
    for path in sorted((root / "data").glob("candidates*.jsonl")):
        report = infrastructure.ReadReport()
        for row in infrastructure.iter_records(path, report):
            events[f"{row.get('event')}, {row.get('fate')}"] += 1
            told.add(str(row.get("id")))
        bad += len(report.bad)
    odd = {"transcripts_without_a_line": len(set(there) - told)}
    odd |= {"lines_without_a_transcript": len(told - set(there))}
    odd |= {"ids_that_stand_twice": sum(count > 1 for count in there.values())}
    return {"lines": dict(sorted(events.items())), "damaged_lines": bad} | odd


# ── what passes, and what is missing ──────────────────────────────────────────────────────────────

RATE_LEVEL = 0.95


def yields(root: Path, interval: Interval | None = None) -> dict[str, Any]:
    """Pass rates by what was drawn for a person, dollars for each that passes, and what is short of
    the taxonomy's shares; empty while nothing is judged."""
    rows = {str(row.get("id")): row for row in
            infrastructure.iter_records(root / "data/assessments/combined.jsonl")
            if row.get("pass") is not None}  # fmt: skip
    if not rows:
        return {}
    found: dict[str, dict[str, list[int]]] = {name: {} for name in ("topic", "style", "difficulty")}
    found["flaw"], spent, topics = {}, _Spent(), Counter[str]()
    for _, row in sorted(rows.items()):
        talk = _judged(root, row)
        spent.add(talk.get("usage") if talk.get("source") == "generated" else {})
        for kind, name in _drawn(dict(talk.get("persona") or {})):
            counts = found[kind].setdefault(name, [0, 0])
            counts[0] += bool(row["pass"])
            counts[1] += 1
            topics[name] += bool(row["pass"]) and kind == "topic"
    for path in (root / "data/assessments").glob("*.jsonl"):
        if path.stem != "combined":
            for row in infrastructure.iter_records(path):
                spent.add({"judge": row.get("usage")})
    passed = sum(row["pass"] is True for row in rows.values())
    told = {kind: {name: _rate_of(k, n, interval) for name, (k, n) in sorted(each.items())}
            for kind, each in found.items()}  # fmt: skip
    each_costs = spent.dollars / passed if passed and not spent.unknown else None
    return told | {"passed": passed, "of": len(rows), "dollars_per_passing": each_costs,
                   "short_of_taxonomy": _missing(root, topics, told["topic"])}  # fmt: skip


@dataclass
class _Spent:
    """Dollars of calls; unknown as soon as one is."""

    dollars: float = 0.0
    unknown: bool = False

    def add(self, usage: Any) -> None:
        for used in dict(usage or {}).values():
            cost = dict(used or {}).get("dollars", 0.0)
            self.unknown |= cost is None
            self.dollars += cost or 0.0


def _judged(root: Path, row: Mapping[str, Any]) -> dict[str, Any]:
    """The transcript of a verdict; one that can't be read any more has nothing drawn."""
    try:
        return _transcript_of(root / str(row.get("source_file")))
    except DAMAGE:
        return {}


def _drawn(persona: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(what, value), each once for a conversation."""
    seeds = [dict(seed) for seed in persona.get("topic_seeds") or ()]
    yield from dict.fromkeys(("topic", str(seed.get("category"))) for seed in seeds)
    yield from dict.fromkeys(("difficulty", str(seed.get("complexity"))) for seed in seeds)
    if persona.get("communication_style"):
        yield "style", str(persona["communication_style"])
        names = [str(flaw.get("name")) for flaw in persona.get("flaws") or ()]
        yield from (("flaw", name) for name in dict.fromkeys(names or ["(none)"]))


def _rate_of(k: int, n: int, interval: Interval | None) -> dict[str, Any]:
    low, high = interval(k, n, RATE_LEVEL) if interval else (None, None)
    return {"passed": k, "of": n, "low": low, "high": high}


def _missing(
    root: Path, passed: Counter[str], rates: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """For each topic that is short: its share of what passes, the taxonomy's, and about how many
    conversations more would even it out at the pass rate that it has."""
    total, short = passed.total(), dict[str, dict[str, float]]()
    for topic in load_taxonomy(root).topics if total else ():
        share, rate = passed[topic.name] / total, rates.get(topic.name, {})
        lack = topic.weight * total - passed[topic.name]
        if lack >= 1:
            good = max(rate["passed"], 1) / rate["of"] if rate else 0.5
            about = math.ceil(lack / (1 - topic.weight) / good)
            short[topic.name] = {"share": share, "wanted": topic.weight, "generate about": about}
    return short


def _short(value: float) -> float:
    return round(value, 4)


# ── the page ──────────────────────────────────────────────────────────────────────────────────────

WIDTH = 80


def stats_page(stats: Mapping[str, Any]) -> str:
    """The figures for a person, in 80 columns."""
    every = stats["all"]
    parts = [["# Generation statistics"], *_marks(every), _lines_of(ABOUT)]
    parts += [["## Batches"], _batches(stats), *_reasons(every)]
    parts += [*_verdict_table(stats), *_yield_tables(stats["yield"])]
    parts += [["## Lengths"], _length_table(every), _length_words(every)]
    parts += [["## Artefacts"], _artefact_table(every)]
    parts += [["## Flaws"], _flaw_table(every), _flaw_words(every)]
    parts += [["## Reactions"], _response_table(every), _other_template(every)]
    parts += [["## Stages and endings"], _stage_table(every), _endings(stats)]
    parts += [["## Calls"], _usage_table(every), _model_lines(every)]
    parts += [["## Files"], _file_lines(stats)]
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


ABOUT = (
    "From the transcripts under data/raw and the lines of data/candidates*.jsonl, written again by "
    "every run of generate.py and import_transcripts.py. generation_stats.json has all of it for "
    "each batch."
)


def _lines_of(text: str) -> list[str]:
    """Text in 80 columns; an item of a list hangs below its own first word."""
    hang = "  " if text.startswith("- ") else ""
    return textwrap.wrap(text, WIDTH, subsequent_indent=hang, break_on_hyphens=False)


def _marks(every: Mapping[str, Any]) -> list[list[str]]:
    """What nobody may overlook: figures of simulated models, and of a trial."""
    of, simulated, trial = every["transcripts"], every["simulated"], every["made_for_trial"]
    said = f"**SIMULATED: {simulated:,} of {of:,} transcripts come from simulated models."
    tried = f"**TRIAL: {trial:,} of {of:,} transcripts were made for a trial"
    found = [f"{said} They say nothing about real ones.**"] if simulated else []
    found += [f"{tried} and will not be shipped.**"] if trial else []
    return [_lines_of(text) for text in found]


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table of markdown in 80 columns: the first column gives way, the others stay whole."""
    texts = [[_cell(cell) for cell in row] for row in rows]
    if not texts:
        return ["None."]
    wide = [max(map(len, column)) for column in zip(head, *texts, strict=True)]
    wide[0] = max(8, min(wide[0], WIDTH - sum(wide[1:]) - 3 * len(wide) - 1))
    rule = ["-" * wide[0], *("-" * (n - 1) + ":" for n in wide[1:])]
    return ["| " + " | ".join(_fit(text, n, at) for at, (text, n) in enumerate(zip(row, wide,
            strict=True))) + " |" for row in (list(head), rule, *texts)]  # fmt: skip


def _cell(value: object) -> str:
    text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
    text = "".join(sign if sign.isprintable() else " " for sign in text.replace("|", "/"))
    return " ".join(text.split())


def _fit(text: str, wide: int, at: int) -> str:
    text = text if len(text) <= wide else text[: wide - 2] + ".."
    return text.rjust(wide) if at else text.ljust(wide)


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None else f"{share:.{digits}%}"


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _batches(stats: Mapping[str, Any]) -> list[str]:
    head = ("batch", "planned", "made", "accepted", "cut", "rejected", "exchanges")
    rows = [*stats["batches"].items(), ("all", stats["all"])]
    keys = ("transcripts", *FATES, "exchanges")
    return _table(head, ((n, _planned_cell(each), *(each[k] for k in keys)) for n, each in rows))


def _verdict_table(stats: Mapping[str, Any]) -> list[list[str]]:
    """Pass rates of the batches that were judged; they are not pooled over changed prompts."""
    judged = [(name, each) for name, each in stats["batches"].items() if "verdicts" in each]
    if not judged:
        return []
    head = ("batch", "passed", "failed", "unscored", "too short", "rate", "fails most")
    rows = [(name, *each["verdicts"].values(), _rate(each["verdicts"]), _most(each))
            for name, each in judged]  # fmt: skip
    return [["## Verdicts"], _table(head, rows)]


def _yield_tables(found: Mapping[str, Any]) -> list[list[str]]:
    """Who and what passes how often, and what is short of the taxonomy."""
    if not found:
        return []
    head = ("what", "value", "passed", "of", "95% interval")
    rows = [(kind, name, each["passed"], each["of"], _span(each))
            for kind in ("topic", "style", "difficulty", "flaw")
            for name, each in found[kind].items()]  # fmt: skip
    cost = found["dollars_per_passing"]
    dollars = "unknown" if cost is None else f"${cost:,.4f}"
    said = f"- {found['passed']} of {found['of']} pass; each of them cost {dollars}, repairs apart."
    tables = [["## Yield"], _table(head, rows) if rows else [], [said]]
    short = found["short_of_taxonomy"]
    if short:
        lack = [(name, _percent(each["share"]), _percent(each["wanted"]), each["generate about"])
                for name, each in short.items()]  # fmt: skip
        tables.append(_table(("short of the taxonomy", "share", "wanted", "make about"), lack))
    return [part for part in tables if part]


def _span(each: Mapping[str, Any]) -> str:
    return (
        "" if each["low"] is None else f"{_percent(each['low'], 0)} to {_percent(each['high'], 0)}"
    )


def _rate(verdicts: Mapping[str, int]) -> str:
    return _percent(_share(verdicts["passed"], verdicts["passed"] + verdicts["failed"]))


def _most(batch: Mapping[str, Any]) -> str:
    """The criteria that fail most."""
    ordered = sorted(batch["failed_checks"].items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{name} {count}" for name, count in ordered[:3])


def _planned_cell(batch: Mapping[str, Any]) -> object:
    return "" if batch.get("planned") is None else batch["planned"]


def _reasons(every: Mapping[str, Any]) -> list[list[str]]:
    cut, lost = every["truncated_for"], every["rejected_for"]
    rows = [(why, lost.get(why, 0), cut.get(why, 0)) for why in sorted(set(cut) | set(lost))]
    return [_table(("reason", "rejected", "cut"), rows)] if rows else []


def _length_table(every: Mapping[str, Any]) -> list[str]:
    head = ("style", "of", "within", "1st", "2nd", "3rd", "ratio", "median", "long")
    return _table(head, map(_length_row, every["styles"].items()))


def _length_row(named: tuple[str, Mapping[str, Any]]) -> tuple[object, ...]:
    name, style = named
    ratio, tries = style["reply_ratio"], style["within_after"]
    shares = [_percent(_share(count, style["messages"]), 0) for count in tries.values()]
    words = _number(ratio["mean"], 2), _number(ratio["median"], 2)
    long = _percent(_share(ratio["above_limit"], ratio["of"]), 0)
    return name, style["messages"], _percent(style["share"]), *shares, *words, long


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _length_words(every: Mapping[str, Any]) -> list[str]:
    found = ["- Within its range at the 1st, 2nd, 3rd try; long: replies above the limit."]
    for side, words in every["words"].items():
        mean, middle = _number(words["mean"]), _number(words["median"])
        found.append(f"- Words of one {side} message: mean {mean}, median {middle}.")
    ratio = every["reply_ratio"]
    said = f"mean {_number(ratio['mean'], 2)}, median {_number(ratio['median'], 2)}"
    found.append(f"- Words of reply per word of the user: {said}.")
    found.append(f"- Replies above the limit: {ratio['above_limit']:,} of {ratio['of']:,}.")
    wrong = ", ".join(f"{count:,} {name}" for name, count in every["violations"].items())
    return [*found, *_lines_of(f"- Violations that were kept: {wrong or 'none'}.")]


def _artefact_table(every: Mapping[str, Any]) -> list[str]:
    again = every["artefacts_made_again"]
    kinds = sorted({kind for side in SIDES for kind in again[side]})
    head = ("found, and the message made again", *SIDES)
    return _table(head, ((kind, *(again[side].get(kind, 0) for side in SIDES)) for kind in kinds))


def _flaw_table(every: Mapping[str, Any]) -> list[str]:
    head = ("flaw", "scheduled", "it shows", "shows when not scheduled")
    return _table(head, (_flaw_row(name, flaw) for name, flaw in every["flaws"].items()))


def _flaw_row(name: str, flaw: Mapping[str, Any]) -> tuple[object, ...]:
    if not flaw["seen_as"]:
        return name, flaw["scheduled"], "?", "?"
    chance = f"{flaw['shown_unscheduled']:,} of {flaw['not_scheduled']:,}"
    return name, flaw["scheduled"], flaw["realised"], chance


def _flaw_words(every: Mapping[str, Any]) -> list[str]:
    flaws = every["flaws"]
    blind = ", ".join(name for name, flaw in flaws.items() if not flaw["seen_as"])
    seen = [f"- {name}: code looks for {flaw['seen_as']}; it sees nothing subtler."
            for name, flaw in flaws.items() if flaw["seen_as"]]  # fmt: skip
    lines = [*seen, *([f"- Not observable by code (?): {blind}."] if blind else [])]
    return [part for line in lines for part in _lines_of(line)]


def _response_table(every: Mapping[str, Any]) -> list[str]:
    head = ("reaction", "expected", "drawn", "of", f"{LEVEL:.1%} interval")
    return _table(head, (_response_row(name, row) for name, row in every["responses"].items()))


def _response_row(name: str, row: Mapping[str, Any]) -> tuple[object, ...]:
    sure = f"{row['low']:.1%} - {row['high']:.1%}" if "low" in row else "-"
    sure += " !" if row.get("outside") else ""
    return name, _percent(row["expected"]), _percent(row["drawn"]), row["of"], sure


def _other_template(every: Mapping[str, Any]) -> list[str]:
    count = every["drawn_with_another_template"]
    said = f"{count:,} transcripts were drawn with another persona-template.yaml. Their reactions"
    return _lines_of(f"{said} and stages are not counted here.") if count else []


def _stage_table(every: Mapping[str, Any]) -> list[str]:
    rows = every["stages"].items()
    head = ("stage", "messages", "share", "configured")
    return _table(head, ((name, row["count"], _percent(row["share"]), _percent(row["configured"]))
                         for name, row in rows))  # fmt: skip


def _endings(stats: Mapping[str, Any]) -> list[str]:
    ended = ", ".join(f"{count:,} by {how}" for how, count in stats["all"]["ended"].items())
    alike = (
        f"{stats['near_identical_openings']:,} share the first {OPENING_WORDS} words with another."
    )
    return [*_lines_of(f"- Ended: {ended or 'none'}."), f"- Openings: {alike}"]


def _usage_table(every: Mapping[str, Any]) -> list[str]:
    keys = ("calls", "input", "output")
    head = ("role", "calls", "tokens in", "tokens out", "dollars")
    return _table(head, ((role, *(used.get(key, 0) for key in keys), _dollars(used))
                         for role, used in every["usage"].items()))  # fmt: skip


def _dollars(used: Mapping[str, Any]) -> str:
    if used["dollars"] is not None:
        return f"{used['dollars']:,.2f}"
    return f"{used['dollars_known']:,.2f} + unknown"


def _model_lines(every: Mapping[str, Any]) -> list[str]:
    lines = (f"- {role}: {', '.join(names)}" for role, names in every["models"].items())
    return [part for line in lines for part in _lines_of(line)]


def _file_lines(stats: Mapping[str, Any]) -> list[str]:
    rows = stats["candidates"]
    lines = [f"- {count:,} lines in candidates: {event}." for event, count in rows["lines"].items()]
    odd = ("damaged_lines", "transcripts_without_a_line", "lines_without_a_transcript")
    names = (*odd, "ids_that_stand_twice")
    lines += [f"- {name.replace('_', ' ')}: {rows[name]:,}" for name in names if rows[name]]
    lines += [
        f"- DAMAGED, not counted: {each['file']} ({each['why']})" for each in stats["damaged"]
    ]
    return [part for line in lines for part in _lines_of(line)] or ["None."]
