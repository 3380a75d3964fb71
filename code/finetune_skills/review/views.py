"""What each page shows, worked out before a template sees it. Nothing here knows about HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from urllib.parse import urlencode

from markupsafe import Markup

from finetune_skills import labels
from finetune_skills.review.queue import (
    BEGUN,
    BLIND_KINDS,
    DONE,
    KINDS,
    STALE,
    UNREAD,
    Item,
    Queue,
    Wanted,
    number,
)
from finetune_skills.review.records import (
    COMBINED,
    SEEN,
    Entry,
    Exchange,
    Row,
    Transcript,
    as_list,
    as_mapping,
    as_text,
    read_transcript,
)
from finetune_skills.review.text import Span, diff, find_quote, marked, plain, shown

PAGE = 50  # lines of the queue at once
MOST_DIFFED = 25  # changed exchanges shown word by word; more would take too long to compare
STATES = (UNREAD, BEGUN, DONE, STALE)
CONTENT = ("verdict", "criteria", "agreed", "notes", "rubric_misses", "fine")
EMPTY: Mapping[str, Any] = {
    "verdict": None, "criteria": {}, "agreed": [], "notes": "", "rubric_misses": "", "fine": {},
}  # fmt: skip


# ── the queue ─────────────────────────────────────────────────────────────────────────────────────


def query(wanted: Wanted, **more: object) -> str:
    """The filters as the end of an address; nothing where there are none."""
    given = {key: str(value) for key, value in {**asdict(wanted), **more}.items() if value}
    return f"?{urlencode(given)}" if given else ""


def queue_page(queue: Queue, wanted: Wanted, reviewer: str, page: int) -> dict[str, Any]:
    """The lines of one page, with filters, counts and progress."""
    found = list(queue.filtered(wanted, reviewer))
    pages = max(1, -(-len(found) // PAGE))
    page = min(max(page, 1), pages)
    lines = found[(page - 1) * PAGE : page * PAGE]
    return {
        "lines": [line(item, queue, reviewer) for item in lines],
        "found": len(found),
        "first": (page - 1) * PAGE + 1,
        "page": page,
        "pages": pages,
        "addresses": {n: query(wanted, page=n) for n in (page - 1, page + 1) if 1 <= n <= pages},
        "wanted": wanted,
        "query": query(wanted),
        "kinds": kind_filters(queue, wanted),
        "states": STATES,
        "batches": sorted({item.entry.batch for item in queue.items.values()} - {""}),
        "problems": [plain(text) for text in queue.records.problems],
        "unassessed": not queue.scope.blind and not any(item.state for item in found),
        **progress(queue, reviewer),
        "go_on": go_on(queue, wanted, reviewer),
    }


def kind_filters(queue: Queue, wanted: Wanted) -> list[dict[str, Any]]:
    """One link for each kind of reason, with how many there are."""
    counts = queue.counts()
    every = [("", "to read", sum(1 for _ in queue.in_scope()))]
    every += [(kind, KINDS[kind], count) for kind, count in counts.items()]
    every += [("all", "all transcripts", len(queue.items))]
    return [
        {"name": name, "count": count, "on": wanted.reason == kind,
         "address": query(Wanted(kind, wanted.state, wanted.batch, wanted.text)) or "/"}
        for kind, name, count in every
    ]  # fmt: skip


def progress(queue: Queue, reviewer: str) -> dict[str, int]:
    """How far this reviewer is with everything that is to be read."""
    states = [queue.progress(item.entry, reviewer) for item in queue.in_scope()]
    return {"done": states.count(DONE), "total": len(states)}


def go_on(queue: Queue, wanted: Wanted, reviewer: str) -> str:
    """The address of the first transcript that is not done."""
    plainly = Wanted(wanted.reason, "", wanted.batch, wanted.text)
    for item in queue.filtered(plainly, reviewer):
        if queue.progress(item.entry, reviewer) != DONE:
            return f"/t/{item.entry.id}{query(plainly)}"
    return ""


def line(item: Item, queue: Queue, reviewer: str) -> dict[str, Any]:
    label = queue.label(item.entry, reviewer)
    return {
        "entry": item.entry,
        "reasons": item.reasons,
        "names": KINDS,
        "state": item.state,
        "score": item.score,
        "progress": queue.progress(item.entry, reviewer),
        "verdict": label.verdict if label and not label.stale else None,
        "stale": label.stale if label else "",
    }


# ── one transcript ────────────────────────────────────────────────────────────────────────────────


@dataclass
class Quotes:
    """Numbers every quote of a page, and knows which piece of which message each one covers."""

    exchanges: Sequence[Exchange]
    spans: dict[tuple[int, str], list[Span]] = field(default_factory=dict)
    count: int = 0

    def add(self, given: object) -> dict[str, Any]:
        """One quote as the panel shows it: where it was said to be, and where it is."""
        quote = as_mapping(given)
        text, said = as_text(quote.get("quote")), quote.get("exchange")
        said = said if isinstance(said, int) and not isinstance(said, bool) else 0
        place = find_quote(text, said, self.exchanges)
        self.count += 1
        if place:
            span = Span(place.start, place.end, self.count)
            self.spans.setdefault((place.exchange, place.side), []).append(span)
        at = place.exchange if place else 0
        return {"number": self.count, "text": text, "said": said, "at": at}

    def message(self, exchange: int, side: str) -> Markup:
        text: str = getattr(self.exchanges[exchange - 1], side)
        return marked(text, self.spans.get((exchange, side), []))


def transcript_page(queue: Queue, entry: Entry, wanted: Wanted, reviewer: str) -> dict[str, Any]:
    """Everything about one transcript: text, criteria, the reviewer's label, the way on."""
    transcript, item = read_transcript(entry.path), queue.items[entry.id]
    blind, rubric = queue.scope.blind, queue.records.rubric
    rows = {} if blind else queue.records.current(entry)
    quotes = Quotes(transcript.exchanges)
    groups = list(criteria_groups(queue, transcript, rows, quotes))
    before = None if blind else original_of(queue, entry)
    return {
        "entry": entry,
        "item": item,
        "names": KINDS,
        "threshold": number(rows.get(COMBINED, {}).get("threshold")) or rubric.pass_threshold,
        "persona": list(persona_lines(transcript.persona)),
        "simulated": bool(transcript.said("provenance").get("simulated")),
        "ended": as_text(transcript.data.get("ended")),
        "groups": groups,
        "exchanges": list(exchange_views(transcript, quotes, before)),
        "cut": cut_away(transcript, before),
        "repaired": before is not None,
        "old_verdicts": not blind and not rows and any(True for _ in old_rows(queue, entry)),
        "way": way(queue, entry, wanted, reviewer),
        "query": query(wanted),
        **progress(queue, reviewer),
        "state": json.dumps(label_state(queue, entry, transcript, rows, reviewer)),
    }


def old_rows(queue: Queue, entry: Entry) -> Iterator[Row]:
    """Verdicts about an earlier text, or by an earlier rubric."""
    yield from (row for _, row in queue.records.assessments.of(entry.id))


def original_of(queue: Queue, entry: Entry) -> Transcript | None:
    """The transcript before its repair."""
    old = queue.records.transcripts.originals.get(entry.id) if entry.repaired else None
    return read_transcript(old.path) if old else None


def persona_lines(persona: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is known of the person, one line each; nested parts as short text."""
    for key, value in persona.items():
        if key not in ("schema", "id", "seed", "name") and value not in (None, "", [], {}):
            yield key.replace("_", " "), short(value)


def short(value: object) -> str:
    if isinstance(value, list | tuple):
        return "; ".join(map(short, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {short(each)}" for key, each in value.items())
    return as_text(value)


def exchange_views(
    transcript: Transcript, quotes: Quotes, before: Transcript | None
) -> Iterator[dict[str, Any]]:
    """Each exchange with its marks, its plan, and what the repair changed in it."""
    compared = 0
    for n, exchange in enumerate(transcript.exchanges, 1):
        old = before.exchanges[n - 1] if before and n <= len(before.exchanges) else None
        sides: list[dict[str, Any]] = []
        for side, who in (("user", "Person"), ("assistant", "Assistant")):
            text, was = getattr(exchange, side), getattr(old, side, getattr(exchange, side))
            view = {"side": side, "who": who, "text": quotes.message(n, side)}
            if text != was:
                compared += 1
                view["diff"] = diff(was, text) if compared <= MOST_DIFFED else shown(was)
            sides.append(view)
        added = before is not None and old is None
        yield {"n": n, "sides": sides, "plan": list(plan(exchange.meta)), "added": added}


def cut_away(transcript: Transcript, before: Transcript | None) -> list[Exchange]:
    """Exchanges at the end that the repair took away."""
    return list(before.exchanges[len(transcript.exchanges) :]) if before else []


def plan(meta: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was drawn for an exchange, and its lengths."""
    words, lengths = as_mapping(meta.get("words")), as_list(meta.get("range"))
    if flaws := as_list(meta.get("flaws")):
        yield "flaws", ", ".join(as_text(flaw).replace("_", " ") for flaw in flaws)
    for key in ("stage", "response"):
        if said := as_text(meta.get(key)):
            yield key, said
    if words:
        wanted = f" (wanted {lengths[0]} to {lengths[1]})" if len(lengths) == 2 else ""
        counted = f"person {words.get('user', '?')}{wanted}"
        yield "words", f"{counted}, assistant {words.get('assistant', '?')}"
    if wrong := as_list(meta.get("violations")):
        yield "outside its limits", ", ".join(map(as_text, wrong))


# ── the criteria beside it ────────────────────────────────────────────────────────────────────────


def criteria_groups(
    queue: Queue, transcript: Transcript, rows: Mapping[str, Row], quotes: Quotes
) -> Iterator[dict[str, Any]]:
    """Safety gates first, then each category with its criteria."""
    rubric = queue.records.rubric
    for title, names in {"safety gates": rubric.safety_gates, **rubric.categories}.items():
        made = [criterion_view(queue, transcript, name, rows, quotes) for name in names]
        yield {"title": title.replace("_", " "), "criteria": made}


def criterion_view(
    queue: Queue, transcript: Transcript, name: str, rows: Mapping[str, Row], quotes: Quotes
) -> dict[str, Any]:
    """One question, and what each judge said about it."""
    criterion = queue.records.rubric.criteria[name]
    said = [judge_view(judge, rows[judge], name, quotes) for judge in judges_of(rows)]
    return {
        "id": name,
        "name": criterion.name,
        "question": criterion.question,
        "na_valid": criterion.na_valid,
        "asked": criterion.min_turns <= len(transcript.exchanges),
        "needs": criterion.min_turns,
        "combined": answer_of(rows.get(COMBINED, {}), name),
        "judges": [each for each in said if each["answer"] or each["reasoning"]],
    }


def judges_of(rows: Mapping[str, Row]) -> list[str]:
    return sorted(judge for judge in rows if judge != COMBINED)


def answer_of(row: Mapping[str, Any], criterion: str) -> str:
    return as_text(as_mapping(row.get("answers")).get(criterion)).upper()


def judge_view(judge: str, row: Row, criterion: str, quotes: Quotes) -> dict[str, Any]:
    given = as_list(as_mapping(row.get("quotes")).get(criterion))
    return {
        "judge": judge,
        "answer": answer_of(row, criterion),
        "reasoning": as_text(as_mapping(row.get("reasonings")).get(criterion)),
        "error": as_text(as_mapping(row.get("errors")).get(criterion)),
        "quotes": [quotes.add(quote) for quote in given],
    }


def unanimous(rows: Mapping[str, Row], criteria: Iterable[str]) -> list[str]:
    """Criteria that two judges or more answered alike, and that were combined to just that."""
    judges = judges_of(rows)
    found = []
    for name in criteria:
        given = {answer_of(rows[judge], name) for judge in judges}
        combined = answer_of(rows.get(COMBINED, {}), name)
        if len(judges) > 1 and given == {combined} and combined in labels.ANSWERS:
            found.append(name)
    return found


# ── the label, and the way on ─────────────────────────────────────────────────────────────────────


def label_state(
    queue: Queue, entry: Entry, transcript: Transcript, rows: Mapping[str, Row], reviewer: str
) -> dict[str, Any]:
    """What the page's script starts from: what is asked, what was seen, what is saved."""
    rubric, label = queue.records.rubric, queue.label(entry, reviewer)
    turns = len(transcript.exchanges)
    asked = labels.asked(rubric, turns)
    hashes = {"transcript_hash": transcript.hash, "rubric_hash": rubric.hash, "turns": turns}
    combined = {name: answer_of(rows.get(COMBINED, {}), name) for name in asked}
    told: dict[str, Any] = {"id": entry.id, "asked": asked, "blind": queue.scope.blind}
    told["hashes"] = hashes | {"seen": {judge: rows[judge][SEEN] for judge in judges_of(rows)}}
    told["shown"] = {name: said for name, said in combined.items() if said in labels.ANSWERS}
    told["unanimous"] = unanimous(rows, asked)
    told["revision"] = label.revision if label else 0
    told["label"] = content(label) if label and not label.stale else kept_notes(label)
    told["earlier"] = content(label) if label and label.stale else None
    told["stale"] = label.stale if label else ""
    return told


def content(label: labels.Label) -> dict[str, Any]:
    found = {key: getattr(label, key) for key in CONTENT}
    return found | {"agreed": list(label.agreed)}


def kept_notes(label: labels.Label | None) -> dict[str, Any]:
    """An empty label; of a stale one the notes stay, the answers have to be given again."""
    notes = {"notes": label.notes, "rubric_misses": label.rubric_misses} if label else {}
    return {**EMPTY, **notes}


def way(queue: Queue, entry: Entry, wanted: Wanted, reviewer: str) -> dict[str, Any]:
    """The transcripts before and after this one, and the next that is not done."""
    plainly = Wanted(wanted.reason, "", wanted.batch, wanted.text)
    ids = [item.entry.id for item in queue.filtered(plainly, reviewer)]
    place = ids.index(entry.id) if entry.id in ids else -1
    around = {"previous": ids[place - 1 : place] if place > 0 else [], "next": ids[place + 1 :][:1]}
    told: dict[str, Any] = {key: address(found, plainly) for key, found in around.items()}
    told["place"], told["of"] = place + 1, len(ids)
    entries = queue.records.transcripts.entries
    later = (item for item in [*ids[place + 1 :], *ids[: max(place, 0)]])
    left = (item for item in later if queue.progress(entries[item], reviewer) != DONE)
    told["todo"] = address([found] if (found := next(left, "")) else [], plainly)
    return told


def address(ids: Sequence[str], wanted: Wanted) -> str:
    return f"/t/{ids[0]}{query(wanted)}" if ids else ""


def known_reason(text: str, blind: bool) -> str:
    """A kind of reason that this page may filter by; anything else is no filter."""
    allowed = ("all", *(BLIND_KINDS if blind else KINDS))
    return text if text in allowed else ""
