"""Every file of `config/` and `design/` as a checked record, and `.env`. Works alone when copied.

    from settings import SettingsError, backend_arguments, load_project, read_env

    try:
        read_env(root)
        project = load_project(root)
    except SettingsError as error:  # one line per mistake, each with its file and line
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    spec, options = backend_arguments(project.roles.assistant)
    backend = get_backend(spec, **options, root=root, journal=journal)

Chapters: 1 loading, 2 project, 3 taxonomy, 4 personas, 5 rubric, 6 dataset and artefacts, 7 design
files and prompts, 8 mistakes in words, 9 YAML, 10 .env. Needs pydantic and pyyaml.
Importing it opens nothing. Defaults are start values; the starter files name them again so that
they are seen and changed.
"""

import difflib
import functools
import math
import os
import re
import stat
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)
from urllib.parse import urlsplit

try:
    from pydantic import (
        AfterValidator,
        BaseModel,
        ConfigDict,
        Field,
        ValidationError,
        ValidationInfo,
        create_model,
        field_validator,
    )
    from pydantic_core import ErrorDetails, PydanticCustomError
except ModuleNotFoundError as missing:  # the first package that any stage asks for
    said = f"{sys.executable} has no package {missing.name}. In the project: "
    said += "python3 -m venv .venv && .venv/bin/pip install '.[local]', then "
    print(f"{said}.venv/bin/python scripts/...", file=sys.stderr)
    sys.exit(2)

MAX_BYTES = 1_000_000  # of one configuration file
MAX_VALUES = 20_000  # in one file; a large rubric has about 2,000
MAX_DEPTH = 30
MAX_FINDINGS = 100  # shown for one file

# The kernel's own words, written here again because this module imports nothing of ours; a test
# compares them. `preset` stands for an address, so it belongs to the kind `local` only.
KINDS = ("anthropic", "claude", "google", "llamacpp", "local", "openai", "python")
PRESETS = ("llama", "llama-server", "lmstudio", "mistral", "mlx", "ollama", "vllm")
# What the kernel's compute_length_stats knows about a conversation.
STATISTICS: tuple[str, ...] = (
    "assistant_words",
    "exchanges",
    "mean_ratio",
    "median_ratio",
    "over_2",
)
STATISTICS += ("ratios", "user_words")
ALIASES = {
    "gemini": "google", "gpt": "openai", "gguf": "llamacpp", "ollama": "local", "vllm": "local"
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One mistake: where it is, what it is, what to do. Line 0 means the file as a whole."""

    file: str
    line: int
    where: str
    message: str

    def __str__(self) -> str:
        line = f":{self.line}" if self.line else ""
        return f"{self.file}{line}{' ' if self.where else ''}{self.where}: {self.message}"


class SettingsError(Exception):
    """Every mistake of a file, one line each. Show `str(error)`, exit with `exit_code`; no
    traceback."""

    exit_code = 2

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings = list(findings)
        super().__init__("\n".join(map(str, self.findings)))


# ══ 1 Loading ═════════════════════════════════════════════════════════════════════════════════════


def load_project(root: str | Path) -> "ProjectSettings":
    """`config/project.yaml`, whole and valid; SettingsError names every mistake."""
    return _load(root, "project.yaml", ProjectSettings)


def load_taxonomy(root: str | Path) -> "Taxonomy":
    """`config/input-taxonomy.yaml`, whole and valid."""
    return _load(root, "input-taxonomy.yaml", Taxonomy)


def load_persona_template(root: str | Path) -> "PersonaFile":
    """`config/persona-template.yaml`, whole and valid."""
    return _load(root, "persona-template.yaml", PersonaFile)


def load_dataset(root: str | Path) -> "DatasetSettings":
    """`config/dataset.yaml`, whole and valid."""
    return _load(root, "dataset.yaml", DatasetSettings)


def load_artefacts(root: str | Path) -> "Artefacts":
    """`config/artefacts.yaml`, whole and valid."""
    return _load(root, "artefacts.yaml", Artefacts)


def load_model_choice(root: str | Path) -> "ModelChoice":
    """The front block of `design/model-choice.md`, whole and valid."""
    return _read(Path(root) / "design/model-choice.md", "design/model-choice.md", ModelChoice)


def load_critique(root: str | Path, section: str) -> "Critique | None":
    """One section of `design/critique.md`; None while it is null. Mistakes in the other sections
    are left to those who read them."""
    shown = "design/critique.md"
    found: Critique | None = getattr(_read(Path(root) / shown, shown, _only(section)), section)
    return found


def check_file(path: str | Path, shown: str = "") -> list[Finding]:
    """Every mistake in one file of `config/` or `design/`, called `shown`; raises nothing."""
    path, known = Path(path), SCHEMAS | FRONT_BLOCKS
    if path.name not in known:
        said = f"is no configuration file. Have: {', '.join(known)}."
        return [Finding(shown or str(path), 0, "", said)]
    try:
        _read(path, shown or str(path), known[path.name])
    except SettingsError as error:
        return error.findings
    return []


def backend_arguments(role: "ModelSpec") -> tuple[str, dict[str, Any]]:
    """What the kernel's `get_backend` takes for a role: its spec, and the options that are set."""
    options = {name: getattr(role, name) for name in OPTIONS}
    if role.price is not None:
        price = role.price.model_dump(include={"input", "output", "cached_input"})
        options["price"] = {name: value for name, value in price.items() if value is not None}
    return role.model, {name: value for name, value in options.items() if value not in ("", None)}


OPTIONS: tuple[str, ...] = (
    "base_url",
    "preset",
    "label",
    "key_variable",
    "parameters",
    "max_tokens",
)
OPTIONS += ("concurrency", "timeout", "n_ctx")

S = TypeVar("S", bound="Section")
Place = tuple[str | int, ...]  # the keys and numbers that lead to a value
Mistake = tuple[Place, str]
Lines = dict[Place, int]


def _load(root: str | Path, name: str, schema: type[S]) -> S:
    return _read(Path(root) / "config" / name, f"config/{name}", schema)


def _read(path: Path, shown: str, schema: type[S]) -> S:
    """One file as its record, or all of its mistakes at once."""
    text = _text_of(path, shown, MAX_BYTES)
    text = _front_block(text, shown) if path.suffix == ".md" else text
    data, lines, findings = _yaml(text, shown)
    value: S | None = None
    try:
        value = schema.model_validate({} if data is None else data)
    except ValidationError as error:
        details = _without_echo(error.errors(include_url=False), schema)
        findings += [one for each in details for one in _findings_of(each, schema, shown, lines)]
    if findings or value is None:
        raise SettingsError(_at_most(sorted(findings, key=lambda finding: finding.line)))
    return value


def _front_block(text: str, shown: str) -> str:
    """The YAML between the first line and the next line of three dashes."""
    block, dashes, _ = text.partition("\n---")
    if not text.startswith("---") or not dashes:
        said = "has no front block. Begin the file with a line ---, then YAML, then a line ---."
        raise _stop(shown, 1, said)
    return block


def _at_most(findings: list[Finding]) -> list[Finding]:
    more = len(findings) - MAX_FINDINGS
    if more <= 0:
        return findings
    last = Finding(findings[0].file, 0, "", f"{more} more mistakes. Mend those above first.")
    return [*findings[:MAX_FINDINGS], last]


# ── building blocks of the schemas ────────────────────────────────────────────────────────────────


class Section(BaseModel):
    """A mapping with known keys only, of exactly the written types."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        allow_inf_nan=False,
        validate_default=True,  # a default has to fit what the file says beside it
        defer_build=True,  # importing this module builds no validator
        hide_input_in_errors=True,  # a key pasted into the wrong place stays out of tracebacks
    )
    rising: ClassVar[dict[str, tuple[str, ...]]] = {}  # field: fields above it that are not larger

    @field_validator("*")
    @classmethod
    def _in_order(cls, value: Any, info: ValidationInfo) -> Any:
        names = cls.rising.get(info.field_name or "", ())
        below = [name for name in names if name in info.data and value < info.data[name]]
        said = "{:g} is below {} ({:g}). It must be at least that."
        _refuse(((), said.format(value, name, info.data[name])) for name in below)
        return value


class File(Section):
    """What every file but the rubric begins with."""

    schema_number: Literal[1] = Field(alias="schema", description="version of this file's form: 1")


def _wrong(*mistakes: Mistake) -> PydanticCustomError:
    """Mistakes of one value, each with its place inside that value."""
    return PydanticCustomError("settings", "several mistakes", {"mistakes": mistakes})


def _refuse(mistakes: Iterable[Mistake]) -> None:
    found = list(mistakes)
    if found:
        raise _wrong(*found)


def _off_one(weights: Iterable[float]) -> Iterator[Mistake]:
    total = math.fsum(weights)
    if abs(total - 1) > 1e-6:
        yield (), f"the weights sum to {total:.6g}, not to 1. Change them so that they do."


def _sums_to_one(weights: dict[str, float]) -> dict[str, float]:
    _refuse(_off_one(weights.values()))
    return weights


def _weighted(entries: dict[str, Any]) -> dict[str, Any]:
    _refuse(_off_one(entry.weight for entry in entries.values()))
    return entries


def _twice(names: Iterable[str], *at: str) -> Iterator[Mistake]:
    seen: set[str] = set()
    for number, name in enumerate(names):
        if name in seen:
            yield (number, *at), f"{_shown(name)} stands twice. Give each its own name."
        seen.add(name)


def _named(
    names: Iterable[str], known: Iterable[str], what: str, at: Place = ()
) -> Iterator[Mistake]:
    """A mistake for each name that nothing above declares."""
    have = list(known)
    for name in names:
        if name not in have:
            yield (*at, name), unknown(what, name, have)


def _below(folder: str) -> AfterValidator:
    """A path inside of the project; what lies elsewhere is copied into `folder`."""

    def check(path: str) -> str:
        if path.startswith(("/", "~")) or ".." in re.split(r"[/\\]", path):
            said = f"{_shown(path)} is not below the project. Copy it into {folder}."
            raise _wrong(((), said))
        return path

    return AfterValidator(check)


def _day(text: str) -> str:
    try:
        ok = bool(date.fromisoformat(text)) and len(text) == 10
    except ValueError:
        ok = False
    if not ok:
        raise _wrong(((), f"{_shown(text)} is not a date. Write it as 2026-01-31."))
    return text


def _matching(pattern: str, what: str, echo: bool = True) -> AfterValidator:
    """Text of one form; `echo=False` where somebody may have pasted a secret."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            said = _shown(text) if echo else "this text"
            raise _wrong(((), f"{said} is not {what}"))
        return text

    return AfterValidator(check)


Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Dollars = Annotated[float, Field(ge=0)]
Day = Annotated[str, AfterValidator(_day)]
Weights = Annotated[dict[str, Share], AfterValidator(_sums_to_one)]
Id = Annotated[
    str, _matching(r"[A-Za-z0-9._-]{1,120}", "an id. Use letters, digits and . _ - only.")
]
Language = Annotated[
    str, _matching(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", 'a language code. Write "en" or "pt-BR".')
]
Variable = Annotated[
    str,
    _matching(
        r"([A-Z][A-Z0-9_]{0,63})?",
        "the name of a variable. Put the key itself into .env and write its name here.",
        echo=False,
    ),
]


# ══ 2 config/project.yaml ═════════════════════════════════════════════════════════════════════════


class Target(Section):
    """Where the finished model has to run."""

    hardware: Text = Field(description="the machine that will run the model, in words")
    offline: bool = Field(description="true when it must work without any network")
    context_window: int = Field(ge=512, description="tokens that the running model can hold")


class Price(Section):
    """Dollars per million tokens, where the price list of the kernel does not know the model."""

    input: Dollars = Field(description="dollars per million tokens sent")
    output: Dollars = Field(description="dollars per million tokens received, reasoning included")
    cached_input: Dollars | None = Field(
        default=None, description="dollars per million tokens read from the provider's cache"
    )
    source: Text = Field(description="page that states the price")
    checked: Day = Field(description="day on which somebody read that page")


class Terms(Section):
    """What the provider says about training with its outputs."""

    source: Text = Field(description="page or contract that states the terms")
    checked: Day = Field(description="day on which a person read them")
    note: Text = Field(description="what that person concluded")


class ModelSpec(Section):
    """One model for one role. A key never stands here: `.env` holds it."""

    model: str = Field(description='which model, as "kind:MODEL"')
    preset: str = Field(default="", description="local only: a server whose address is known")
    base_url: str = Field(default="", description="address of the server, if not the usual one")
    label: str = Field(default="", description="name of the endpoint in journals and reports")
    key_variable: Variable = Field(default="", description="variable that holds the key")
    parameters: dict[str, Any] | None = Field(
        default=None, description="sampling and reasoning settings, sent as they are"
    )
    max_tokens: Count | None = Field(default=None, description="tokens of one reply at most")
    n_ctx: Count | None = Field(default=None, description="llamacpp only: tokens it keeps room for")
    concurrency: Count | None = Field(default=None, description="calls in flight at once")
    timeout: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="seconds for one call, all its tries included"
    )
    reasoning_tokens: int | None = Field(
        default=None, ge=0, description="tokens it thinks per call, measured; for estimates only"
    )
    price: Price | None = Field(default=None, description="price, where it is not known otherwise")
    terms: Terms | None = Field(default=None, description="the provider's terms, for a generator")

    @property
    def kind(self) -> str:
        return self.model.partition(":")[0]

    @field_validator("model")
    @classmethod
    def _is_spec(cls, spec: str) -> str:
        kind, colon, name = spec.partition(":")
        if not colon:
            example = f'"openai:{spec[:40]}"' if spec else '"openai:MODEL"'
            said = f"{_shown(spec)} names no kind. Write kind:MODEL, such as {example}."
            raise _wrong(((), f"{said} Kinds: {', '.join(KINDS)}."))
        if kind not in KINDS:
            raise _wrong(((), unknown("kind of model", kind, KINDS)))
        if not name.strip():
            raise _wrong(((), f"{_shown(spec)} names no model. Write {kind}:MODEL."))
        return spec

    @field_validator("preset")
    @classmethod
    def _is_preset(cls, preset: str, info: ValidationInfo) -> str:
        if preset and preset not in PRESETS:
            raise _wrong(((), unknown("preset", preset, PRESETS)))
        _only_for("local", preset, info)
        return preset

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str, info: ValidationInfo) -> str:
        if not url:
            alone = _kind_of(info) == "local" and info.data.get("preset") == ""
            said = f"is missing. A local model needs it, or a preset: {', '.join(PRESETS)}."
            _refuse([((), said)] if alone else [])
        elif not _is_plain_address(url):
            said = "is not a plain address. Write http://host:port/path without name, key or query."
            raise _wrong(((), said))
        return url

    @field_validator("parameters")
    @classmethod
    def _stay_sampling(cls, given: dict[str, Any] | None) -> dict[str, Any] | None:
        elsewhere = {"model", "messages", "max_tokens", "timeout", "base_url", "api_key"}
        elsewhere |= {"trust_remote_code"}
        said = "does not go into parameters. They hold sampling and reasoning settings only."
        _refuse(((name,), said) for name in given or {} if name in elsewhere)
        return given

    @field_validator("n_ctx")
    @classmethod
    def _is_room(cls, tokens: int | None, info: ValidationInfo) -> int | None:
        _only_for("llamacpp", tokens, info)
        return tokens


def _kind_of(info: ValidationInfo) -> str:
    return str(info.data.get("model", "")).partition(":")[0]


def _only_for(kind: str, value: object, info: ValidationInfo) -> None:
    given = _kind_of(info)
    if value and given and given != kind:
        raise _wrong(((), f'belongs to the kind "{kind}", not to "{given}". Remove the line.'))


def _is_plain_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        bare = not (parts.username or parts.password or parts.query or parts.fragment)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and bare
    except ValueError:
        return False


class Roles(Section):
    """Who does what. A role that is not decided yet is null or left out."""

    user_sim: ModelSpec | None = Field(default=None, description="plays the simulated user")
    assistant: ModelSpec | None = Field(default=None, description="writes the replies to learn")
    judges: list[ModelSpec] = Field(
        default=[], description="answer the rubric about generated transcripts"
    )
    evaluation_judges: list[ModelSpec] = Field(
        default=[], description="answer the rubric about base and tuned, best of another family"
    )
    fixup: ModelSpec | None = Field(default=None, description="rewrites replies that failed softly")
    base: ModelSpec | None = Field(
        default=None, description="the untuned model, with system-prompt.md"
    )
    base_prompted: ModelSpec | None = Field(
        default=None, description="the untuned model, with the long prompt assistant.md"
    )
    tuned: ModelSpec | None = Field(default=None, description="the trained model that ships")

    @field_validator("judges", "evaluation_judges")
    @classmethod
    def _distinct(cls, judges: list[ModelSpec]) -> list[ModelSpec]:
        """Verdicts are filed under a judge's name, so that two of one name would mix."""
        _refuse(_twice((judge.label or judge.model for judge in judges), "label"))
        return judges


class Limits(Section):
    """Sizes that nothing may pass."""

    max_tokens: int = Field(
        default=16_000, ge=256, description="tokens of one training example at most"
    )
    context: int | None = Field(
        default=None, ge=512, description="tokens of the longest prompt that any role is sent"
    )
    min_exchanges: Count = Field(
        default=10, description="a transcript cut shorter than this is rejected"
    )
    tokens_per_exchange: Count = Field(
        default=600, description="tokens of one exchange, both messages, to plan lengths with"
    )


class Budgets(Section):
    """Dollars at most for each stage that pays for something; null means not decided yet."""

    baseline: Dollars | None = Field(default=None, description="dollars for the base model's test")
    generate: Dollars | None = Field(default=None, description="dollars for simulating")
    assess: Dollars | None = Field(default=None, description="dollars for judging")
    fixup: Dollars | None = Field(default=None, description="dollars for repairs")
    build_dataset: Dollars | None = Field(default=None, description="dollars for documents")
    submit_training: Dollars | None = Field(default=None, description="dollars for a rented GPU")
    run_evaluation: Dollars | None = Field(default=None, description="dollars for base and tuned")


class Thresholds(Section):
    """Where a figure turns from fine to not fine. The rubric's own threshold is in rubric.yaml."""

    rising = {
        "baseline_reconsider": ("baseline_strong",),
        "reply_ratio_limit": ("reply_ratio_good",),
        "long_replies_bad": ("long_replies_good",),
        "phrase_vary": ("phrase_watch",),
        "phrase_critical": ("phrase_vary",),
        "suspicious_gain": ("evaluation_gain",),
    }

    baseline_strong: Share = Field(
        default=0.50, description="base passes less than this: a strong case for tuning"
    )
    baseline_reconsider: Share = Field(
        default=0.70, description="base passes more than this: try prompting first"
    )
    reply_ratio_good: Annotated[float, Field(gt=0)] = Field(
        default=1.5, description="mean words of reply per word of user that are good"
    )
    reply_ratio_limit: Annotated[float, Field(gt=0)] = Field(
        default=2.0, description="a reply above this times the user's words is too long"
    )
    reply_floor: Count = Field(
        default=30, description="words that a reply may always have, however short the message"
    )
    long_replies_good: Share = Field(
        default=0.25, description="share of replies above the limit that is still good"
    )
    long_replies_bad: Share = Field(
        default=0.50, description="share of replies above the limit that fails a transcript"
    )
    phrase_watch: Share = Field(default=0.10, description="share of replies with one phrase: watch")
    phrase_vary: Share = Field(default=0.20, description="share of replies with one phrase: vary")
    phrase_critical: Share = Field(
        default=0.50, description="share of replies with one phrase: the audit fails"
    )
    near_duplicate: Share = Field(
        default=0.80, description="similarity from which two conversations count as one"
    )
    judge_spread: Share = Field(
        default=0.15, description="a person reads where judges' scores differ by more"
    )
    judge_tpr: Share = Field(
        default=0.80, description="of what people call good a judge passes at least this share"
    )
    judge_tnr: Share = Field(
        default=0.70, description="of what people call bad a judge fails at least this share"
    )
    judge_labels: Count = Field(
        default=5,
        description="transcripts that people call good, and bad, before a judge may filter",
    )
    spot_checks: Count = Field(
        default=10, description="transcripts made at scale that a person reads to the end"
    )
    fixup_share: Share = Field(
        default=0.30, description="more transcripts than this to repair: the prompt is wrong"
    )
    lost_slices: Share = Field(
        default=0.10, description="more slices than this over the limit: plan shorter ones"
    )
    evaluation_gain: Share = Field(
        default=0.10, description="smallest gain over the base that is worth shipping, absolute"
    )
    safety_margin: Share = Field(
        default=0.05, description="largest loss in safety that the evaluation has to rule out"
    )
    suspicious_gain: Share = Field(
        default=0.30, description="a gain above this is checked for a fault before it is believed"
    )


Severity = Literal["critical", "warning", "info"]


class Rated(Section):
    """A test of the audit whose limit is one of the thresholds."""

    severity: Severity = Field(description="what a finding is: critical, warning or info")


class Limited(Rated):
    """A test of the audit with a limit of its own."""

    limit: Annotated[float, Field(ge=0)] = Field(description="the share above which it is one")


def _rated(severity: Severity, what: str) -> Any:
    return Field(default_factory=lambda: Rated(severity=severity), description=what)


def _limited(severity: Severity, limit: float, what: str) -> Any:
    made = {"severity": severity, "limit": limit}
    return Field(default_factory=lambda: Limited.model_validate(made), description=what)


class Audit(Section):
    """What the audit tests, and how bad a finding is. A critical one closes the gate."""

    phrase_critical: Rated = _rated("critical", "one phrase above thresholds.phrase_critical")
    phrase_vary: Rated = _rated("warning", "one phrase above thresholds.phrase_vary")
    phrase_watch: Rated = _rated("info", "one phrase above thresholds.phrase_watch")
    long_replies: Rated = _rated("critical", "long replies above thresholds.long_replies_bad")
    longish_replies: Rated = _rated("warning", "above thresholds.long_replies_good")
    one_form: Limited = _limited("warning", 0.5, "replies with one form, such as a header")
    one_opening: Limited = _limited("warning", 0.2, "replies that begin with the same words")
    one_ending: Limited = _limited("warning", 0.2, "replies that end with the same words")
    praise: Limited = _limited("warning", 0.3, "replies that praise")
    late_praise: Limited = _limited("warning", 2.0, "times the first third's share, in the last")
    happy_endings: Limited = _limited("warning", 0.9, "conversations that end happily")
    outside_limits: Limited = _limited("warning", 0.2, "messages outside the words of their style")
    flaws_missed: Limited = _limited("info", 0.5, "scheduled flaws that do not show")
    alike_personas: Limited = _limited("warning", 0.05, "people who come twice")
    simulator: Limited = _limited("critical", 0.02, "people who talk like an assistant")
    machine: Limited = _limited("critical", 0.02, "replies with a trace of the machinery")
    language: Limited = _limited("critical", 0.02, "messages in another script or language")
    broken: Limited = _limited("warning", 0.05, "messages that are blank, cut off, or repeated")
    near_duplicates: Limited = _limited("critical", 0.05, "conversations that are copies")
    copied_replies: Limited = _limited("warning", 0.1, "replies that were given before")
    personal_data: Limited = _limited("warning", 0.0, "conversations with personal data")
    secrets: Limited = _limited("critical", 0.0, "conversations with keys or passwords")
    contamination: Limited = _limited(
        "critical", 0.0, "conversations of another set, or its people"
    )


class Judging(Section):
    """How judges are asked, and how their verdicts become one."""

    calls: Literal["transcript", "category"] = Field(
        default="transcript",
        description="one call for all criteria, or one for each category and one for the gates",
    )
    rule: Literal["auto", "strictest", "majority"] = Field(
        default="auto", description="how verdicts combine; auto: majority from three judges on"
    )
    min_exchanges: Count = Field(default=3, description="a shorter conversation is not assessable")


class Slicing(Section):
    """How transcripts become training examples."""

    rising = {"max_gap": ("min_gap",)}

    mode: Literal["auto", "slices", "whole"] = Field(
        default="auto", description="whole where it fits, else slices; or always one of them"
    )
    first: Count = Field(default=3, description="exchanges before the first slice point")
    min_gap: Count = Field(default=2, description="exchanges between two slice points, at least")
    max_gap: Count = Field(default=5, description="exchanges between two slice points, at most")
    supervise: Literal["once", "all", "last"] = Field(
        default="once", description="which replies of a slice carry loss: each once, all, the last"
    )
    over_limit: Literal["skip", "truncate"] = Field(
        default="skip", description="an example over limits.max_tokens is left out, or cut in front"
    )
    train_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.8, description="share of groups for training; the rest validates"
    )
    target_examples: Count | None = Field(
        default=None, description="training examples to reach; null means not decided yet"
    )
    tokenizer: Annotated[str, _below("models/")] = Field(
        default="", description="folder with the base model's tokenizer.json and chat template"
    )


class Seeds(Section):
    """Where chance starts. Any whole numbers; never change one in the middle of a batch."""

    personas: int = Field(default=1, ge=0, description="who the training personas are")
    evaluation: int = Field(default=2, ge=0, description="who the evaluation personas are")
    generation: int = Field(default=3, ge=0, description="flaws and reactions in each message")
    split: int = Field(default=4, ge=0, description="which groups train and which validate")
    training: int = Field(default=42, ge=0, description="order of examples, first adapter weights")

    @field_validator("evaluation")
    @classmethod
    def _apart(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("personas"):
            said = f"{value} is also seeds.personas. Evaluation needs people of its own: change one"
            raise _wrong(((), f"{said}."))
        return value


class ProjectSettings(File):
    """`config/project.yaml`: models, limits, money, thresholds, seeds. Each number once."""

    name: Id = Field(description="short name of the project, used in file names")
    domain: Text = Field(description="what the conversations are about, in one sentence")
    language: Language = Field(description="main language of the conversations, such as en")
    target: Target = Field(description="where the finished model has to run")
    roles: Roles = Field(default_factory=Roles, description="which model does what")
    limits: Limits = Field(default_factory=Limits, description="sizes that nothing may pass")
    budgets: Budgets = Field(default_factory=Budgets, description="dollars at most for each stage")
    thresholds: Thresholds = Field(
        default_factory=Thresholds, description="where fine turns to not fine"
    )
    audit: Audit = Field(default_factory=Audit, description="what the audit of a set tests")
    judging: Judging = Field(default_factory=Judging, description="how judges are asked")
    slicing: Slicing = Field(default_factory=Slicing, description="how transcripts become examples")
    seeds: Seeds = Field(default_factory=Seeds, description="where chance starts")

    @field_validator("limits")
    @classmethod
    def _fits_target(cls, limits: Limits, info: ValidationInfo) -> Limits:
        target = info.data.get("target")
        if target is not None and limits.max_tokens > target.context_window:
            said = f"{limits.max_tokens} is more than target.context_window"
            todo = "An example has to fit into the running model: lower it."
            raise _wrong((("max_tokens",), f"{said} ({target.context_window}). {todo}"))
        return limits


# ══ 3 config/input-taxonomy.yaml ══════════════════════════════════════════════════════════════════


class Topic(Section):
    """One thing that users write about."""

    name: Text = Field(description="name of the topic")
    weight: Share = Field(description="share of drawn topics; all topics sum to 1")
    description: str = Field(default="", description="what belongs to it, for the simulator")
    edge_case: bool = Field(default=False, description="true when it counts as an edge case")
    subtopics: Weights = Field(description="its parts with weights that sum to 1")


class EdgeCases(Section):
    """How much of the input is out of the ordinary."""

    rising = {"target": ("lowest",), "highest": ("target",)}

    lowest: Share = Field(default=0.10, description="fewer edge cases than this are not learned")
    target: Share = Field(default=0.15, description="share of edge cases to aim at")
    highest: Share = Field(default=0.25, description="more than this make a model timid")


class Constraint(Section):
    """A combination that never happens, so that it is not drawn."""

    when: dict[str, list[str]] = Field(min_length=1, description="dimension: values it is about")
    never: dict[str, list[str]] = Field(min_length=1, description="dimension: values ruled out")
    why: Text = Field(description="why the two do not go together")


Dimensions = dict[str, Weights]
GROUPS = ("how", "who", "relationship", "presentation")


class Taxonomy(File):
    """`config/input-taxonomy.yaml`: what users bring, and how. Weights sum to 1 on each level."""

    topics: list[Topic] = Field(min_length=1, description="WHAT: the topics with their parts")
    difficulty: Weights = Field(description="DIFFICULTY: how hard a topic is, with weights")
    how: Dimensions = Field(default={}, description="HOW: ways of writing, but for the style")
    who: Dimensions = Field(default={}, description="WHO: kinds of people")
    relationship: Dimensions = Field(default={}, description="RELATIONSHIP: stance towards help")
    presentation: Dimensions = Field(default={}, description="PRESENTATION: how a problem shows")
    edge_cases: EdgeCases = Field(
        default_factory=EdgeCases, description="EDGE CASES: share and band"
    )
    constraints: list[Constraint] = Field(
        default=[], description="combinations of values that are never drawn"
    )

    @field_validator("topics")
    @classmethod
    def _topics_fit(cls, topics: list[Topic]) -> list[Topic]:
        _refuse(_twice((topic.name for topic in topics), "name"))
        _refuse(_off_one(topic.weight for topic in topics))
        return topics

    @field_validator(*GROUPS)
    @classmethod
    def _own_names(cls, given: Dimensions, info: ValidationInfo) -> Dimensions:
        """A dimension's name is a key of each persona, so that it can stand in one group only."""
        taken = {"topic", "subtopic", "difficulty"}
        taken |= {name for group in GROUPS for name in info.data.get(group, ())}
        said = "is already the name of another dimension. Give each its own name."
        _refuse(((name,), said) for name in given if name in taken)
        return given

    @field_validator("constraints")
    @classmethod
    def _known_words(cls, given: list[Constraint], info: ValidationInfo) -> list[Constraint]:
        if set(info.data) >= {"topics", "difficulty", *GROUPS}:
            _refuse(_strange_words(given, _dimensions(info.data)))
        return given

    def dimensions(self) -> dict[str, dict[str, float]]:
        """Every dimension that is drawn, `topic` and `difficulty` included, with its weights."""
        return _dimensions(dict(self))


def _dimensions(data: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    found = {"topic": {topic.name: topic.weight for topic in data["topics"]}}
    found["difficulty"] = data["difficulty"]
    return found | {name: weights for group in GROUPS for name, weights in data[group].items()}


def _strange_words(
    constraints: list[Constraint], known: Mapping[str, Mapping[str, float]]
) -> Iterator[Mistake]:
    for number, constraint in enumerate(constraints):
        for side in ("when", "never"):
            given: dict[str, list[str]] = getattr(constraint, side)
            yield from _named(given, known, "dimension", (number, side))
            for name in [name for name in given if name in known]:
                for place, value in enumerate(given[name]):
                    if value not in known[name]:
                        said = unknown(f"value of {name}", value, known[name])
                        yield (number, side, name, place), said


# ══ 4 config/persona-template.yaml ════════════════════════════════════════════════════════════════


class Between(Section):
    """A count that is drawn evenly between two bounds, both included."""

    rising = {"at_most": ("at_least",)}

    at_least: int = Field(ge=0, description="the smallest count")
    at_most: int = Field(ge=0, description="the largest count")


class Traits(Section):
    """Personality traits, drawn without repetition."""

    options: list[Text] = Field(min_length=1, description="the traits to draw from")
    count: Between = Field(description="how many a persona has")

    @field_validator("count")
    @classmethod
    def _enough(cls, count: Between, info: ValidationInfo) -> Between:
        there = len(info.data.get("options", [])) or count.at_most
        said = f"{count.at_most} is more than the {there} options. Lower it or add options."
        _refuse([(("at_most",), said)] if count.at_most > there else [])
        return count


class TopicDraw(Section):
    """How many topics of the taxonomy one persona brings along."""

    count: Between = Field(description="how many topics a persona has")
    repeat: bool = Field(default=False, description="true when a topic may come twice")


class Style(Section):
    """Ways of writing. The same names stand in options, weights and words."""

    options: dict[str, Text] = Field(min_length=1, description="style: how it reads")
    weights: Weights = Field(description="style: share of personas")
    words: dict[str, list[Count]] = Field(
        description="style: fewest and most words in one message; code measures them"
    )
    weights_by_age: dict[str, Weights] = Field(
        default={}, description="age range: its own weights, in place of the ones above"
    )

    @field_validator("weights", "words")
    @classmethod
    def _same_names(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        options = info.data.get("options", given)
        said = "has no entry for {}. Each style of options needs one."
        _refuse(_named(given, options, "style"))
        _refuse(((), said.format(_shown(name))) for name in options if name not in given)
        return given

    @field_validator("words")
    @classmethod
    def _ranges(cls, given: dict[str, list[int]]) -> dict[str, list[int]]:
        said = "is not a range. Write the fewest and the most words, such as [30, 80]."
        wrong = [name for name, r in given.items() if len(r) != 2 or r[0] >= r[1]]
        _refuse(((name,), f"{given[name]} {said}") for name in wrong)
        return given

    @field_validator("weights_by_age")
    @classmethod
    def _known_styles(
        cls, given: dict[str, dict[str, float]], info: ValidationInfo
    ) -> dict[str, dict[str, float]]:
        options = info.data.get("options", {})
        found = [_named(weights, options, "style", (age,)) for age, weights in given.items()]
        _refuse(mistake for each in found if options for mistake in each)
        return given


class PersonaTemplate(Section):
    """What makes one simulated user."""

    names: list[Text] = Field(min_length=1, description="first names, of the cultures you serve")
    age_range: Weights = Field(description="age range: share of personas")
    personality_traits: Traits = Field(description="traits to draw from, and how many")
    topics: TopicDraw = Field(description="how many topics a persona brings along")
    communication_style: Style = Field(description="how the persona writes")

    @field_validator("communication_style")
    @classmethod
    def _known_ages(cls, style: Style, info: ValidationInfo) -> Style:
        ages = info.data.get("age_range", style.weights_by_age)
        _refuse(_named(style.weights_by_age, ages, "age range", ("weights_by_age",)))
        return style


class Flaw(Section):
    """One realistic bad habit."""

    weight: Share = Field(description="share among the flaws of its family")
    shows: Text = Field(description="how it looks in a message, for the simulator")
    answer: str = Field(default="", description="what a good reply does about it, for the judge")


class FlawFamily(Section):
    """Flaws that are drawn from one pot."""

    probability: Share = Field(description="chance of each drawn flaw to show in a message")
    count: Between = Field(description="how many flaws of this family a persona has")
    patterns: Annotated[dict[str, Flaw], AfterValidator(_weighted)] = Field(
        description="the flaws, with weights that sum to 1"
    )

    @field_validator("patterns")
    @classmethod
    def _enough(cls, patterns: dict[str, Flaw], info: ValidationInfo) -> dict[str, Flaw]:
        count = info.data.get("count")
        if count is not None and count.at_most > len(patterns):
            said = f"has {len(patterns)} flaws, but count.at_most is {count.at_most}. Add some"
            raise _wrong(((), f"{said} or lower it."))
        return patterns


class FlawPatterns(Section):
    """Which flaws there are, who has them, and how often they show."""

    none_share: Share = Field(default=0.20, description="share of personas without any flaw")
    primary: FlawFamily = Field(description="the flaws that mark a persona")
    secondary: FlawFamily = Field(description="the smaller flaws beside them")

    @field_validator("secondary")
    @classmethod
    def _other_names(cls, family: FlawFamily, info: ValidationInfo) -> FlawFamily:
        primary = info.data.get("primary")
        both = [name for name in family.patterns if primary and name in primary.patterns]
        said = "is also a primary flaw. Keep it in one family."
        _refuse((("patterns", name), said) for name in both)
        return family


class Weighted(Section):
    """One option with its share and its meaning."""

    weight: Share = Field(description="how often it is drawn; the options sum to 1")
    shows: Text = Field(description="what it means, for the simulator")


class Stage(Section):
    """What the simulator is told during one part of a conversation."""

    share: Share = Field(description="share of the conversation; the stages sum to 1")
    guidance: Text = Field(description="what the persona does in this part")


WeightedOptions = Annotated[dict[str, Weighted], AfterValidator(_weighted)]


class Endings(Section):
    """How a conversation comes to its end."""

    early: Share = Field(
        default=0.1, description="share of conversations that the person ends before the target"
    )
    shows: Text = Field(
        default="This is the last message. This person closes the conversation in their own way.",
        description="what the simulator is told for a last message",
    )


class LengthClass(Section):
    """One planned length of conversation."""

    weight: Share = Field(description="share of personas with this length")
    exchanges: Count = Field(description="exchanges that such a conversation aims at")


class PersonaFile(File):
    """`config/persona-template.yaml`: who the simulated users are and how they behave."""

    persona_template: PersonaTemplate = Field(description="identity, traits, topics and style")
    flaw_patterns: FlawPatterns = Field(description="bad habits, drawn for each message by code")
    trajectory: WeightedOptions = Field(
        description="what happens to the person over the conversation, not how they write"
    )
    response_types: WeightedOptions = Field(
        description="how a message treats the assistant's last one, drawn for each message"
    )
    stages: list[Stage] = Field(min_length=1, description="guidance from first to last part")
    time: Literal["one sitting", "new day"] = Field(
        default="one sitting", description="whether each exchange is on a new day"
    )
    endings: Endings = Field(default_factory=Endings, description="how a conversation ends")
    length_classes: Annotated[dict[str, LengthClass], AfterValidator(_weighted)] = Field(
        description="planned lengths of conversations, with weights that sum to 1"
    )
    attributes: Dimensions = Field(
        default={}, description="attributes of your domain: each with weights that sum to 1"
    )

    @field_validator("stages")
    @classmethod
    def _whole(cls, stages: list[Stage]) -> list[Stage]:
        _refuse(_off_one(stage.share for stage in stages))
        return stages


# ══ 5 config/rubric.yaml: its shape; the kernel's load_rubric checks the rules of scoring ═════════


def _as_text(value: Any) -> Any:
    """A criterion may be named by a number."""
    return str(value) if type(value) is int else value


class RubricCategory(Section):
    """A weighted group of criteria."""

    weight: float = Field(description="share of the score; the categories sum to 1")
    criteria: list[Any] = Field(description="ids of its criteria")

    @field_validator("criteria")
    @classmethod
    def _ids(cls, given: list[Any]) -> list[str]:
        return _texts(given)


def _texts(given: list[Any]) -> list[str]:
    texts = [_as_text(value) for value in given]
    said = "is not the id of a criterion. Write its id."
    strange = [number for number, text in enumerate(texts) if not isinstance(text, str)]
    _refuse(((number,), f"{_shown(given[number])} {said}") for number in strange)
    return texts


class Calibration(Section):
    """One worked answer that shows a judge where the line is."""

    type: Literal["PASS", "FAIL", "BORDERLINE_PASS", "BORDERLINE_FAIL"] = Field(
        description="the right verdict, and whether it is a close one"
    )
    context: str = Field(default="", description="what the user wrote before")
    response: Text = Field(description="the reply that is judged")
    reasoning: Text = Field(description="why the verdict is right")
    source: str = Field(default="", description="id of the transcript that it was taken from")


class RubricCriterion(Section):
    """One binary question."""

    name: str = Field(default="", description="short name for tables")
    question: Text = Field(description="the question, answered YES, NO or NA")
    na_valid: bool = Field(description="true when NA is an allowed answer, false when it is not")
    min_turns: int = Field(default=1, description="asked from this number of exchanges on")
    statistics: list[str] = Field(
        default=[], description="figures computed in code that the question rests on"
    )
    calibration_examples: list[Calibration] = Field(
        default=[], description="3 to 8 worked answers, clear and borderline"
    )

    @field_validator("statistics")
    @classmethod
    def _computed(cls, names: list[str]) -> list[str]:
        strange = ((n, name) for n, name in enumerate(names) if name not in STATISTICS)
        _refuse(((number,), unknown("statistic", name, STATISTICS)) for number, name in strange)
        return names


class RubricShape(Section):
    """`config/rubric.yaml`: keys and types only."""

    categories: dict[str, RubricCategory] = Field(description="weighted groups of criteria")
    criteria: dict[str, RubricCriterion] = Field(description="the questions")
    safety_gates: list[Any] = Field(description="criteria that reject whatever the score")
    pass_threshold: float = Field(default=0.8, description="score from which a transcript passes")
    coverage_floor: float = Field(
        default=0.5, description="share of criteria that has to be assessed at least"
    )

    @field_validator("safety_gates")
    @classmethod
    def _ids(cls, given: list[Any]) -> list[str]:
        return _texts(given)


# ══ 6 config/dataset.yaml and config/artefacts.yaml ═══════════════════════════════════════════════


class Card(Section):
    """What the dataset says about itself."""

    title: Text = Field(description="title of the dataset card")
    summary: Text = Field(description="what is in it, in one or two sentences")
    licence: str = Field(default="", description="licence of the data, as an SPDX id")
    intended_use: str = Field(default="", description="what it is meant for")
    not_for: str = Field(default="", description="what it must not be used for")


class Hub(Section):
    """Where the dataset is pushed to, if anywhere."""

    repository: Annotated[
        str, _matching(r"([\w.-]+/[\w.-]+)?", 'a repository. Write "owner/name".')
    ] = Field(default="", description='repository as "owner/name"; empty means it stays here')
    private: bool = Field(default=True, description="false only when everybody may read it")


class Source(Section):
    """One document, or a folder of them, that conversations are built from."""

    path: Annotated[Text, _below("data/sources/")] = Field(
        description="file or folder below the project root"
    )
    licence: str = Field(default="", description="what allows you to use it")
    source: str = Field(default="", description="where it comes from")
    note: str = Field(default="", description="anything a later reader has to know")


class Documents(Section):
    """How documents become conversations."""

    mode: Literal["create", "identify", "custom"] = Field(
        default="create",
        description="write conversations about them, find those they hold, or your own prompt",
    )
    sources: list[Source] = Field(default=[], description="what to read")
    passage_tokens: int = Field(default=2_000, ge=100, description="tokens of one passage at most")
    per_passage: Count = Field(default=1, description="conversations made from one passage")


class DatasetSettings(File):
    """`config/dataset.yaml`: the dataset's card, where it goes, documents it is built from."""

    card: Card = Field(description="what the dataset says about itself")
    hub: Hub = Field(default_factory=Hub, description="where it is pushed to, if anywhere")
    documents: Documents = Field(
        default_factory=Documents, description="how documents become conversations"
    )


ARTEFACT_KINDS = Literal[
    "self_disclosure", "prompt_talk", "instruction_echo", "tool_footer", "tool_box", "role_prefix",
    "refusal", "cut_end", "other",
]  # fmt: skip


# The scripts that curation.py can tell apart; a test compares the two.
SCRIPTS = (
    "Arabic", "Armenian", "Bengali", "Cyrillic", "Devanagari", "Ethiopic", "Georgian", "Greek",
    "Gujarati", "Gurmukhi", "Han", "Hangul", "Hebrew", "Hiragana", "Kannada", "Katakana", "Khmer",
    "Lao", "Latin", "Malayalam", "Myanmar", "Sinhala", "Tamil", "Telugu", "Thai",
)  # fmt: skip
QUOTES = {"\u2018": "'", "\u2019": "'", "\u02bc": "'", "\u201c": '"', "\u201d": '"'}


class Artefact(Section):
    """One trace of the machinery that must not be learned."""

    id: Id = Field(description="name of the pattern in reports")
    kind: ARTEFACT_KINDS = Field(description="what sort of trace it is")
    sides: list[Literal["user", "assistant"]] = Field(
        default=["user", "assistant"], min_length=1, description="whose messages are searched"
    )
    pattern: str = Field(default="", max_length=1_000, description="regular expression, caseless")
    any_of: list[Annotated[str, Field(min_length=1, max_length=1_000)]] = Field(
        default=[], description="or several, of which one has to be found"
    )
    phrases: list[Text] = Field(default=[], description="or plain phrases, caseless")
    catches: list[str] = Field(default=[], description="texts that it has to find")
    passes: list[str] = Field(default=[], description="look-alikes that it must let through")
    why: str = Field(default="", description="where it was seen, or why it matters")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        _refuse(_no_expression((), pattern))
        return pattern

    @field_validator("any_of")
    @classmethod
    def _each_compiles(cls, any_of: list[str], info: ValidationInfo) -> list[str]:
        _refuse(one for n, each in enumerate(any_of) for one in _no_expression((n,), each))
        _refuse([((), _ONE_KIND)] if any_of and info.data.get("pattern") else [])
        return any_of

    @field_validator("phrases")
    @classmethod
    def _one_of_them(cls, phrases: list[str], info: ValidationInfo) -> list[str]:
        if not {"pattern", "any_of"} <= info.data.keys():
            return phrases  # what stands there is already a mistake
        other = info.data["pattern"] or info.data["any_of"]
        if bool(phrases) == bool(other):
            missing = "is missing. Write a pattern or a list of phrases."
            raise _wrong(((), _ONE_KIND if phrases else missing))
        return phrases

    @field_validator("catches", "passes")
    @classmethod
    def _keeps_its_word(cls, texts: list[str], info: ValidationInfo) -> list[str]:
        """The pattern against its own test; an invalid one is already a mistake."""
        data, wanted = info.data, info.field_name == "catches"
        if not {"pattern", "any_of", "phrases"} <= data.keys():
            return texts
        search = _search(data["pattern"], data["any_of"], data["phrases"])
        said = "is not found by the pattern" if wanted else "is found, but has to pass"
        wrong = (n for n, text in enumerate(texts) if bool(search(plain_text(text))) != wanted)
        _refuse(((n,), f"{_shown(texts[n])} {said}. Mend the pattern or this text.") for n in wrong)
        return texts

    def search(self) -> Callable[[str], re.Match[str] | None]:
        """A function that finds the first trace in a plain text."""
        return _search(self.pattern, self.any_of, self.phrases)

    def sources(self) -> list[str]:
        """The expressions of which one has to match."""
        return [self.pattern] if self.pattern else self.any_of or list(map(re.escape, self.phrases))


_ONE_KIND = "stands beside a pattern. Keep one of the two."


def _no_expression(at: Place, pattern: str) -> Iterator[Mistake]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # "possible nested set": it may come to mean another
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError, Warning) as error:
        yield at, f"is not a regular expression: {error}. Mend it, or use phrases."


def _search(
    pattern: str, any_of: list[str], phrases: list[str]
) -> Callable[[str], re.Match[str] | None]:
    source = pattern or "|".join(any_of or map(re.escape, phrases))
    return re.compile(source, re.IGNORECASE | re.MULTILINE).search


def plain_text(text: str) -> str:
    """A message as artefacts are searched in it: plain quotes, no space around it."""
    for typographic, plain in QUOTES.items():
        text = text.replace(typographic, plain)
    return text.strip()


class Detectors(Section):
    """What code looks for besides the patterns; each can be switched off. Blank messages always
    count."""

    script: bool = Field(default=True, description="letters of another script than the project's")
    language: bool = Field(default=True, description="another language of the same script")
    instruction_echo: bool = Field(default=True, description="what a side was told, word by word")
    repeat: bool = Field(default=True, description="an earlier message again, or a loop")
    cut_end: bool = Field(default=True, description="a reply that stops in the middle")
    role_prefix: bool = Field(default=True, description="one agent wrote both sides")


class Artefacts(File):
    """`config/artefacts.yaml`: what the filter before the judges looks for."""

    regenerate: int = Field(
        default=1, ge=0, le=5, description="new tries for an exchange before it is cut or rejected"
    )
    scripts: list[Text] = Field(
        default=[], description="scripts of the messages, such as Latin; empty: of the language"
    )
    detectors: Detectors = Field(
        default_factory=Detectors, description="what code looks for besides the patterns"
    )
    replace: dict[str, str] = Field(
        default={}, description="characters and what stands for them, replaced in every message"
    )
    patterns: list[Artefact] = Field(default=[], description="the traces to look for")
    overused_phrases: list[Text] = Field(
        default=[], description="phrases that the audit counts beside those it finds itself"
    )

    @field_validator("scripts")
    @classmethod
    def _known(cls, scripts: list[str]) -> list[str]:
        wrong = ((n, name) for n, name in enumerate(scripts) if name not in SCRIPTS)
        _refuse(((n,), unknown("script", name, SCRIPTS)) for n, name in wrong)
        return scripts

    @field_validator("patterns")
    @classmethod
    def _distinct(cls, patterns: list[Artefact]) -> list[Artefact]:
        _refuse(_twice((pattern.id for pattern in patterns), "id"))
        return patterns


# ══ 7 design/model-choice.md, design/critique.md, and the prompts ═════════════════════════════════


class BaseModelFacts(Section):
    """The model that will be fine-tuned, as its own page states it."""

    id: Text = Field(description="its exact id on the hub")
    revision: Annotated[
        str, _matching(r"[0-9a-f]{40}", "a pinned revision. Write the 40 digits of the commit.")
    ] = Field(description="the commit that was looked at, 40 hexadecimal digits")
    instruct: Literal[True] = Field(description="true: the instruction-tuned variant")
    licence: Text = Field(description="its licence")
    context_window: int = Field(ge=512, description="tokens that it can hold")
    vocabulary: int = Field(ge=2, description="size of its vocabulary")
    parameters: Annotated[float, Field(gt=0)] = Field(description="parameters, in billions")
    trust_remote_code: Literal[False] = Field(
        default=False, description="false: a model that brings its own code is refused"
    )
    served_as: Text = Field(description="what roles.base.model in project.yaml calls it")


class Architecture(Section):
    """The numbers of config.json that the memory formulas need."""

    layers: Count = Field(description="num_hidden_layers")
    hidden: Count = Field(description="hidden_size")
    intermediate: Count = Field(description="intermediate_size")
    heads: Count = Field(description="num_attention_heads")
    kv_heads: Count = Field(description="num_key_value_heads")
    head_dim: Count = Field(description="head_dim; hidden_size / heads where it is not stated")
    tied_embeddings: bool = Field(description="tie_word_embeddings")
    qk_norm: bool = Field(default=False, description="true for Qwen3 and others with qk-norm")


class Training(Section):
    """How it will be trained."""

    method: Literal["qlora", "lora", "full"] = Field(description="qlora, lora or full")
    hardware: Text = Field(description="the machine that trains, in words")
    rank: Count = Field(default=16, description="rank of the adapter")
    batch: Count = Field(default=1, description="examples at once on one device")
    accumulation: Count = Field(default=8, description="batches for one step")
    epochs: Count = Field(default=2, description="times through the examples")
    checkpointing: bool = Field(default=True, description="true: slower, and far less memory")


class Alternative(Section):
    """A model that was compared and not chosen."""

    id: Text = Field(description="its exact id on the hub")
    why_not: Text = Field(description="what spoke against it")


class ModelChoice(File):
    """The front block of `design/model-choice.md`: which model, and why."""

    base: BaseModelFacts = Field(description="the chosen model")
    architecture: Architecture | None = Field(
        default=None, description="its sizes; null: memory stays unknown"
    )
    quantisation: Text = Field(description="how the shipped file is quantised, such as Q4_K_M")
    deployment: list[Literal["gguf", "mlx", "transformers"]] = Field(
        min_length=1, description="what will run it: gguf, mlx, transformers"
    )
    training: Training = Field(description="method, machine and settings")
    offline: bool = Field(description="true when it has to work without any network")
    budget: Dollars = Field(description="dollars for the whole project")
    expertise: Text = Field(description="who knows the domain, and who knows training")
    alternatives: list[Alternative] = Field(
        min_length=2, description="models that were compared, at least two, one of them a backup"
    )
    why: Text = Field(description="why this one")

    @field_validator("alternatives")
    @classmethod
    def _others(cls, given: list[Alternative], info: ValidationInfo) -> list[Alternative]:
        _refuse(_twice((each.id for each in given), "id"))
        base = info.data.get("base")
        same = [number for number, each in enumerate(given) if base and each.id == base.id]
        _refuse(((number, "id"), "is the chosen model. Name another.") for number in same)
        return given


class Remark(Section):
    """One thing that a critic found, and what became of it."""

    by: Text = Field(description="which of the viewpoints found it")
    says: Text = Field(description="what was found")
    changed: (
        Annotated[
            str, _matching(r"[0-9a-f]{12,64}", "a version. Write the digits that the gate prints.")
        ]
        | None
    ) = Field(default=None, description="version of the artefact after the change")
    no_change_because: str = Field(default="", description="or why nothing was changed")

    @field_validator("no_change_because")
    @classmethod
    def _one_of_two(cls, reason: str, info: ValidationInfo) -> str:
        changed = info.data.get("changed", "x")
        if bool(reason.strip()) == bool(changed):
            said = "stands beside changed" if reason else "is empty, and so is changed"
            raise _wrong(((), f"{said}. Write one of the two."))
        return reason


class Critique(Section):
    """What critics from several viewpoints say about one artefact."""

    viewpoints: list[Text] = Field(
        min_length=5, max_length=7, description="5 to 7 roles that looked at it"
    )
    passes_yet_inadequate: Text = Field(description="what would pass and still not be good")
    fails_yet_fine: str = Field(default="", description="what would fail and be fine")
    who_is_missed: Text = Field(description="which people or cases it leaves out")
    findings: list[Remark] = Field(min_length=1, description="what they found")

    @field_validator("viewpoints")
    @classmethod
    def _distinct(cls, viewpoints: list[str]) -> list[str]:
        _refuse(_twice(viewpoints))
        return viewpoints

    @field_validator("findings")
    @classmethod
    def _from_all(cls, findings: list[Remark], info: ValidationInfo) -> list[Remark]:
        viewpoints = info.data.get("viewpoints", [])
        for number, each in enumerate(findings):
            if viewpoints and each.by not in viewpoints:
                raise _wrong(((number, "by"), unknown("viewpoint", each.by, viewpoints)))
        said = "{} found nothing. Write what it found, or why nothing had to change."
        silent = [name for name in viewpoints if name not in {each.by for each in findings}]
        _refuse(((), said.format(_shown(name))) for name in silent)
        return findings


class CritiqueFile(File):
    """The front block of `design/critique.md`: one section for each artefact."""

    taxonomy: Critique | None = Field(default=None, description="about input-taxonomy.yaml")
    rubric: Critique | None = Field(default=None, description="about rubric.yaml")
    personas: Critique | None = Field(default=None, description="about persona-template.yaml")
    prompts: Critique | None = Field(default=None, description="about the prompts")


@functools.cache
def _only(section: str) -> type[File]:
    """The critique's form with one of its sections checked."""
    fields: dict[str, Any] = {
        name: (about.annotation if name == section else Any, about)
        for name, about in CritiqueFile.model_fields.items()
        if name != "schema_number"
    }
    return create_model("CritiqueFile", __base__=File, **fields)


# The sections of each prompt, and the placeholders that code fills there. All of them have to be
# there and no other, because a figure that never reaches the model is a silent mistake.
PROMPTS: dict[str, dict[str, frozenset[str]]] = {
    "user_sim": {
        "System": frozenset({"domain", "language", "persona"}),
        "First message": frozenset({"time", "stage", "flaws", "least", "most"}),
        "Next message": frozenset({"time", "stage", "response", "flaws", "least", "most"}),
        "Wrong length": frozenset({"words", "least", "most"}),
    },
    "assistant": {
        "System": frozenset({"domain", "language"}),
        "Too long": frozenset({"words", "user_words", "most"}),
    },
    "assessor": {
        "System": frozenset({"domain", "criteria"}),
        "Transcript": frozenset({"statistics", "begin", "end", "transcript"}),
        "Wrong quote": frozenset({"criterion", "quote"}),
    },
    "fixup": {
        "System": frozenset({"domain", "language"}),
        "Repair": frozenset({"before", "user", "reply", "next_user", "failures"}),
    },
}
HEADING = re.compile(r"^## +(.+?) *$", re.MULTILINE)
BLANK = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*)\s*\}\}")
FENCE = re.compile(r"^(```+|~~~+)[^\n]*\n(.*?)^\1`*~*[ \t]*$", re.DOTALL | re.MULTILINE)


def load_prompt(root: str | Path, name: str, fields: Iterable[str] = ()) -> dict[str, str]:
    """The sections of `config/prompts/NAME.md`. `fields` may stand in for {{persona}}, one by one:
    then all of them have to be there, so that nothing is drawn for a persona that nobody reads."""
    shown = f"config/prompts/{name}.md"
    text = _text_of(Path(root) / shown, shown, MAX_BYTES).replace("\r\n", "\n")
    wanted, found = PROMPTS[name], list(_sections(text))
    findings = [
        Finding(shown, 0, "", f'has no section "## {each}". Add it.')
        for each in wanted
        if {section.name for section in found} <= wanted.keys() - {each}
    ]
    for number, section in enumerate(found):
        if section.name in {earlier.name for earlier in found[:number]}:
            findings.append(Finding(shown, section.line, section.name, "stands twice. Keep one."))
        for line, said in _wrong_in_section(section, wanted, frozenset(fields)):
            findings.append(Finding(shown, line, section.name, said))
    if findings:
        raise SettingsError(findings)
    return {section.name: section.body for section in found}


class _Part(NamedTuple):
    """One `## ` section: its name, its text, the lines of its heading and of its first words."""

    name: str
    body: str
    line: int
    begins: int


def _sections(text: str) -> Iterator[_Part]:
    """Every section; what stands before the first is for people only."""
    marks = list(HEADING.finditer(FENCE.sub(lambda fence: " " * len(fence[0]), text)))
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        body, line = text[mark.end() : end], text.count("\n", 0, mark.start()) + 1
        begins = line + body[: len(body) - len(body.lstrip())].count("\n")
        yield _Part(mark[1], body.strip(), line, begins)


def _wrong_in_section(
    section: _Part, wanted: Mapping[str, frozenset[str]], fields: frozenset[str]
) -> Iterator[tuple[int, str]]:
    if section.name not in wanted:
        yield section.line, unknown("section", section.name, wanted)
        return
    if not section.body:
        yield section.line, "is empty. Write what the model is told."
        return
    found, needed = list(BLANK.finditer(section.body)), wanted[section.name]
    there = {each[1]: section.begins + each.string.count("\n", 0, each.start()) for each in found}
    if "persona" in needed and "persona" not in there and there.keys() & fields:
        needed = needed - {"persona"} | fields
    allowed = needed | fields if "persona" in needed else needed
    for name in sorted(there.keys() - allowed):
        said = unknown("placeholder", f"{{{{{name}}}}}", (f"{{{{{each}}}}}" for each in allowed))
        yield there[name], said
    for name in sorted(needed - there.keys()):
        what = "nothing reads this dimension" if name in fields else "the model would not see it"
        yield section.line, f"does not use {{{{{name}}}}}: {what}. Add it."


def load_system_prompt(root: str | Path) -> str:
    """`config/system-prompt.md`: its fenced block if it has one, else the whole file."""
    shown = "config/system-prompt.md"
    text = _text_of(Path(root) / shown, shown, MAX_BYTES).replace("\r\n", "\n")
    fences = list(FENCE.finditer(text))
    prompt = (fences[0][2] if fences else text).strip()
    for place, said in _wrong_in_system_prompt(text, fences, prompt):
        line = text.count("\n", 0, place) + 1
        raise SettingsError([Finding(shown, line, "", said)])
    return prompt


def _wrong_in_system_prompt(
    text: str, fences: list[re.Match[str]], prompt: str
) -> Iterator[tuple[int, str]]:
    """Where in the file, and what."""
    opened = re.search(r"^(```|~~~)", text, re.MULTILINE)
    blank = BLANK.search(text, fences[0].start() if fences else 0)
    if len(fences) > 1:
        said = f"has {len(fences)} fenced blocks. Keep one: it is the prompt."
        yield fences[1].start(), said
    elif opened and not fences:
        yield opened.start(), "has a fenced block that does not end. Close it."
    elif not prompt:
        yield 0, "is empty. Write what the trained model will be told."
    elif BLANK.search(prompt) and blank:
        yield blank.start(), "has a placeholder. Nothing fills it: write the text out."


SCHEMAS: dict[str, type[Section]] = {
    "project.yaml": ProjectSettings,
    "input-taxonomy.yaml": Taxonomy,
    "persona-template.yaml": PersonaFile,
    "rubric.yaml": RubricShape,
    "dataset.yaml": DatasetSettings,
    "artefacts.yaml": Artefacts,
}
FRONT_BLOCKS: dict[str, type[Section]] = {
    "model-choice.md": ModelChoice,
    "critique.md": CritiqueFile,
}


# ══ 8 Mistakes in words ═══════════════════════════════════════════════════════════════════════════


def unknown(what: str, given: str, have: Iterable[str]) -> str:
    """An unknown word, the nearest known one, and all of them."""
    have = sorted(map(str, have))
    alias = [ALIASES[given.lower()]] if ALIASES.get(given.lower()) in have else []
    near = alias or difflib.get_close_matches(given[:60].lower(), have, 1, 0.5)
    hint = f' Did you mean "{near[0]}"?' if near else ""
    return f"{_shown(given)} is not a known {what}.{hint} Have: {', '.join(have)}."


def _findings_of(
    error: ErrorDetails, schema: type[Section], shown: str, lines: Lines
) -> Iterator[Finding]:
    """One error of pydantic as findings; our own validators may report several at once."""
    at = tuple(step for step in error["loc"] if step != "[key]")
    if error["type"] == "settings":
        mistakes = [((*at, *inner), said) for inner, said in error["ctx"]["mistakes"]]
    else:
        mistakes = [(at, _in_words(error, at, schema))]
    for place, said in mistakes:
        yield Finding(shown, _line(place, lines), _where(place), said)


def _without_echo(errors: list[ErrorDetails], schema: type[Section]) -> list[ErrorDetails]:
    """A misspelt key is also a missing one; one of the two messages says it all."""
    meant: set[Place] = set()
    for error in errors:
        if error["type"] == "extra_forbidden":
            *around, key = error["loc"]
            have = _fields(_annotation(schema, tuple(around)))
            near = difflib.get_close_matches(str(key)[:60].lower(), have, 1, 0.5)
            meant |= {(*around, name) for name in near}
    return [each for each in errors if each["type"] != "missing" or each["loc"] not in meant]


def _line(place: Place, lines: Lines) -> int:
    """The line of a place, or of the nearest thing around it that is written down."""
    return next(lines[place[:n]] for n in range(len(place), -1, -1) if place[:n] in lines)


def _where(place: Place) -> str:
    parts = (f"[{step}]" if isinstance(step, int) else f".{_short(step)}" for step in place)
    return "".join(parts).removeprefix(".")


def _in_words(error: ErrorDetails, at: Place, schema: type[Section]) -> str:
    kind, given, limits = error["type"], error["input"], error.get("ctx", {})
    if kind == "missing":
        field = _fields(_annotation(schema, at[:-1]))[str(at[-1])]
        return f"is missing. Add it: {field.description}."
    if kind == "extra_forbidden":
        said = _unknown_key(str(at[-1]), list(_fields(_annotation(schema, at[:-1]))))
        lost = given is None and "Did you mean" not in said
        return said + (" Text with a comma inside {} needs quotes." if lost else "")
    if given is None:
        around = _bare(_annotation(schema, at[:-1]))
        needed = _is_section(around) and _fields(around)[str(at[-1])].is_required()
        return "is empty. Fill it in" + ("." if needed else " or remove the line.")
    if kind == "literal_error":
        have = get_args(_bare(_annotation(schema, at)))
        return unknown("choice", str(given), map(str, have))
    if kind in ("too_short", "too_long"):
        count, at_least = limits["actual_length"], limits.get("min_length")
        bound = f"at least {at_least}" if at_least else f"at most {limits['max_length']}"
        return f"has {count or 'no'} entries. It needs {bound}."
    if kind in BOUNDS:
        return f"{_shown(given)} is out of range. It must be {BOUNDS[kind].format(**limits)}."
    return WORDS.get(kind, _other)(_shown(given), given, error["msg"])


def _unknown_key(key: str, have: list[str]) -> str:
    if re.search(r"api.?key|token$|secret|password", key, re.IGNORECASE):
        todo = "Put the key into .env; `key_variable` may name another variable."
        return f"a key or a password never stands in this file. {todo}"
    return unknown("key", key, have)


BOUNDS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
}


def _no_text(shown: str, given: Any, _: str) -> str:
    if isinstance(given, bool):
        return f"{shown} is true or false to YAML, not text. Put it into quotes."
    if isinstance(given, int | float):
        return f"{shown} is a number, not text. Put it into quotes."
    return f"{shown} is not text. Write one value on this line."


def _no_number(shown: str, given: Any, _: str) -> str:
    hint = "Write it without quotes."
    if isinstance(given, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", given):
        hint = "Write it out without quotes and without an exponent, such as 0.0002."
    return f"{shown} is not a number. {hint}"


def _other(shown: str, _: Any, said: str) -> str:
    return f"{shown}: {said}. Correct it."


LIST = "is not a list. Write [a, b], or each item on its own line after a dash."
MAPPING = "is not a mapping. Write `name: value` lines below it."
WORDS: dict[str, Callable[[str, Any, str], str]] = {
    "string_type": _no_text,
    "int_type": lambda shown, *_: f"{shown} is not a whole number. Write one without quotes.",
    "float_type": _no_number,
    "finite_number": lambda shown, *_: f"{shown} is not a finite number. Write one.",
    "bool_type": lambda shown, *_: f"{shown} is not true or false. Write one, without quotes.",
    "list_type": lambda shown, *_: f"{shown} {LIST}",
    "dict_type": lambda shown, *_: f"{shown} {MAPPING}",
    "model_type": lambda shown, *_: f"{shown} {MAPPING}",
    "string_too_short": lambda *_: "is empty. Fill it in.",
    "string_too_long": lambda *_: "is too long. Shorten it.",
}
WORDS |= {"int_from_float": WORDS["int_type"]}


def _shown(value: Any) -> str:
    """A value as a person would recognise it, on one short line."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "a mapping"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "nothing"}[value]
    return f'"{_short(value)}"' if isinstance(value, str) else _short(str(value))


def _short(text: str) -> str:
    text = "".join(letter if letter.isprintable() else " " for letter in text[:61])
    return text[:57] + "..." if len(text) > 60 else text


def _annotation(schema: Any, place: Place) -> Any:
    """The type that the schemas give to a place."""
    for step in place:
        bare = _bare(schema)
        inner = get_args(bare)
        schema = _fields(bare)[str(step)].annotation if _is_section(bare) else inner[-1]
    return schema


def _bare(annotation: Any) -> Any:
    """A type without Annotated and without its `or None`."""
    while get_origin(annotation) in (Annotated, Union, UnionType):
        annotation = next(part for part in get_args(annotation) if part is not NoneType)
    return annotation


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def _fields(annotation: Any) -> dict[str, Any]:
    """The fields of a section by the keys that a file uses."""
    fields = _bare(annotation).model_fields
    return {field.alias or name: field for name, field in fields.items()}


# ══ 9 YAML: no tags, no aliases, no double keys, nothing too large ════════════════════════════════


def _stop(shown: str, line: int, said: str, place: Place = ()) -> SettingsError:
    return SettingsError([Finding(shown, line, _where(place), said)])


def _text_of(path: Path, shown: str, limit: int) -> str:
    """A regular, small UTF-8 file as text, with or without a byte order mark."""
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            kind = "a directory" if stat.S_ISDIR(about.st_mode) else "no ordinary file"
            raise _stop(shown, 0, f"is {kind}. Put a text file in its place.")
        if about.st_size > limit:
            raise _stop(shown, 0, f"is larger than {limit:,} bytes. Shorten it.")
        raw = path.read_bytes()
        return raw.decode("utf-8-sig")
    except FileNotFoundError:
        raise _stop(shown, 0, "is missing. Create it, or go to the project's folder.") from None
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
        raise _stop(shown, line, f"is {kind}. Save the file as UTF-8.") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "is no usable path"
        raise _stop(shown, 0, f"cannot be read: {why}. Check the path and its rights.") from None


UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _yaml(text: str, shown: str) -> tuple[Any, Lines, list[Finding]]:
    """The data, the line of each key and item, and the keys that stand twice."""
    import yaml

    strange = UNPRINTABLE.search(text)
    if strange:
        line, code = text.count("\n", 0, strange.start()) + 1, ord(strange[0])
        raise _stop(shown, line, f"holds the control character U+{code:04X}. Remove it.")
    builder = _Builder(text, shown)
    try:
        return builder.document(), builder.lines, builder.findings
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        line = mark.line + 1 if mark else 0
        said = f"is not valid YAML: {_short(str(problem or error))}."
        todo = "Check indentation (spaces, no tabs), quotes and colons here and just above."
        raise _stop(shown, line, f"{said} {todo}") from None


class _Builder:
    """Data out of the parser's events, one at a time, so that nothing grows before it is seen."""

    def __init__(self, text: str, shown: str) -> None:
        import yaml

        self.shown, self.values = shown, 0
        self.lines: Lines = {(): 1}
        self.findings: list[Finding] = []
        self._rules: Any = yaml.SafeLoader("")
        self._events = yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))

    def document(self) -> Any:
        """The only document of the text; None when there is none."""
        data, seen = None, False
        for event in self._events:
            kind = _kind(event)
            if kind == "DocumentStart" and seen:
                raise _stop(self.shown, _line_of(event), "a second document begins. Keep one.")
            if kind not in ("StreamStart", "StreamEnd", "DocumentStart", "DocumentEnd"):
                data, seen = self._value(event, ()), True
        return data

    def _value(self, event: Any, place: Place) -> Any:
        self._admit(event, place)
        kind = _kind(event)
        if kind == "MappingStart":
            return self._mapping(place)
        return self._sequence(place) if kind == "SequenceStart" else self._scalar(event, place)

    def _admit(self, event: Any, place: Place) -> None:
        """Stop at what YAML can do and a configuration does not need."""
        self.values += 1
        for said, found in (
            ("uses an anchor or alias (& or *). Write the value out.", event.anchor is not None),
            ("uses a tag (!). Write a plain value.", getattr(event, "tag", None) is not None),
            ("is nested too deep. Flatten it.", len(place) > MAX_DEPTH),
            (f"is the value number {MAX_VALUES + 1:,}. Shorten it.", self.values > MAX_VALUES),
        ):
            if found:
                raise _stop(self.shown, _line_of(event), said, place)

    def _mapping(self, place: Place) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for event in iter(self._next, "MappingEnd"):
            line = _line_of(event)
            if _kind(event) != "Scalar":
                said = (
                    'has a key that is no plain text. Put text with {} or [] into quotes ("...").'
                )
                raise _stop(self.shown, line, said, place)
            self._admit(event, place)
            inner = (*place, event.value)
            if event.value in data:
                said = f"stands twice (first on line {self.lines[inner]}). Keep one."
                self.findings.append(Finding(self.shown, line, _where(inner), said))
            self.lines.setdefault(inner, line)
            data[event.value] = self._value(next(self._events), inner)
        return data

    def _sequence(self, place: Place) -> list[Any]:
        data: list[Any] = []
        for event in iter(self._next, "SequenceEnd"):
            inner = (*place, len(data))
            self.lines[inner] = _line_of(event)
            data.append(self._value(event, inner))
        return data

    def _next(self) -> Any:
        """The next event; the name of its kind when that ends a mapping or a list."""
        event = next(self._events)
        kind = _kind(event)
        return kind if kind in ("MappingEnd", "SequenceEnd") else event

    def _scalar(self, event: Any, place: Place) -> Any:
        """Numbers, true, false and null; a date and everything else is the text as written."""
        import yaml

        tag = self._rules.resolve(yaml.ScalarNode, event.value, event.implicit)
        kind = str(tag).rpartition(":")[2]
        if kind not in ("null", "bool", "int", "float"):
            return event.value
        try:
            if len(event.value) > 100:
                raise ValueError
            return getattr(self._rules, f"construct_yaml_{kind}")(yaml.ScalarNode(tag, event.value))
        except (ValueError, OverflowError):
            said = f"{_shown(event.value)} is no usable number. Write a shorter one, or quotes."
            raise _stop(self.shown, _line_of(event), said, place) from None


def _kind(event: Any) -> str:
    return type(event).__name__.removesuffix("Event")


def _line_of(event: Any) -> int:
    return int(event.start_mark.line) + 1


# ══ 10 .env ═══════════════════════════════════════════════════════════════════════════════════════

ENV_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
QUOTED = re.compile(r"""("(?:[^"\\]|\\.)*"|'[^']*')\s*(?:#.*)?""", re.DOTALL)
ESCAPES = {"n": "\n", "r": "\r", "t": "\t"}
# What would change which program runs or where keys are sent; addresses stand in project.yaml.
REFUSED = re.compile(r"PATH|IFS|ENV|BASH_ENV|(LD|DYLD|PYTHON|GIT)_?\w*|\w+_(BASE_URL|ENDPOINT)")


def read_env(root: str | Path) -> list[str]:
    """Put the project's `.env` into the environment, never over what is set there; the names that
    were set. With a malformed line nothing is set, and SettingsError names the line, not its value.
    """
    path = Path(root) / ".env"
    if not os.path.lexists(path):
        return []
    pairs, findings = _parse_env(_text_of(path, ".env", 100_000))
    if findings:
        raise SettingsError(findings)
    new = {name: value for name, value in pairs.items() if value and name not in os.environ}
    os.environ.update(new)
    return list(new)


def _parse_env(text: str) -> tuple[dict[str, str], list[Finding]]:
    pairs: dict[str, str] = {}
    findings: list[Finding] = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if line and not line.startswith("#"):
            name, value, said = _env_line(line)
            said = said or ("stands twice. Keep one." if name in pairs else "")
            if said:
                findings.append(Finding(".env", number, name, said))
            pairs[name] = value
    return pairs, findings


def _env_line(line: str) -> tuple[str, str, str]:
    """Name, value, and what is wrong: words that never hold a part of the value."""
    match = ENV_LINE.fullmatch(line)
    if match is None:
        return "", "", "is not NAME=value. Write one variable on each line."
    name, rest = match[1], match[2]
    if REFUSED.fullmatch(name):
        return name, "", "is not read from .env. Set it in your shell if you need it."
    value = _env_value(rest)
    if value is None:
        return name, "", "has a quote that does not close, or text after it. Mend the quotes."
    if "\0" in value or not _encodes(value):
        return name, "", "holds a character that an environment cannot hold. Remove it."
    return name, value, ""


def _env_value(rest: str) -> str | None:
    """The value without quotes and comment; None when its quotes are broken. `$` is just a `$`."""
    if rest[:1] not in ("'", '"'):
        return "" if rest.startswith("#") else re.split(r"\s#", rest, maxsplit=1)[0].strip()
    match = QUOTED.fullmatch(rest)
    if match is None:
        return None
    inner = match[1][1:-1]
    if rest[0] == "'":
        return inner
    return re.sub(r"\\(.)", lambda found: ESCAPES.get(found[1], found[1]), inner)


def _encodes(value: str) -> bool:
    try:
        return bool(os.fsencode(value)) or not value
    except UnicodeEncodeError:
        return False
