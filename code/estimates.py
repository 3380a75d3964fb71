"""What a project will need, before any of it is spent: tokens, calls, dollars, memory, hours.

    from estimates import estimate, measure_prompts
    from settings import load_persona_template, load_project

    found = estimate(load_project(root), load_persona_template(root), measure_prompts(root))
    print(found.plan, found.total.value)  # None means unknown, and found.total.unknown says why

Pure functions; each formula says where it holds. An unknown part makes its sum unknown: what is
known and the names of what is not stay beside it. A price counts only with its source and its date.
Chapters: 1 amounts, 2 start values and prompts, 3 slices, 4 calls and tokens, 5 dollars, 6 training
and serving, 7 the whole. Needs `infrastructure.py` and `settings.py` beside it; opens nothing when
it is imported, never builds a client and never goes to the network.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from infrastructure import (
    PRESETS,
    FinetuneError,
    Usage,
    cost_of,
    count_tokens,
    is_loopback,
    load_yaml,
)
from settings import (
    HEADING,
    Architecture,
    LengthClass,
    ModelChoice,
    ModelSpec,
    PersonaFile,
    ProjectSettings,
    SettingsError,
    Slicing,
    Training,
    load_system_prompt,
)

# ══ 1 Amounts ═════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Amount:
    """A sum of which parts may be unknown: then the whole is unknown, and `known` is the rest."""

    known: float = 0.0
    unknown: tuple[str, ...] = ()  # the parts that nobody can give a number for
    lower: tuple[str, ...] = ()  # why `known` itself is only a lower bound

    @property
    def value(self) -> float | None:
        return None if self.unknown else self.known

    def __add__(self, other: Amount) -> Amount:
        unknown, lower = self.unknown + other.unknown, self.lower + other.lower
        return Amount(self.known + other.known, _once(unknown), _once(lower))


def total(amounts: Iterable[Amount]) -> Amount:
    """The sum; unknown as soon as one part is."""
    return functools.reduce(Amount.__add__, amounts, Amount())


def _once(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


@dataclass(frozen=True)
class Input:
    """One number that went in, and where it comes from: a key, a measurement or a start value."""

    name: str
    value: float | int | str
    source: str


# ══ 2 Start values and prompts ════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Assumed:
    """Start values. Each is a place to begin: put your own figure in once you have measured it."""

    pass_rate: float = 0.7  # share of transcripts that pass their judges
    # share of messages asked for again because of their length; each counts like a first try
    retry_share: float = 0.1
    repaired_replies: int = 2  # replies rewritten in a transcript that is repaired
    baseline_conversations: int = 20
    evaluation_personas: int = 24
    evaluation_runs: int = 2  # of each persona with each of the two models
    verdict_tokens: int = 60  # answer, reason and quote for one criterion


@dataclass(frozen=True)
class Size:
    """Tokens of a text that is sent, and how they are known."""

    tokens: int
    source: str


# Of texts that are not written yet. All are start values.
START_SIZES = {
    "user_sim": 700,
    "user_sim_turn": 250,
    "persona": 300,
    "assistant": 1200,
    "system_prompt": 250,
    "assessor": 500,
    "rubric": 4000,
    "criteria": 30,  # a number of questions
    "fixup": 600,
}
# Which sections of which prompt are sent with a call.
SECTIONS = {
    "user_sim": ("user_sim", ("System",)),
    "user_sim_turn": ("user_sim", ("Next message",)),
    "assistant": ("assistant", ("System",)),
    "assessor": ("assessor", ("System", "Transcript")),
    "fixup": ("fixup", ("System", "Repair")),
}


def measure_prompts(root: str | Path) -> dict[str, Size]:
    """Tokens of each prompt of the project as it stands; a start value for what is not written."""
    root = Path(root)
    sizes = {name: _start_size(name) for name in START_SIZES}
    for name, (prompt, sections) in SECTIONS.items():
        text = _sections_of(root / f"config/prompts/{prompt}.md", sections)
        if text:
            sizes[name] = _measured(text, f"config/prompts/{prompt}.md")
    with contextlib.suppress(SettingsError):  # not written yet, or not valid: other gates say so
        sizes["system_prompt"] = _measured(load_system_prompt(root), "config/system-prompt.md")
    return sizes | _rubric_sizes(root / "config/rubric.yaml")


def _start_size(name: str) -> Size:
    return Size(START_SIZES[name], "start value: the text is not written yet")


def _measured(text: str, where: str) -> Size:
    count = count_tokens(text)
    return Size(int(count), f"measured: {where} ({count.method}, {count.exactness})")


def _sections_of(path: Path, wanted: Sequence[str]) -> str:
    """The texts of some `## ` sections; empty unless all of them are there."""
    try:
        parts = HEADING.split(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return ""
    found = dict(zip(parts[1::2], parts[2::2], strict=True))
    return "\n".join(found[name].strip() for name in wanted) if {*wanted} <= {*found} else ""


def _rubric_sizes(path: Path) -> dict[str, Size]:
    """What a judge is shown of the rubric: every text of its criteria; and how many there are."""
    try:
        data = load_yaml(path)[0]
    except FinetuneError:
        return {}
    criteria = data.get("criteria") if isinstance(data, dict) else None
    if not isinstance(criteria, dict) or not criteria:
        return {}
    count = Size(len(criteria), "measured: config/rubric.yaml")
    return {"rubric": _measured("\n".join(_texts(criteria)), count.source[10:]), "criteria": count}


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


# ══ 3 Slices ══════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Example:
    """A training example that a transcript may give: how long, how likely, how much it teaches."""

    exchanges: int
    chance: float
    learned: float  # replies that carry loss; `chance` is already counted in


def slice_chances(exchanges: int, first: int, min_gap: int, max_gap: int) -> dict[int, float]:
    """How likely each point is a slice point of `get_slice_points`, over all ids. Exact: the gaps
    are drawn evenly, and whether a point is reached depends only on the points before it."""
    if exchanges < first:
        return {}
    chances = dict.fromkeys(range(first, exchanges), 0.0)
    chances[first] = 1.0
    for point in range(first, exchanges):
        for gap in range(min_gap, max_gap + 1):
            if point + gap < exchanges:
                chances[point + gap] += chances[point] / (max_gap - min_gap + 1)
    return {point: c for point, c in chances.items() if c and point < exchanges} | {exchanges: 1.0}


def expected_slices(exchanges: int, slicing: Slicing) -> float:
    """Slices of one transcript, averaged over all ids."""
    return math.fsum(example.chance for example in slices_of(exchanges, slicing))


def slices_of(exchanges: int, slicing: Slicing) -> list[Example]:
    """Every slice that a transcript of this length may give."""
    chances = slice_chances(exchanges, slicing.first, slicing.min_gap, slicing.max_gap)
    if slicing.supervise == "all":
        return [Example(point, chance, chance * point) for point, chance in chances.items()]
    if slicing.supervise == "last":
        return [Example(point, chance, chance) for point, chance in chances.items()]
    gaps = range(slicing.min_gap, slicing.max_gap + 1)
    learned = dict.fromkeys(chances, 0.0)
    if chances:
        learned[slicing.first] = float(slicing.first)
    for point, chance in chances.items():
        for gap in gaps if point < exchanges else ():
            reached = min(point + gap, exchanges)
            learned[reached] += chance / len(gaps) * (reached - point)
    return [Example(point, chance, learned[point]) for point, chance in chances.items()]


def examples_of(exchanges: int, slicing: Slicing, fits: int) -> list[Example]:
    """What a transcript becomes: one whole conversation, or slices. `auto`: whole where it fits."""
    if slicing.mode == "slices" or (slicing.mode == "auto" and exchanges > fits):
        return slices_of(exchanges, slicing)
    return [Example(exchanges, 1.0, 1.0 if slicing.supervise == "last" else float(exchanges))]


@dataclass(frozen=True)
class Room:
    """How tokens add up to a training example. The format's own marks count as text here."""

    system: int  # tokens of system-prompt.md
    exchange: int  # limits.tokens_per_exchange, both messages
    reply: float  # the assistant's part of it
    limit: int  # limits.max_tokens

    @property
    def fits(self) -> int:
        """The most exchanges that fit under the limit."""
        return max(0, (self.limit - self.system) // self.exchange)

    def tokens(self, exchanges: float) -> float:
        return self.system + exchanges * self.exchange


def room_of(project: ProjectSettings, system: int) -> Room:
    """Splits an exchange by `reply_ratio_good`: words of reply per word of user, taken as upper
    bound of what good data has, and as the same for tokens as for words."""
    exchange, ratio = project.limits.tokens_per_exchange, project.thresholds.reply_ratio_good
    return Room(system, exchange, exchange * ratio / (1 + ratio), project.limits.max_tokens)


@dataclass(frozen=True)
class Yield:
    """What one passing transcript gives, averaged over length classes and ids."""

    examples: float = 0.0  # kept
    over: float = 0.0  # over the limit: left out, or cut when slicing.over_limit is truncate
    made: float = 0.0
    tokens: float = 0.0  # of the kept examples: what training computes in one epoch
    learned: float = 0.0  # tokens of the replies that carry loss
    longest: float = 0.0  # tokens of the longest kept example

    @property
    def over_share(self) -> float:
        return self.over / self.made if self.made else 0.0


def yield_of(lengths: Iterable[LengthClass], slicing: Slicing, room: Room) -> Yield:
    """Exact for the planned lengths; real conversations that end early give less."""
    kept, over, made, tokens, learned, longest = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    for length in (each for each in lengths if each.weight):
        for example in examples_of(length.exchanges, slicing, room.fits):
            chance, size = length.weight * example.chance, room.tokens(example.exchanges)
            made, over = made + chance, over + chance * (size > room.limit)
            if size > room.limit and slicing.over_limit == "skip":
                continue
            most = room.fits * example.chance if size > room.limit else example.learned
            kept, tokens = kept + chance, tokens + chance * min(size, room.limit)
            learned += length.weight * min(example.learned, most) * room.reply
            longest = max(longest, min(size, room.limit))
    return Yield(kept, over, made, tokens, learned, longest)


# ══ 4 Calls and tokens ════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Work:
    """The calls of one role in one stage. `cached`: what a provider could read from its cache."""

    role: str
    spec: ModelSpec | None  # None: not decided
    calls: float
    sent: float
    received: float
    cached: float
    lower: tuple[str, ...] = ()  # why `received` is only a lower bound

    @property
    def model(self) -> str:
        return self.spec.model if self.spec else "not decided"


Roles = list[tuple[str, ModelSpec | None]]


@dataclass(frozen=True)
class Talk:
    """Averages over the length classes that decide how prompts grow: each call of user and
    assistant sends the whole conversation so far, so that tokens grow with the square of length."""

    exchanges: float
    before: float  # exchanges sent again by all calls of one conversation: n (n - 1) / 2
    later: float  # calls that have a call before them: n - 1
    cached_before: float  # of `before`, what the call before them has already sent

    @classmethod
    def over(cls, lengths: Sequence[LengthClass]) -> Talk:
        def mean(of: Callable[[int], float]) -> float:
            return math.fsum(each.weight * of(each.exchanges) for each in lengths)

        return cls(
            mean(lambda n: n),
            mean(lambda n: n * (n - 1) / 2),
            mean(lambda n: n - 1),
            mean(lambda n: (n - 1) * (n - 2) / 2),
        )


@dataclass(frozen=True)
class Costing:
    """Turns a number of conversations into calls and tokens, for each role."""

    talk: Talk
    room: Room
    sizes: Mapping[str, Size]
    assumed: Assumed

    def size(self, *names: str) -> int:
        return sum(self.sizes[name].tokens for name in names)

    @property
    def user(self) -> float:
        return self.room.exchange - self.room.reply

    def user_sim(self, spec: ModelSpec | None, conversations: float) -> Work:
        """Its prompt and persona come first, the advice for this one message last."""
        fixed, turn = self.size("user_sim", "persona"), self.size("user_sim_turn")
        retries = 1 + self.assumed.retry_share
        about = (fixed, turn, 0.0, self.user)
        return self._talking("user_sim", spec, conversations * retries, *about)

    def replies(self, role: str, spec: ModelSpec | None, conversations: float) -> Work:
        """A tested model answers once; only the assistant's replies are asked again for length."""
        own = role == "assistant"
        fixed = self.size("assistant" if own else "system_prompt")
        again = 1 + self.assumed.retry_share if own else 1.0
        about = (fixed, self.user, self.user, self.room.reply)
        return self._talking(role, spec, conversations * again, *about)

    def _talking(
        self, role: str, spec: ModelSpec | None, times: float, fixed: int, extra: float,
        cached_extra: float, said: float
    ) -> Work:  # fmt: skip
        talk, exchange = self.talk, self.room.exchange
        sent = talk.exchanges * (fixed + extra) + talk.before * exchange
        cached = talk.later * (fixed + cached_extra) + talk.cached_before * exchange
        return self._work(role, spec, times * talk.exchanges, times * sent, said, times * cached)

    def judging(self, judges: Roles, transcripts: float) -> list[Work]:
        """One call of each judge for each transcript: prompt, rubric and the whole conversation."""
        fixed = self.size("assessor", "rubric")
        sent = transcripts * (fixed + self.talk.exchanges * self.room.exchange)
        said = self.size("criteria") * self.assumed.verdict_tokens
        cached = max(0.0, transcripts - 1) * self.size("rubric")
        return [self._work(name, spec, transcripts, sent, said, cached) for name, spec in judges]

    def repairs(self, spec: ModelSpec | None, transcripts: float) -> Work:
        """Each rewritten reply is sent with, on average, half of its conversation before it."""
        calls = transcripts * self.assumed.repaired_replies
        history = self.talk.exchanges / 2 * self.room.exchange
        sent = calls * (self.size("fixup") + history + self.room.exchange + self.user)
        return self._work("fixup", spec, calls, sent, self.room.reply, 0.0)

    def _work(
        self, role: str, spec: ModelSpec | None, calls: float, sent: float, said: float,
        cached: float
    ) -> Work:  # fmt: skip
        thinks = spec.reasoning_tokens if spec else 0
        lower = (f"reasoning tokens of {role}",) if thinks is None else ()
        return Work(role, spec, calls, sent, calls * (said + (thinks or 0)), cached, lower)


@dataclass(frozen=True)
class Stage:
    """One stage that pays for calls; `unknown`: why its calls cannot be counted."""

    name: str
    budget: float | None
    works: list[Work] = field(default_factory=list)
    unknown: tuple[str, ...] = ()


PAID_STAGES = ("baseline", "generate", "assess", "fixup", "run_evaluation")


def stages_of(
    project: ProjectSettings, costing: Costing, transcripts: float | None, why: str
) -> list[Stage]:
    """Every stage that calls models. Without a number of transcripts (`why`) three are unknown.
    As many transcripts are repaired, and judged again, as thresholds.fixup_share still allows."""
    roles, budgets, assumed = project.roles, project.budgets, costing.assumed
    baseline, pairs = (
        float(assumed.baseline_conversations),
        float(assumed.evaluation_personas * assumed.evaluation_runs),
    )
    judges = _judges("judges", roles.judges)
    tuned = ("tuned", roles.tuned) if roles.tuned else ("base (for tuned)", roles.base)
    testing = _judges("evaluation_judges", roles.evaluation_judges) if (
        roles.evaluation_judges) else judges  # fmt: skip
    works: dict[str, list[Work]] = {
        "baseline": [
            costing.user_sim(roles.user_sim, baseline),
            costing.replies("base", roles.base, baseline),
            *costing.judging(judges, baseline),
        ],
        "run_evaluation": [
            costing.user_sim(roles.user_sim, 2 * pairs),
            costing.replies("base", roles.base, pairs),
            costing.replies(*tuned, pairs),
            *costing.judging(testing, 2 * pairs),
        ],
    }
    if transcripts is not None:
        repaired = transcripts * project.thresholds.fixup_share
        works["generate"] = [
            costing.user_sim(roles.user_sim, transcripts),
            costing.replies("assistant", roles.assistant, transcripts),
        ]
        works["assess"] = costing.judging(judges, transcripts + repaired)
        works["fixup"] = [costing.repairs(roles.fixup, repaired)]
    return [
        Stage(name, getattr(budgets, name), works.get(name, []), () if name in works else (why,))
        for name in PAID_STAGES
    ]


def _judges(name: str, specs: Sequence[ModelSpec]) -> Roles:
    return [(f"{name}[{n}]", spec) for n, spec in enumerate(specs)] or [(name, None)]


# ══ 5 Dollars ═════════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Quote:
    """Dollars per million tokens of one model, with source and date; or why there are none."""

    input: float = 0.0
    output: float = 0.0
    cached_input: float | None = None
    source: str = ""
    checked: str = ""
    free: bool = False
    problem: str = ""


def quote_of(spec: ModelSpec | None, table_date: str = "") -> Quote:
    """The price from project.yaml; 0 on this machine; else from genai-prices, whose figures count
    only with `table_date`: the package does not say when they were checked."""
    if spec is None:
        return Quote(problem="not decided")
    if runs_here(spec):
        return Quote(free=True, source="runs on this machine")
    if spec.price is not None:
        price = spec.price
        about = (price.cached_input, price.source, price.checked)
        return Quote(price.input, price.output, *about)
    return _table_quote(spec, table_date) if table_date else Quote(problem="no price")


def runs_here(spec: ModelSpec) -> bool:
    """As the kernel decides: a model in this process, or a server on this machine without a price
    of its own. What its electricity and its hardware cost is not counted."""
    if spec.kind in ("llamacpp", "python"):
        return True
    address = spec.base_url or PRESETS.get(spec.preset, ("", ""))[0]
    return spec.price is None and bool(address) and is_loopback(address)


def _table_quote(spec: ModelSpec, day: str) -> Quote:
    """What genai-prices asks for a call of 10,000 tokens; longer prompts may cost more there."""
    name = spec.model.partition(":")[2]
    sent, received = cost_of(Usage(10_000, 0), name, None), cost_of(Usage(0, 10_000), name, None)
    if sent is None or received is None:
        return Quote(problem="no price, and genai-prices does not know the model")
    source = f"genai-prices {importlib.metadata.version('genai-prices')}"
    return Quote(sent * 100, received * 100, None, source, day)


def cost(work: Work, quote: Quote, cache: bool = False) -> Amount:
    """Dollars of one role. With `cache`: everything that can be read from the cache is."""
    if quote.problem:
        return Amount(unknown=(f"price of {work.role}: {quote.problem}",))
    if quote.free:
        return Amount()
    rate = quote.cached_input if cache and quote.cached_input is not None else quote.input
    sent = (work.sent - work.cached) * quote.input + work.cached * rate
    return Amount((sent + work.received * quote.output) / 1e6, lower=work.lower)


@dataclass(frozen=True)
class Bill:
    """A stage with the price of each of its roles."""

    stage: Stage
    quotes: list[Quote]

    @property
    def amounts(self) -> list[Amount]:
        return [cost(*pair) for pair in zip(self.stage.works, self.quotes, strict=True)]

    @property
    def dollars(self) -> Amount:
        return total(self.amounts) + Amount(unknown=self.stage.unknown)

    @property
    def with_cache(self) -> Amount | None:
        """At best; None where no price says what cached tokens cost."""
        if all(quote.cached_input is None for quote in self.quotes):
            return None
        pairs = zip(self.stage.works, self.quotes, strict=True)
        return total(cost(*pair, cache=True) for pair in pairs)

    @property
    def over_budget(self) -> bool:
        """Over for sure: also when only a part of it is known."""
        return self.stage.budget is not None and self.dollars.known > self.stage.budget


# ══ 6 Training and serving ════════════════════════════════════════════════════════════════════════
#
# Fitted on fake tensors with torch 2.13, TRL 1.16 and PEFT 0.21: dense models of the Llama and
# Qwen3 form, adapters on all linear layers, bf16 autocast, sdpa attention, dropout 0. No GPU
# measured any of it. Mixtures of experts, sliding windows and vision towers are not covered.

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes per weight with its scales, double quantisation
Head = Literal["none", "full", "fused"]
MARGIN, MARGIN_BYTES = 1.1, 1e9
NOT_DENSE = 0.10  # the sizes give a count this far from the stated one: not a plain dense model


def linear_weights(a: Architecture) -> int:
    """Weights that get an adapter. Equal to PEFT's count at 0.6, 4 and 8 billion parameters."""
    return a.layers * sum(i * o for i, o in _matrices(a))


def other_weights(a: Architecture, vocabulary: int) -> int:
    """Embeddings, head and norms. Equal to PEFT's count at 0.6, 4 and 8 billion parameters."""
    norms = a.layers * (2 * a.hidden + 2 * a.head_dim * a.qk_norm) + a.hidden
    return vocabulary * a.hidden * (1 if a.tied_embeddings else 2) + norms


def adapter_weights(a: Architecture, rank: int) -> int:
    """LoRA on all linear layers: rank times in + out of each matrix. Equal to PEFT's count."""
    return a.layers * rank * sum(i + o for i, o in _matrices(a))


def _matrices(a: Architecture) -> list[tuple[int, int]]:
    """In and out of the seven matrices of one layer."""
    q, kv, h = a.heads * a.head_dim, a.kv_heads * a.head_dim, a.hidden
    up = (h, a.intermediate)
    return [(h, q), (h, kv), (h, kv), (q, h), up, up, up[::-1]]


def layer_activations(a: Architecture, tokens: float, rank: int) -> float:
    """Bytes that one layer keeps for its gradients. Fitted exactly on fake tensors."""
    q, kv = a.heads * a.head_dim, a.kv_heads * a.head_dim
    attention = 14 * q + 4 * kv if a.qk_norm else 10 * q
    return tokens * (18 * a.hidden + 8 * a.intermediate + attention + 46 * rank)


def head_bytes(
    a: Architecture, vocabulary: int, tokens: float, learned: float, head: Head
) -> float:
    """The loss at work. `full`: logits of every token (measured). `fused`: TRL's own head on CUDA,
    of supervised tokens only (read in its source, not measured)."""
    if head == "full":
        return 12 * vocabulary * tokens
    return min(learned, 4096) * 32768 * 2 + learned * a.hidden * 10 if head == "fused" else 0.0


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of one training step on one device, and what they are made of."""

    parts: dict[str, float]
    peak: float

    @property
    def wanted(self) -> float:
        """With a margin for what no formula sees: CUDA's context, fragments, workspaces."""
        return self.peak * MARGIN + MARGIN_BYTES


def training_memory(
    a: Architecture, vocabulary: int, training: Training, tokens: float, learned: float,
    head: Head = "fused"
) -> Memory | None:  # fmt: skip
    """LoRA and QLoRA; None for full tuning, which nothing here was fitted on. `tokens`: batch times
    padded length. Largest error 4.6 % against one LoRA step on fake tensors at 0.6, 4 and 8 billion
    parameters, ranks 16 and 64, with and without checkpointing, three heads, at 1,024 and 2,048
    tokens; beyond these it is extrapolated, as every term grows with tokens in proportion."""
    if training.method == "full":
        return None
    quantised, rank = training.method == "qlora", training.rank
    adapter = adapter_weights(a, rank) * (2 if quantised else 4)  # TRL: bf16 on 4 bits, else fp32
    layer = layer_activations(a, tokens, rank)
    kept = 2 * a.hidden * tokens if training.checkpointing else layer
    parts = {
        "weights": linear_weights(a) * (NF4 if quantised else 2) + other_weights(a, vocabulary) * 2,
        "adapter": float(adapter),
        "optimizer": 2.0 * adapter,
        "kept activations": a.layers * kept,
        "loss": head_bytes(a, vocabulary, tokens, learned, head),
        "gradients": float(adapter),
        "one layer at work": (1.3 if training.checkpointing else 0.3) * layer,
    }
    always = sum(list(parts.values())[:4])
    backward = parts["gradients"] + parts["one layer at work"]
    return Memory(parts, always + max(parts["loss"], backward))


def flops_per_token(a: Architecture, vocabulary: int, length: float, checkpointing: bool) -> float:
    """LoRA: three forward passes with checkpointing (about 6 per weight), two without (about 4).
    Attention counts all positions before, as is usual where utilisation is given. About right:
    what the adapters add, and what 4-bit weights cost to unpack, is left to the utilisation."""
    weights = linear_weights(a) + vocabulary * a.hidden
    forward = 2 * weights + 4 * a.layers * a.heads * a.head_dim * length
    return forward * (3 if checkpointing else 2)


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: its memory and its peak, both as its maker states them."""

    kind: str
    gigabytes: int
    peak: float  # operations a second in bf16, on the T4 in fp16; the figures that TRL uses


GPUS = (
    Gpu("T4", 16, 65e12),
    Gpu("L4", 24, 121e12),
    Gpu("A10G", 24, 125e12),
    Gpu("A100-40", 40, 312e12),
    Gpu("L40S", 48, 362e12),
    Gpu("A100-80", 80, 312e12),
    Gpu("H100", 80, 989e12),
    Gpu("RTX-PRO-6000", 96, 500e12),
    Gpu("H200", 141, 989e12),
)
UTILISATION = (0.15, 0.45)  # share of the peak that is reached; unknown until 20 steps are measured


def hours_on(gpu: Gpu, operations: float) -> tuple[float, float]:
    """Fewest and most hours on one GPU, without its start-up. A range, because the utilisation is
    not known before it is measured."""
    low, high = UTILISATION
    return operations / (gpu.peak * high) / 3600, operations / (gpu.peak * low) / 3600


@dataclass(frozen=True)
class GpuRow:
    """What one kind of GPU would need. None: unknown, because the memory or the time is."""

    gpu: Gpu
    fits: bool | None
    hours: tuple[float, float] | None
    dollars: tuple[float, float] | None
    price: float | None = None
    said: str = ""  # day on which the person gave the price


# Bytes per weight of a whole file, about. Read in llama.cpp's documents, not measured here.
FILE_BYTES = {"F16": 2.0, "BF16": 2.0, "Q8_0": 1.06, "Q4_K_M": 0.6}


def file_bytes(weights: float, quantisation: str) -> float | None:
    """Size of the GGUF file; None for a quantisation whose figure is not known here."""
    each = FILE_BYTES.get(quantisation.strip().upper())
    return None if each is None else weights * each


def cache_bytes(a: Architecture, context: int) -> float:
    """The key and value cache of one conversation at full context, 16 bits. Without the buffers."""
    return 2.0 * a.layers * a.kv_heads * a.head_dim * context * 2


@dataclass(frozen=True)
class TrainingPlan:
    """What one training run computes. None: unknown, and `unknown` says why."""

    method: str
    examples: int | None = None
    steps: int | None = None
    tokens: float | None = None  # of one epoch
    learned: float | None = None  # of them, those that carry loss
    step_tokens: float = 0.0  # batch times the longest example
    memory: Memory | None = None
    gpus: list[GpuRow] = field(default_factory=list)
    file: float | None = None
    cache: float | None = None
    unknown: tuple[str, ...] = ()


def training_plan(
    choice: ModelChoice, project: ProjectSettings, per: Yield, target: int | None,
    gpu_prices: Mapping[str, tuple[float, str]]
) -> TrainingPlan:  # fmt: skip
    """Steps, tokens, memory, hours and file sizes of the model in design/model-choice.md."""
    training, a = choice.training, _dense(choice)
    unknown = [] if a else [_why_not_dense(choice)]
    mean = per.tokens / per.examples if per.examples else 0.0
    examples = round(target * project.slicing.train_share) if target and per.examples else None
    unknown += [] if examples else ["number of examples"]
    tokens = examples * mean if examples else None
    batch = training.batch * per.longest
    memory = _memory(choice, a, per, batch)
    if a and training.method == "full":
        unknown.append("memory and hours of full tuning: the formulas hold for LoRA and QLoRA")
    operations = None
    if a and tokens and training.method != "full":
        each = flops_per_token(a, choice.base.vocabulary, mean, training.checkpointing)
        operations = each * tokens * training.epochs
    weights = choice.base.parameters * 1e9
    if file_bytes(weights, choice.quantisation) is None:
        unknown.append(f"size of a file in {choice.quantisation}")
    return TrainingPlan(
        training.method,
        examples,
        steps(examples, training) if examples else None,
        tokens,
        examples * per.learned / per.examples if examples else None,
        batch,
        memory,
        [_gpu_row(gpu, memory, operations, gpu_prices) for gpu in GPUS],
        file_bytes(weights, choice.quantisation),
        cache_bytes(a, project.target.context_window) if a else None,
        tuple(unknown),
    )


def steps(examples: int, training: Training) -> int:
    """Optimizer steps of the whole run."""
    return math.ceil(examples / (training.batch * training.accumulation)) * training.epochs


def _memory(choice: ModelChoice, a: Architecture | None, per: Yield, batch: float) -> Memory | None:
    """At the longest kept example; all of its replies may carry loss, so all tokens count."""
    if a is None or not per.longest:
        return None
    return training_memory(a, choice.base.vocabulary, choice.training, batch, batch)


def _dense(choice: ModelChoice) -> Architecture | None:
    """The architecture, if it gives the number of parameters that the model's page states."""
    a = choice.architecture
    if a is None:
        return None
    count = linear_weights(a) + other_weights(a, choice.base.vocabulary)
    return a if abs(count / (choice.base.parameters * 1e9) - 1) <= NOT_DENSE else None


def _why_not_dense(choice: ModelChoice) -> str:
    a = choice.architecture
    if a is None:
        return "memory and hours: design/model-choice.md has no architecture"
    count = (linear_weights(a) + other_weights(a, choice.base.vocabulary)) / 1e9
    said = f"architecture gives {count:.1f} billion parameters, base.parameters says"
    return f"memory and hours: {said} {choice.base.parameters:g}; only plain dense models are known"


def _gpu_row(
    gpu: Gpu,
    memory: Memory | None,
    operations: float | None,
    prices: Mapping[str, tuple[float, str]],
) -> GpuRow:
    fits = None if memory is None else memory.wanted <= gpu.gigabytes * 1e9
    hours = None if operations is None else hours_on(gpu, operations)
    if gpu.kind not in prices:
        return GpuRow(gpu, fits, hours, None)
    price, day = prices[gpu.kind]
    dollars = None if hours is None else (hours[0] * price, hours[1] * price)
    return GpuRow(gpu, fits, hours, dollars, price, day)


# ══ 7 The whole ═══════════════════════════════════════════════════════════════════════════════════


@dataclass(frozen=True)
class Plan:
    """From the examples that are wanted back to the personas that are needed."""

    examples: int
    per_transcript: float
    pass_rate: float
    passing: int
    transcripts: int  # each with a persona of its own
    exchanges: int


@dataclass(frozen=True)
class Comparison:
    """One way of making examples from the same passing transcripts."""

    mode: str
    transcripts: int
    examples: float
    over_share: float
    tokens: float
    learned: float

    @property
    def ratio(self) -> float | None:
        """Tokens computed for each token that is learned."""
        return self.tokens / self.learned if self.learned else None


@dataclass(frozen=True)
class Estimate:
    """Everything at once, with the inputs that it rests on."""

    room: Room
    longest: int
    longest_class: str
    longest_prompt: float  # that any role is sent
    per: Yield
    plan: Plan | None
    bills: list[Bill]
    comparison: list[Comparison]
    training: TrainingPlan | None
    inputs: list[Input]
    unknown: tuple[str, ...]

    @property
    def total(self) -> Amount:
        """Dollars of all stages that call models; renting a GPU is not in it."""
        return total(bill.dollars for bill in self.bills)


def estimate(
    project: ProjectSettings,
    personas: PersonaFile,
    sizes: Mapping[str, Size],
    choice: ModelChoice | None = None,
    assumed: Assumed | None = None,
    examples: int | None = None,
    table_date: str = "",
    gpu_prices: Mapping[str, tuple[float, str]] | None = None,
) -> Estimate:
    """What all stages need. `examples` stands in for slicing.target_examples; `gpu_prices`: kind of
    GPU to dollars per hour and the day on which somebody said so."""
    assumed, target = assumed or Assumed(), examples or project.slicing.target_examples
    classes = {name: each for name, each in personas.length_classes.items() if each.weight}
    lengths = list(classes.values())
    room = room_of(project, sizes["system_prompt"].tokens)
    per = yield_of(lengths, project.slicing, room)
    plan, why = plan_of(target, per, lengths, assumed)
    costing = Costing(Talk.over(lengths), room, sizes, assumed)
    stages = stages_of(project, costing, plan.transcripts if plan else None, why)
    bills = [Bill(s, [quote_of(work.spec, table_date) for work in s.works]) for s in stages]
    passing = plan.passing if plan else 100
    longest = max(classes, key=lambda name: classes[name].exchanges)
    trained = None
    if choice is not None:
        trained = training_plan(choice, project, per, target, gpu_prices or {})
    return Estimate(
        room,
        classes[longest].exchanges,
        longest,
        longest_prompt(costing, classes[longest].exchanges),
        per,
        plan,
        bills,
        [compare(mode, lengths, project.slicing, room, passing) for mode in ("slices", "whole")],
        trained,
        inputs_of(project, personas, sizes, assumed, examples),
        (why,) if why else (),
    )


def plan_of(
    target: int | None, per: Yield, lengths: Sequence[LengthClass], assumed: Assumed
) -> tuple[Plan | None, str]:
    """The plan, or why there is none. What repairs save is not counted on."""
    if target is None:
        return None, "slicing.target_examples is not decided"
    if not per.examples:
        return None, "no length class gives an example that fits"
    passing = math.ceil(_tidy(target / per.examples))
    transcripts = math.ceil(_tidy(target / per.examples / assumed.pass_rate))
    mean = math.fsum(each.weight * each.exchanges for each in lengths)
    exchanges = math.ceil(_tidy(transcripts * mean))
    about = (per.examples, assumed.pass_rate, passing, transcripts, exchanges)
    return Plan(target, *about), ""


def _tidy(number: float) -> float:
    """Without the last digits, so that 70.00000000000001 is not rounded up to 71."""
    return round(number, 9)


def longest_prompt(costing: Costing, exchanges: int) -> float:
    """Tokens of the longest conversation in the hands of the role with the longest prompt."""
    size = costing.size
    fixed = max(
        size("user_sim", "persona", "user_sim_turn"),
        size("assistant"),
        size("system_prompt"),
        size("assessor", "rubric"),
    )
    return fixed + exchanges * costing.room.exchange


def compare(
    mode: Literal["slices", "whole"],
    lengths: Iterable[LengthClass],
    slicing: Slicing,
    room: Room,
    transcripts: int,
) -> Comparison:
    """What a number of passing transcripts gives when all of them are cut in one way."""
    per = yield_of(lengths, slicing.model_copy(update={"mode": mode}), room)
    times = (per.examples * transcripts, per.over_share, per.tokens * transcripts)
    return Comparison(mode, transcripts, *times, per.learned * transcripts)


KEYS = {  # of project.yaml, that an estimate rests on besides roles and budgets
    "limits": ("max_tokens", "tokens_per_exchange"),
    "slicing": ("mode", "first", "min_gap", "max_gap", "supervise", "over_limit", "train_share"),
    "thresholds": ("reply_ratio_good", "fixup_share"),
}


def inputs_of(
    project: ProjectSettings,
    personas: PersonaFile,
    sizes: Mapping[str, Size],
    assumed: Assumed,
    examples: int | None,
) -> list[Input]:
    """Every number that went in, with its source."""
    where, said, target = "config/project.yaml", "command line", project.slicing.target_examples
    shown = (examples, said) if examples else (target or "not decided", where)
    found = [Input("slicing.target_examples", *shown)]
    for part, keys in KEYS.items():
        section = getattr(project, part)
        found += [Input(f"{part}.{key}", getattr(section, key), where) for key in keys]
    for name, length in personas.length_classes.items():
        told = f"{length.exchanges} exchanges, share {length.weight:g}"
        found.append(Input(f"length_classes.{name}", told, "config/persona-template.yaml"))
    for each in fields(assumed):
        value = getattr(assumed, each.name)
        found.append(Input(each.name, value, "start value" if value == each.default else said))
    for name, size in sizes.items():
        unit = "number of criteria" if name == "criteria" else f"tokens of {name}"
        found.append(Input(unit, size.tokens, size.source))
    return found
