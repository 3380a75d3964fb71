# ruff: noqa: RUF001 (small words of languages in other scripts)
"""What must not be learned from, and what a set of transcripts holds. Works alone when copied.

    wrong = inspector(load_artefacts(root), "en")
    wrong("assistant", "As an AI, I can't open parcels.", told=[], earlier=[])

Chapters: 1 the artefact filter, run on every message before any judge reads it; 2 figures of a set.
Importing it opens nothing.
"""

import functools
import itertools
import json
import math
import re
import textwrap
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import infrastructure
from settings import (
    Artefact,
    Artefacts,
    Flaw,
    PersonaFile,
    ProjectSettings,
    load_persona_template,
    load_project,
    plain_text,
)

# ══ 1 The artefact filter ═════════════════════════════════════════════════════════════════════════

Inspect = Callable[[str, str, Sequence[str], Sequence[str]], list[str]]

SEARCHED = 4_000  # characters at the beginning and at the end of a message; the rest is not read
SHOWN = 60  # characters of a message in what is said about it


@dataclass(frozen=True)
class Message:
    """One message as the detectors see it, and what it is compared with."""

    side: str
    text: str  # plain quotes, no space around it
    told: Sequence[str]
    earlier: Sequence[str]
    language: str
    scripts: tuple[str, ...]

    @functools.cached_property
    def own(self) -> str:
        """The text without what it quotes (code, addresses, sentences), unless that is all."""
        if self.text.isascii() and not any(sign in self.text for sign in ("`", '"', "://")):
            return self.text  # it quotes nothing
        rest = _re(_QUOTED).sub(" ", " ".join(self.text.split("```")[::2]))
        return rest if 5 * len(rest.strip()) >= len(self.text) else self.text

    @functools.cached_property
    def tokens(self) -> list[str]:
        return _tokens(self.text)


Detector = Callable[[Message], str]
_re = functools.cache(re.compile)  # so that importing this module compiles nothing


def inspector(artefacts: Artefacts, language: str) -> Inspect:
    """A function (side, text, told, earlier) -> what is wrong with a message: `kind: what: quote`.

    The same message always gets the same list, whatever was inspected before it.
    """
    known = artefacts.detectors
    active = [(kind, DETECTORS[kind]) for kind in DETECTORS if getattr(known, kind)]
    searches = Searches(artefacts.patterns)
    scripts = tuple(artefacts.scripts) or scripts_of(language)

    def inspect(side: str, text: str, told: Sequence[str], earlier: Sequence[str]) -> list[str]:
        plain = plain_text(_searched(text))
        if not _has_words(plain, side):
            return ["blank: the message has no words"]
        message = Message(side, plain, told, earlier, language, scripts)
        found = [f"{kind}: {said}" for kind, look in active if (said := look(message))]
        return [*found, *searches.hits(plain, side)]

    return inspect


KEPT_WORDS = 50_000  # of all messages, with what stands inside of them


class _Inside(dict[str, list[tuple[str, int]]]):
    """Which parts stand inside of a word; people use the same words all the time."""

    def __init__(self, parts: Iterable[tuple[str, tuple[str, int]]]) -> None:
        self.begin = defaultdict[str, list[tuple[str, tuple[str, int]]]](list)
        for part, each in parts:
            self.begin[part[:2]].append((part, each))

    def __missing__(self, word: str) -> list[tuple[str, int]]:
        if len(self) >= KEPT_WORDS:
            self.clear()
        begins = self.begin.keys() & {*word, *map("".join, itertools.pairwise(word))}
        found = [each for two in begins for part, each in self.begin[two] if part in word]
        self[word] = found
        return found


class Searches:
    """All expressions of all patterns, and words of which one has to be there for each to match."""

    def __init__(self, artefacts: Sequence[Artefact]) -> None:
        pairs = [(each, source) for each in artefacts for source in each.sources()]
        flags = re.IGNORECASE | re.MULTILINE
        self.known = [(each, re.compile(source, flags).search) for each, source in pairs]
        needed = [(word, n) for n, (_, source) in enumerate(pairs) for word in _anchors(source)]
        self.always = {n for word, n in needed if not word.strip()}
        # Of each, its longest part without a space: it stands inside of one word of the message.
        self.inside = _Inside((max(w.split(), key=len), (w, n)) for w, n in needed if w.strip())

    def hits(self, text: str, side: str) -> Iterator[str]:
        """What each pattern finds first; a pattern of several expressions is named once."""
        named = ""
        for number in self._likely(text):
            artefact, search = self.known[number]
            hit = search(text) if side in artefact.sides and artefact.id != named else None
            if hit:
                named = artefact.id
                yield f"{artefact.kind}: {named}: {_quoted(hit[0])}"

    def _likely(self, text: str) -> Sequence[int]:
        """The numbers of the expressions that could match."""
        if not text.isascii() and _UNEVEN.intersection(text):
            return range(len(self.known))
        low, inside = text.lower(), self.inside
        words = {each for word in set(low.split()) for each in inside[word]}
        return sorted(self.always.union(number for needed, number in words if needed in low))


# Letters that a caseless pattern takes for others although they differ in lower case.
_UNEVEN = frozenset("\u017f\u212a\u0130\u0131")


def _anchors(source: str) -> set[str]:
    """Words of which a match holds at least one, so that most messages need no search at all. An
    empty word is in every message: then nothing is known, and the search always runs."""
    parse = getattr(getattr(re, "_parser", None), "parse", None)  # Python's own, from 3.11 on
    return (_must_hold(parse(source, re.IGNORECASE)) if parse else set()) or {""}


def _must_hold(parsed: Any) -> set[str]:
    """The best set of words that a parsed expression can't do without; empty when there is none."""
    options, run = list[set[str]](), ""
    for kind, value in [*parsed, (None, None)]:
        if str(kind) == "LITERAL":
            run += chr(value)
            continue
        options += [{run.lower()}] if run else []
        run = ""
        inner: list[set[str]] = []
        if str(kind) == "SUBPATTERN":
            inner = [_must_hold(value[-1])]
        elif str(kind) == "BRANCH":
            inner = [_must_hold(branch) for branch in value[1]]
        elif str(kind) in ("MAX_REPEAT", "MIN_REPEAT") and value[0] > 0:
            inner = [_must_hold(value[-1])]
        options += [set().union(*inner)] if inner and all(inner) else []
    best = max(options, key=_rarity, default=set())
    return best if best and _rarity(best) >= 2 else set()


def _rarity(words: set[str]) -> int:
    """How much the commonest of some words says; a letter beyond ASCII says more than others."""
    return min(len(word) + 3 * (not word.isascii()) for word in words)


def _searched(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 2 * SEARCHED else f"{text[:SEARCHED]}\n{text[-SEARCHED:]}"


def _has_words(text: str, side: str) -> bool:
    """Is anything said? A person may send a bare sign such as a thumb or a question mark."""
    if any(map(str.isalnum, text)):
        return True
    return side == "user" and any(
        char in "?!" or unicodedata.category(char) == "So" for char in text
    )


def _quoted(text: str) -> str:
    return " ".join(text.split())[:SHOWN]


_QUOTED = (
    r"`[^`\n]*`|https?://\S+|\"[^\"\n]*\"|\u201e[^\u201e\"\n]*\"|\u00ab[^\u00ab\u00bb\n]*\u00bb"
    r"|\u300c[^\u300c\u300d\n]*\u300d|\u300e[^\u300e\u300f\n]*\u300f"
)
# Scripts that are written without spaces: each letter counts as a word of its own.
_DENSE = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
)
_TOKEN = rf"[{_DENSE}]|[^\W_{_DENSE}]+"
_DENSE_LETTER = rf"[{_DENSE}]"
# What splits words of plain ASCII: several times as quick as an expression that finds them.
_SPLITS = "".join(sign if sign.isalnum() else " " for sign in map(chr, range(128)))
_SPLITS_LETTERS = "".join(sign if sign.isalpha() else " " for sign in _SPLITS)


def _tokens(text: str) -> list[str]:
    """Words in lower case, or letters where a script has no spaces; signs do not count."""
    low = text.lower()
    return low.translate(_SPLITS).split() if low.isascii() else _re(_TOKEN).findall(low)


def _size(tokens: Sequence[str]) -> float:
    """About how many words that is: two dense letters make one."""
    text = "".join(tokens)
    return len(tokens) - (0 if text.isascii() else 0.5 * len(_re(_DENSE_LETTER).findall(text)))


# ── scripts ───────────────────────────────────────────────────────────────────────────────────────

RANGES = {
    "Arabic": r"\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff",
    "Armenian": r"\u0530-\u058f",
    "Bengali": r"\u0980-\u09ff",
    "Cyrillic": r"\u0400-\u052f\u1c80-\u1c8f\u2de0-\u2dff\ua640-\ua69f",
    "Devanagari": r"\u0900-\u097f\ua8e0-\ua8ff",
    "Ethiopic": r"\u1200-\u139f\u2d80-\u2ddf",
    "Georgian": r"\u10a0-\u10ff\u1c90-\u1cbf",
    "Greek": r"\u0370-\u03ff\u1f00-\u1fff",
    "Gujarati": r"\u0a80-\u0aff",
    "Gurmukhi": r"\u0a00-\u0a7f",
    "Han": r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Hangul": r"\u1100-\u11ff\u3130-\u318f\ua960-\ua97f\uac00-\ud7ff",
    "Hebrew": r"\u0590-\u05ff\ufb1d-\ufb4f",
    "Hiragana": r"\u3041-\u309f\u30fc",
    "Kannada": r"\u0c80-\u0cff",
    "Katakana": r"\u30a0-\u30ff\u31f0-\u31ff\uff66-\uff9f",
    "Khmer": r"\u1780-\u17ff",
    "Lao": r"\u0e80-\u0eff",
    "Latin": r"A-Za-z\u00aa\u00ba\u00c0-\u024f\u0250-\u02b8\u1d00-\u1d7f\u1e00-\u1eff\uff21-\uff5a",
    "Malayalam": r"\u0d00-\u0d7f",
    "Myanmar": r"\u1000-\u109f",
    "Sinhala": r"\u0d80-\u0dff",
    "Tamil": r"\u0b80-\u0bff",
    "Telugu": r"\u0c00-\u0c7f",
    "Thai": r"\u0e00-\u0e7f",
}
_WRITTEN_IN = {
    "Arabic": "ar fa ps ur",
    "Armenian": "hy",
    "Bengali": "bn",
    "Cyrillic": "be bg kk ky mk mn ru tg uk",
    "Devanagari": "hi mr ne",
    "Ethiopic": "am ti",
    "Georgian": "ka",
    "Greek": "el",
    "Gujarati": "gu",
    "Han": "ja ko zh yue",
    "Hangul": "ko",
    "Hebrew": "he yi",
    "Hiragana": "ja",
    "Kannada": "kn",
    "Katakana": "ja",
    "Khmer": "km",
    "Lao": "lo",
    "Latin": "af ca cs cy da de en es et eu fi fil fr ga gl hr hu id is it lt lv ms mt nb nl nn no "
    "pl pt ro sk sl sq sv sw tl tr vi",
    "Malayalam": "ml",
    "Myanmar": "my",
    "Sinhala": "si",
    "Tamil": "ta",
    "Telugu": "te",
    "Thai": "th",
}
_LETTER = r"[^\W\d_]"
_SMALL_WORD = r"(?<![^\W_])[a-z\u00df-\u00ff]{2,}(?![^\W_])"
_DENSE_WEIGHT = 3  # letters of a spaced script that say as much as one dense letter
_FOREIGN_SHARE = 0.3  # start value; of the letters, outside of quotations


def scripts_of(language: str) -> tuple[str, ...]:
    """What a language is written in; nothing when that is not known, or the code names a script."""
    base, *rest = language.lower().split("-")
    named = any(len(part) == 4 and part.isalpha() for part in rest)
    return () if named else tuple(s for s, codes in _WRITTEN_IN.items() if base in codes.split())


@functools.lru_cache(32)
def _in_scripts(scripts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(f"[{''.join(RANGES[script] for script in scripts)}]")


def find_script(message: Message) -> str:
    """A large part of a message in letters that the project's language is not written in."""
    if not message.scripts or (message.own.isascii() and "Latin" in message.scripts):
        return ""
    own = _in_scripts(message.scripts)
    letters = _re(_LETTER).findall(message.own)
    foreign = [letter for letter in letters if not own.match(letter)]
    share = _weight(foreign) / max(_weight(letters), 1)
    if _no_kana(message) or _is_foreign(message, foreign, share):
        example = "".join(foreign[:SHOWN]) or message.text
        return f"{len(foreign)} of {len(letters)} letters: {_quoted(example)}"
    return ""


def _weight(letters: Sequence[str]) -> int:
    dense = _re(_DENSE_LETTER).findall("".join(letters))
    return len(letters) + (_DENSE_WEIGHT - 1) * len(dense)


def _is_foreign(message: Message, foreign: Sequence[str], share: float) -> bool:
    """Latin is a guest everywhere (names, products, error texts), so there it takes nearly all."""
    latin = _in_scripts(("Latin",))
    if foreign and all(map(latin.match, foreign)):
        return share > 0.85 and len(_re(_SMALL_WORD).findall(message.own)) >= 4
    return share >= _FOREIGN_SHARE and _weight(foreign) >= 2 * _DENSE_WEIGHT


def _no_kana(message: Message) -> bool:
    """Chinese in a Japanese project: enough signs for a sentence, none of the syllabaries."""
    if "Hiragana" not in message.scripts:
        return False
    kana = _in_scripts(("Hiragana", "Katakana")).search(message.own)
    return not kana and len(_in_scripts(("Han",)).findall(message.own)) >= 8


# ── languages of one script ───────────────────────────────────────────────────────────────────────

# The most frequent small words. A language that is not here is not checked, and not recognised.
_SMALL_WORDS = {
    "ar": "في من على إلى أن هذا هذه التي الذي ما لا لم هل ثم قد كان مع عن بعد أو لكن هو هي",
    "bg": "и в не на се да че за с от е по като съм си това ще но или ако вече още той",
    "cs": "a v ve na je se že to s z do o ale jako jsem jsme jste byl by pro tak když už jen nebo",
    "da": "og i at er en et det den på til som med for ikke af jeg du har kan men om vi de var "
    "blev",
    "de": "der die das und ist nicht ich sie es ein eine zu den dem mit auf für von im wir du ihr "
    "auch aber wenn dann noch wie oder bei nach was hat war wird kann haben sind mir bitte dass",
    "en": "the and is to of a in it you that was for on are with as i at be this have from or had "
    "not but what were we when your can there an which do how if will my it's don't then so they "
    "has me am please should would",
    "es": "el la los las de que y en un una es no se por con para del al lo su pero ya está más "
    "muy como usted le me si cuando hay también porque sin esta este son hasta",
    "fa": "و در به از که این است را با برای آن یک هم من شما اگر بود شده می",
    "fi": "ja on ei se että oli olen niin mutta kun myös hän joka tai ovat vain jos sitä minä nyt",
    "fr": "le la les de des et est un une que qui dans pour pas ne ce il elle vous je nous sur au "
    "avec plus se par mais ou si du en sont été votre cette c'est j'ai puis alors",
    "it": "il lo la gli di che e è un una non per con del della sono si da come ma anche più nel "
    "questo questa se mi le ho ha dei alla al al poi quando cosa",
    "nl": "de het een en van is dat niet in op te zijn met voor ik je u er maar om aan ook als dan "
    "nog wordt was wat bij naar hij hebben kan deze dit moet",
    "pl": "i w na nie się z do że jest to jak po ale od za przez czy dla o co tak już tylko jego "
    "być są oraz gdy może proszę potem która który",
    "pt": "o os as de que e em um uma é não se por com para do da dos das no na ao mais mas já "
    "você está como foi sua seu até também ele ela isso são muito quando eu",
    "ro": "și în de la cu pe nu este că o un să se din pentru mai sunt care ce sau dar dacă am ai",
    "ru": "и в не что на я с как это но по вы у для если или был же уже только ещё её он она мы "
    "так за от из то все ему будет когда вам пожалуйста",
    "sv": "och i att det är en ett på som för med inte av jag du har den till om men kan vi de var "
    "så när från eller också",
    "tr": "ve bir bu da de için ile çok ne ama gibi daha var mı mi değil ben sen o olarak kadar",
    "uk": "і в не що на я з як це але ви у для якщо або вже ще від та зі він вона ми так буде його "
    "коли вам щоб було також",
}
_LIKE = {"nb": "da", "nn": "da", "no": "da"}  # too near to tell apart
_PLAIN_WORD = r"[^\W\d_]+(?:'[^\W\d_]+)?"
_LEAST_WORDS = 9  # start values: below that a message says too little about its language
_LEAST_HITS = 4


@functools.lru_cache(64)
def _small_words(language: str) -> frozenset[str]:
    return frozenset(_SMALL_WORDS.get(language, "").split())


def find_language(message: Message) -> str:
    """Another language of the project's script, when small words leave no doubt."""
    base = message.language.lower().split("-")[0]
    mine, low = _small_words(_LIKE.get(base, base)), message.own.lower()
    if not mine or (low.isascii() and not _has_alien_parts(low, mine)):
        return ""
    words = _re(_PLAIN_WORD).findall(low)
    enough, known = max(_LEAST_HITS, 0.2 * len(words)), _languages().keys()
    if len(words) < _LEAST_WORDS or sum(w in known and w not in mine for w in words) < enough:
        return ""
    count, alien, shared = Counter(words), Counter[str](), Counter[str]()
    several = Counter[str]()  # how many different words speak for a language
    for word in count.keys() & _languages().keys():
        for language in _languages()[word]:
            (shared if word in mine else alien)[language] += count[word]
            several[language] += word not in mine
    native = sum(count[word] for word in count.keys() & mine)
    for language, hits in sorted(alien.items()):
        own = native - shared[language]
        if hits >= enough and hits >= 3 * own and several[language] >= 3:
            return f"looks like {language}: {_quoted(message.own)}"
    return ""


def _has_alien_parts(low: str, mine: frozenset[str]) -> bool:
    """A quick look before the exact one: enough words that could be, or end, those of others."""
    parts = low.translate(_SPLITS_LETTERS).split()
    return sum(map(_alien_parts(mine).__contains__, parts)) >= _LEAST_HITS


@functools.lru_cache(64)
def _alien_parts(mine: frozenset[str]) -> frozenset[str]:
    return frozenset(word.rpartition("'")[2] for word in _languages() if word not in mine)


@functools.cache
def _languages() -> dict[str, list[str]]:
    """The languages that have a small word."""
    found: dict[str, list[str]] = {}
    for language in _SMALL_WORDS:
        for word in _small_words(language):
            found.setdefault(word, []).append(language)
    return found


# ── echoes and repeats ────────────────────────────────────────────────────────────────────────────

# Words in a row. More for an assistant, whose prompt also holds facts that it shall state.
_ECHO = {"user": 7, "assistant": 12}
_SAME_WORDS = 5  # shorter messages may come twice
_NEARLY = 0.8  # share of common runs of three words; start value


def _runs(text: str, length: int) -> frozenset[int]:
    """A number for every run of so many words; twice as many where letters count as words."""
    return frozenset(map(hash, _in_a_row(_tokens(plain_text(text)), length)))


def _in_a_row(tokens: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    length = 2 * length if 4 * _size(tokens) < 3 * len(tokens) else length
    return zip(*(tokens[start:] for start in range(length)), strict=False)


def find_instruction_echo(message: Message) -> str:
    """Words in a row that stand in what this side was told."""
    length = _ECHO.get(message.side, 12)
    step = max(1, length - 3)  # a run of so many words holds three that begin at such a place
    threes = set(_in_threes(message.tokens, step))
    if all(_threes(text).isdisjoint(threes) for text in message.told):
        return ""
    runs = [_runs(text, length) for text in message.told]
    mine = _in_a_row(message.tokens, length)
    run = next((run for run in mine if any(hash(run) in known for known in runs)), ())
    return f"{len(run)} words of what it was told: {_quoted(' '.join(run))}" if run else ""


def _in_threes(tokens: Sequence[str], step: int = 1) -> Iterator[int]:
    """A number for three words in a row, at every so manieth place."""
    return map(hash, zip(tokens[::step], tokens[1::step], tokens[2::step], strict=False))


@functools.lru_cache(1024)  # a prompt is the same for a whole conversation
def _threes(text: str) -> frozenset[int]:
    return frozenset(_in_threes(_tokens(plain_text(text))))


def find_repeat(message: Message) -> str:
    """An earlier message of the same side again, or one sentence in a loop."""
    if _size(message.tokens) < _SAME_WORDS:
        return ""
    if _says_again(message):
        return f"an earlier message: {_quoted(message.text)}"
    parts = list(map(str.strip, _re(_SENTENCE_END).split(message.own.lower())))
    if len(set(parts)) == len(parts):
        return ""
    sentences = Counter(parts)
    loop, times = max(sentences.items(), key=lambda each: each[1] * (len(each[0]) >= 12))
    many = times >= 3 and 2 * times * len(loop) > len(message.own)
    return f"{times} times in one message: {_quoted(loop)}" if many else ""


def _says_again(message: Message) -> bool:
    least, most = 0.6 * len(message.text), 1.7 * len(message.text)
    old = [each for each in message.earlier if least <= len(each) <= most]
    pieces = _pieces(_flat(message.text))
    if not _overlap(pieces, "\0".join(map(_flat, old))):  # with all of them at once
        return False
    near = (each for each in old if _overlap(pieces, _flat(each)))
    return any(_alike(message.text, message.tokens, each) for each in near)


def _alike(text: str, tokens: Sequence[str], old: str) -> bool:
    plain = plain_text(_searched(old))
    if _tokens(plain) == tokens:
        return True
    mine, theirs = _runs(text, 3), _runs(plain, 3)
    common = len(mine & theirs)
    return len(mine) >= 6 and common >= _NEARLY * (len(mine) + len(theirs) - common)


@functools.lru_cache(8192)
def _flat(text: str) -> str:
    return " ".join(plain_text(_searched(text)).lower().split())


def _pieces(mine: str) -> list[str]:
    """Six short pieces of a text, or seven."""
    size = 10 if mine.isascii() else 5
    places = range(0, max(1, len(mine) - size + 1), max(1, len(mine) // 6))
    return [mine[place : place + size] for place in places]


def _overlap(pieces: Sequence[str], theirs: str) -> bool:
    """A quick look before the exact one: two pieces of a text, or its only one, stand in others. Of
    texts that share four runs of words in five, four or five do."""
    return sum(map(theirs.__contains__, pieces)) >= min(2, len(pieces))


# ── cut ends and roles ────────────────────────────────────────────────────────────────────────────

_SENTENCE_END = r"[.!?\u2026\u3002\uff01\uff1f\u061f\u06d4\u0964]+|\n+"
_STOP = r"[^\W\d_]{2}[\"')\u300d]?[.!?\u2026\u061f\u06d4\u0964](?=\s)|[\u3002\uff01\uff1f]"
_LIST_ITEM = r"[ \t]{0,12}(?:[-*\u2022#>|]|\d{1,3}[.)])"
_GOES_ON = frozenset(",;:-\u2013\u2014/(\u3001\uff0c\uff1b\uff1a\u060c\uff08[{\u201e\u00ab\u300c")
_ENDS = frozenset(".!?\u2026\u061f\u06d4\u0964\u3002\uff01\uff1f")
_UNSPACED_STOPS = frozenset(("th", "lo", "km", "my"))  # they end a sentence with a space
# Words after which something has to follow, whoever writes.
_DANGLING = {
    "de": "der die den dem des eine einen einem einer und oder weil dass zum zur im vom beim",
    "en": "the a an and or but because than your my our their its if which every",
    "es": "el la los las un una y o pero porque del al su sus mi que",
    "fr": "le la les un une des et ou mais parce du au aux de votre mon ma que ce cette",
    "it": "il lo la gli un una e o ma perché del della nel al di che",
    "nl": "de het een en of maar omdat",
    "pl": "i lub ale że w z do na oraz bo",
    "pt": "o a os as um uma e ou mas porque do da no na de que seu sua",
    "ru": "и или но что в на с к для чтобы",
    "sv": "och eller men att ett den",
}
# And words that seldom end a sentence of somebody who uses full stops.
_LEANING = {
    "de": "ist sind war waren wird werden sollte könnte für von durch gegen ohne",
    "en": "to of with for from into at by is are was were may might could should would will can "
    "has have",
    "es": "de en con para por es son está puede",
    "fr": "dans pour avec sur est sont peut",
    "it": "con per da è sono può",
    "nl": "van met voor door is zijn",
    "pt": "em com para por é são pode",
}


def find_cut_end(message: Message) -> str:
    """A reply that stops in the middle. A person may leave out the last stop, but not break off
    after two whole sentences on a word such as "the"."""
    base, last = message.language.lower().split("-")[0], _last_line(message.text)
    if last[-1:] in _ENDS and "(" not in last:
        return ""
    stops, reply = len(_re(_STOP).findall(message.text)), message.side == "assistant"
    if not any(map(str.isalnum, last)) or (not reply and stops < 2):
        return ""
    leans = reply and stops and _ends_on(_LEANING.get(base, ""), last)
    if leans or _ends_on(_DANGLING.get(base, ""), last):
        return f"nothing ends like this: {_quoted(last[-SHOWN:])}"
    if reply and base not in _UNSPACED_STOPS and _open_ended(message, last, stops):
        return f"the last sentence has no end: {_quoted(last[-SHOWN:])}"
    return ""


def _last_line(text: str) -> str:
    return (text.rstrip("*_ \n").splitlines() or [""])[-1]


def _ends_on(words: str, last: str) -> bool:
    """Is the very end one of these words? Not of a compound: French "prenez-le" is whole."""
    found = _re(_PLAIN_WORD).findall(last[-SHOWN:].lower())
    if not found or not last.lower().endswith(found[-1]):
        return False
    return found[-1] in words.split() and last[: -len(found[-1])][-1:] != "-"


def _open_ended(message: Message, last: str, stops: int) -> bool:
    bracket = last.rpartition("(")
    opened = bracket[1] and ")" not in bracket[2] and bracket[2][:1].isalnum()
    return bool(opened) or last[-1] in _GOES_ON or (stops >= 2 and _stops_short(message, last))


def _stops_short(message: Message, last: str) -> bool:
    """Whole sentences so far, and then one without an end: no list, no signature, no address."""
    rest = _re(_STOP).split(last)[-1]
    words = _size(_tokens(rest))
    listed = _re(_LIST_ITEM).match(last) or "://" in rest
    return last[-1].isalnum() and words >= 3 and not listed and _size(message.tokens) >= 15


_ROLE = (
    r"(?im)^[*_#> \t]{0,4}(?:"
    r"(assistant|agent|bot|ai|support|coach|advisor|assistent|berater|asistente"
    r"|agente|assistente|conseiller|asystent|\u52a9\u624b|\u5ba2\u670d|\u52a9\u7406|\u30a2\u30b7\u30b9\u30bf\u30f3\u30c8"
    r"|\u0430\u0441\u0441\u0438\u0441\u0442\u0435\u043d\u0442|\u0430\u0433\u0435\u043d\u0442)"
    r"|(?:user|human|customer|client|me|person|benutzer|nutzer|kunde|kundin|usuario|usu\u00e1rio|cliente"
    r"|utilisateur|utente|klient|\u7528\u6237|\u5ba2\u6237|\u30e6\u30fc\u30b6\u30fc|\u304a\u5ba2\u69d8"
    r"|\u043a\u043b\u0438\u0435\u043d\u0442|\u043f\u043e\u043b\u044c\u0437\u043e\u0432\u0430\u0442\u0435\u043b\u044c))"
    r"[*_ \t]{0,4}[:\uff1a]"
)


def find_role_prefix(message: Message) -> str:
    """Lines of both sides in one message."""
    if ":" not in message.text and "\uff1a" not in message.text:
        return ""
    found = list(_re(_ROLE).finditer(message.text))
    both = {bool(each[1]) for each in found} == {True, False}
    return f"both sides written: {_quoted(message.text[found[0].start() :])}" if both else ""


DETECTORS: dict[str, Detector] = {
    "script": find_script,
    "language": find_language,
    "instruction_echo": find_instruction_echo,
    "repeat": find_repeat,
    "cut_end": find_cut_end,
    "role_prefix": find_role_prefix,
}


# ══ 2 Figures of a set ════════════════════════════════════════════════════════════════════════════

Interval = Callable[[int, int, float], tuple[float, float]]  # evidence.clopper_pearson
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
    """The frozen batches by id, and the files among them that cannot be read."""
    found, damaged = {}, []
    for path in sorted((root / "data/batches").glob("*.json")):
        try:
            batch = dict(json.loads(path.read_bytes()))
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


def _short(value: float) -> float:
    return round(value, 4)


# ── the page ──────────────────────────────────────────────────────────────────────────────────────

WIDTH = 80


def stats_page(stats: Mapping[str, Any]) -> str:
    """The figures for a person, in 80 columns."""
    every = stats["all"]
    parts = [["# Generation statistics"], *_marks(every), _lines_of(ABOUT)]
    parts += [["## Batches"], _batches(stats), *_reasons(every)]
    parts += _verdict_table(stats)
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
