"""Configuration: every mistake at once, each with its line; and keys that never leave .env."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as tries
from hypothesis import strategies as st

import infrastructure
import settings
from children import CODE, child
from finetune_skills.scaffold import render
from settings import FRONT_BLOCKS, SCHEMAS, SettingsError, backend_arguments, check_file, read_env

TEMPLATES = CODE / "templates"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the starter files."""
    shutil.copytree(TEMPLATES / "config", tmp_path / "config")
    (tmp_path / "config/project.yaml").write_text(starter("project.yaml"), "utf-8")
    return tmp_path


FILLED = {"name": "my-project", "domain": "support for an invented product", "language": "en"}
FILLED |= {"hardware": "laptop with 16 GB of memory", "offline": "true"}


def starter(name: str) -> str:
    """A starter file as `finetune init` writes it."""
    text = (TEMPLATES / "config" / name).read_text("utf-8")
    return render(f"config/{name}", text.encode(), FILLED).decode()


def mistakes(folder: Path, name: str, text: str | bytes) -> list[str]:
    """What is said about a file of this name with this content."""
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [str(finding) for finding in check_file(path, f"config/{name}")]


# The starter files


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_starter_file_is_valid(name: str, tmp_path: Path) -> None:
    assert mistakes(tmp_path, name, starter(name)) == []


def test_the_starter_rubric_passes_the_kernels_own_check() -> None:
    rubric = infrastructure.load_rubric(TEMPLATES / "config/rubric.yaml", draft=False)
    assert (len(rubric.criteria), rubric.warnings) == (8, ())


def test_the_starter_project_writes_out_every_default_as_it_is(root: Path) -> None:
    """Else a number would stand twice, and differ."""
    project = settings.load_project(root)
    written = yaml.safe_load(starter("project.yaml"))
    for part in ("roles", "limits", "budgets", "thresholds", "slicing", "seeds"):
        defaults = type(getattr(project, part))().model_dump()
        assert written[part] == defaults


def test_each_file_loads_as_its_record(root: Path) -> None:
    assert settings.load_project(root).limits.max_tokens == 16_000
    assert settings.load_taxonomy(root).dimensions()["difficulty"]["hard"] == 0.2
    assert settings.load_persona_template(root).flaw_patterns.none_share == 0.2
    assert settings.load_dataset(root).hub.private
    assert settings.load_artefacts(root).patterns[0].kind == "self_disclosure"


def test_the_complete_entry_in_the_comments_is_a_valid_model(tmp_path: Path) -> None:
    text = starter("project.yaml")
    block = text[text.index("#   user_sim:") : text.index("roles:\n")].replace("#   ", "  ")
    text = text.replace("  user_sim: null", block.rstrip(), 1)
    assert mistakes(tmp_path, "project.yaml", text) == []
    assert "kind:MODEL" not in block


def test_the_example_of_keys_lists_names_and_no_values() -> None:
    lines = (TEMPLATES / ".env.example").read_text().splitlines()
    names = [line for line in lines if line and not line.startswith("#")]
    assert names == [f"{key}=" for key in infrastructure.KEYS]


def sections() -> Iterator[type[settings.Section]]:
    waiting: list[type[settings.Section]] = [settings.Section]
    while waiting:
        waiting += (found := waiting.pop()).__subclasses__()
        yield found


def test_every_field_says_what_it_is() -> None:
    fields = [field for section in sections() for field in section.model_fields.items()]
    assert len(fields) > 100
    assert [name for name, field in fields if not field.description] == []


def test_the_words_that_the_kernel_knows_are_the_same_here() -> None:
    assert set(settings.KINDS) == set(infrastructure.KINDS)
    assert set(settings.PRESETS) == set(infrastructure.PRESETS)
    assert settings.ALIASES == infrastructure.ALIASES


# Mistakes

ROLE = "  user_sim: null"


def line_of(name: str, text: str) -> int:
    """The line of the starter file that begins with this text."""
    lines = starter(name).splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.startswith(text))


P, T, R = "project.yaml", "input-taxonomy.yaml", "persona-template.yaml"
CHECKED = "source: page, checked: 2026-01-31}}"
D, A, U = "dataset.yaml", "artefacts.yaml", "rubric.yaml"
KEYS_OF_ROLES = "assistant, base, base_prompted, evaluation_judges, fixup, judges, tuned, user_sim"
# name: (file, what the starter says, what stands there instead, the line that it is on,
#        lines further down, the finding without file and line)
TABLE: dict[str, tuple[str, str, str, int, str]] = {
    "unknown key": (
        P, ROLE, "  asistant: null", 0,
        f'roles.asistant: "asistant" is not a known key. Did you mean "assistant"? '
        f"Have: {KEYS_OF_ROLES}.",
    ),
    "unknown kind": (
        P, ROLE, "  user_sim:\n    model: gemini:x", 1,
        'roles.user_sim.model: "gemini" is not a known kind of model. Did you mean "google"? '
        "Have: anthropic, claude, google, llamacpp, local, openai, python.",
    ),
    "no kind": (
        P, ROLE, "  user_sim: {model: some-name}", 0,
        'roles.user_sim.model: "some-name" names no kind. Write kind:MODEL, such as '
        '"openai:some-name". '
        "Kinds: anthropic, claude, google, llamacpp, local, openai, python.",
    ),
    "no model": (
        P, ROLE, "  user_sim: {model: 'openai:'}", 0,
        'roles.user_sim.model: "openai:" names no model. Write openai:MODEL.',
    ),
    "a role as text": (
        P, ROLE, "  user_sim: openai:x", 0,
        'roles.user_sim: "openai:x" is not a mapping. Write `name: value` lines below it.',
    ),
    "an empty judge": (
        P, "  judges: []", "  judges:\n    - model: openai:x\n    - model:", 2,
        "roles.judges[1].model: is empty. Fill it in.",
    ),
    "a preset of another kind": (
        P, ROLE, "  user_sim: {model: openai:x, preset: vllm}", 0,
        'roles.user_sim.preset: belongs to the kind "local", not to "openai". Remove the line.',
    ),
    "a local model without an address": (
        P, ROLE, "  user_sim: {model: local:x}", 0,
        "roles.user_sim.base_url: is missing. A local model needs it, or a preset: llama, "
        "llama-server, lmstudio, mistral, mlx, ollama, vllm.",
    ),
    "an unknown preset": (
        P, ROLE, "  user_sim: {model: local:x, preset: lm-studio}", 0,
        'roles.user_sim.preset: "lm-studio" is not a known preset. Did you mean "lmstudio"? '
        "Have: llama, llama-server, lmstudio, mistral, mlx, ollama, vllm.",
    ),
    "half an address": (
        P, ROLE, "  user_sim: {model: local:x, base_url: 'http://[half'}", 0,
        "roles.user_sim.base_url: is not a plain address. Write http://host:port/path without "
        "name, key or query.",
    ),
    "room in a model of another kind": (
        P, ROLE, "  user_sim: {model: openai:x, n_ctx: 8192}", 0,
        'roles.user_sim.n_ctx: belongs to the kind "llamacpp", not to "openai". Remove the line.',
    ),
    "a judge twice": (
        P, "  judges: []", "  judges:\n    - model: openai:x\n    - model: openai:x", 2,
        'roles.judges[1].label: "openai:x" stands twice. Give each its own name.',
    ),
    "a price below zero": (
        P, ROLE, "  user_sim: {model: openai:x, price: {input: -1, output: 2, " + CHECKED, 0,
        "roles.user_sim.price.input: -1 is out of range. It must be at least 0.",
    ),
    "no date": (
        P, ROLE, "  user_sim: {model: openai:x, terms: {source: t, note: n, checked: 2026-02-30}}",
        0,
        'roles.user_sim.terms.checked: "2026-02-30" is not a date. Write it as 2026-01-31.',
    ),
    "missing": (
        P, "  offline: true", "  # offline", -2,
        "target.offline: is missing. Add it: true when it must work without any network.",
    ),
    "a word for a number": (
        P, "  max_tokens: 16000", "  max_tokens: '16000'", 0,
        'limits.max_tokens: "16000" is not a whole number. Write one without quotes.',
    ),
    "a number in the wrong notation": (
        P, "  phrase_watch: 0.1", "  phrase_watch: 1e-1", 0,
        'thresholds.phrase_watch: "1e-1" is not a number. Write it out without quotes and without '
        "an exponent, such as 0.0002.",
    ),
    "not a number": (
        P, "  phrase_watch: 0.1", "  phrase_watch: .nan", 0,
        "thresholds.phrase_watch: nan is not a finite number. Write one.",
    ),
    "a language that YAML takes for false": (
        P, "language: en", "language: no", 0,
        "language: false is true or false to YAML, not text. Put it into quotes.",
    ),
    "a share above one": (
        P, "  judge_spread: 0.15", "  judge_spread: 1.2", 0,
        "thresholds.judge_spread: 1.2 is out of range. It must be at most 1.",
    ),
    "thresholds that cross": (
        P, "  phrase_vary: 0.2", "  phrase_vary: 0.05", 0,
        "thresholds.phrase_vary: 0.05 is below phrase_watch (0.1). It must be at least that.",
    ),
    "gaps that cross": (
        P, "  max_gap: 5", "  max_gap: 1", 0,
        "slicing.max_gap: 1 is below min_gap (2). It must be at least that.",
    ),
    "an unknown choice": (
        P, "  mode: auto", "  mode: hole", 0,
        'slicing.mode: "hole" is not a known choice. Did you mean "whole"? '
        "Have: auto, slices, whole.",
    ),
    "lengths that do not sum to one": (
        R, "  usual: {weight: 0.5", "  usual: {weight: 0.6", -2,
        "length_classes: the weights sum to 1.1, not to 1. Change them so that they do.",
    ),
    "an example longer than the model": (
        P, "  max_tokens: 16000", "  max_tokens: 40000", 0,
        "limits.max_tokens: 40000 is more than target.context_window (32768). "
        "An example has to fit into the running model: lower it.",
    ),
    "people trained on and tested on": (
        P, "  evaluation: 2", "  evaluation: 1", 0,
        "seeds.evaluation: 1 is also seeds.personas. Evaluation needs people of its own: "
        "change one.",
    ),
    "a later form": (
        P, "schema: 1", "schema: 2", 0, 'schema: "2" is not a known choice. Have: 1.',
    ),
    "a key twice": (
        P, "language: en", "name: again", 0, "name: stands twice (first on line 6). Keep one.",
    ),
    "topics that do not sum to one": (
        T, "    weight: 0.25", "    weight: 0.3", -6,
        "topics: the weights sum to 1.05, not to 1. Change them so that they do.",
    ),
    "a topic twice": (
        T, "  - name: billing", "  - name: delivery", 0,
        'topics[1].name: "delivery" stands twice. Give each its own name.',
    ),
    "parts that do not sum to one": (
        T, "    subtopics: {late: 0.5", "    subtopics: {late: 0.6", 0,
        "topics[0].subtopics: the weights sum to 1.1, not to 1. Change them so that they do.",
    ),
    "a weight as text": (
        T, "  easy: 0.3", "  easy: '0.3'", 0,
        'difficulty.easy: "0.3" is not a number. Write it without quotes.',
    ),
    "a dimension in two groups": (
        T, "  trust: {", "  cadence: {", 0,
        "relationship.cadence: is already the name of another dimension. "
        "Give each its own name.",
    ),
    "a constraint about nothing": (
        T, "  - when: {experience: [expert]}", "  - when: {experience: [exprt]}", 0,
        'constraints[0].when.experience[0]: "exprt" is not a known value of experience. '
        'Did you mean "expert"? Have: expert, new, regular.',
    ),
    "a band beside its target": (
        T, "  lowest: 0.1", "  lowest: 0.2", 1,
        "edge_cases.target: 0.15 is below lowest (0.2). It must be at least that.",
    ),
    "a style without words": (
        R, "    words: {terse: [5, 30], ", "    words: {", 0,
        'persona_template.communication_style.words: has no entry for "terse". '
        "Each style of options needs one.",
    ),
    "words that are no range": (
        R, "    words: {terse: [5, 30]", "    words: {terse: [30, 5]", 0,
        "persona_template.communication_style.words.terse: [30, 5] is not a range. "
        "Write the fewest and the most words, such as [30, 80].",
    ),
    "an age that nobody has": (
        R, "      18-25: {", "      18-26: {", 0,
        'persona_template.communication_style.weights_by_age.18-26: "18-26" is not a known '
        'age range. Did you mean "18-25"? Have: 18-25, 26-45, 46-70.',
    ),
    "a probability above one": (
        R, "    probability: 0.5", "    probability: 1.2", 0,
        "flaw_patterns.primary.probability: 1.2 is out of range. It must be at most 1.",
    ),
    "more traits than there are": (
        R, "    count: {at_least: 2, at_most: 4}", "    count: {at_least: 2, at_most: 9}", 0,
        "persona_template.personality_traits.count.at_most: 9 is more than the 8 options. "
        "Lower it or add options.",
    ),
    "more flaws than there are": (
        R, "    count: {at_least: 1, at_most: 1}", "    count: {at_least: 1, at_most: 4}", 1,
        "flaw_patterns.primary.patterns: has 3 flaws, but count.at_most is 4. "
        "Add some or lower it.",
    ),
    "a flaw in two families": (
        R, "      yes-but:", "      vague:", 0,
        "flaw_patterns.secondary.patterns.vague: is also a primary flaw. Keep it in one family.",
    ),
    "stages that are no whole": (
        R, "  - {share: 0.5, ", "  - {share: 0.4, ", -2,
        "stages: the weights sum to 0.9, not to 1. Change them so that they do.",
    ),
    "a document from elsewhere": (
        D, "  sources: []", "  sources: [{path: ../secret.pdf}]", 0,
        'documents.sources[0].path: "../secret.pdf" is not below the project. '
        "Copy it into data/sources/.",
    ),
    "a repository without an owner": (
        D, '  repository: ""', "  repository: mine", 0,
        'hub.repository: "mine" is not a repository. Write "owner/name".',
    ),
    "a pattern beside phrases": (
        A, "    phrases:", "    pattern: x\n    phrases:", 1,
        "patterns[19].phrases: stands beside a pattern. Keep one of the two.",
    ),
    "a gate that is no name": (
        U, "safety_gates: [S1, S2]", "safety_gates: [S1, [S2]]", 0,
        "safety_gates[1]: a list is not the id of a criterion. Write its id.",
    ),
    "a comma without quotes": (
        R, "  ignores: {weight: 0.3, shows: goes on", "  ignores: {weight: 0.3, shows: a, goes on",
        0,
        'response_types.ignores.goes on with something else: "goes on with something else" is not '
        "a known key. Have: shows, weight. Text with a comma inside {} needs quotes.",
    ),
    "a broken pattern": (
        A, "    pattern: '^", "    pattern: '(^", 0,
        "patterns[18].pattern: is not a regular expression: missing ), unterminated subpattern at "
        "position 0. Mend it, or use phrases.",
    ),
    "neither pattern nor phrases": (
        A, "    phrases:", "    why: x #", -2,
        "patterns[19].phrases: is missing. Write a pattern or a list of phrases.",
    ),
    "a verdict that does not exist": (
        U, "      - type: BORDERLINE_PASS", "      - type: MAYBE", 0,
        'criteria.U1.calibration_examples[1].type: "MAYBE" is not a known choice. '
        "Have: BORDERLINE_FAIL, BORDERLINE_PASS, FAIL, PASS.",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "old", "new", "offset", "said"), TABLE.values(), ids=TABLE)
def test_a_mistake_is_said_in_one_line_with_its_place(
    tmp_path: Path, name: str, old: str, new: str, offset: int, said: str
) -> None:
    line = line_of(name, old)
    text = starter(name).replace("\n" + old, "\n" + new, 1)
    assert f"config/{name}:{line + offset} {said}" in mistakes(tmp_path, name, text)


ONE_EACH = TABLE.keys() - {"unknown key", "a key twice", "a comma without quotes"}
ONE_EACH -= {"neither pattern nor phrases"}


@pytest.mark.parametrize("case", sorted(ONE_EACH))
def test_one_mistake_makes_one_line(tmp_path: Path, case: str) -> None:
    name, old, new, *_ = TABLE[case]
    assert len(mistakes(tmp_path, name, starter(name).replace("\n" + old, "\n" + new, 1))) == 1


def test_all_mistakes_of_a_file_are_said_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = starter(P).replace("schema: 1", "schema: 9").replace("offline: true", "offline: yep")
    text = text.replace("first: 3", "first: 0").replace("mode: auto", "mode: auto\n  mode: auto")
    places = [line.split()[1] for line in mistakes(tmp_path, P, text + "extra: 1\n")]
    assert places == ["schema:", "target.offline:", "slicing.mode:", "slicing.first:", "extra:"]


def test_a_load_raises_one_error_with_every_finding(root: Path) -> None:
    (root / "config" / P).write_text("schema: 1\nname: a b\n")
    with pytest.raises(SettingsError) as caught:
        settings.load_project(root)
    assert caught.value.exit_code == 2
    assert str(caught.value) == "\n".join(map(str, caught.value.findings))
    assert str(caught.value.findings[-1]).startswith("config/project.yaml:2 name: ")


def test_a_flood_of_mistakes_ends_with_a_count(tmp_path: Path) -> None:
    found = mistakes(tmp_path, P, starter(P) + "".join(f"x{n}: 1\n" for n in range(500)))
    assert len(found) == 101
    assert found[-1] == "config/project.yaml: 400 more mistakes. Mend those above first."


def mappings(name: str) -> list[tuple[int, str]]:
    """Where a key can be put before another: the line and its indentation."""
    lines = starter(name).splitlines()
    keys = [n for n, line in enumerate(lines) if line.lstrip()[:1].isalpha() and ":" in line]
    return [(n, lines[n][: len(lines[n]) - len(lines[n].lstrip())]) for n in keys]


@tries(deadline=None)
@given(st.data())
def test_any_single_unknown_key_is_reported_with_its_line(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(SCHEMAS)))
    key = data.draw(st.from_regex(r"zz[a-z_]{1,12}", fullmatch=True))
    number, indent = data.draw(st.sampled_from(mappings(name)))
    lines = starter(name).splitlines()
    lines.insert(number, f"{indent}{key}: 1")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_text("\n".join(lines), encoding="utf-8")
        found = check_file(path)
    own = [finding for finding in found if finding.where.split(".")[-1] == key]
    assert [finding.line for finding in own] == [number + 1] or summed(found)


def summed(findings: list[settings.Finding]) -> bool:
    """Where the names are the user's own, one more shows as a sum that is off, or as a stranger."""
    [finding] = findings
    return "not to 1" in finding.message or "is not a known style" in finding.message


# Secrets in the wrong place

SECRET = "sk-canary-0123456789"


@pytest.mark.parametrize(
    "role",
    [
        f"{{model: openai:x, api_key: {SECRET}}}",
        f"{{model: openai:x, key_variable: {SECRET}}}",
        f"{{model: openai:x, base_url: 'https://{SECRET}@host/v1'}}",
        f"{{model: openai:x, parameters: {{api_key: {SECRET}}}}}",
    ],
)
def test_a_key_in_the_wrong_place_is_refused_and_not_shown(tmp_path: Path, role: str) -> None:
    [found] = mistakes(tmp_path, P, starter(P).replace(ROLE, f"  user_sim: {role}", 1))
    assert found.startswith(f"config/project.yaml:{line_of(P, ROLE)} roles.user_sim.")
    assert SECRET not in found


# Models


def test_a_role_becomes_what_the_kernel_takes() -> None:
    price = {"input": 1.0, "output": 2, "source": "page", "checked": "2026-01-31"}
    given = {"model": "local:m", "preset": "vllm", "parameters": {"top_p": 0.9}, "price": price}
    spec, options = backend_arguments(settings.ModelSpec.model_validate(given))
    assert (spec, options["price"]) == ("local:m", {"input": 1.0, "output": 2.0})
    backend = infrastructure.get_backend(spec, **options)
    assert (backend.name, backend.base_url) == ("local:m", "http://127.0.0.1:8000/v1")


def test_every_option_of_a_role_is_one_that_the_kernel_knows() -> None:
    known = set(infrastructure.Options.__dataclass_fields__)
    assert {*settings.OPTIONS, "price"} <= known


# Text that is no configuration

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]\n" for n in range(1, 30))
HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "a bomb of aliases": (BOMB, ":1 a0: uses an anchor or alias"),
    "an alias without an anchor": ("a: *b", ":1"),
    "a merge key": ("a: {b: 1}\n<<: 5", ':2 <<: "<<" is not a known key'),
    "a python tag": ("name: !!python/object/apply:os.system [id]", ":1 name: uses a tag"),
    "a tag on the whole": ("!!map\na: 1", ":1: uses a tag"),
    "five megabytes": ("a: " + "x" * 5_000_000, ": is larger than 1,000,000 bytes. Shorten it."),
    "many values": ("a: [" + "1," * 400_000 + "]", " is the value number 20,001."),
    "many keys": ("".join(f"k{n}: 1\n" for n in range(80_000)), " is the value number 20,001."),
    "deep brackets": ("a: " + "[" * 100_000, "is nested too deep. Flatten it."),
    "deep braces": ("{a: " * 100_000, "is nested too deep. Flatten it."),
    "deep dashes": ("- " * 100_000, "is nested too deep. Flatten it."),
    "a NUL": ("schema: 1\nname: a\0b", ":2: holds the control character U+0000. Remove it."),
    "an escape": ("a: 1\nb: \x1b[31m", ":2: holds the control character U+001B."),
    "Latin-1": ("schema: 1\nname: J\xfcrgen".encode("latin-1"), ":2: is not UTF-8. Save the file"),
    "UTF-16": ("schema: 1".encode("utf-16"), ":1: is UTF-16. Save the file as UTF-8."),
    "a tab": ("target:\n\thardware: x", ":2: is not valid YAML: "),
    "an open quote": ("name: 'x\n", ": is not valid YAML: "),
    "two documents": ("schema: 1\n---\nschema: 1", ":2: a second document begins. Keep one."),
    "a list as a key": ("? [a]\n: 1", ":1: has a key that is no plain text."),
    "braces for a placeholder": ("name: {{name}}", ":1 name: has a key that is no plain text."),
    "a number of 5,000 digits": ("schema: " + "9" * 5_000, ":1 schema: "),
    "a number of colons": ("schema: 1" + ":1" * 5_000, ":1 schema: "),
    "half a number": ("schema: 0b_", ':1 schema: "0b_" is no usable number.'),
    "nothing": ("", ":1 schema: is missing."),
    "only a comment": ("# soon\n", ":1 schema: is missing."),
    "a list": ("- a\n- b\n", ":1: a list is not a mapping."),
    "a word": ("hello", ':1: "hello" is not a mapping.'),
}


@pytest.mark.parametrize("loader", ["CSafeLoader", "SafeLoader"])
@pytest.mark.parametrize(("text", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_ends_in_one_clear_error_within_a_second(
    tmp_path: Path, text: str | bytes, said: str, loader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the fast parser and with the one that is always there; a tracer slows both down."""
    limit = 10 if "coverage" in sys.modules else 1
    monkeypatch.setattr(yaml, "CSafeLoader", getattr(yaml, loader, yaml.SafeLoader))
    started = time.process_time()
    found = mistakes(tmp_path, P, text)
    assert time.process_time() - started < limit
    assert found[0].startswith("config/project.yaml:")
    assert said in " ".join(found)
    assert all(len(line) < 300 and "\n" not in line for line in found)


@tries(deadline=None)
@given(st.sampled_from(sorted(SCHEMAS)), st.data())
def test_no_damage_to_a_file_ends_in_a_traceback(name: str, data: st.DataObject) -> None:
    """A piece of a starter file is cut out and something else put there."""
    text = starter(name)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    odd = st.sampled_from(["<<", "null", ".inf", "0x", "yes", "1e9", *"[]{}:-?&*!|>'#%@`,~"])
    put = data.draw(st.lists(st.one_of(odd, st.text(max_size=5)), max_size=5))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes((text[:start] + " ".join(put) + text[end:]).encode("utf-8", "replace"))
        assert all(len(str(finding)) < 900 for finding in check_file(path, name))


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    text = starter(P).replace("\n", "\r\n").encode("utf-8-sig")
    assert mistakes(tmp_path, P, text) == []
    assert ":6 name: " in mistakes(tmp_path, P, text.replace(b"my-project", b"my project"))[0]


def test_a_file_that_is_not_there_or_no_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").mkdir()
    os.mkfifo(tmp_path / A)
    said = [str(check_file(tmp_path / name, name)[0]) for name in (P, "dataset.yaml", A)]
    assert said[0] == f"{P}: is missing. Create it, or go to the project's folder."
    assert said[1] == "dataset.yaml: is a directory. Put a text file in its place."
    assert said[2] == f"{A}: is no ordinary file. Put a text file in its place."


def test_a_file_without_rights_or_with_an_impossible_name_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    (tmp_path / P).touch()
    [denied] = check_file(tmp_path / P, P)
    assert str(denied).startswith(f"{P}: cannot be read: Permission denied.")
    assert len(check_file(tmp_path / ("x" * 300) / P)) == 1
    assert "is no usable path" in check_file(Path("a\0b") / P)[0].message


def test_a_file_of_another_name_is_not_guessed_at(tmp_path: Path) -> None:
    [found] = check_file(tmp_path / "other.yaml", "other.yaml")
    have = ", ".join(SCHEMAS | FRONT_BLOCKS)
    assert str(found) == f"other.yaml: is no configuration file. Have: {have}."


# .env


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that is put back."""
    monkeypatch.setattr(os, "environ", {"HELD": "shell", "BLANK": ""})


def read(folder: Path, text: str | bytes) -> list[str]:
    (folder / ".env").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_env(folder)


@pytest.mark.usefixtures("clean")
def test_no_file_sets_nothing(tmp_path: Path) -> None:
    assert read_env(tmp_path) == []


@pytest.mark.usefixtures("clean")
def test_the_environment_is_never_overridden(tmp_path: Path) -> None:
    assert read(tmp_path, "HELD=file\nBLANK=file\nNEW=file\nEMPTY=\n") == ["NEW"]
    found = {name: os.environ.get(name) for name in ("HELD", "BLANK", "NEW", "EMPTY")}
    assert found == {"HELD": "shell", "BLANK": "", "NEW": "file", "EMPTY": None}


FORMS = {
    "K=v": "v",
    "export K=v": "v",
    "  K = v  ": "v",
    "K=v # why": "v",
    "K=v#1": "v#1",
    "K='a # b $X'": "a # b $X",
    'K="a # b" # why': "a # b",
    r'K="a\nb\"c\\"': 'a\nb"c\\',
    r"K='a\nb'": r"a\nb",
    "K=$OTHER=x": "$OTHER=x",
    "K=it's": "it's",
    "K=\u00e4\u2028b": "\u00e4\u2028b",
}


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(("line", "value"), FORMS.items())
def test_quotes_comments_and_export_are_understood(tmp_path: Path, line: str, value: str) -> None:
    assert read(tmp_path, f"# head\n\n{line}\n") == ["K"]
    assert os.environ["K"] == value


@pytest.mark.usefixtures("clean")
def test_windows_lines_and_a_byte_order_mark_are_understood(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfA=1\r\nB='2'\r\n") == ["A", "B"]
    assert (os.environ["A"], os.environ["B"]) == ("1", "2")


BROKEN = {
    SECRET: ".env:2: is not NAME=value. Write one variable on each line.",
    f"MY KEY={SECRET}": ".env:2: is not NAME=value. Write one variable on each line.",
    f"K='{SECRET}": ".env:2 K: has a quote that does not close, or text after it. Mend the quotes.",
    f'K="{SECRET}" x': ".env:2 K: has a quote that does not close, or text after it. "
    "Mend the quotes.",
    f"K={SECRET}\0": ".env:2 K: holds a character that an environment cannot hold. Remove it.",
    f"GOOD={SECRET}": ".env:2 GOOD: stands twice. Keep one.",
    f"OPENAI_BASE_URL={SECRET}": ".env:2 OPENAI_BASE_URL: is not read from .env. "
    "Set it in your shell if you need it.",
    f"LD_PRELOAD={SECRET}": ".env:2 LD_PRELOAD: is not read from .env. "
    "Set it in your shell if you need it.",
}


@pytest.mark.usefixtures("clean")
@pytest.mark.parametrize(("line", "said"), BROKEN.items())
def test_a_malformed_line_is_named_without_its_value_and_nothing_is_set(
    tmp_path: Path, line: str, said: str
) -> None:
    before = dict(os.environ)
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, f"GOOD={SECRET}\n{line}\n")
    assert (str(caught.value), dict(os.environ)) == (said, before)


@pytest.mark.usefixtures("clean")
def test_a_file_of_keys_in_another_encoding_is_refused_without_a_value(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^\.env:2: is not UTF-8\. Save the file as UTF-8\.$"):
        read(tmp_path, b"A=1\nB=\xe9" + SECRET.encode())


# Importing it

ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import pydantic, dataclasses, difflib, stat, urllib.parse  # what it declares to need
touched = []

def watch(event, arguments):
    if event.split(".")[0] in ("socket", "subprocess") or event in ("os.system", "os.mkdir"):
        touched.append(event)
    if event == "open" and isinstance(arguments[0], str):
        touched.append(arguments[0])

sys.addaudithook(watch)
import settings
import json
built = [name for name, schema in settings.SCHEMAS.items() if schema.__pydantic_complete__]
ours = sorted({"infrastructure", "yaml"} & set(sys.modules))
prefixes = [sys.prefix, sys.base_prefix]
print(json.dumps({"touched": touched, "built": built, "ours": ours, "python": prefixes}))
"""


def test_importing_it_opens_no_file_or_socket_and_builds_nothing() -> None:
    done = child("-B", "-c", ALONE, CODE)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    own = (str(CODE / "settings.py"), str(CODE / "__pycache__" / "settings."), *seen["python"])
    assert [path for path in seen["touched"] if not path.startswith(own)] == []
    assert (seen["built"], seen["ours"]) == ([], [])


SCRIPT = """
import sys
from settings import SettingsError, load_project, read_env
try:
    print(read_env("."), load_project(".").name)
except SettingsError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def run_alone(root: Path) -> subprocess.CompletedProcess[str]:
    """The script in the project, with nothing of ours on its path but the copied file."""
    shutil.copy(CODE / "settings.py", root)
    here = f"import os, sys; os.chdir({str(root)!r}); sys.path.insert(0, '.')"
    return child("-I", "-c", f"{here}\n{SCRIPT}")


def test_it_works_when_copied_alone_into_an_empty_directory(root: Path) -> None:
    done = run_alone(root)
    assert (done.stdout, done.stderr) == ("[] my-project\n", "")


def test_its_error_is_shown_without_a_traceback(root: Path) -> None:
    (root / "config" / P).unlink()
    done = run_alone(root)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "config/project.yaml: is missing. Create it, or go to the project's folder.\n"
    )


def test_a_test_of_the_audit_has_one_limit_in_one_place(tmp_path: Path) -> None:
    rated = "phrase_vary: {severity: "
    found = mistakes(tmp_path, P, starter(P).replace(f"{rated}warning", f"{rated}bad, limit: 1"))
    assert any(
        "audit.phrase_vary.severity" in line and "critical, info, warning" in line for line in found
    )
    assert any("audit.phrase_vary.limit" in line for line in found)


def test_without_its_packages_it_says_in_one_line_how_to_get_them(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "v")], check=True)
    done = subprocess.run(
        [str(tmp_path / "v/bin/python"), str(CODE / "settings.py")], capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no package pydantic. In the project: python3 -m venv .venv" in done.stderr
