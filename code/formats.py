"""Conversations that others made, in our shape. Works alone when copied.

    for item in read(Path("chats.jsonl"), "chats.jsonl"):
        talk = talk_of(item.value, item.format)  # Refused says what does not fit

Reads our own format, ShareGPT, OpenAI messages and tables; by stated rules, each of them counted.
Importing it opens nothing.
"""

import codecs
import csv
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from infrastructure import MAX_LINE, canonical_hash

TABLES, LINES, WHOLE = (".csv", ".tsv"), (".jsonl", ".ndjson"), (".json",)
HOLDERS = ("exchanges", "messages", "conversations", "conversation")
MARKS = {"user": "ours", "assistant": "ours", "from": "sharegpt", "role": "openai"}
KEYS = {"openai": ("role", "content"), "sharegpt": ("from", "value")}
ROLES = {"user": ("user", "human", "prompter"), "system": ("system", "developer")}
ROLES |= {"assistant": ("assistant", "gpt", "chatgpt", "bot", "model", "ai")}
SIDES = {word: side for side, words in ROLES.items() for word in words}
TOOLS = {"tool", "function", "function_call", "function_response", "observation", "ipython"}
TOOLS |= {"tool_call", "tool_response", "tool_calls"}
COLUMNS = {
    "id": ("conversation_id", "transcript_id", "conversation", "dialogue_id", "id"),
    "role": ("role", "from", "speaker", "sender"),
    "content": ("content", "value", "text", "message"),
    "user": ("user", "prompt", "question", "human"),
    "assistant": ("assistant", "response", "answer", "reply"),
}
HALF = re.compile("[\ud800-\udfff]")  # half a character: not text, and no file can hold it
CONVERT = "Convert it to UTF-8, such as: iconv -f latin1 -t utf-8 OLD > NEW"


class Refused(Exception):
    """Why a file or a conversation is not taken, in words."""


class Item(NamedTuple):
    """One thing found in a file: a conversation, or why there is none."""

    path: Path
    file: str  # as shown and recorded: from the folder that was named
    place: str  # in words
    number: str  # the same for an id
    format: str
    value: Any

    def __str__(self) -> str:
        return f"{self.file}: {self.place}" if self.place else self.file


@dataclass
class Talk:
    """A conversation in our shape, before it has an id."""

    format: str
    exchanges: list[dict[str, Any]] = field(default_factory=list)
    system: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


# ══ 1 One conversation ════════════════════════════════════════════════════════════════════════════


def talk_of(value: Any, wanted: str = "auto") -> Talk:
    """A record of any format in our shape, by the rules above; Refused says what does not fit."""
    record = value if isinstance(value, dict) else {}
    holder = next((key for key in HOLDERS if isinstance(record.get(key), list)), None)
    turns = record[holder] if holder else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Refused(f"no conversation in it: none of {', '.join(HOLDERS)} is a list of messages")
    found = next((MARKS[key] for turn in turns[:1] for key in MARKS if key in turn), None)
    if found is None:
        raise Refused("no exchange in it" if not turns else "messages without role or from")
    if wanted not in ("auto", "csv", found):
        raise Refused(f"is {found}, not {wanted}. Leave --format away")
    talk = Talk("csv" if wanted == "csv" else found)
    if found == "ours":
        talk.exchanges = [_exchange(n, turn) for n, turn in enumerate(turns, 1)]
        return talk
    _keep_system(talk, record.get("system"))
    _fold(talk, list(_turns(talk, turns, *KEYS[found])))
    extra = len(set(record) - {holder, "id", "transcript_id", "system"})
    talk.notes += Counter({"fields of records left out": extra})
    return talk


def content_hash(exchanges: Iterable[Mapping[str, Any]]) -> str:
    """What makes two conversations the same: their words."""
    return canonical_hash([[each["user"], each["assistant"]] for each in exchanges])


def _exchange(number: int, turn: Mapping[str, Any]) -> dict[str, Any]:
    """An exchange of our own format, unchanged."""
    for side in ("user", "assistant"):
        _checked(turn.get(side), f"exchange {number}, {side}")
    meta = turn.get("meta")
    return {**turn, "meta": meta if isinstance(meta, dict) else {}}


def _turns(
    talk: Talk, turns: Iterable[Mapping[str, Any]], role: str, text: str
) -> Iterator[tuple[str, str]]:
    """Side and text of each message that is said; system messages are put aside."""
    for number, turn in enumerate(turns, 1):
        word = str(turn.get(role)).strip().casefold()
        if word in TOOLS or any(turn.get(key) for key in ("tool_calls", "function_call")):
            raise Refused(f"message {number}: a tool or function call; only conversations are read")
        if word not in SIDES:
            raise Refused(f"message {number}: {shown(str(turn.get(role)))[:40]!r} is no known role")
        said = _joined(talk, turn.get(text), number)
        if SIDES[word] == "system":
            _keep_system(talk, said)
        else:
            yield SIDES[word], _checked(said, f"message {number}")
        extra = len(set(turn) - {role, text, "id", "weight"})
        talk.notes += Counter({"fields of messages left out": extra})


def _joined(talk: Talk, content: Any, number: int) -> Any:
    """A list of text parts as one text; anything else as it is."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") if isinstance(part, dict) else part for part in content]
    kinds = [part.get("type", "text") for part in content if isinstance(part, dict)]
    other = [kind for kind in kinds if kind not in ("text", "input_text", "output_text")]
    if other or not all(isinstance(part, str) for part in parts):
        what = shown(str(other[0]))[:40] if other else "no text"
        raise Refused(f"message {number}: a part that is not text ({what})")
    talk.notes += Counter({"parts of messages joined": len(parts) - 1})
    return "\n\n".join(map(str, parts))


def _checked(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise Refused(f"{where}: {'empty' if not text or isinstance(text, str) else 'no text'}")
    return text


def _keep_system(talk: Talk, text: Any) -> None:
    if text:
        talk.system.append(_checked(text, "system message"))
        talk.notes["system messages kept in provenance"] += 1


def _fold(talk: Talk, turns: Iterable[tuple[str, str]]) -> None:
    """Turns to exchanges: the rules for openings, turns in a row and an end without a reply."""
    runs = [list(run) for _, run in itertools.groupby(turns, key=lambda turn: turn[0])]
    last = len(runs.pop()) if runs and runs[-1][0][0] == "user" else 0
    joined = sum(len(run) - 1 for run in runs)
    said = [(run[0][0], "\n\n".join(text for _, text in run)) for run in runs]
    opening = said.pop(0)[1] if said and said[0][0] == "assistant" else ""
    pairs = zip(said[::2], said[1::2], strict=False)
    talk.exchanges = [{"user": u, "assistant": a, "meta": {}} for (_, u), (_, a) in pairs]
    if not talk.exchanges:
        raise Refused("no exchange in it: a user message and a reply to it are needed")
    if opening:
        talk.exchanges[0]["meta"]["opening"] = opening
    notes = {"turns joined with the one before": joined, "last user turns dropped": last}
    talk.notes += Counter(notes | {"assistant openings kept in meta": bool(opening)})


# ══ 2 Files ═══════════════════════════════════════════════════════════════════════════════════════


def read(path: Path, file: str, wanted: str = "auto") -> Iterator[Item]:
    """What a file holds, one by one; a part that cannot be read is an item, too."""
    table = wanted == "csv" or (wanted == "auto" and path.suffix.lower() in TABLES)
    lines = not table and path.suffix.lower() in LINES
    found = _table(path) if table else _lines(path) if lines else _whole(path)
    kind, empty = "csv" if table else wanted, True
    try:
        for place, number, value in found:
            empty = False
            yield Item(path, file, place, number, kind, value)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise Refused(f"is not UTF-16 to its end. {CONVERT}") from None
    if empty:
        raise Refused("holds nothing")


def _opened(path: Path, newline: str | None = None) -> Any:
    """A text file by its mark; a byte that is not UTF-8 becomes half a character."""
    with open(path, "rb") as handle:
        head = handle.read(4)
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise Refused(f"is UTF-32. {CONVERT}")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return open(path, encoding="utf-16", newline=newline)
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline=newline)


def _lines(path: Path) -> Iterator[tuple[str, str, Any]]:
    """One JSON value a line; a broken line costs only itself."""
    most = MAX_LINE
    with _opened(path) as handle:
        for number in itertools.count(1):
            line = handle.readline(most)
            cut = len(line) == most and not line.endswith("\n")
            while cut and (rest := handle.readline(most)) and not rest.endswith("\n"):
                pass
            if not line:
                return
            if line.strip():
                value = Refused(f"longer than {most:,} characters") if cut else _parsed(line)
                yield from _flat(value, f"line {number}", f"{number:04}")


def _whole(path: Path) -> Iterator[tuple[str, str, Any]]:
    """A file that is one JSON value; where another one follows, it is read line by line."""
    with _opened(path) as handle:
        value = _parsed(handle.read())
    if isinstance(value, Refused) and "Extra data" in str(value):
        yield from _lines(path)
    else:
        yield from _flat(value, "", "0001")


def _parsed(text: str) -> Any:
    if HALF.search(text) or "\0" in text:
        return Refused(f"is not UTF-8. {CONVERT}")
    try:
        return json.loads(text)
    except RecursionError:
        return Refused("nested too deep")
    except json.JSONDecodeError as error:
        line = f"line {error.lineno} " if error.lineno > 1 else ""
        return Refused(f"is not JSON: {error.msg} at {line}column {error.colno}")
    except ValueError:
        return Refused("is not JSON: a number that is too long")


def _flat(value: Any, place: str, number: str) -> Iterator[tuple[str, str, Any]]:
    """The conversations of a value: of a list each one, unless the list is itself one."""
    first = value[0] if isinstance(value, list) and value else None
    turn = isinstance(first, dict) and not set(HOLDERS) & set(first) and set(MARKS) & set(first)
    if not isinstance(value, list) or turn:
        yield place, number, value
        return
    for at, each in enumerate(value, 1):
        inner = f"{number}.{at}" if place else f"{at:04}"
        yield f"{place} item {at}".strip(), inner, each


def _table(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Rows as conversations: a bad row costs its conversation, a bad quote the whole table."""
    csv.field_size_limit(MAX_LINE)
    talks: dict[str, dict[str, Any]] = {}
    with _opened(path, newline="") as handle:
        head = handle.readline(MAX_LINE)
        mark = max(",;\t|", key=head.count)
        rows = csv.reader(itertools.chain([head], handle), delimiter=mark, strict=True)
        try:
            names = next(rows, [])
            at = _columns(names)
            for row in filter(any, rows):
                _add_row(talks, row, at, len(names), rows.line_num)
        except csv.Error as error:
            raise Refused(f"line {rows.line_num}: is not CSV: {error}") from None
    for number, talk in ((talk.pop("line"), talk) for talk in talks.values()):
        half = HALF.search("".join(map(_words, talk["messages"])))
        wrong = f"is not UTF-8. {CONVERT}" if half else talk.get("wrong")
        yield f"line {number}", f"{number:04}", Refused(wrong) if wrong else talk


def _words(message: Mapping[str, str]) -> str:
    return message["role"] + message["content"]


def _columns(names: Sequence[str]) -> dict[str, int]:
    """Where each thing stands that a conversation is made of."""
    words = [name.strip().casefold() for name in names]
    at = {what: words.index(next(w for w in known if w in words))
          for what, known in COLUMNS.items() if set(known) & set(words)}  # fmt: skip
    if not ({"user", "assistant"} <= set(at) or {"id", "role", "content"} <= set(at)):
        said = "columns are missing: user and assistant, or conversation_id, role and content"
        raise Refused(f"{said}. The first line has: {shown(', '.join(names))[:80]}")
    return at


def _add_row(
    talks: dict[str, dict[str, Any]], row: Sequence[str], at: Mapping[str, int], of: int, line: int
) -> None:
    own = row[at["id"]].strip() if at.get("id", len(row)) < len(row) else ""
    talk = talks.setdefault(own or f" line {line}", {"line": line, "messages": []})
    pairs = {"user", "assistant"} <= set(at)
    if len(row) != of:
        talk.setdefault("wrong", f"line {line} has {len(row)} cells, the first line has {of}")
    elif pairs:
        sides = ("user", "assistant")
        talk["messages"] += [{"role": side, "content": row[at[side]]} for side in sides]
    elif own:
        talk["messages"].append({key: row[at[key]] for key in ("role", "content")})
    else:
        talk.setdefault("wrong", "no conversation_id")
    if own:
        talk["id"] = own


def shown(text: str) -> str:
    """A name from outside as one line that any terminal can print."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
