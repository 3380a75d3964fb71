# ruff: noqa: RUF001 (small words of languages in other scripts)
"""What must not be learned from. Works alone when copied.

    wrong = inspector(load_artefacts(root), "en")
    wrong("assistant", "As an AI, I can't open parcels.", told=[], earlier=[])
    phrases(replies, evidence.wilson)                   # what too many replies say
    near_duplicates({id: text}, threshold=0.8)          # [(id, id, similarity)]
    personal_data(text), redact(text)

Chapter 1 is the artefact filter, run on every message before any judge reads it. Chapters 2 to 5
look at a whole set: phrases, near-duplicates, personal data and secrets, and the audit of it all.
Importing it opens nothing.
"""

import functools
import hashlib
import ipaddress
import itertools
import math
import re
import unicodedata
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median
from typing import Any, NamedTuple

from infrastructure import canonical_hash, count_words
from settings import Artefact, Artefacts, ProjectSettings, Thresholds, plain_text

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


# ══ 2 Phrases ═════════════════════════════════════════════════════════════════════════════════════

Interval = Callable[[int, int], tuple[float, float]]  # evidence.wilson
FEWEST, MOST = 3, 6  # words of a phrase
SAME = 0.85  # a part that is found this much of its whole's times in it is no phrase of its own
TOGETHER = 1_000_000  # words that are counted at once
SHOWN_IN = 3  # texts that are named for a phrase

_FLAT_SIGNS = (
    ("\u2019", "'"), ("\u2018", "'"), ("\u02bc", "'"), ("\u201c", '"'), ("\u201d", '"'),
    ("\u2013", "-"), ("\u2014", "-"), ("\u2026", "."), ("\u00a0", " "),
)  # fmt: skip
_SPLITS_BUT_APOSTROPHES = "".join(
    s if s.isalnum() or s == "'" else " " for s in map(chr, range(128))
)
_WHOLE_TOKEN = rf"[{_DENSE}]|[^\W_{_DENSE}]+(?:'[^\W_{_DENSE}]+)*"


@dataclass(frozen=True)
class Phrase:
    """Words in a row that many texts hold: how many, how sure, and where first."""

    words: str
    k: int
    n: int
    low: float
    high: float
    where: tuple[int, ...] = ()  # numbers of texts, from 0

    @property
    def share(self) -> float:
        return self.k / self.n if self.n else 0.0


def words_of(text: str) -> list[str]:
    """Words in lower case with plain apostrophes, or letters where a script has no spaces."""
    low = text.lower()
    if not low.isascii():
        for sign, plain in _FLAT_SIGNS:
            low = low.replace(sign, plain)
        if not low.isascii():
            return _re(_WHOLE_TOKEN).findall(low)
    low = low.translate(_SPLITS_BUT_APOSTROPHES)
    if "'" in low:
        low = low.replace("' ", " ").replace(" '", " ").strip("' ")
    return low.split()


def phrases(texts: Iterable[str], interval: Interval, least: float = 0.10) -> list[Phrase]:
    """What at least this share of the texts says in the same 3 to 6 words, the commonest first.

    Two dense letters count as one word. Of a phrase and its parts the longest is kept, unless a
    part is clearly commoner. A phrase has to be in two texts.
    """
    words, codes, sizes = _coded(texts)
    n, names = len(sizes), list(words)
    enough = max(2, math.ceil(least * n - 1e-9))
    places = _frequent_words(codes, sizes, len(names), enough)
    del codes  # the largest thing here
    found = _frequent(places, _half_words(names), enough)
    known = {tuple(names[word] for word in each): told for each, told in found.items()}
    kept = _longest({each: k for each, (k, _) in known.items()})
    made = [Phrase(_spelt(each), k, n, *interval(k, n), where)
            for each, (k, where) in known.items() if each in kept]  # fmt: skip
    return sorted(made, key=lambda phrase: (-phrase.k, phrase.words))


def count_phrases(texts: Iterable[str], wanted: Sequence[str], interval: Interval) -> list[Phrase]:
    """The same figures for phrases that somebody has listed."""
    flat = {each: f" {' '.join(words_of(each))} " for each in wanted}
    where, k, n = {each: list[int]() for each in wanted}, Counter[str](), 0
    for text in texts if wanted else ():
        said = f" {' '.join(words_of(text))} "
        for each, words in flat.items():
            if words in said and words.strip():
                k[each] += 1
                where[each] += [n] if k[each] <= SHOWN_IN else []
        n += 1
    return [Phrase(e, k[e], n, *interval(k[e], n), tuple(where[e])) for e in flat]


class _Codes(dict[str, int]):
    """A number for every word, from 0."""

    def __missing__(self, word: str) -> int:
        self[word] = code = len(self)
        return code


def _coded(texts: Iterable[str]) -> tuple[_Codes, "array[int]", "array[int]"]:
    """Every word of all texts as a number, one after the other, and how many each text has."""
    words, codes, sizes = _Codes(), array("i"), array("i")
    for text in texts:
        before = len(codes)
        codes.extend(map(words.__getitem__, words_of(text)))
        sizes.append(len(codes) - before)
    return words, codes, sizes


def _half_words(names: Sequence[str]) -> Any:
    import numpy as np

    dense = _re(_DENSE_LETTER)
    return np.array([1 if dense.match(name) else 2 for name in names] or [2], np.int32)


_Found = dict[tuple[int, ...], tuple[int, tuple[int, ...]]]  # words -> texts, and the first ones


def _frequent(places: tuple[Any, Any, Any], weights: Any, least: int) -> _Found:
    """Every run of words that enough texts hold. A run is only looked at where both runs that are
    one word shorter are frequent, so that there is little to count."""
    import numpy as np

    at, word, doc = places
    next_to = np.append(at[1:] == at[:-1] + 1, False)[: len(at)]
    next_to[:-1] &= doc[1:] == doc[:-1]
    ids, runs = word, [(each,) for each in range(len(weights))]
    halves, found, many = weights, _Found(), len(weights)
    for length in range(1, 2 * MOST):
        here = np.flatnonzero(next_to[:-1] & (ids[:-1] >= 0) & (ids[1:] >= 0)).astype(np.int32)
        if length > FEWEST:  # shorter ones can't be too long
            here = here[halves[ids[here]] + weights[word[here + length]] <= 2 * MOST]
        wide = np.int32 if len(runs) * many < 2**31 else np.int64
        keys = _often(ids[here].astype(wide) * wide(many) + word[here + length], least)
        here, keys = here[keys >= 0], keys[keys >= 0]
        key, which = np.unique(keys, return_inverse=True)
        k, where = _texts_with(which, doc[here], len(key))
        good = np.flatnonzero(k >= least)
        if not len(good):
            break
        runs = [(*runs[key[g] // many], int(key[g] % many)) for g in good]
        halves = halves[key[good] // many] + weights[key[good] % many]
        new = np.full(len(key), -1, np.int32)
        new[good] = np.arange(len(good))
        ids = np.full(len(ids), -1, np.int32)
        ids[here] = new[which]
        found |= {run: (int(k[g]), tuple(w for w in where[g].tolist() if w >= 0))
                  for run, g, half in zip(runs, good, halves, strict=True)
                  if half >= 2 * FEWEST}  # fmt: skip
    return found


def _often(keys: Any, least: int) -> Any:
    """The keys, and -1 for those that stand fewer times than that; a quick look before the exact
    one, where there are not too many."""
    import numpy as np

    if len(keys) and int(keys.max()) < 4 * TOGETHER:
        keys = np.where(np.bincount(keys)[keys] >= least, keys, -1)
    return keys


def _frequent_words(codes: Any, sizes: Any, words: int, least: int) -> tuple[Any, Any, Any]:
    """Place, word and text of each word that enough texts hold, beside another such word."""
    import numpy as np

    flat, size = np.frombuffer(codes, np.int32), np.frombuffer(sizes, np.int32)
    texts, ends = np.zeros(words, np.int64), np.cumsum(size, dtype=np.int64)
    often = np.bincount(flat, minlength=words) >= least if words else texts > 0
    for begin, end, doc in _parts(size, ends):
        chosen = often[flat[begin:end]]
        texts += _texts_with(flat[begin:end][chosen], doc[chosen], words)[0]
    often = texts >= least
    made = [(np.empty(0, np.int32),) * 3]
    for begin, end, doc in _parts(size, ends):
        known = often[flat[begin:end]]
        near = np.append(False, known[:-1]) | np.append(known[1:], False) if len(known) else known
        at = np.flatnonzero(known & near).astype(np.int32)
        made.append((at + np.int32(begin), flat[begin:end][at], doc[at]))
    at, word, doc = (np.concatenate(each) for each in zip(*made, strict=True))
    return at, word, doc


def _parts(sizes: Any, ends: Any) -> Iterator[tuple[int, int, Any]]:
    """Parts of the flat array that hold whole texts, each with the text of every place."""
    import numpy as np

    first = begin = 0
    while first < len(sizes):
        last = max(first + 1, int(np.searchsorted(ends, begin + TOGETHER)))
        end = int(ends[last - 1])
        yield begin, end, np.repeat(np.arange(first, last, dtype=np.int32), sizes[first:last])
        first, begin = last, end


def _texts_with(which: Any, doc: Any, many: int) -> tuple[Any, Any]:
    """How many texts hold each of so many things, and the first texts that do; texts rise."""
    import numpy as np

    k, where = np.zeros(many, np.int64), np.full((many, SHOWN_IN), -1, np.int64)
    begin = 0
    while begin < len(which):
        end = begin + TOGETHER
        end = int(np.searchsorted(doc, doc[end], side="left")) if end < len(doc) else len(doc)
        end = end if end > begin else int(np.searchsorted(doc, doc[begin], side="right"))
        span = int(doc[end - 1]) + 1 - int(doc[begin])
        pairs = _once(which[begin:end].astype(np.int64) * span + (doc[begin:end] - doc[begin]))
        thing, text = pairs // span, pairs % span + int(doc[begin])
        rank = np.arange(len(thing)) - np.searchsorted(thing, thing) + k[thing]
        few = rank < SHOWN_IN
        where[thing[few], rank[few]] = text[few]
        k += np.bincount(thing, minlength=many)
        begin = end
    return k, where


def _once(values: Any) -> Any:
    """Each value once, in order; `np.unique` takes several times as long."""
    import numpy as np

    values = np.sort(values)
    return values[np.append(True, values[1:] != values[:-1])[: len(values)]]


def _longest(counted: Mapping[tuple[str, ...], int]) -> set[tuple[str, ...]]:
    """The phrases that are no mere part of a longer one, and of a long formula its beginning."""
    inside = Counter[tuple[str, ...]]()
    for run, k in counted.items():
        for size in range(1, len(run)):
            for start in range(len(run) - size + 1):
                part = run[start : start + size]
                inside[part] = max(inside[part], k)
    whole = {run: k for run, k in counted.items() if inside[run] < SAME * k}
    after = defaultdict(list)
    for run in whole:
        after[run[:-1]].append(run)
    follows = {run: [next_ for next_ in after[run[1:]] if _about_equal(k, whole[next_])]
               for run, k in whole.items()}  # fmt: skip
    behind = {each for run, those in follows.items() for each in those if each != run}
    kept, seen = set[tuple[str, ...]](), set[tuple[str, ...]]()
    for run in sorted(whole, key=lambda run: (run in behind, run)):
        if run not in seen:
            kept.add(run)
            seen |= _reached(run, follows)
    return kept


def _about_equal(one: int, other: int) -> bool:
    return min(one, other) >= SAME * max(one, other)


def _reached(start: tuple[str, ...], follows: Mapping[tuple[str, ...], Any]) -> set[Any]:
    seen, left = {start}, [start]
    while left:
        new = [each for each in follows[left.pop()] if each not in seen]
        seen.update(new)
        left += new
    return seen


def _spelt(words: Iterable[str]) -> str:
    return _re(rf"(?<=[{_DENSE}]) (?=[{_DENSE}])").sub("", " ".join(words))


# ══ 3 Near-duplicates ═════════════════════════════════════════════════════════════════════════════

# Two texts are as alike as the share of word pairs that they have in common (Dice). Of a text in
# which one word in twenty was replaced, left out or added, about 0.90 is left; two conversations
# about one subject have 0.1 to 0.4 in common, and up to 0.65 where both were put together from the
# same sentences. Longer runs of words find the candidates, because different texts hardly share
# any; the word pairs then decide, exactly.
PAIR, RUN = 2, 4  # words; twice as many where letters count as words
POOL, KEYS = 64, 16  # runs that are kept of a text, and those of them that it is filed under
COMMON = 50  # a run that more texts hold says little
LISTED = 50  # of more equal texts, each is paired with the first only
WINDOW = 3  # neighbours that are compared in a crowd
SORTED = 200_000  # words of the texts that are looked at together
HASH_BITS = 20  # of a run's number, which make room for its text

Pairs = list[tuple[str, str, float]]


def near_duplicates(texts: Mapping[str, str], threshold: float = 0.80) -> Pairs:
    """All pairs of texts that are this alike, (id, id, similarity) in order of ids.

    Made for thresholds from 0.7 on. The order of the texts changes nothing. In a crowd of more than
    50 texts that are all alike, each is paired with some of the others and not with all.
    """
    same, doc, run = _pools(texts)
    firsts, alike = [ids[0] for ids in same], {ids[0]: ids for ids in same}
    found: Pairs = [pair for ids in same for pair in _all_pairs(ids)]
    for one, other, how in _confirmed(texts, firsts, _candidates(doc, run, len(same)), threshold):
        found += _spread(alike[one], alike[other], how)
    return sorted(found)


def similarity(one: str, other: str) -> float:
    """The share of word pairs that two texts have in common; 0 where a text has no words."""
    return _dice(_word_pairs(one), _word_pairs(other))


def _all_pairs(ids: Sequence[str]) -> Pairs:
    few = itertools.combinations(ids, 2) if len(ids) <= LISTED else ((ids[0], i) for i in ids[1:])
    return [(one, other, 1.0) for one, other in few]


def _spread(ones: Sequence[str], others: Sequence[str], how: float) -> Pairs:
    """A pair of texts, for all who have these texts."""
    if len(ones) * len(others) > LISTED * LISTED:
        ones, others = ones[:1], others[:1]
    pairs = itertools.product(ones, others)
    return [(min(pair), max(pair), how) for pair in pairs]


class _Hashes(dict[str, int]):
    """A number of 64 bits for each word, the same in every process."""

    def __missing__(self, word: str) -> int:
        if len(self) >= 10 * KEPT_WORDS:
            self.clear()
        digest = hashlib.blake2b(word.encode("utf-8", "replace"), digest_size=8).digest()
        self[word] = number = int.from_bytes(digest, "little")
        return number


_numbers = functools.cache(_Hashes)


def _numbered(words: Sequence[str]) -> "array[int]":
    return array("Q", map(_numbers().__getitem__, words))


def _times(words: Sequence[str], text: str) -> int:
    """2 where most letters count as words, else 1."""
    return 2 if not text.isascii() and 4 * _size(words) < 3 * len(words) else 1


def _hashed_runs(numbers: Any, length: int) -> Any:
    """A number for every run of so many neighbours."""
    import numpy as np

    last = len(numbers) - length + 1
    made = np.zeros(max(last, 0), np.uint64)
    for step in range(length if last > 0 else 0):
        made = made * np.uint64(0x9E3779B97F4A7C15) + numbers[step : step + last]
    made = (made ^ (made >> np.uint64(31))) * np.uint64(0xD6E8FEB86659FD93)
    return made ^ (made >> np.uint64(32))


def _word_pairs(text: str) -> Any:
    """The set of word pairs of a text, sorted; of one word alone, the word."""
    import numpy as np

    words = words_of(text)
    length = min(PAIR * _times(words, text), max(len(words), 1))
    return _once(_hashed_runs(np.frombuffer(_numbered(words), np.uint64), length))


def _dice(one: Any, other: Any) -> float:
    import numpy as np

    if not len(one) or not len(other):
        return 0.0
    both = np.concatenate((one, other))
    both.sort(kind="stable")
    return 2 * int(np.count_nonzero(both[1:] == both[:-1])) / len(both)


def _confirmed(
    texts: Mapping[str, str], ids: Sequence[str], pairs: Any, threshold: float
) -> Iterator[tuple[str, str, float]]:
    """The candidates that are as alike as that."""
    held = functools.lru_cache(4096)(lambda at: _word_pairs(texts[ids[at]]))
    for one, other in pairs.tolist():
        how = _dice(held(one), held(other))
        if how >= threshold - 1e-12:
            yield min(ids[one], ids[other]), max(ids[one], ids[other]), how


def _pools(texts: Mapping[str, str]) -> tuple[list[list[str]], Any, Any]:
    """The ids of equal texts together, and of each such text the runs of words with the smallest
    numbers: text, run, in this order. Texts without words are left out."""
    import numpy as np

    known: dict[bytes, list[str]] = {}
    parts = {1: _Part(RUN), 2: _Part(2 * RUN)}
    for item in sorted(texts):
        words = words_of(texts[item])
        numbers = _numbered(words)
        key = hashlib.blake2b(numbers.tobytes(), digest_size=16).digest()
        if words and key not in known:
            parts[_times(words, texts[item])].add(len(known), numbers)
            known[key] = []
        if words:
            known[key].append(item)
    made = [pool for part in parts.values() for pool in part.done()]
    doc, run = (np.concatenate(each) for each in zip(*made, strict=True))
    order = np.argsort(doc, kind="stable")
    return list(known.values()), doc[order], run[order]


class _Part:
    """Texts that are looked at together, because small arrays are slow."""

    def __init__(self, length: int) -> None:
        self.length, self.made = length, list[tuple[Any, Any]]()
        self._begin()

    def _begin(self) -> None:
        self.flat, self.sizes, self.whose = array("Q"), array("q"), array("q")

    def add(self, at: int, numbers: "array[int]") -> None:
        self.flat.extend(numbers)
        self.sizes.append(len(numbers))
        self.whose.append(at)
        if len(self.flat) > SORTED:
            self.done()

    def done(self) -> list[tuple[Any, Any]]:
        """The pools of all texts so far."""
        self.made.append(_smallest(self.flat, self.sizes, self.whose, self.length))
        self._begin()
        return self.made


def _smallest(flat: Any, sizes: Any, whose: Any, length: int) -> tuple[Any, Any]:
    """The pool of each text: text, run. Of a long text only small numbers are sorted, unless it
    says the same again and again and has few."""
    import numpy as np

    numbers, size = np.frombuffer(flat, np.uint64), np.frombuffer(sizes, np.int64)
    made, text = _hashed_runs(numbers, length), np.repeat(np.arange(len(size)), size)
    inside = text[: len(made)] == text[length - 1 :][: len(made)]
    text, made = text[: len(made)][inside], made[inside] >> np.uint64(HASH_BITS)
    most = np.minimum(4 * POOL / np.maximum(size, 1), 1) * 2.0 ** (64 - HASH_BITS)
    low = made < most[text].astype(np.uint64)
    few = _distinct(text[low], made[low])
    lacking = (np.bincount(few[0], minlength=len(size)) < POOL) & (size > 4 * POOL)
    if lacking.any():
        rest, kept = lacking[text], ~lacking[few[0]]
        more = _distinct(text[rest], made[rest])
        few = (np.append(few[0][kept], more[0]), np.append(few[1][kept], more[1]))
    return np.frombuffer(whose, np.int64)[few[0]], few[1]


def _distinct(text: Any, made: Any) -> tuple[Any, Any]:
    """The smallest numbers of each text, each once."""
    import numpy as np

    bits = np.uint64(64 - HASH_BITS)
    both = (text.astype(np.uint64) << bits) | made
    both = _once(both)
    text = (both >> bits).astype(np.int64)
    few = np.arange(len(text)) - np.searchsorted(text, text) < POOL
    return text[few], both[few] & np.uint64((1 << int(bits)) - 1)


def _candidates(doc: Any, run: Any, many: int) -> Any:
    """Pairs of numbers of texts that share runs of words."""
    import numpy as np

    _, which, count = np.unique(run, return_inverse=True, return_counts=True)
    often = count[which]
    size = np.bincount(doc, minlength=many)
    crowd = 2 * np.bincount(doc[often > COMMON], minlength=many) >= np.maximum(size, 1)
    rare = _firsts(doc, which, (often > 1) & (often <= COMMON))
    own = np.bincount(doc[often <= COMMON], minlength=many)  # runs that say something about a text
    codes, shared = _sharing(*rare, COMMON, many)
    need = np.where(np.minimum(own[codes // many], own[codes % many]) >= KEYS // 2, 2, 1)
    codes = np.union1d(codes[shared >= need], _crowded(doc, which, crowd[doc], many))
    return np.stack((codes // max(many, 1), codes % max(many, 1)), axis=1)


def _firsts(doc: Any, which: Any, chosen: Any) -> tuple[Any, Any]:
    """Of the chosen runs of each text the first ones: text, run."""
    import numpy as np

    doc, which = doc[chosen], which[chosen]
    few = np.arange(len(doc)) - np.searchsorted(doc, doc) < KEYS
    return doc[few], which[few]


def _sharing(doc: Any, which: Any, most: int, many: int) -> tuple[Any, Any]:
    """Pairs of texts under one run, as one number, and how many runs they share. Where a run has
    more texts than `most`, only neighbours in its list."""
    import numpy as np

    order = np.lexsort((doc, which))
    doc, which, codes = doc[order], which[order], [np.empty(0, np.int64)]
    at = np.arange(len(doc))
    for step in range(1, most + 1):
        at = at[at + step < len(doc)]
        at = at[which[at] == which[at + step]]
        codes.append(doc[at] * many + doc[at + step])
    found, shared = np.unique(np.concatenate(codes), return_counts=True)
    return found, shared


def _crowded(doc: Any, which: Any, chosen: Any, many: int) -> Any:
    """Pairs among texts of which too many are alike for single runs: two runs have to agree."""
    doc, which = _firsts(doc, which, chosen)
    two = doc[1:] == doc[:-1]
    both = which[:-1][two] * (int(which.max(initial=0)) + 1) + which[1:][two]
    return _sharing(doc[1:][two], both, WINDOW, many)[0]


# ══ 4 Personal data and secrets ═══════════════════════════════════════════════════════════════════

# What has a form of its own. Names of people and places have none, so that a person has to read for
# them. Every repetition has a bound, and none begins inside of what another has left: the time
# grows with the length of the text and not with its square.


class Hit(NamedTuple):
    """One thing that looks personal or secret, and its place in the text."""

    kind: str
    start: int
    end: int


SECRETS = frozenset({"key", "private key", "password"})  # other kinds are personal data


def personal_data(text: str) -> list[Hit]:
    """Everything in a text that has the form of personal data or of a secret, in order."""
    hits = [Hit(kind, *match.span()) for kind, signs, pattern, is_real in _PERSONAL
            if any(sign in text for sign in signs)
            for match in _re(pattern).finditer(text) if is_real(match[0])]  # fmt: skip
    kept: list[Hit] = []
    for hit in sorted(hits, key=lambda hit: (hit.start, -hit.end)):
        if not kept or hit.start >= kept[-1].end:
            kept.append(hit)
    return kept


def redact(text: str) -> str:
    """The text with `[email]` and the like in place of every hit; twice changes no more."""
    while hits := personal_data(text):
        for hit in reversed(hits):
            text = f"{text[: hit.start]}[{hit.kind}]{text[hit.end :]}"
    return text


def _is_card(text: str) -> bool:
    """Luhn's check digit, on a number of a card's length that is not one digit again and again."""
    digits = [int(sign) for sign in text if sign.isdigit()]
    double = (sum(divmod(2 * digit, 10)) for digit in digits[-2::-2])
    return len(set(digits)) > 1 and (sum(digits[-1::-2]) + sum(double)) % 10 == 0


def _is_iban(text: str) -> bool:
    """The two check digits of an account's number."""
    plain = text.replace(" ", "").upper()
    moved = "".join(str(int(sign, 36)) for sign in plain[4:] + plain[:4])
    return 15 <= len(plain) <= 34 and int(moved) % 97 == 1


def _is_phone(text: str) -> bool:
    """So many digits, and no date."""
    digits = sum(map(str.isdigit, text))
    least = 8 if text.startswith(("+", "00")) else 9
    return least <= digits <= 15 and not _re(r"\d[./-][01]?\d[./-](?:19|20)\d\d").search(text)


def _is_public_address(text: str) -> bool:
    """An address of one machine on the internet; those of every home network say nothing."""
    try:
        return ipaddress.ip_address(text).is_global
    except ValueError:
        return False


def _is_password(text: str) -> bool:
    """After an equals sign any value; after a colon one with a digit, because prose has colons."""
    value = _re(r"[=:]").split(text, maxsplit=1)[1].strip(" \t\"'")
    return "=" in text[: len(text) - len(value)] or any(map(str.isdigit, value))


def _always(_: str) -> bool:
    return True


_DIGITS = tuple("0123456789")
_KEY = (
    r"(?<![A-Za-z0-9])(?:sk-[A-Za-z0-9_-]{16,200}|(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])"
    r"|gh[pousr]_[A-Za-z0-9]{30,255}|github_pat_[A-Za-z0-9_]{22,255}|glpat-[A-Za-z0-9_-]{20,100}"
    r"|hf_[A-Za-z0-9]{30,100}|AIza[0-9A-Za-z_-]{35}|xox[abprs]-[A-Za-z0-9-]{10,200}"
    r"|[sr]k_(?:live|test)_[A-Za-z0-9]{16,200}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50,250}"
    r"|eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,4000}\.[A-Za-z0-9_-]{10,2000})"
)
# Kind, signs of which one is there, expression, and what else has to hold.
_PERSONAL: tuple[tuple[str, tuple[str, ...], str, Callable[[str], bool]], ...] = (
    (
        "email", ("@",),
        r"(?<![\w.+%-])[\w.+%-]{1,64}@(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,6}[^\W\d_]{2,24}(?![^\W_])",
        _always,
    ),
    (
        "iban", _DIGITS,
        r"(?<![^\W_])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![^\W_])", _is_iban,
    ),
    ("card", _DIGITS, r"(?<![\d.,])(?<!\d[ -])[2-6]\d(?:[ -]?\d){11,17}(?![ -]?\d)", _is_card),
    (
        "phone", _DIGITS,
        r"(?<![\w.,+-])(?<!\d )(?:(?:\+|00)[1-9]|\(?0[1-9]|\([2-9]\d\d\)|[2-9]\d\d[-.]\d{3}[-.])"
        r"(?:[ ()./-]{0,2}\d){4,13}(?![\w%])(?![.,]\d)", _is_phone,
    ),
    (
        "ip address", (".",),
        r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w])(?!\.\d)", _is_public_address,
    ),
    (
        "ip address", (":",),
        r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])", _is_public_address,
    ),
    ("key", ("-", "_", "A", "eyJ"), _KEY, _always),
    ("key", ("earer",), r"\b[Bb]earer\s{1,4}[A-Za-z0-9._~+/-]{16,4000}={0,2}", _always),
    (
        "private key", ("-----BEGIN",),
        r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"(?:[^-]{0,16000}-----END [A-Z ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
        r"|(?:\s{1,4}[A-Za-z0-9+/=]{24,200}){0,200})",
        _always,
    ),
    (
        "password", ("=", ":"),
        r"(?i)(?<![^\W_])(?:password|passwd|passphrase|pwd|passwort|kennwort|contrase\u00f1a"
        r"|mot de passe|secret|api[_ -]?key|access[_ -]?key|token)[\"']?[ \t]{0,3}[=:][ \t]{0,3}"
        r"[\"']?[^\s\"'\[\]]{4,200}",
        _is_password,
    ),
)  # fmt: skip


# ══ 5 The audit of a set ══════════════════════════════════════════════════════════════════════════

# Every test counts k of n, and is a finding when the whole interval of that share lies above the
# limit that project.yaml declares. The figures beside them are for reading.


@dataclass(frozen=True)
class Talk:
    """One conversation as the audit sees it."""

    id: str
    file: str
    pairs: Sequence[tuple[str, str]]
    metas: Sequence[Mapping[str, Any]] = ()  # of each exchange
    persona: Mapping[str, Any] = field(default_factory=dict)

    def side(self, at: int) -> str:
        """All that one side says; 0 is the user's."""
        return "\n".join(pair[at] for pair in self.pairs)

    @property
    def style(self) -> str:
        return str(self.persona.get("communication_style") or "no style")


class Place(NamedTuple):
    """Where something is: the conversation's number, the exchange from 1 (0: all of it), words."""

    talk: int
    exchange: int
    text: str


@dataclass(frozen=True)
class Figure:
    """One test on one thing: so many of so many, and where."""

    test: str
    what: str
    k: int
    n: int
    of: str  # what is counted
    where: Sequence[Place] = ()
    limit: float | None = None  # where the test makes its own


@dataclass(frozen=True)
class Ruler:
    """What a set is measured with."""

    project: ProjectSettings
    artefacts: Artefacts
    interval: Interval
    told: tuple[Sequence[str], Sequence[str]] = ((), ())  # what each side was told, for echoes
    shown: Callable[[Sequence[Mapping[str, Any]]], Iterable[tuple[int, str, bool]]] | None = None
    # of the exchanges: (number, flaw, whether it shows), for the flaws that code can see


@dataclass
class Measured:
    """All tests of a set, and the figures beside them."""

    tests: list[Figure] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)  # tests that could not be made, and why


def measure(talks: Sequence[Talk], ruler: Ruler) -> Measured:
    """Every test of one set. The same set gives the same figures, in whatever order it comes."""
    talks = sorted(talks, key=lambda talk: talk.id)
    found = Measured()
    found.figures |= {"conversations": len(talks), "replies": sum(len(t.pairs) for t in talks)}
    for part in (_said_often, _forms, _lengths, _praise, _user_side, _traces, _copied, _private):
        part(talks, ruler, found)
    found.figures["scripts"] = _script_mix(talks)
    return found


def _replies(talks: Sequence[Talk]) -> Iterator[Place]:
    for at, talk in enumerate(talks):
        yield from (Place(at, n, reply) for n, (_, reply) in enumerate(talk.pairs, 1))


def _count(test: str, what: str, of: str, n: int, hits: Iterable[Place]) -> Figure:
    """A test from its hits, of which the first three conversations are kept."""
    kept, k = dict[int, Place](), 0
    for hit in hits:
        k += 1
        if len(kept) < SHOWN_IN:
            kept.setdefault(hit.talk, hit)
    return Figure(test, what, k, n, of, tuple(kept.values()))


def _by_talk(hits: Iterable[Place]) -> list[Place]:
    """The first hit of each conversation."""
    first = dict[int, Place]()
    for hit in hits:
        first.setdefault(hit.talk, hit)
    return list(first.values())


# ── what is said, and in which form ───────────────────────────────────────────────────────────────


def _said_often(talks: Sequence[Talk], ruler: Ruler, found: Measured) -> None:
    """Phrases, those that the audit finds and those that somebody has listed."""
    places, limits = list(_replies(talks)), ruler.project.thresholds
    texts, n = [place.text for place in places], len(places)
    own = phrases(texts, ruler.interval, limits.phrase_watch)
    known = {phrase.words for phrase in own}
    listed = count_phrases(texts, ruler.artefacts.overused_phrases, ruler.interval)
    listed = [phrase for phrase in listed if " ".join(words_of(phrase.words)) not in known]
    high = {phrase: test for phrase in (*own, *listed) if (test := _band(phrase.low, limits))}
    where = _three_talks([phrase.words for phrase in high], places)
    for phrase, test in high.items():
        each = where[phrase.words]
        found.tests.append(Figure(test, f'"{phrase.words}"', phrase.k, n, "replies", each))
    told = [(phrase.words, phrase.k) for phrase in own[:20]]
    found.figures["phrases"] = {"most said": told, "listed": {p.words: p.k for p in listed}}


def _three_talks(wanted: Sequence[str], places: Sequence[Place]) -> dict[str, list[Place]]:
    """For each phrase its place in the first conversations that hold it."""
    found: dict[str, list[Place]] = {words: [] for words in wanted}
    forms = {words: re.compile(r"[\W_]*".join(map(re.escape, words_of(words))), re.IGNORECASE)
             for words in wanted}  # fmt: skip
    open_ = {words: f" {' '.join(words_of(words))} " for words in wanted}
    for place in places:
        said = f" {' '.join(words_of(place.text))} " if open_ else ""
        for words in [each for each, run in open_.items() if run in said]:
            hits, text = found[words], plain_text(place.text)
            if place.talk not in {hit.talk for hit in hits}:
                match = forms[words].search(text)
                hits.append(place._replace(text=_around(text, match) if match else text))
            if len(hits) == SHOWN_IN:
                del open_[words]
    return found


def _band(low: float, limits: Thresholds) -> str:
    """The strictest phrase test whose limit lies below the interval; phrases that are not surely
    above the lowest are not findings."""
    return next((f"phrase_{name}" for name in ("critical", "vary", "watch")
                 if low > getattr(limits, f"phrase_{name}")), "")  # fmt: skip


FORMS: dict[str, str] = {
    "a header": r"(?m)^ {0,3}#{1,6} \S|^ {0,3}\*\*[^*\n]{2,60}\*\*:?[ \t]*$",
    "bold words": r"\*\*[^*\n]{1,200}\*\*",
    "a list": r"(?m)^ {0,6}(?:[-*\u2022]|\d{1,2}[.)]) +\S",
    "a table or code": r"(?m)^ {0,3}(?:```|\|[^\n]{0,200}\|)",
    "a question": r"[?\uff1f]",
    "a question at the end": r"[?\uff1f][\"')\u201d\u300d\s]{0,3}\Z",
    "an exclamation mark": r"[!\uff01]",
    "a dash between clauses": r"\S ?\u2014 ?\S| \u2013 | -- ",
}
COMMON_FORMS = frozenset(("a question",))  # that a reply asks something is no formula
FEW_WORDS = 3  # at the beginning and at the end of a reply


def _forms(talks: Sequence[Talk], _: Ruler, found: Measured) -> None:
    """Headers, lists, questions, and how replies begin and end."""
    places, shapes = list(_replies(talks)), Counter[tuple[str, ...]]()
    hits: dict[str, list[Place]] = {name: [] for name in FORMS}
    for place in places:
        has = tuple(name for name, form in FORMS.items() if _re(form).search(place.text))
        shapes[has] += 1
        for name in has:
            hits[name].append(place)
    for name in (each for each in FORMS if each not in COMMON_FORMS):
        made = _count("one_form", f"replies with {name}", "replies", len(places), hits[name])
        found.tests.append(made)
    told = {name: _share(len(each), len(places)) for name, each in hits.items()}
    found.figures["forms"] = {"share": told, "entropy": entropy(shapes)}
    _edges("one_opening", "begin", slice(FEW_WORDS), places, found)
    _edges("one_ending", "end", slice(-FEW_WORDS, None), places, found)


def _edges(test: str, how: str, cut: slice, places: Sequence[Place], found: Measured) -> None:
    """The words at one end of the replies."""
    by = defaultdict[str, list[Place]](list)
    for place in places:
        by[_spelt(words_of(place.text)[cut])].append(place)
    by.pop("", None)
    most = sorted(by.items(), key=lambda each: (-len(each[1]), each[0]))
    counts = {words: len(each) for words, each in most}
    told = {"most": [(words, len(each)) for words, each in most[:5]], "entropy": entropy(counts)}
    found.figures[f"how replies {how}"] = told
    for words, each in most[:3]:
        said = f'replies that {how} with "{words}"'
        found.tests.append(_count(test, said, "replies", len(places), each))


def entropy(counts: Mapping[Any, int]) -> float | None:
    """How even a distribution is, from 0 (always the same) to 1 (all alike often)."""
    total, kinds = sum(counts.values()), sum(count > 0 for count in counts.values())
    if kinds < 2:
        return 0.0 if total > 1 else None
    parts = (count / total for count in counts.values() if count)
    bits = -math.fsum(part * math.log2(part) for part in parts)
    return round(bits / math.log2(min(kinds, total)), 4)


def _share(k: int, n: int) -> float | None:
    return round(k / n, 4) if n else None


# ── lengths, praise, endings ──────────────────────────────────────────────────────────────────────

THIRDS = ("first third", "middle third", "last third")


def third_of(exchange: int, of: int) -> str:
    """Which part of a conversation an exchange is in, counted from 1."""
    return THIRDS[min(3 * (exchange - 1) // max(of, 1), 2)]


def _lengths(talks: Sequence[Talk], ruler: Ruler, found: Measured) -> None:
    """Words of a reply per word of the message; blank messages have no ratio."""
    limits, groups = ruler.project.thresholds, defaultdict[str, list[tuple[float, bool]]](list)
    hits, n, blank = list[Place](), 0, 0
    for at, talk in enumerate(talks):
        for number, (user, reply) in enumerate(talk.pairs, 1):
            asked, said = count_words(user), count_words(reply)
            long = said > max(limits.reply_floor, limits.reply_ratio_limit * asked)
            n, blank = n + 1, blank + (not asked)
            hits += [Place(at, number, f"{said} words after {asked}: {reply}")] if long else []
            for group in ("all", f"style {talk.style}", third_of(number, len(talk.pairs))):
                if asked:
                    groups[group].append((said / asked, long))
    what = f"replies of more than {limits.reply_ratio_limit:g} times the message's words"
    worst = sorted(hits, key=lambda hit: -len(hit.text))
    for test in ("long_replies", "longish_replies"):
        found.tests.append(_count(test, what, "replies", n, worst))
    told = {name: _ratios(groups[name]) for name in sorted(groups)}
    found.figures["reply per word of message"] = told | {"blank messages": blank}


def _ratios(known: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    ratios = [ratio for ratio, _ in known]
    long = _share(sum(long for _, long in known), len(known))
    mean, middle = round(fmean(ratios), 4), round(median(ratios), 4)
    return {"of": len(known), "mean": mean, "median": middle, "too long": long}


# What praise and a happy end look like. A language that is not here is not measured.
_PRAISE = {
    "de": r"(?:gute|tolle|super|hervorragende|ausgezeichnete) (?:frage|idee|arbeit|wahl)"
    r"|gut gemacht|toll gemacht|das ist (?:toll|gro\u00dfartig|wunderbar|super|beeindruckend)"
    r"|sehr gut erkannt|ich bewundere",
    "en": r"(?:great|good|excellent|wonderful|fantastic|amazing|brilliant) (?:question|point|job"
    r"|work|idea|choice|start|step|progress|insight|thinking|observation)|well done|proud of you"
    r"|kudos|that(?:'s| is) (?:really |so |very |truly )?(?:great|wonderful|amazing|fantastic"
    r"|awesome|impressive|brilliant|courageous|brave|insightful)|you(?:'re| are) doing (?:great"
    r"|well|so well|really well|an? (?:great|good|amazing))"
    r"|i (?:really |truly )?(?:admire|applaud|commend)",
    "es": r"(?:buena|excelente|gran) (?:pregunta|idea|elecci\u00f3n|observaci\u00f3n)|bien hecho"
    r"|buen trabajo|te felicito|(?:eso es|qu\u00e9) (?:genial|maravilloso|fant\u00e1stico)",
    "fr": r"(?:bonne|excellente|tr\u00e8s bonne) (?:question|id\u00e9e|remarque)|bien jou\u00e9"
    r"|bravo|bon travail|c'est (?:formidable|g\u00e9nial|super|remarquable|impressionnant)",
}
_HAPPY = {
    "de": r"danke|perfekt|super|klasse|hat geklappt|funktioniert (?:jetzt|wieder)|gel\u00f6st",
    "en": r"thank(?:s| you)|thx|cheers|perfect|awesome|appreciate (?:it|that|your)|solved|all good"
    r"|that (?:worked|helps?|helped|did it)|it works|works now|feel (?:so much |much )?better",
    "es": r"gracias|perfecto|genial|funciona|resuelto|solucionado",
    "fr": r"merci|parfait|super|g\u00e9nial|\u00e7a marche|r\u00e9solu",
}


def _praise(talks: Sequence[Talk], ruler: Ruler, found: Measured) -> None:
    """Praise by thirds of the conversation, and how many conversations end happily."""
    base = ruler.project.language.lower().split("-")[0]
    if base not in _PRAISE:
        said = f"no words are known for the language {base}"
        found.silent |= dict.fromkeys(("praise", "late_praise", "happy_endings"), said)
        return
    praise, happy = (_re(rf"(?i)(?<!\w)(?:{words[base]})(?!\w)") for words in (_PRAISE, _HAPPY))
    hits, all_ = defaultdict[str, list[Place]](list), Counter[str]()
    for place in _replies(talks):
        third = third_of(place.exchange, len(talks[place.talk].pairs))
        all_[third] += 1
        if match := praise.search(plain_text(place.text)):
            hits[third].append(place._replace(text=_around(place.text, match)))
    every = [hit for third in THIRDS for hit in hits[third]]
    found.tests.append(_count("praise", "replies that praise", "replies", all_.total(), every))
    early, late = ((len(hits[third]), all_[third]) for third in (THIRDS[0], THIRDS[2]))
    limit = late_limit(*early, ruler.project.audit.late_praise.limit, ruler.interval)
    made = _count("late_praise", "replies of the last third that praise", "replies of it", late[1],
                  hits[THIRDS[2]])  # fmt: skip
    found.tests.append(replace(made, limit=limit))
    told: dict[str, Any] = {third: [len(hits[third]), all_[third]] for third in THIRDS}
    growth = _growth(*early, *late)
    found.figures["praise"] = told | {"last third per first": growth}
    ends = [Place(at, len(talk.pairs), talk.pairs[-1][0])
            for at, talk in enumerate(talks) if talk.pairs]  # fmt: skip
    glad = [end for end in ends if happy.search(plain_text(end.text))]
    what = "conversations that end happily"
    found.tests.append(_count("happy_endings", what, "conversations", len(ends), glad))


def late_limit(k: int, n: int, factor: float, interval: Interval) -> float:
    """Above which share praise has grown: so many times the first third's, and surely more than
    it; where nobody praised at first, what that may have been by chance."""
    return round(min(max(factor * k / n if n else 0.0, interval(k, n)[1]), 1.0), 6)


def _growth(early: int, of: int, late: int, of_late: int) -> float | None:
    """How often praise comes late for each time that it comes early; None without any early."""
    return round((late / of_late) / (early / of), 4) if early and of_late else None


def _around(text: str, match: re.Match[str]) -> str:
    return text[max(match.start() - 30, 0) : match.end() + 60]


# ── the simulated people ──────────────────────────────────────────────────────────────────────────


def _user_side(talks: Sequence[Talk], ruler: Ruler, found: Measured) -> None:
    """Whether messages keep their limits, flaws show, and people differ."""
    wide, n, missed, scheduled = list[Place](), 0, list[Place](), 0
    for at, talk in enumerate(talks):
        for number, ((user, _), meta) in enumerate(zip(talk.pairs, talk.metas, strict=False), 1):
            if least_most := meta.get("range"):
                words, n = count_words(user), n + 1
                outside = not least_most[0] <= words <= least_most[1]
                said = f"{words} words, not {least_most[0]} to {least_most[1]}: {user}"
                wide += [Place(at, number, said)] if outside else []
        for number, name, shows in ruler.shown(_exchanges(talk)) if ruler.shown else ():
            scheduled += 1
            said = f"{name}: {talk.pairs[number - 1][0]}"
            missed += [] if shows else [Place(at, number, said)]
    what = "messages outside the words of their style"
    found.tests.append(_count("outside_limits", what, "messages with limits", n, wide))
    what = "flaws that were scheduled and do not show"
    found.tests.append(_count("flaws_missed", what, "flaws that code can see", scheduled, missed))
    same = defaultdict[str, list[int]](list)
    for at, talk in enumerate(talks):
        if talk.persona:
            same[persona_key(talk.persona)].append(at)
    twins = [Place(at, 0, f"the same person as {talks[each[0]].id}")
             for each in same.values() for at in each[1:]]  # fmt: skip
    n = sum(map(len, same.values()))
    found.tests.append(_count("alike_personas", "people who come twice", "conversations", n, twins))
    found.figures["people"] = {"known": n, "different": len(same)}
    found.figures["people"] |= {"styles": dict(sorted(Counter(t.style for t in talks).items()))}


def _exchanges(talk: Talk) -> list[Mapping[str, Any]]:
    pairs = zip(talk.pairs, talk.metas, strict=False)
    return [{"user": user, "assistant": reply, "meta": meta} for (user, reply), meta in pairs]


NAMES = frozenset(("id", "name", "schema", "seed", "provenance"))


def persona_key(persona: Mapping[str, Any]) -> str:
    """A person's content, whatever the name and the number."""
    return canonical_hash({key: value for key, value in persona.items() if key not in NAMES})


# ── traces, languages, copies, secrets ────────────────────────────────────────────────────────────

# Which test a kind of the artefact filter belongs to; every other kind is a trace of the machinery.
_KINDS = {"script": "language", "language": "language", "blank": "broken", "repeat": "broken",
          "cut_end": "broken"}  # fmt: skip
_TRACES = {
    "simulator": "a person who talks like an assistant, or quotes what it was told",
    "machine": "a reply with a trace of the machinery",
    "language": "a message in another script or language",
    "broken": "a message that is blank, cut off, or said before",
}


def _traces(talks: Sequence[Talk], ruler: Ruler, found: Measured) -> None:
    """The artefact filter once more, on everything: imports and repairs never met it."""
    inspect = inspector(ruler.artefacts, ruler.project.language)
    hits, kinds = {test: list[Place]() for test in _TRACES}, Counter[str]()
    for at, talk in enumerate(talks):
        earlier: tuple[list[str], list[str]] = ([], [])
        for number, pair in enumerate(talk.pairs, 1):
            for side, text in enumerate(pair):
                name = ("user", "assistant")[side]
                for said in inspect(name, text, ruler.told[side], earlier[side]):
                    kind = said.partition(":")[0]
                    kinds[f"{name}: {kind}"] += 1
                    test = _KINDS.get(kind, ("simulator", "machine")[side])
                    hits[test].append(Place(at, number, f"{name}: {said}"))
                earlier[side].append(text)
    for test, what in _TRACES.items():
        made = _count(test, f"conversations with {what}", "conversations", len(talks),
                      _by_talk(hits[test]))  # fmt: skip
        found.tests.append(made)
    found.figures["traces"] = dict(sorted(kinds.items()))


LONG_REPLY = 8  # words; shorter replies may come twice


def _copied(talks: Sequence[Talk], ruler: Ruler, found: Measured) -> None:
    """Conversations and replies that are copies of others."""
    threshold = ruler.project.thresholds.near_duplicate
    whole = {f"{at:09}": f"{talk.side(0)}\n{talk.side(1)}" for at, talk in enumerate(talks)}
    pairs, copies = near_duplicates(whole, threshold), dict[int, Place]()
    for one, other, how in pairs:
        said = f"{how:.0%} like {talks[int(one)].id}"
        copies.setdefault(int(other), Place(int(other), 0, said))
    what = "conversations that are copies of another"
    found.tests.append(_count("near_duplicates", what, "conversations", len(talks),
                              copies.values()))  # fmt: skip
    places = [place for place in _replies(talks) if count_words(place.text) >= LONG_REPLY]
    said_again, texts = dict[int, str](), {f"{n:09}": place.text for n, place in enumerate(places)}
    for one, other, _ in near_duplicates(texts, threshold):
        said_again.setdefault(int(other), talks[places[int(one)].talk].id)
    hits = [places[n]._replace(text=f"as in {item}: {places[n].text}")
            for n, item in sorted(said_again.items())]  # fmt: skip
    what = f"replies of {LONG_REPLY} words or more that were given before"
    found.tests.append(_count("copied_replies", what, "replies of that length", len(places), hits))
    found.figures["copies"] = {"pairs of conversations": len(pairs)}


def _private(talks: Sequence[Talk], _: Ruler, found: Measured) -> None:
    """Personal data and secrets, counted by conversation. The report shows none of them."""
    hits, kinds = {"secrets": list[Place](), "personal_data": list[Place]()}, Counter[str]()
    for at, talk in enumerate(talks):
        for number, pair in enumerate(talk.pairs, 1):
            for side, text in zip(("user", "assistant"), pair, strict=True):
                for kind in (hit.kind for hit in personal_data(text)):
                    kinds[kind] += 1
                    test = "secrets" if kind in SECRETS else "personal_data"
                    hits[test].append(Place(at, number, f"{side}: {redact(text)}"))
    for test, places in hits.items():
        what = f"conversations with {test.replace('_', ' ')}"
        made = _count(test, what, "conversations", len(talks), _by_talk(places))
        found.tests.append(made)
    found.figures["private"] = dict(sorted(kinds.items()))


def _script_mix(talks: Sequence[Talk]) -> dict[str, dict[str, int]]:
    """Letters by script, for each side."""
    told = {}
    for side, name in enumerate(("user", "assistant")):
        signs = Counter[str]()
        for talk in talks:
            signs.update(talk.side(side))
        mix = Counter[str]()
        for sign, count in signs.items():
            if sign.isalpha():
                mix[_script_of(sign)] += count
        told[name] = dict(sorted(mix.items()))
    return told


@functools.lru_cache(8192)
def _script_of(sign: str) -> str:
    return next((name for name in RANGES if _in_scripts((name,)).match(sign)), "other")


# ── two sets ──────────────────────────────────────────────────────────────────────────────────────


def contamination(
    talks: Sequence[Talk], others: Sequence[Talk], people: Sequence[Mapping[str, Any]], like: float
) -> tuple[Figure, dict[str, Any]]:
    """Conversations of a set that stand in another one too: the same person, or copies of the
    user's side or of the whole. `people` are the personas of the other set that have not talked."""
    talks = sorted(talks, key=lambda talk: talk.id)
    personas = [*people, *(other.persona for other in others if other.persona)]
    keys = {persona_key(person): str(person.get("id")) for person in personas}
    keys |= {f"id {person['id']}": str(person["id"]) for person in personas if person.get("id")}
    scenes = {scenario(person) for person in personas}
    hits, same_scene = dict[int, Place](), 0
    for at, talk in enumerate(talks):
        known = [keys.get(persona_key(talk.persona)), keys.get(f"id {talk.persona.get('id')}")]
        name = next(filter(None, known), None) if talk.persona else None
        if name:
            hits[at] = Place(at, 0, f"the same person as {name}")
        same_scene += bool(talk.persona) and scenario(talk.persona) in scenes
    for side, what in ((0, "the user's side of"), (1, "all of")):
        for at, other, how in _across(talks, others, bool(side), like):
            said = f"{how:.0%} like {what} {others[other].id}"
            hits.setdefault(at, Place(at, 0, said))
    made = _count("contamination", "conversations that stand in the other set too",
                  "conversations", len(talks), [hits[at] for at in sorted(hits)])  # fmt: skip
    return made, {"people": len(personas), "conversations": len(others), "same scene": same_scene}


def scenario(persona: Mapping[str, Any]) -> str:
    """What a person comes with: topics, course, flaws. People of two sets may share it."""
    parts = ("topic_seeds", "trajectory", "flaws", "dimensions", "attributes")
    return canonical_hash({part: persona.get(part) for part in parts})


def _across(
    talks: Sequence[Talk], others: Sequence[Talk], whole: bool, like: float
) -> Iterator[tuple[int, int, float]]:
    """Pairs between two sets that are copies."""
    sets = (("a", talks), ("b", others)) if others else ()
    texts = {f"{name}{at:09}": f"{talk.side(0)}\n{talk.side(1)}" if whole else talk.side(0)
             for name, set_ in sets for at, talk in enumerate(set_)}  # fmt: skip
    for one, other, how in near_duplicates(texts, like):
        if one[0] == "a" and other[0] == "b":
            yield int(one[1:]), int(other[1:]), how


# ── the verdict ───────────────────────────────────────────────────────────────────────────────────

SEVERITIES = ("critical", "warning", "info")
# The tests whose limit is one of the thresholds.
SHARED_LIMITS = {
    "phrase_critical": "phrase_critical", "phrase_vary": "phrase_vary",
    "phrase_watch": "phrase_watch", "long_replies": "long_replies_bad",
    "longish_replies": "long_replies_good",
}  # fmt: skip


def declared(project: ProjectSettings) -> dict[str, dict[str, Any]]:
    """Every test with its severity and its limit, as project.yaml says now."""
    told = {}
    for name in type(project.audit).model_fields:
        test = getattr(project.audit, name)
        shared = SHARED_LIMITS.get(name)
        limit = getattr(project.thresholds, shared) if shared else test.limit
        told[name] = {"severity": test.severity, "limit": float(limit)}
    return told


def finding(made: Figure, tests: Mapping[str, Any], interval: Interval) -> dict[str, Any] | None:
    """A test as a finding; None while its interval reaches down to its limit."""
    rule = tests[made.test]
    limit = rule["limit"] if made.limit is None else made.limit
    low, high = interval(made.k, made.n)
    if not made.n or low <= limit:
        return None
    told = {"test": made.test, "severity": rule["severity"], "what": made.what, "of": made.of}
    told |= {"k": made.k, "n": made.n, "share": round(made.k / made.n, 6)}
    return told | {"low": round(low, 6), "high": round(high, 6), "limit": limit}


def findings(
    found: Measured, talks: Sequence[Talk], tests: Mapping[str, Any], interval: Interval
) -> list[dict[str, Any]]:
    """The findings of a set, the worst first, each with three places to look at."""
    talks, made = sorted(talks, key=lambda talk: talk.id), list[dict[str, Any]]()
    for each in found.tests:
        told = finding(each, tests, interval)
        if told:
            told["examples"] = [_example(talks[place.talk], place) for place in each.where]
            made.append(told)
    return sorted(made, key=lambda row: (SEVERITIES.index(row["severity"]), row["test"],
                                         -row["share"], row["what"]))  # fmt: skip


def _example(talk: Talk, place: Place) -> dict[str, Any]:
    text = "".join(sign if sign.isprintable() else " " for sign in place.text[: 4 * EXAMPLE])
    text = " ".join(redact(text).split())[:EXAMPLE]
    return {"id": talk.id, "file": talk.file, "exchange": place.exchange, "text": text}


EXAMPLE = 160  # characters
