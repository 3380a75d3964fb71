"""Training examples: which transcripts belong together, who validates, which replies carry loss.

    family = groups(talks, near)                       # {transcript: group}
    sides = split(family, {t.id: t.stratum for t in talks}, share=0.8, seed=4)
    made, skipped = examples(talk, system, Rules(slicing, max_tokens), Gauge())

First the split, by whole groups, then the cutting: a slice never decides who validates. Each reply
carries loss once, whatever number of slices holds it, or `skipped` says why it does not.
Chapters: 1 lineage, 2 split, 3 examples, 4 what is on the disk. Works alone when copied, beside
`infrastructure` and `settings`. Importing it opens nothing.
"""

import hashlib
import itertools
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infrastructure import (
    SCHEMA,
    FinetuneError,
    TokenCount,
    canonical_hash,
    count_messages_tokens,
    count_prefixes,
    count_tokens,
    file_hash,
    get_slice_points,
    id_of,
    iter_records,
    rng,
    tokenizer_for,
)
from settings import ProjectSettings, Slicing

Pair = tuple[str, str]
Row = dict[str, Any]
Near = tuple[str, str, float]  # two transcripts and how alike they are
Span = tuple[str, int, int]  # document, from, up to and without
Render = Callable[[Sequence[Mapping[str, str]]], str]

# ══ 1 Lineage ═════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Conversation:
    """One transcript to learn from: its words, and all that says what it is related to."""

    id: str
    pairs: tuple[Pair, ...]
    keys: frozenset[str] = frozenset()  # two that share one are related
    spans: tuple[Span, ...] = ()
    source: str = "generated"
    topic: str = ""
    hash: str = ""  # of the words
    trial: bool = False
    simulated: bool = False

    @property
    def stratum(self) -> str:
        """What has to be on both sides of a split: its source, then its first topic."""
        return f"{self.source} / {self.topic}" if self.topic else self.source


def conversation_of(
    found: Mapping[str, Any], pairs: Iterable[Pair], words: str = ""
) -> Conversation:
    """A transcript as it stands on the disk; `words` is the hash of what was said."""
    persona, about = found.get("persona"), found.get("provenance")
    about = about if isinstance(about, Mapping) else {}
    keys = {*_own_keys(found, about), *persona_keys(persona)} | ({f"words:{words}"} - {"words:"})
    source, topic = str(found.get("source") or "generated"), _topic(persona)
    marks = {mark: bool(about.get(mark)) for mark in ("trial", "simulated")}
    spans = tuple(_spans(id_of(found), about.get("spans") or ()))
    said = tuple((user, assistant) for user, assistant in pairs)
    return Conversation(
        str(id_of(found)), said, frozenset(keys), spans, source, topic, words, **marks
    )


def _own_keys(found: Mapping[str, Any], about: Mapping[str, Any]) -> Iterator[str]:
    """Its id, what it was repaired from (an id or a hash of words), the seed of its scenario."""
    yield f"transcript:{id_of(found)}"
    for place in (found, about):
        parent, seed = place.get("repaired_from"), place.get("scenario_seed")
        for each in parent.values() if isinstance(parent, Mapping) else (parent,):
            if isinstance(each, str) and each:
                yield from (f"transcript:{each}", f"words:{each}")
        if seed is not None:
            yield f"seed:{seed}"


def persona_keys(persona: Any) -> set[str]:
    """The person by id, by scenario seed, and by content, so that another name hides nobody. One
    without topics is a label that many may share, and its content counts for nothing."""
    if not isinstance(persona, Mapping):
        return set()
    own = {name: persona[name] for name in persona if name not in NOT_CONTENT}
    keys = {f"person:{canonical_hash(own)}"} if persona.get("topic_seeds") else set()
    keys |= {f"persona:{id_of(persona)}"} if id_of(persona) else set()
    return keys | ({f"seed:{persona['seed']}"} if persona.get("seed") is not None else set())


NOT_CONTENT = ("schema", "id", "seed", "provenance")


def _topic(persona: Any) -> str:
    topics = persona.get("topic_seeds") if isinstance(persona, Mapping) else None
    first = topics[0] if isinstance(topics, list) and topics else {}
    return str(first.get("category") or "") if isinstance(first, Mapping) else ""


def _spans(item: str | None, given: Iterable[Any]) -> Iterator[Span]:
    for each in given:
        try:
            document, start, end = str(each["document"]), int(each["start"]), int(each["end"])
        except (TypeError, KeyError, ValueError):
            document, start, end = "", 0, 0
        if not document or not 0 <= start < end:
            said = (
                f"transcript {item}: provenance.spans: {str(each)[:80]!r} is no part of a document"
            )
            raise FinetuneError(f"{said}. It needs a document, and a start below its end.")
        yield document, start, end


class _Families:
    """Connected components; each is called after its first member by id."""

    def __init__(self, items: Iterable[str]) -> None:
        self.parent = {item: item for item in items}

    def find(self, item: str) -> str:
        parent = self.parent
        while parent[item] != item:
            parent[item] = item = parent[parent[item]]
        return item

    def join(self, one: str, other: str) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self.parent[second] = first


def groups(
    items: Iterable[Conversation],
    near: Iterable[tuple[str, str, *tuple[Any, ...]]] = (),
    whole_documents: bool = False,
) -> dict[str, str]:
    """The group of each transcript: related are those with a key in common, those with overlapping
    parts of a document (or any two parts of it), near-duplicates, and so on from one to the next.
    """
    known = list(items)
    family, owner = _Families(item.id for item in known), dict[str, str]()
    for item in known:
        documents = {f"document:{span[0]}" for span in item.spans if whole_documents}
        for key in item.keys | documents:
            family.join(item.id, owner.setdefault(key, item.id))
    for one, other in itertools.chain(_overlapping(known), ((pair[0], pair[1]) for pair in near)):
        family.join(one, other)
    return {item: family.find(item) for item in sorted(family.parent)}


def _overlapping(items: Iterable[Conversation]) -> Iterator[tuple[str, str]]:
    """Neighbours with a common piece of a document; what only touches has none."""
    spans = sorted((*span, item.id) for item in items for span in item.spans)
    last: tuple[str, int, str] = ("", 0, "")  # document, furthest end so far, whose
    for document, start, end, item in spans:
        if document == last[0] and start < last[1]:
            yield last[2], item
        if document != last[0] or end > last[1]:
            last = (document, end, item)


# ══ 2 Split ═══════════════════════════════════════════════════════════════════════════════════════

SIDES = ("train", "validation")


def split(
    family: Mapping[str, str], strata: Mapping[str, str], share: float, seed: int
) -> dict[str, str]:
    """`train` or `validation` for each transcript, by whole groups. In each stratum the share is
    met as nearly as whole groups can, and with two groups or more both sides have one. Strata of
    one group are taken together. It depends on seed and ids, not on any order."""
    sizes, home = Counter(family.values()), _homes(family, strata)
    inside: defaultdict[str, list[str]] = defaultdict(list)
    for group in sorted(sizes, key=lambda each: (rng(seed, "split", each).random(), each)):
        inside[home[group]].append(group)
    pool = [group for name in sorted(inside) if len(inside[name]) == 1 for group in inside[name]]
    pool.sort(key=lambda each: (rng(seed, "split", each).random(), each))
    apart: set[str] = set()
    for name in sorted(inside):
        if len(inside[name]) > 1:
            apart |= _validation(inside[name], sizes, share, least=1)
    apart |= _validation(pool, sizes, share, least=0 if apart else 1)
    if not apart:
        raise FinetuneError(_no_validation(len(family), len(sizes)))
    return {item: SIDES[family[item] in apart] for item in sorted(family)}


def _homes(family: Mapping[str, str], strata: Mapping[str, str]) -> dict[str, str]:
    """The stratum of most of a group's transcripts; of the first by name where it is a draw."""
    seen: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item, group in family.items():
        seen[group][strata[item]] += 1
    return {group: min(each, key=lambda name: (-each[name], name)) for group, each in seen.items()}


def _validation(
    ordered: Sequence[str], sizes: Mapping[str, int], share: float, least: int
) -> set[str]:
    """The groups that validate: never all of them."""
    own = [sizes[group] for group in ordered]
    if len(own) < 2:
        return set()
    return {ordered[at] for at in nearest_sum(own, (1 - share) * sum(own), least)}


def nearest_sum(sizes: Sequence[int], want: float, least: int) -> list[int]:
    """The places whose sizes add up to the sum nearest to `want`, from `least` up and less than
    all. Exact; of equally near sums the smaller, of its places the first ones."""
    most = min(sum(sizes) - 1, max(int(2 * want) + 1, min(sizes)))
    reached, made_by, keep = 1, dict[int, int](), (1 << most + 1) - 1
    for at, size in enumerate(sizes):
        new = (reached << size) & keep & ~reached
        reached |= new
        while new:
            lowest = new & -new
            made_by[lowest.bit_length() - 1] = at
            new ^= lowest
    sums = [0] * (least == 0) + [each for each in made_by if each >= least]
    best, places = min(sums, key=lambda each: (round(abs(each - want), 9), each)), []
    while best:
        places.append(made_by[best])
        best -= sizes[places[-1]]
    return places


def _no_validation(transcripts: int, families: int) -> str:
    said = f"no validation set: {transcripts} transcripts make {families} group of related ones,"
    todo = "and a group stays on one side. Add conversations with other personas, or from other"
    return f"{said} {todo} documents."


# ══ 3 Examples ════════════════════════════════════════════════════════════════════════════════════

LEAST = 3  # exchanges that a truncated example keeps
BLANK, OVER, CUT = "blank reply", "over the limit", "cut away in front"
SHORT, NOTHING = "fewer exchanges than slicing.first", "no exchange at all"
ONLY_LAST, NO_LOSS = "only the last reply of an example is learned", "no reply that carries loss"
FITS, ASKED = "whole: it fits", "whole: asked for"
FEW = "whole: too few exchanges to cut"
CUTS, LONG = "slices: asked for", "slices: longer than the limit"
REWRITES = "slices: the chat template changes earlier turns"


@dataclass(frozen=True)
class Rules:
    """How conversations are cut. `render` is the target's chat template; without one nobody knows
    whether it changes earlier turns, and `auto` takes it that it does not. That is the safe way to
    be wrong: the mask step renders with the real template and makes a row for each reply where it
    has to, from a whole conversation as well as from slices."""

    slicing: Slicing
    max_tokens: int
    render: Render | None = None


@dataclass(frozen=True)
class Gauge:
    """How tokens are counted: with the files of the target model, else as the kernel can."""

    target: Path | None = None

    def prefixes(self, pairs: Sequence[Pair], system: str) -> Sequence[TokenCount]:
        """Of the first 1, 2, ... exchanges."""
        return count_prefixes(pairs, system or None, self.target)

    def messages(self, messages: Sequence[Mapping[str, str]]) -> TokenCount:
        return count_messages_tokens([dict(each) for each in messages], self.target)

    def text(self, text: str) -> TokenCount:
        return count_tokens(text, self.target)

    def render(self) -> Render | None:
        """The target's chat template, if there is one."""
        given = tokenizer_for(self.target).render if self.target else None
        return None if given is None else lambda each: given([dict(message) for message in each])


@dataclass(frozen=True)
class Example:
    """One training example, and which of its messages carry loss."""

    id: str
    transcript: str
    point: int  # exchanges of the transcript up to its end
    dropped: int  # exchanges that were cut away in front
    messages: tuple[Mapping[str, str], ...]
    supervised: tuple[int, ...]  # indexes of messages
    tokens: TokenCount
    way: str


@dataclass(frozen=True)
class Skipped:
    """A reply that no example supervises (`exchange`, from 1), or an example that was left out."""

    transcript: str
    reason: str
    exchange: int | None = None
    example: str = ""
    tokens: int | None = None

    def row(self) -> Row:
        return {"schema": SCHEMA, **vars(self)}


def examples(
    talk: Conversation, system: str, rules: Rules, count: Gauge
) -> tuple[list[Example], list[Skipped]]:
    """The training examples of one transcript, and everything in it that is not learned."""
    if not talk.pairs:
        return [], [Skipped(talk.id, NOTHING)]
    counts, slicing, total = count.prefixes(talk.pairs, system), rules.slicing, len(talk.pairs)
    way = way_of(talk, system, rules, counts)
    gaps = (slicing.first, slicing.min_gap, slicing.max_gap)
    points = [total] if way.startswith("whole") else get_slice_points(total, talk.id, *gaps)
    known = dict.fromkeys(range(1, total + 1), SHORT if not points else OVER)
    cut = _Cut(talk, system, rules, count, counts, way, known)
    made: list[Example] = []
    for before, point in itertools.pairwise([0, *points]):
        example = cut.example(before, point, counts[point - 1])
        made += [example] if example else []
    taught = {exchange for example in made for exchange in taught_by(example)}
    left = [Skipped(talk.id, known[n], n) for n in sorted(known) if n not in taught]
    return made, [*cut.left_out, *left]


def way_of(talk: Conversation, system: str, rules: Rules, counts: Sequence[TokenCount]) -> str:
    """Whole or slices, and why. A conversation that was found, not made, is never too short."""
    mode, few = rules.slicing.mode, len(talk.pairs) < rules.slicing.first
    if mode == "whole" or (few and talk.source != "generated"):
        return ASKED if mode == "whole" else FEW
    if mode == "slices":
        return CUTS
    if counts[-1].upper > rules.max_tokens:
        return LONG
    messages = messages_of(talk.pairs, system)
    return FITS if rules.render is None or keeps_history(rules.render, messages) else REWRITES


def keeps_history(render: Render, messages: Sequence[Mapping[str, str]]) -> bool:
    """Whether each reply is rendered with what follows as it is rendered when it comes last. Where
    it is not (models that think drop their thoughts from history), a model that learned a reply in
    the middle of a conversation would be asked for it in another form."""
    ends = [at for at, message in enumerate(messages, 1) if message["role"] == "assistant"]
    texts = [render(messages[:end]) for end in ends]
    return all(later.startswith(earlier) for earlier, later in itertools.pairwise(texts))


@dataclass
class _Cut:
    """One conversation while it is cut; `known`: why each reply is not learned, if it is not."""

    talk: Conversation
    system: str
    rules: Rules
    count: Gauge
    counts: Sequence[TokenCount]  # of the first 1, 2, ... exchanges
    way: str
    known: dict[int, str]

    def __post_init__(self) -> None:
        self.left_out: list[Skipped] = []

    def example(self, before: int, point: int, tokens: TokenCount) -> Example | None:
        """The example that ends at this point, if it fits and teaches something."""
        name = example_id(self.talk.id, "whole" if self.way.startswith("whole") else f"s{point}")
        dropped, size, wanted = 0, tokens, self.wanted(before, point)
        if tokens.upper > self.rules.max_tokens:
            kept = self.shorter(point) if self.rules.slicing.over_limit == "truncate" else None
            if kept is None:
                self.left_out.append(Skipped(self.talk.id, OVER, None, name, int(tokens)))
                return None
            dropped, size = kept
            self.known |= dict.fromkeys((n for n in wanted if n <= dropped), CUT)
        messages = messages_of(self.talk.pairs[dropped:point], self.system)
        learned = tuple(reply_at(n - dropped, messages) for n in wanted if n > dropped)
        if not learned:
            self.left_out.append(Skipped(self.talk.id, NO_LOSS, None, name, int(size)))
            return None
        return Example(name, self.talk.id, point, dropped, messages, learned, size, self.way)

    def wanted(self, before: int, point: int) -> list[int]:
        """The exchanges whose replies this example is for: those since the point before it."""
        first = {"once": before + 1, "all": 1, "last": point}[self.rules.slicing.supervise]
        self.known |= dict.fromkeys(range(before + 1, first), ONLY_LAST)
        blank = [n for n in range(before + 1, point + 1) if not self.talk.pairs[n - 1][1].strip()]
        self.known |= dict.fromkeys(blank, BLANK)
        return [n for n in range(first, point + 1) if self.talk.pairs[n - 1][1].strip()]

    def shorter(self, point: int) -> tuple[int, TokenCount] | None:
        """The exchanges to cut away in front, as few as what each adds allows, and the tokens that
        are left; None when not even the last three fit."""
        most, sums = self.rules.max_tokens, [0, *(each.upper for each in self.counts)]
        always = self.size(point - 1, point).upper - (sums[point] - sums[point - 1])
        for dropped in range(1, point - LEAST + 1):
            if always + sums[point] - sums[dropped] <= most:
                size = self.size(dropped, point)
                if size.upper <= most:
                    return dropped, size
        return None

    def size(self, start: int, end: int) -> TokenCount:
        return self.count.messages(messages_of(self.talk.pairs[start:end], self.system))


def messages_of(pairs: Iterable[Pair], system: str) -> tuple[Mapping[str, str], ...]:
    """Chat messages, the system prompt first."""
    told = [{"role": "system", "content": system}] if system else []
    for user, assistant in pairs:
        told += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return tuple(told)


def reply_at(exchange: int, messages: Sequence[Mapping[str, str]]) -> int:
    """The index of the reply of an exchange, both counted from the example's own start."""
    return 2 * exchange - 1 + (messages[0]["role"] == "system")


def taught_by(example: Example) -> list[int]:
    """The exchanges of the transcript whose replies carry loss in an example."""
    return taught_exchanges(example.messages, example.supervised, example.dropped)


def taught_exchanges(
    messages: Sequence[Mapping[str, str]], supervised: Iterable[int], dropped: int
) -> list[int]:
    shift = messages[0]["role"] == "system"
    return [(index - shift + 1) // 2 + dropped for index in supervised]


def example_id(transcript: str, ending: str) -> str:
    """`<transcript>.<ending>`, at most 120 characters; a hash stands for the rest of a long one."""
    room = 119 - len(ending)
    if len(transcript) > room:
        transcript = (
            f"{transcript[: room - 9]}-{hashlib.sha256(transcript.encode()).hexdigest()[:8]}"
        )
    return f"{transcript}.{ending}"


# ══ 4 What is on the disk ═════════════════════════════════════════════════════════════════════════

FOLDER = "data/processed"
MANIFEST = f"{FOLDER}/passing_transcripts.json"
EVALUATION = "data/personas/evaluation.jsonl"
REPORT, CARD, SKIPPED = "slices.json", "README.md", "skipped.jsonl"
BOTH = "training_data.jsonl"


def row_of(example: Example, talk: Conversation, group: str, provenance: Mapping[str, Any]) -> Row:
    """An example as its line: every line has the same keys, which loaders of tables rely on."""
    return {
        "schema": SCHEMA,
        "id": example.id,
        "transcript": example.transcript,
        "slice_point": example.point,
        "dropped": example.dropped,
        "group": group,
        "tokens": int(example.tokens),
        "tokens_at_most": example.tokens.upper,
        "supervised": list(example.supervised),
        "messages": [dict(message) for message in example.messages],
        "trial": talk.trial,
        "simulated": talk.simulated,
        "provenance": {"transcript_hash": talk.hash, **provenance},
    }


def files_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """The three files of a set by name, from rows that have their `split`; sorted, so that the same
    rows give the same bytes."""
    ordered = sorted(rows, key=lambda row: (row["transcript"], row["slice_point"], row["id"]))
    told: dict[str, list[bytes]] = {BOTH: [], "train.jsonl": [], "validation.jsonl": []}
    for row in ordered:
        plain = {name: value for name, value in row.items() if name != "split"}
        told[BOTH].append(line_of({**plain, "split": row["split"]}))
        told[f"{row['split']}.jsonl"].append(line_of(plain))
    return {name: b"".join(lines) for name, lines in told.items()}


def line_of(row: Mapping[str, Any]) -> bytes:
    """One line of plain JSON, readable in every script."""
    try:
        text = json.dumps(row, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return f"{text}\n".encode()
    except UnicodeEncodeError:
        said = f"{row.get('id')}: holds half a character (a lone surrogate)"
        raise FinetuneError(f"{said}. Repair or remove the transcript.") from None


def read_rows(path: Path) -> list[Row]:
    """The lines of one of our files; a line that is none is an error with its number."""
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            rows.append({**row})
        except (ValueError, TypeError, RecursionError) as error:
            said = f"{FOLDER}/{path.name}:{number}: no line of ours ({type(error).__name__})"
            raise FinetuneError(f"{said}. Run: python scripts/slice.py") from None
    return rows


def faults_of(rows: Sequence[Mapping[str, Any]], max_tokens: int) -> Iterator[str]:
    """What must not be in a set: `id: what is wrong`, whoever wrote it."""
    seen: Counter[str] = Counter()
    sides: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        try:
            seen[row["id"]] += 1
            sides[row["group"]].add(row["split"])
            yield from (f"{row['id']}: {said}" for said in _faults(row, max_tokens))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            yield f"{row.get('id')}: is no example ({type(error).__name__}: {error})"
    yield from (f"{name}: stands {times} times" for name, times in seen.items() if times > 1)
    both = (name for name, each in sides.items() if len(each) > 1)
    yield from (f"group {name}: is in train and in validation" for name in both)


def _faults(row: Mapping[str, Any], max_tokens: int) -> Iterator[str]:
    messages, supervised = row["messages"], row["supervised"]
    told = [message["role"] for message in messages]
    told = told[1:] if told[:1] == ["system"] else told
    if not told or told != ["user", "assistant"] * (len(told) // 2):
        yield "its messages are not user and assistant in turn"
    if not supervised or supervised != sorted(set(supervised)):
        yield "supervised has to be a rising list with at least one index"
    for index in supervised:
        inside = 0 <= index < len(messages)
        if not inside or messages[index]["role"] != "assistant":
            yield f"supervised {index}: is no message of the assistant"
        elif not messages[index]["content"].strip():
            yield f"supervised {index}: is a blank reply"
    if row["tokens_at_most"] > max_tokens or not 0 < row["tokens"] <= row["tokens_at_most"]:
        yield f"{row['tokens_at_most']:,} tokens at most; limits.max_tokens is {max_tokens:,}"
    if len(row["id"]) > 120 or row["split"] not in SIDES:
        yield "its id is longer than 120 characters, or its split is neither train nor validation"


def settings_of(project: ProjectSettings, root: Path) -> Row:
    """What of project.yaml a set depends on, as values, so that a change can be named."""
    own = project.slicing.model_dump(exclude={"target_examples"})
    folder = root / project.slicing.tokenizer
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    seen = [folder / name for name in names if own["tokenizer"] and (folder / name).is_file()]
    told = {f"slicing.{name}": value for name, value in own.items()}
    told["files of slicing.tokenizer"] = canonical_hash([file_hash(path) for path in seen])[:16]
    told["limits.max_tokens"] = project.limits.max_tokens
    told["thresholds.near_duplicate"] = project.thresholds.near_duplicate
    return told | {"seeds.split": project.seeds.split}


def shared_people(
    talks: Iterable[Conversation], people: Iterable[Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """Transcript and evaluation persona, for each pair that shares an id, a scenario seed or a
    persona's content: then the evaluation would test on people that were trained on."""
    known = {key: str(id_of(person)) for person in people for key in persona_keys(person)}
    for talk in talks:
        found = sorted(known[key] for key in talk.keys if key in known)
        if found or f"persona:{talk.id}" in known:
            yield talk.id, found[0] if found else talk.id


def lost_share(made: int, skipped: Iterable[Mapping[str, Any]]) -> float:
    """Of the examples that could be made, those that were left out because they do not fit."""
    lost = sum(bool(row["example"]) and row["reason"] == OVER for row in skipped)
    return lost / (made + lost) if lost else 0.0


def audit_status(root: Path) -> str:
    """What data/audit/audit.json says of the set, in a few words."""
    try:
        found = json.loads((root / "data/audit/audit.json").read_bytes())
        bad = Counter(str(each["severity"]) for each in found.get("findings", ()))
        seen, passed = found.get("manifest"), found.get("passed")
    except OSError:
        return "not audited"
    except (ValueError, TypeError, KeyError, AttributeError):
        return "audited, but data/audit/audit.json cannot be read"
    said = {True: "passed", False: "failed"}.get(passed, "without a result")
    told = "".join(f", {bad[name]} {name}" for name in sorted(bad))
    now = {row["id"]: row.get("transcript_hash") for row in _manifest_rows(root)}
    old = "; of other words or transcripts than pass today" if seen not in (None, now) else ""
    return f"audited: {said}{told}{old}"


def _manifest_rows(root: Path) -> list[Row]:
    return list(json.loads((root / MANIFEST).read_bytes())["transcripts"])


def judge_status(root: Path, rubric_hash: str) -> str:
    """Who judged what the manifest holds, and by which rubric."""
    rows, old = _manifest_rows(root), 0
    names = sorted({judge for row in rows for judge in row.get("judges", ())})
    passing = {str(row["id"]) for row in rows}
    path = root / "data/assessments/combined.jsonl"
    for row in iter_records(path):
        old += str(row.get("id")) in passing and row.get("rubric_hash") != rubric_hash
    stale = f"; {old} by another rubric than today's" if old else ""
    return f"{len(passing)} passed {' and '.join(names) or 'no judge'}{stale}"


def figures_of(
    made: Sequence[Example], skipped: Sequence[Skipped], sides: Mapping[str, str],
    family: Mapping[str, str], count: Gauge
) -> dict[str, Any]:  # fmt: skip
    """What a set holds, for its card, its gate and the person who made it."""
    per, tokens = Counter(example.transcript for example in made), [int(e.tokens) for e in made]
    size = {text: int(count.text(text)) for text in {t for e in made for t in _learned(e)}}
    learned = sum(size[text] for example in made for text in _learned(example))
    found: dict[str, Any] = {"transcripts": len(sides), "groups": len(set(family.values()))}
    for side in SIDES:
        own = [item for item, where in sides.items() if where == side]
        found[side] = {"transcripts": len(own), "examples": sum(per[item] for item in own)}
    found["examples"] = len(made)
    found["examples per transcript"] = _spread([per[item] for item in sides])
    found["ways"] = dict(sorted(Counter({e.transcript: e.way for e in made}.values()).items()))
    found["left out"] = dict(sorted(Counter(s.reason for s in skipped if s.example).items()))
    found["truncated"] = sum(example.dropped > 0 for example in made)
    turns = Counter(each.reason for each in skipped if each.exchange is not None)
    found["replies without loss"] = dict(sorted(turns.items()))
    found["tokens"] = _spread(tokens)
    found["tokens computed"], found["tokens supervised"] = sum(tokens), learned
    found["computed for each supervised"] = round(sum(tokens) / learned, 2) if learned else None
    found["share lost"] = lost_share(len(made), [each.row() for each in skipped])
    return found


def _learned(example: Example) -> list[str]:
    return [example.messages[index]["content"] for index in example.supervised]


def _spread(values: Sequence[int]) -> dict[str, Any]:
    if not values:
        return {"min": None, "mean": None, "max": None}
    mean = round(sum(values) / len(values), 2)
    return {"min": min(values), "mean": mean, "max": max(values)}
