"""What personas are drawn from, and what to expect of the draws, exactly. Works alone when copied.

    from sampling import Pot, expected_shares, prepare

    plan = prepare(load_taxonomy(root), load_persona_template(root))  # says what can't be drawn
    style = Pot({"terse": 0.4, "casual": 0.6}).draw(rng(seed, persona, turn, "style"))
    expected_shares(plan)["first topic"]  # {"billing": 0.25, ...}

A draw uses only `random()` of a generator made from a key, so it is the same in every Python.
A constraint rules out all that its `when` names (every dimension of it) together with what its
`never` names (any dimension of it). Constraints between dimensions of a person are kept by drawing
those dimensions together; one about a topic or its difficulty lowers that topic's weight for the
people whom it is about. Importing it opens nothing.
"""

import itertools
import math
import random
import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infrastructure import FinetuneError, canonical_hash
from settings import Between, Constraint, FlawFamily, PersonaFile, Taxonomy, Topic

MOST_COMBINATIONS = 200_000  # that constraints may tie together
MOST_STATES = 20_000  # of a draw without putting back, beyond which its shares stay unknown
TOPICAL = {"topic", "difficulty"}  # drawn for each topic; all other dimensions belong to the person
# Not drawn from: a change to them leaves every persona as it is.
LATER = {"probability"}  # of a flaw: drawn for each message
NOT_DRAWN: dict[str, dict[str, Any]] = {
    "taxonomy_hash": {"edge_cases": True},
    "template_hash": dict.fromkeys(("response_types", "stages", "time", "endings"), True)
    | {"flaw_patterns": {"primary": LATER, "secondary": LATER}},
}
# What prompts can name besides a persona's dimensions and attributes.
LABELS: tuple[str, ...] = ("name", "age_range", "personality_traits")
LABELS += ("communication_style", "topics", "trajectory")
EDGE = "edge cases among topics"

Persona = dict[str, Any]  # one row of data/personas/*.jsonl
Shares = dict[str, float]
Rule = tuple[int, dict[str, list[str]]]  # a constraint's number, and what may not come together
Combination = tuple[str, ...]


# ══ 1 Draws ═══════════════════════════════════════════════════════════════════════════════════════


class Pot:
    """What is drawn from, by weight. Order in a file does not count; weight 0 is never drawn."""

    def __init__(self, weights: Mapping[Any, float]) -> None:
        self.names = sorted(name for name, weight in weights.items() if weight > 0)
        # Plain additions give the same in every Python; sum() does not.
        self.upto = list(itertools.accumulate(weights[name] for name in self.names))

    def draw(self, chance: random.Random) -> Any:
        at = bisect_right(self.upto, chance.random() * self.upto[-1])
        return self.names[min(at, len(self.names) - 1)]


def some(
    weights: Mapping[str, float], n: int, chance: random.Random, repeat: bool = False
) -> list[str]:
    """n draws one after the other; a name comes once unless `repeat`."""
    left, found = dict(weights), []
    for _ in range(n):
        found.append(Pot(left).draw(chance))
        if not repeat:
            del left[found[-1]]
    return found


def between(count: Between, chance: random.Random) -> int:
    """A whole number, each one between the bounds alike."""
    return count.at_least + int(chance.random() * (count.at_most - count.at_least + 1))


def shares_of(weights: Mapping[Any, float]) -> dict[Any, float]:
    """Weights above 0, divided so that they sum to 1."""
    total = math.fsum(weights.values())
    return {name: weight / total for name, weight in weights.items() if weight > 0}


def weights_of(entries: Mapping[str, Any]) -> Shares:
    """Weights of entries that carry more than a weight."""
    return {name: entry.weight for name, entry in entries.items()}


# ══ 2 The plan ════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Plan:
    """Taxonomy and template, checked against each other and ready for drawing."""

    taxonomy: Taxonomy
    template: PersonaFile
    free: dict[str, Shares]  # dimensions of the person without a constraint
    tied: list[str]  # those that stand in one: they are drawn together, as one
    table: dict[Combination, float]  # what the tied ones can be, and how likely
    joint: Pot
    rules: list[Rule]  # those about a topic or its difficulty
    topics: dict[str, Topic]
    hashes: dict[str, str]  # of what is drawn from

    def difficulties(self, person: Mapping[str, str], topic: str) -> Shares:
        """The difficulties that a topic can have for this person, with their weights."""
        weights = shares_of(self.taxonomy.difficulty)
        if not self.rules:
            return weights
        about = {**person, "topic": topic}
        broken = {d: _broken(self.rules, {**about, "difficulty": d}) for d in weights}
        return {name: weight for name, weight in weights.items() if not broken[name]}

    def topics_for(self, person: Mapping[str, str]) -> Shares:
        """The topics that this person can have; less of a topic that lost difficulties."""
        left = {name: math.fsum(self.difficulties(person, name).values()) for name in self.topics}
        found = {name: topic.weight * left[name] for name, topic in self.topics.items()}
        return {name: weight for name, weight in found.items() if weight > 0}

    def kinds(self) -> list[tuple[float, dict[str, str]]]:
        """Kinds of people that the rules about topics tell apart: share, and what they are."""
        looked_at = {name for _, rule in self.rules for name in rule}
        found: defaultdict[Any, list[float]] = defaultdict(list)
        for values, share in self.table.items():
            person = zip(self.tied, values, strict=True)
            found[tuple(pair for pair in person if pair[0] in looked_at)].append(share)
        return [(math.fsum(shares), dict(pairs)) for pairs, shares in found.items()]


def prepare(taxonomy: Taxonomy, template: PersonaFile) -> Plan:
    """What to draw from; FinetuneError says what could never be drawn."""
    rules = [rule for n, each in enumerate(taxonomy.constraints) for rule in _rules(n, each)]
    named = {name for _, rule in rules for name in rule}
    own = {name: w for name, w in taxonomy.dimensions().items() if name not in TOPICAL}
    tied = {name: shares_of(weights) for name, weights in own.items() if name in named}
    table = _table(tied, [rule for rule in rules if not TOPICAL & rule[1].keys()])
    plan = Plan(
        taxonomy=taxonomy,
        template=template,
        free={name: weights for name, weights in own.items() if name not in named},
        tied=list(tied),
        table=table,
        joint=Pot(table),
        rules=[rule for rule in rules if TOPICAL & rule[1].keys()],
        topics={topic.name: topic for topic in taxonomy.topics},
        hashes=_hashes({"taxonomy_hash": taxonomy, "template_hash": template}),
    )
    _check_names([*own, *template.attributes])
    _check_counts(plan)
    return plan


def _hashes(configs: Mapping[str, Any]) -> dict[str, str]:
    """Of parsed content: comments, the order of keys and defaults written out do not count."""
    return {
        name: canonical_hash(config.model_dump(exclude=NOT_DRAWN[name], exclude_defaults=True))
        for name, config in configs.items()
    }


def _rules(number: int, constraint: Constraint) -> Iterator[Rule]:
    """All that `when` names may not meet any one of what `never` names."""
    for name, values in constraint.never.items():
        both = [value for value in values if value in constraint.when.get(name, values)]
        yield number, {**constraint.when, name: both}


def _broken(rules: Iterable[Rule], person: Mapping[str, str]) -> set[int]:
    """Numbers of the constraints that rule this combination out."""
    return {n for n, rule in rules if all(person[name] in rule[name] for name in rule)}


def _table(tied: Mapping[str, Shares], rules: Sequence[Rule]) -> dict[Combination, float]:
    """Every combination that the rules leave, with its probability."""
    size, where = math.prod(map(len, tied.values())), "config/input-taxonomy.yaml constraints"
    if size > MOST_COMBINATIONS:
        said = f"they tie {', '.join(tied)} together, which makes {size:,} combinations"
        raise FinetuneError(f"{where}: {said}, at most {MOST_COMBINATIONS:,}. Tie fewer together.")
    every = list(itertools.product(*tied.values()))
    broken = [_broken(rules, dict(zip(tied, values, strict=True))) for values in every]
    if all(broken):
        raise FinetuneError(f"{where}{_culprits(broken)}: together they leave nobody. Loosen one.")
    good = [values for values, wrong in zip(every, broken, strict=True) if not wrong]
    mass = [math.prod(s[v] for s, v in zip(tied.values(), values, strict=True)) for values in good]
    return shares_of(dict(zip(good, mass, strict=True)))


def _culprits(broken: Sequence[set[int]]) -> list[int]:
    """Constraints that rule everything out together, none of which could be spared."""
    kept = set().union(*broken)
    for number in sorted(kept):
        kept -= {number} if all(each & (kept - {number}) for each in broken) else set()
    return sorted(kept)


def flaws_of(family: FlawFamily) -> Shares:
    return weights_of(family.patterns)


def placeholder(name: str) -> str:
    """A name as {{...}} in a prompt can hold it."""
    return re.sub(r"\W|^(?=\d)", "_", name, flags=re.ASCII)


def _check_names(own: Sequence[str]) -> None:
    """Every drawn value has a placeholder of its own for prompts."""
    taken = dict.fromkeys(("domain", "language", "persona", *LABELS), "a word of ours")
    for name in own:
        word = placeholder(name)
        if word in taken:
            said = f"in prompts, {{{{{word}}}}} is already {taken[word]}. Give it another name."
            raise FinetuneError(f"config: the dimension or attribute {name!r}: {said}")
        taken[word] = repr(name)


def _check_counts(plan: Plan) -> None:
    """Nobody needs more different things than there are with a weight above 0."""
    for where, count, has, whom in _needs(plan):
        if count.at_most > has:
            said = f"at_most is {count.at_most}, but {has} can be drawn{whom}"
            todo = f"Lower it, or change weights{' or constraints' if whom else ''}."
            raise FinetuneError(f"config/persona-template.yaml {where}.count: {said}. {todo}")
    if plan.template.persona_template.topics.count.at_least < 1:
        said = "persona_template.topics.count.at_least: is 0. Everybody brings a topic: write 1."
        raise FinetuneError(f"config/persona-template.yaml {said}")


def _needs(plan: Plan) -> Iterator[tuple[str, Between, float, str]]:
    """Where a count stands, how many different things there are for it, and for whom."""
    person, flaws = plan.template.persona_template, plan.template.flaw_patterns
    traits = person.personality_traits
    yield "persona_template.personality_traits", traits.count, len(set(traits.options)), ""
    for name, family in (("primary", flaws.primary), ("secondary", flaws.secondary)):
        yield f"flaw_patterns.{name}", family.count, len(shares_of(flaws_of(family))), ""
    for _, who in plan.kinds():
        has: float = len(plan.topics_for(who))
        has = math.inf if person.topics.repeat and has else has
        numbers = {
            n for n, rule in plan.rules if all(who.get(k, v[0]) in v for k, v in rule.items())
        }
        about = ", ".join(f"{name} {value!r}" for name, value in who.items())
        whom = f" for {about or 'anybody'} under constraints{sorted(numbers)}" if numbers else ""
        yield "persona_template.topics", person.topics.count, has, whom


# ══ 3 What to expect ══════════════════════════════════════════════════════════════════════════════


def expected_shares(plan: Plan) -> dict[str, Shares]:
    """What share each value has in the long run, exactly. Left out: what has too many states."""
    person, flaws = plan.template.persona_template, plan.template.flaw_patterns
    style, ages = person.communication_style, shares_of(person.age_range)
    styles = {age: style.weights_by_age.get(age, style.weights) for age in ages}
    found = {
        "name": shares_of(Counter(person.names)),
        "age": ages,
        "style": blend((share, shares_of(styles[age])) for age, share in ages.items()),
        "number of traits": _even(person.personality_traits.count),
        "primary flaws": _unless_none(flaws.none_share, _even(flaws.primary.count)),
        "secondary flaws": _unless_none(flaws.none_share, _even(flaws.secondary.count)),
        "trajectory": shares_of(weights_of(plan.template.trajectory)),
        "length": shares_of(weights_of(plan.template.length_classes)),
    }
    found |= {f"dimension {name}": shares_of(weights) for name, weights in plan.free.items()}
    for at, name in enumerate(plan.tied):
        cells = ((share, {values[at]: 1.0}) for values, share in plan.table.items())
        found[f"dimension {name}"] = blend(cells)
    attributes = plan.template.attributes.items()
    found |= {f"attribute {name}": shares_of(weights) for name, weights in attributes}
    return found | _topic_shares(plan) | _counted_once(plan)


def _topic_shares(plan: Plan) -> dict[str, Shares]:
    kinds = [(share, who, shares_of(plan.topics_for(who))) for share, who in plan.kinds()]
    found = {
        "number of topics": _even(plan.template.persona_template.topics.count),
        "first topic": blend((share, topics) for share, _, topics in kinds),
        "difficulty of the first topic": blend(
            (share * weight, shares_of(plan.difficulties(who, name)))
            for share, who, topics in kinds
            for name, weight in topics.items()
        ),
    }
    return found | {f"subtopic of {t.name}": shares_of(t.subtopics) for t in plan.topics.values()}


def _counted_once(plan: Plan) -> dict[str, Shares]:
    """How many personas have a thing at all, where one persona can have several."""
    person, flaws = plan.template.persona_template, plan.template.flaw_patterns
    traits, topics, some_flaw = person.personality_traits, person.topics, 1 - flaws.none_share
    kinds = [(share, plan.topics_for(who)) for share, who in plan.kinds()]
    works: dict[str, Callable[[], Shares]] = {
        "traits": lambda: included(Counter(traits.options), traits.count),
        "flaws": lambda: blend(
            (some_flaw, included(flaws_of(family), family.count))
            for family in (flaws.primary, flaws.secondary)
        ),
        "topics": lambda: blend((p, included(w, topics.count, topics.repeat)) for p, w in kinds),
        EDGE: lambda: {"edge case": _edge_share(plan, kinds)},
    }
    found = {}
    for name, work in works.items():
        try:
            found[name] = work()
        except TooManyStates:
            continue
    return found


def _edge_share(plan: Plan, kinds: Sequence[tuple[float, Shares]]) -> float:
    """Share of edge cases among all drawn topics; without repetition it is not their weight."""
    topics = plan.template.persona_template.topics
    mean = (topics.count.at_least + topics.count.at_most) / 2
    per_topic = blend(
        (
            p,
            shares_of(w)
            if topics.repeat
            else {n: s / mean for n, s in included(w, topics.count).items()},
        )
        for p, w in kinds
    )
    return math.fsum(share for name, share in per_topic.items() if plan.topics[name].edge_case)


class TooManyStates(FinetuneError):
    """A draw without putting back from too many different weights to be worked out exactly."""


def included(weights: Mapping[str, float], count: Between, repeat: bool = False) -> Shares:
    """How likely each name is among an evenly drawn number of draws."""
    numbers = range(count.at_least, count.at_most + 1)
    if repeat:
        each = [{name: 1 - (1 - p) ** n for name, p in shares_of(weights).items()} for n in numbers]
    else:
        each = [inclusion(weights, n) for n in numbers]
    return blend((1 / len(numbers), shares) for shares in each)


def inclusion(weights: Mapping[str, float], n: int) -> Shares:
    """How likely each name is among n weighted draws without putting back, exactly.

    Names of one weight are alike, so a state is how many of each weight are gone."""
    sizes = Counter(weight for weight in weights.values() if weight > 0)
    kinds = sorted(sizes)
    states: dict[tuple[int, ...], float] = {(0,) * len(kinds): 1.0}
    for _ in range(min(n, sizes.total())):
        after: defaultdict[tuple[int, ...], list[float]] = defaultdict(list)
        for gone, p in states.items():
            left = [(sizes[w] - out) * w for w, out in zip(kinds, gone, strict=True)]
            total = math.fsum(left)
            for at, weight in enumerate(left):
                if weight > 0:
                    after[(*gone[:at], gone[at] + 1, *gone[at + 1 :])].append(p * weight / total)
        states = {state: math.fsum(parts) for state, parts in after.items()}
        if len(states) > MOST_STATES:
            raise TooManyStates(f"{len(states):,} states")
    mean = {
        w: math.fsum(p * gone[at] for gone, p in states.items()) / sizes[w]
        for at, w in enumerate(kinds)
    }
    return {name: mean[weight] for name, weight in weights.items() if weight > 0}


def blend(parts: Iterable[tuple[float, Mapping[str, float]]]) -> Shares:
    """The shares of a mixture of groups, each with its own share."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for share, shares in parts:
        for name, value in shares.items():
            found[name].append(share * value)
    return {name: math.fsum(values) for name, values in found.items()}


def _even(count: Between) -> Shares:
    numbers = range(count.at_least, count.at_most + 1)
    return {str(n): 1 / len(numbers) for n in numbers}


def _unless_none(none: float, shares: Shares) -> Shares:
    return blend([(none, {"0": 1.0}), (1 - none, shares)])


# ══ 4 What came ═══════════════════════════════════════════════════════════════════════════════════


class Tally:
    """How often each value of `expected_shares` came, and out of how many."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.ids = plan, set[str]()
        self.sizes: Counter[str] = Counter()
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, persona: Persona) -> None:
        self.ids.add(persona["id"])
        for marginal, values, size in _seen(self.plan, persona):
            self.sizes[marginal] += size
            self.counts.update((marginal, value) for value in values)


def _seen(plan: Plan, persona: Persona) -> Iterator[tuple[str, Sequence[str], int]]:
    """Marginal, the values that this persona has of it, and how many it could have."""
    topics, flaws = persona["topic_seeds"], persona["flaws"]
    names = [topic["category"] for topic in topics]
    families = Counter(flaw["family"] for flaw in flaws)
    yield "name", [persona["name"]], 1
    yield "age", [persona["age_range"]], 1
    yield "style", [persona["communication_style"]], 1
    yield "number of traits", [str(len(persona["personality_traits"]))], 1
    yield "traits", persona["personality_traits"], 1
    yield "number of topics", [str(len(topics))], 1
    yield "topics", sorted(set(names)), 1
    yield "first topic", names[:1], 1
    yield "difficulty of the first topic", [topics[0]["complexity"]], 1
    for topic in topics:
        yield f"subtopic of {topic['category']}", [topic["subtopic"]], 1
    yield EDGE, ["edge case" for name in names if plan.topics[name].edge_case], len(names)
    yield "primary flaws", [str(families["primary"])], 1
    yield "secondary flaws", [str(families["secondary"])], 1
    yield "flaws", [flaw["name"] for flaw in flaws], 1
    yield "trajectory", [persona["trajectory"]], 1
    yield "length", [persona["length_class"]], 1
    for kind in ("dimension", "attribute"):
        for name, value in persona[f"{kind}s"].items():
            yield f"{kind} {name}", [value], 1
