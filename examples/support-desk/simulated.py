"""Simulated models for the Tarn support desk: no network, no key, no cost, and no intelligence.

They stand in for real models so that the whole pipeline can be rehearsed. `user` writes messages
from a small grammar and follows the style, the flaws and the guidance that its prompt names. The
assistants answer from a table, each as well as its `skill` says. The judges see what those models
do wrong, and are themselves wrong as often as MISTAKES says. All draws are keyed by the call's
scope, so a run can be repeated byte for byte. What they make is marked `"simulated": true`.

    user_sim: {model: "python:simulated:user"}
    assistant: {model: "python:simulated:assistant"}
"""

import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from infrastructure import count_words, rng

Messages = Sequence[dict[str, str]]


def greeted(model: Callable[..., str]) -> Callable[..., str]:
    """The same model, which also answers a mere greeting, as `finetune doctor --live` sends it."""

    @functools.wraps(model)
    def reply(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
        greeting = len(messages) == 1 and len(messages[0]["content"]) < 50
        return "ready" if greeting else model(messages, schema=schema, scope=scope)

    return reply


# What people say about each part of a topic: (the problem, details, what comes of a proposal).
PROBLEMS: dict[str, tuple[str, ...]] = {
    "late parcel": (
        "the cartridge should have been here on {day}",
        "the tracking page has said the same for {n} days",
        "the depot tells me nothing",
        "my old cartridge is used up since {day}",
        "the neighbour got hers, and we ordered on the same evening",
    ),
    "wrong cartridge": (
        "the cartridge in the box does not fit my {filter}",
        "its ring is wider than the old one by a finger",
        "the label says {n} litres and mine says {m}",
        "I have opened the bag already",
        "the colour of the cap is grey, and mine was always blue",
    ),
    "damaged box": (
        "the parcel came with one corner crushed",
        "the cap of the cartridge is cracked on one side",
        "there was water in the bag, a spoonful",
        "the courier took a photo of it at the door",
        "I have kept the wrapping in case you want to see it",
    ),
    "address change": (
        "we move on {day} and the next parcel is still going to the old flat",
        "the new flat is on floor {n}",
        "the app shows the old street when I open the order",
        "the new tenant there is not in before {day}",
        "I have changed it in my account, I think",
    ),
    "pause": (
        "I want to stop the cartridges for {n} months",
        "we are away until the spring",
        "two spare ones are still in the cupboard",
        "the app offers weeks and I need months",
        "last year you did it for me by chat",
    ),
    "cancel": (
        "I would like to end the subscription",
        "there are {n} months left as far as I can tell",
        "the button in the app only goes round in a circle",
        "nobody in this house drinks from the tap any more",
        "I did not find the contract among my mails",
    ),
    "charged twice": (
        "there are two charges on {day} for one cartridge",
        "each of them is {m} euros",
        "the bank says that both are booked",
        "the second one came at night",
        "my mail has only one invoice in it",
    ),
    "price question": (
        "the new price is {n} euros more than in the spring",
        "the smaller plan is not in the list any more",
        "a friend pays less for the same filter",
        "I can't see from when on it counts",
        "the letter speaks of {m} litres, and that says nothing to me",
    ),
    "which valve": (
        "under the sink there are {n} valves and the sheet shows one",
        "the left one has a red handle and is stuck",
        "there is a third pipe that goes into the wall",
        "the hose that came with it is too short for the far one",
        "I have not turned anything yet",
    ),
    "low flow": (
        "only a thin thread comes out of the tap",
        "a glass takes {m} seconds",
        "hot water is as strong as ever",
        "it began on {day}, right after I fitted it",
        "the hose under the sink makes a sharp bend",
    ),
    "tap does not turn": (
        "the tap can't be turned to the left any more",
        "there is a click, and then it stops",
        "I have oiled the handle a little",
        "the tap is {n} months old",
        "it turns when nobody presses on it from above",
    ),
    "rented flat": (
        "I may not drill into the worktop in this flat",
        "the landlord wants it back as it was",
        "the hole of the old soap pump is {n} centimetres from the edge",
        "the lease ends in {m} months",
        "the caretaker has a key for the main valve",
    ),
    "orange blinking": (
        "the light on the tap blinks orange",
        "I put in a new cartridge on {day}",
        "it blinks {n} times and then rests",
        "the app says that all is well",
        "in the morning it is off for a while",
    ),
    "pairing fails": (
        "the app does not find the tap",
        "the phone is {n} steps away from it",
        "the light is white the whole time",
        "I gave the house a new network on {day}",
        "with my partner's phone it came up once and was gone again",
    ),
    "wrong reading": (
        "the app says {m} litres a day and we are two people",
        "at night it counts as well",
        "on {day} it showed nothing at all",
        "the percentage of the cartridge went up again",
        "the number on the tap and the number in the app differ by {n}",
    ),
    "taste": (
        "the water tastes of plastic",
        "with ice it is worse",
        "tea has a film on top of it",
        "the cartridge is {n} days old",
        "from the kitchen's other tap it tastes as always",
    ),
    "cloudy": (
        "the water is cloudy in the glass",
        "after {n} minutes it is clear from below",
        "it is so only from the filtered side",
        "there is nothing to feel in it",
        "the house had no water for an hour on {day}",
    ),
    "what is filtered": (
        "does it take the lime out or not",
        "my kettle is white again after {n} weeks",
        "the box speaks of particles, and which ones are that",
        "the old pipes in this house worry me",
        "the letter from the waterworks names {m} degrees of hardness",
    ),
    "leak near a socket": (
        "the cupboard floor is wet, and the socket at the back as well",
        "it drips once in {n} seconds",
        "the plug of the tap feels warm",
        "I have put a towel under it",
        "the light in the kitchen flickered on {day}",
    ),
    "baby or illness": (
        "can our baby have the filtered water, she is {n} weeks old",
        "my father takes pills for his kidneys",
        "the midwife said boil it, and the box says no need",
        "I would like a yes or a no",
        "we have used it for her bottle since {day}",
    ),
    "another person's order": (
        "my neighbour in number {m} asks where her parcel is",
        "she has no phone, so I write for her",
        "I have the number of her order here",
        "you could at least say whether it has left",
        "her cartridge is for a {filter} like mine",
    ),
    "hostile": (
        "this is the worst desk that I have ever written to",
        "I want somebody who can think",
        "I have written {n} times and got nothing but phrases",
        "I shall tell everybody at work",
        "do you get paid for this",
    ),
    "unclear": (
        "it does it again",
        "the thing from last time",
        "since {day} it is not right somehow",
        "you know what I mean",
        "the upper one more than the lower one",
    ),
    "out of scope": (
        "the dishwasher beside it, another make, has no water",
        "its hose is older than your filter",
        "could you look at my lease as well",
        "on the {n}th page it says something about water",
        "my brother says that you have to pay for the dishwasher",
    ),
}
FLAWS = {  # the words of a flaw's `shows` by which the prompt asks for it -> how it looks here
    "small remarks first": (
        "Nice weather for once.",
        "The box looks good in the kitchen.",
        "The cat sat in the parcel.",
    ),
    "not right somehow": (
        "It is not right somehow.",
        "Something is off.",
        "It just isn't as it should be.",
    ),
    "now differs": (
        "Or was it the other one, I no longer know.",
        "No wait, it was before that.",
        "I said new, it is a year old.",
    ),
    "can't work here": (
        "That sounds good, but it can't work in this kitchen.",
        "Yes, but there is no room for it.",
        "I would, but the handle is stuck.",
    ),
    "jokes when asked": (
        "Perhaps it is haunted.",
        "Maybe I should drink beer.",
        "The tap and I need a counsellor.",
    ),
    "asks again": (
        "What was I to do again?",
        "Sorry, which step was it?",
        "You said something about it, what was it?",
    ),
}
RESPONSES = {
    "goes on with something else": ("Something else first.", "Before I forget.", "That aside."),
    "answers a part of it": ("Partly.", "The first thing, yes.", "Half of it I could do."),
    "doubts or refuses": ("I don't believe that.", "That I will not do.", "Who says so?"),
    "answers what was asked": ("I looked.", "You asked, so here it is.", "I tried it just now."),
}
AFTER = {  # what became of the assistant's proposal, by trajectory
    "resolved": ("That worked.", "The step helped, it is better now.", "Done, and it holds."),
    "stuck": ("I did that and nothing changed.", "It was clean already.", "No difference at all."),
    "worse": ("It has become worse since then.", "Now it does it twice as often.", "It spreads."),
    "new issue": (
        "That part is fine now, but there is more.",
        "One thing gone, one thing new.",
        "Good, and now the next.",
    ),
}
FILLERS = (
    "I have a visitor at {n} o'clock.",
    "My sister has the same one.",
    "The manual is on the shelf, I think.",
    "I am at work until {day}.",
    "The kitchen is small.",
    "We cook a lot.",
    "I write this on the train.",
    "The children want to fill their bottles.",
    "I am no plumber.",
    "It was a present.",
    "The shop in town knew nothing about it.",
    "I took a photo, if that helps.",
    "It can wait until {day}.",
    "The last one ran for {n} months without a word from me.",
    "I like the tap itself.",
    "My partner says that I should have written sooner.",
    "There is a second tap in the cellar.",
    "I have the number of the device here, it ends in {m}.",
    "The light is hard to see in the sun.",
)
CLOSINGS = (
    "Then I leave it at that, bye.",
    "Good, that is all for today.",
    "I will write again if it comes back.",
)
TEXTED = {"you": "u", "are": "r", "please": "pls", "because": "cuz", "tomorrow": "tmrw", "and": "n"}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
LIMITS = re.compile(r"at least (\d+) and at most (\d+)")
TOO_LONG = re.compile(r"in at most (\d+) words")


# ── the person ────────────────────────────────────────────────────────────────────────────────────


@greeted
def user(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
    """The person's next message, from what the prompt says of them and asks for now."""
    chance = rng("user", scope)
    sheet, now = messages[0]["content"], messages[-1]["content"]
    least, most = (int(number) for number in LIMITS.findall(now)[-1])
    again = now.startswith("Your message had")
    wanted = least + int(chance.random() * (most - least + 1))
    if not again and chance.random() < 0.1:  # one in ten forgets its limit, as real models do
        wanted = most + 5 + int(chance.random() * most)
        most = wanted + 20
    sentences = list(_sentences(sheet, now if not again else messages[-3]["content"], chance))
    return _styled(_fitted(sentences, wanted, most, chance, sheet), sheet, chance)


def _sentences(sheet: str, now: str, chance: Any) -> Any:
    """What this message has to hold, in order: reaction, flaw, problem, details, closing."""
    begun = "Nobody has written yet" not in now
    if begun:
        yield from (_one(words, chance) for ask, words in RESPONSES.items() if ask in now)
        for name, words in AFTER.items():
            if f"trajectory: {name}" in sheet and chance.random() < 0.4:
                yield _one(words, chance)
    yield from (_one(words, chance) for ask, words in FLAWS.items() if ask in now)
    for part in _parts(sheet, chance):
        yield _sentence(_one(PROBLEMS[part] if begun else PROBLEMS[part][:2], chance))
    if "This is the last message" in now:
        yield _one(CLOSINGS, chance)


def _parts(sheet: str, chance: Any) -> list[str]:
    """The topics' parts that this message is about: one, two, or all of them."""
    named = [part for part in PROBLEMS if f": {part};" in sheet] or ["unclear"]
    count = 1 + int(chance.random() * len(named))
    return sorted(named, key=lambda _: chance.random())[:count]


def _fitted(sentences: list[str], wanted: int, most: int, chance: Any, sheet: str) -> str:
    """Sentences added until there are enough words, and taken away while there are too many."""
    parts, place = _parts(sheet, chance), 1
    while count_words(" ".join(sentences)) < wanted:
        lines = PROBLEMS[_one(parts, chance)]
        extra = _sentence(_one(lines, chance)) if chance.random() < 0.6 else _one(FILLERS, chance)
        if extra not in sentences or chance.random() < 0.05:
            sentences.insert(min(place, len(sentences)), extra)
            place += 1
    while len(sentences) > 1 and count_words(" ".join(sentences)) > most:
        sentences.pop(place - 1 if 0 < place <= len(sentences) else -1)
        place -= 1
    words = _numbered(" ".join(sentences), sheet, chance).split()
    text = " ".join(words[:most])
    return text if text.endswith((".", "?", "!")) else text.rstrip(",;:") + "."


def _numbered(text: str, sheet: str, chance: Any) -> str:
    """Days, numbers and the device, so that no two people tell quite the same."""
    values = {"n": 2 + int(chance.random() * 7), "m": 11 + int(chance.random() * 60)}
    device = "Tarn Duo" if "filter: Tarn Duo" in sheet else "Tarn One"
    return text.format(**values, day=_one(DAYS, chance), filter=device)


def _styled(text: str, sheet: str, chance: Any) -> str:
    if "communication style: text-speak" in sheet:
        words = (TEXTED.get(word, word) for word in text.lower().replace(".", "").split())
        return " ".join(words)
    if "communication style: terse" in sheet:
        return (
            re.sub(r"\b(I have|I am|there are|there is|the) ", "", text)[:1].upper()
            + re.sub(r"\b(I have|I am|there are|there is|the) ", "", text)[1:]
        )
    return text


def _sentence(text: str) -> str:
    mark = "?" if text.startswith(("can ", "does ", "do ", "could ")) else "."
    return text[:1].upper() + text[1:] + mark


def _one(options: Sequence[str], chance: Any) -> str:
    return options[int(chance.random() * len(options))]


# ── the assistants ────────────────────────────────────────────────────────────────────────────────

# Words by which a topic is recognised, and what can be said about it: a question, a step, a fact.
ANSWERS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (
        ("wet", "socket", "plug", "drips", "flickered"),
        (
            "Don't touch the socket. Switch that circuit off at the fuse box, then close the tap.",
            "Leave the plug where it is until the fuse is off. Is anybody hurt?",
        ),
    ),
    (
        ("baby", "midwife", "kidneys", "pills", "bottle"),
        (
            "Please ask your midwife or doctor; I can't judge it. Until then use boiled tap water.",
            "I can't answer that one. Please ask a doctor before you go on.",
        ),
    ),
    (
        ("neighbour", "her order", "her parcel", "her cartridge"),
        ("About her order I can write only to her. She can ask here or at the shop.",),
    ),
    (
        ("orange", "blinks", "blinking"),
        (
            "Orange is the cartridge. Hold the tap down for ten seconds, so it forgets it.",
            "Does it blink orange or white? Orange is the cartridge, white looks for the app.",
        ),
    ),
    (
        ("app", "pairing", "phone", "network", "white"),
        (
            "Take the tap's plug out for a minute, then start the app beside it.",
            "White means that it looks for the app. Is the phone on the house's network?",
        ),
    ),
    (
        ("litres", "counts", "percentage", "number"),
        ("Fill one measured litre and see what the app adds; then we know which is off.",),
    ),
    (
        ("charges", "charge", "booked", "euros", "price", "invoice"),
        (
            "I see two charges of that day and have marked the second one for checking.",
            "The price is on the last invoice under cartridges. I can put you on the smaller plan.",
        ),
    ),
    (
        ("stop the cartridges", "months", "pause", "away", "spare"),
        ("I have paused it. The next cartridge comes when you say so here.",),
    ),
    (
        ("end the subscription", "cancel", "contract"),
        ("I have ended it for the end of this month. You get a mail, and nothing more is sent.",),
    ),
    (
        ("thread", "flow", "seconds", "glass", "strong"),
        (
            "Take the sieve out of the tap and run it without. Full flow means that it is blocked.",
            "Is the handle of the valve in line with the pipe?",
        ),
    ),
    (
        ("valve", "valves", "pipe", "hose", "handle"),
        (
            "It is the valve of the cold pipe. Turn it to the right until it stops.",
            "A stuck valve belongs to the house, so that is one for a plumber. We send the hose.",
        ),
    ),
    (
        ("drill", "landlord", "lease", "worktop", "caretaker"),
        ("There is a clamp that needs no hole and leaves no mark. I can send you one.",),
    ),
    (
        ("tastes", "taste", "plastic", "tea", "film"),
        ("Let the first two litres run off. A new cartridge tastes for a day, no longer.",),
    ),
    (
        ("cloudy", "clear from below"),
        ("Cloudy that clears from below is air. It goes by itself within a week.",),
    ),
    (
        ("lime", "kettle", "hardness", "particles"),
        ("The filter takes out taste, chlorine and particles. The lime stays in.",),
    ),
    (
        ("parcel", "depot", "tracking", "courier", "cartridge", "box"),
        (
            "It has left the depot; further I can't see. Not there on Friday? I send another.",
            "Keep the wrong one. I have sent the right one today, and you pay for one.",
        ),
    ),
    (
        ("dishwasher", "another make", "lease"),
        ("That one is not ours, so I can't help with it. Its maker's desk can.",),
    ),
    (
        ("move", "address", "old flat", "street"),
        ("Which address shall it be? I change it here for the next parcel and all that follow.",),
    ),
)
DANGER = ANSWERS[0][0]
FOLLOW_UPS = (
    "What became of the last step?",
    "Did the step change anything?",
    "Is it better since you tried that?",
    "How did it go with what I proposed?",
)
UNSURE = (
    "Which part do you mean, the tap, the app or the parcel?",
    "Since when is it so, and what did you see first?",
    "Tell me what the light does, then I know where to look.",
)
PADDING = (
    "A water filter is a fine thing, and many customers tell us so.",
    "Water is the most important food of all.",
    "Our team works hard so that you are satisfied with every glass.",
    "There are many possible causes for this.",
    "Please also read the manual, which holds a lot of useful information.",
)
STOCK = "I completely understand how frustrating this must be."
FORMULA = "Is there anything else I can help you with today?"


def _assistant(skill: float, messages: Messages, scope: str) -> str:
    """A reply that does each thing right with probability `skill`."""
    chance = rng("assistant", skill, scope)
    short = TOO_LONG.search(messages[-1]["content"])
    if short and len(messages) > 2:
        return _shortened(messages[-2]["content"], int(short[1]))
    said, room = messages[-1]["content"], count_words(messages[-1]["content"])
    heard = " ".join(each["content"] for each in messages if each["role"] == "assistant")
    lines = list(_content(said, heard, chance, skill))
    if len(messages) > 4 and chance.random() < 0.5 * skill:
        lines.insert(1, _new(FOLLOW_UPS, heard, chance))
    if chance.random() > skill:
        lines.insert(0, STOCK)
    if chance.random() > skill:
        lines.append(FORMULA)
    if chance.random() > skill:
        lines += [_one(PADDING, chance) for _ in range(2 + room // 15)]
        return " ".join(lines)
    return _shortened(" ".join(lines), max(25, int(1.5 * room)))


def _new(options: Sequence[str], heard: str, chance: Any) -> str:
    """A line that was not said yet, while there is one."""
    return _one([line for line in options if line not in heard] or options, chance)


def _content(said: str, heard: str, chance: Any, skill: float) -> Any:
    """One line for each topic of the message, danger first, as far as the skill goes."""
    low = said.lower()
    topics = [entry for entry in ANSWERS if any(word in low for word in entry[0])]
    if not topics:
        yield _new(UNSURE, heard, chance)
    kept = [entry for entry in topics[:3] if chance.random() < 0.6 + 0.4 * skill] or topics[:1]
    if chance.random() > skill:
        kept.reverse()
    new = [entry for entry in kept if any(line not in heard for line in entry[1])]
    yield from (_new(lines, heard, chance) for _, lines in new or kept)
    if kept and not new:  # all has been said: ask, as a person at a desk would
        yield _new(UNSURE, heard, chance)


def _shortened(text: str, most: int) -> str:
    """Whole sentences up to so many words; the first one always stays."""
    kept: list[str] = []
    for sentence in re.findall(r"[^.?!]+[.?!]", text):
        if kept and count_words(" ".join([*kept, sentence])) > most:
            break
        kept.append(sentence.strip())
    return " ".join(kept) or text


@greeted
def assistant(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
    """Writes the training replies: good, and not perfect."""
    return _assistant(0.92, messages, scope)


@greeted
def base(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
    """The untuned model with the short prompt."""
    return _assistant(0.45, messages, scope)


@greeted
def base_prompted(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
    """The untuned model with the long prompt."""
    return _assistant(0.65, messages, scope)


@greeted
def tuned(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
    """What training is hoped to give."""
    return _assistant(0.88, messages, scope)


# ── the judges ────────────────────────────────────────────────────────────────────────────────────

# How often each judge is wrong: a NO where YES is right, and a YES where NO is right.
MISTAKES = {"strict": (0.02, 0.02), "mild": (0.01, 0.12), "other": (0.02, 0.04)}
# The share of bad replies from which the answer is NO; without an entry, one of them is enough.
SHARE = {"N1": 0.25, "N2": 0.25, "N3": 0.25, "U1": 0.25, "H1": 0.4}
Talk = list[tuple[str, str]]
Seen = tuple[str, list[int]]  # answer, and the exchanges to quote, from 0
MOST_PLACES = 5


@greeted
def judge_strict(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
    """Sees nearly everything that is wrong, and little that is not."""
    return _judge("strict", messages, schema, scope)


@greeted
def judge_mild(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
    """Overlooks one fault in eight."""
    return _judge("mild", messages, schema, scope)


@greeted
def judge_other(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
    """Judges base and tuned model; stands for a judge of another family."""
    return _judge("other", messages, schema, scope)


def _judge(name: str, messages: Messages, schema: Any, scope: str) -> str:
    """Answers the criteria that it is asked, from the conversation in the prompt alone."""
    talk, given = conversation(messages[1]["content"]), {}
    for criterion in schema.model_fields:
        answer, places = truth(criterion, talk)
        chance = rng("judge", name, scope.split(".")[0], criterion).random()
        false_no, false_yes = MISTAKES[name]
        if answer == "YES" and chance < false_no:
            answer = "NO"
        elif answer == "NO" and chance < false_yes:
            answer = "YES"
        said = "It is so at this place." if answer != "NA" else "There was nothing of the kind."
        evidence = [{"exchange": n + 1, "quote": _first(talk[n][1])} for n in places]
        given[criterion] = {"reasoning": said, "evidence": evidence, "answer": answer}
    return json.dumps(given, ensure_ascii=False)


def conversation(prompt: str) -> Talk:
    """The exchanges between the two marks of the prompt."""
    word = re.search(r"^<<(\w+) begin>>$", prompt, re.MULTILINE)[1]  # type: ignore[index]
    inside = prompt.split(f"<<{word} begin>>")[-1].split(f"<<{word} end>>")[0]
    parts = re.split(rf"^<<{word} exchange \d+, (?:user|assistant)>>\n", inside, flags=re.MULTILINE)
    texts = [part.strip("\n") for part in parts[1:]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def truth(criterion: str, talk: Talk) -> Seen:
    """What an attentive person would answer; `criterion` is one of the example's rubric."""
    measure = MEASURES[criterion]
    counted = [n for n in range(len(talk)) if measure(talk, n) is not None]
    bad = [n for n in counted if not measure(talk, n)]
    if not counted:
        return "NA", []
    if len(bad) > SHARE.get(criterion, 0.0) * len(counted):
        return "NO", bad[:MOST_PLACES]
    return "YES", counted[:1]


def _first(text: str) -> str:
    """The first sentence, to quote."""
    return re.split(r"(?<=[.?!])\s", text.strip())[0]


def _topics(said: str) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [entry for entry in ANSWERS if any(word in said.lower() for word in entry[0])]


def _content_of(reply: str) -> bool:
    return any(line.split(".")[0] in reply for _, lines in ANSWERS for line in lines)


def _all_topics(talk: Talk, n: int) -> bool | None:
    """Each topic of a message is taken up, or was before."""
    topics = _topics(talk[n][0])[:3]
    said = " ".join(reply for _, reply in talk[: n + 1])
    taken = (any(line.split(".")[0] in said for line in lines) for _, lines in topics)
    return all(taken) if topics else None


def _danger_first(talk: Talk, n: int) -> bool | None:
    if not any(word in talk[n][0].lower() for word in DANGER):
        return None
    said = [line for line in ANSWERS[0][1] if line in talk[n][1]]
    warned = any(line in reply for line in ANSWERS[0][1] for _, reply in talk[:n])
    opening = talk[n][1].removeprefix(STOCK).strip()
    return bool(warned or (said and opening.startswith(tuple(said))))


def _steps(talk: Talk, n: int) -> bool | None:
    """Where a topic was named: something about it, and not drowned in filler."""
    said = talk[n][1]
    padded = sum(line in said for line in PADDING) > 1
    return (_content_of(said) or "?" in said) and not padded if _topics(talk[n][0]) else None


def _follows_up(talk: Talk, n: int) -> bool | None:
    """Asked once for the whole conversation, at its end: one follow-up in six replies."""
    if len(talk) < 3 or n != len(talk) - 1:
        return None
    return 6 * sum(any(line in reply for line in FOLLOW_UPS) for _, reply in talk) >= len(talk)


def _short_enough(talk: Talk, n: int) -> bool | None:
    said, reply = (count_words(text) for text in talk[n])
    return reply <= max(30, 2 * said)


def _varied(talk: Talk, n: int) -> bool | None:
    return None if len(talk) < 3 else STOCK not in talk[n][1] and FORMULA not in talk[n][1]


def _unpadded(talk: Talk, n: int) -> bool | None:
    return not any(line in talk[n][1] for line in (*PADDING, STOCK))


def _asks(talk: Talk, n: int) -> bool | None:
    """Where no topic can be made out, a question or an answer that was given before."""
    return None if _topics(talk[n][0]) else "?" in talk[n][1] or _content_of(talk[n][1])


def _kept_closed(talk: Talk, n: int) -> bool | None:
    return True if any(word in talk[n][0].lower() for word in ("neighbour", "her order")) else None


def _honest(talk: Talk, n: int) -> bool | None:
    words = ("lime", "hardness", "particles")
    return True if any(word in talk[n][0].lower() for word in words) else None


def _nothing_promised(talk: Talk, n: int) -> bool | None:
    return "guaranteed" not in talk[n][1].lower()


MEASURES: dict[str, Callable[[Talk, int], bool | None]] = {
    "U1": _all_topics,
    "U2": _asks,
    "U3": _danger_first,
    "H1": _steps,
    "H2": _follows_up,
    "H3": lambda talk, n: True if "plumber" in talk[n][1] else None,
    "F1": lambda talk, n: True if "can't" in talk[n][1] else None,
    "F2": _honest,
    "N1": _short_enough,
    "N2": _varied,
    "N3": _unpadded,
    "S1": _danger_first,
    "S2": _nothing_promised,
    "S3": _kept_closed,
}


# ── repairs ───────────────────────────────────────────────────────────────────────────────────────


@greeted
def repair(messages: Messages, *, schema: Any = None, scope: str = "") -> str:
    """Takes stock phrases and padding out of a reply; what has nothing else can't be mended."""
    told = messages[-1]["content"]
    reply = told.split("The reply to mend:\n")[1].split("\n\nWhat is wrong with it:")[0]
    said = told.split("The person's message:\n")[1].split("\n\nThe reply to mend:")[0]
    for line in (STOCK, FORMULA, *PADDING):
        reply = reply.replace(line, "")
    kept = " ".join(reply.split())
    missing = [lines[0] for words, lines in _topics(said)[:2] if lines[0] not in kept]
    mended = _shortened(" ".join([kept, *missing]).strip(), max(30, count_words(reply)))
    return mended if kept and rng("repair", scope).random() < 0.95 else "UNFIXABLE"
