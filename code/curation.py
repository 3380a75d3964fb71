# ruff: noqa: RUF001 (small words of languages in other scripts)
"""What must not be learned from. Works alone when copied.

    wrong = inspector(load_artefacts(root), "en")
    wrong("assistant", "As an AI, I can't open parcels.", told=[], earlier=[])

Chapter 1 is the artefact filter, run on every message before any judge reads it. Importing it opens
nothing.
"""

import functools
import itertools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from settings import Artefact, Artefacts, plain_text

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
