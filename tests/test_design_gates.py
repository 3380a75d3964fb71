"""The gates of the design phase: a whole design passes, and each planted mistake is named."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from children import CODE
from designs import DESIGN, VALUES, designed, edit
from finetune_skills import checks_design, gates, scaffold


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return designed(tmp_path_factory.mktemp("design") / "demo")


@pytest.fixture
def root(passed: Path, tmp_path: Path) -> Path:
    subprocess.run(["cp", "-R", str(passed), str(tmp_path / "demo")], check=True)
    return tmp_path / "demo"


def found(root: Path, gate: str) -> list[str]:
    return [str(finding) for finding in gates.run_check(root, gates.GATES[gate]).findings]


P, T, U, R = (
    f"config/{n}.yaml" for n in ("project", "input-taxonomy", "persona-template", "rubric")
)
C, Q = "design/model-choice.md", "design/critique.md"
SIM, ASSISTANT, JUDGE, FIX = (
    f"config/prompts/{name}.md" for name in ("user_sim", "assistant", "assessor", "fixup")
)
SYSTEM = "config/system-prompt.md"
FIELDS = ("name", "age_range", "personality_traits", "communication_style", "topics", "trajectory")
FIELDS += ("cadence", "asks", "experience", "communication", "trust", "problem", "time_course")
FIELDS += ("filter", "home")  # all that is drawn, but for household
TOO_LONG = """## Too long

Your reply had {{words}} words, the message had {{user_words}}. Say the same in at most {{most}} \
words.
Keep every topic, and drop what nobody asked for. Write only the reply.
"""
REPAIR = """    model: "python:simulated:repair"
    terms: {source: simulated.py of this project, checked: 2026-11-21, note: our own code}
"""

# What is planted: gate, file, old text, new text, words of the line that has to be named (none: the
# file as a whole; `##2` means the second such line), and what has to be said.
Planted = tuple[str, str, str, str, str, str]
# fmt: off
TAXONOMY: dict[str, Planted] = {
    "topics over 1": (
        "taxonomy", T, "weight: 0.2\n", "weight: 0.25\n", "topics:",
        "the weights sum to 1.05, not to 1.",
    ),
    "subtopics under 1": (
        "taxonomy", T, "taste: 0.4", "taste: 0.3", "taste: 0.3", "sum to 0.9, not to 1",
    ),
    "difficulty over 1": ("taxonomy", T, "easy: 0.3 ", "easy: 0.4 ", "difficulty:", "sum to 1.1"),
    "a weight as text": ("taxonomy", T, "easy: 0.3 ", 'easy: "0.3" ', "easy:", "is not a number"),
    "a share in per cent": ("taxonomy", T, "easy: 0.3 ", "easy: 30% ", "easy:", "is not a number"),
    "a weight of 1.2": ("taxonomy", T, "easy: 0.3 ", "easy: 1.2 ", "easy:", "at most 1."),
    "a weight below 0": ("taxonomy", T, "easy: 0.3 ", "easy: -0.3 ", "easy:", "at least 0"),
    "a topic twice": (
        "taxonomy", T, "name: fitting", "name: delivery", "name: delivery ##2", "stands twice",
    ),
    "a key twice": (
        "taxonomy", T, "why: who does", "when: {asks: [directly]}\n    why: who does",
        "when: {asks", "stands twice",
    ),
    "a tab": ("taxonomy", T, "  medium: 0.5", "\tmedium: 0.5", "medium:", "no tabs"),
    "an anchor": ("taxonomy", T, "  easy: 0.3", "  easy: &x 0.3", "easy:", "anchor or alias"),
    "a tag": ("taxonomy", T, "  easy: 0.3", "  easy: !!python/name:os.x 0.3", "easy:", "a tag"),
    "a second document": ("taxonomy", T, "how:\n", "---\nhow:\n", "---", "second document"),
    "an unknown group": (
        "taxonomy", T, "relationship:", "relationships:", "relationships:",
        'Did you mean "relationship"?',
    ),
    "a group without a dimension": (
        "taxonomy", T,
        "relationship:\n  trust: {open: 0.5, sceptical: 0.35, tests the limits: 0.15}",
        "relationship: {}", "relationship:", "has no dimension",
    ),
    "a value that is never drawn": (
        "taxonomy", T, "{open: 0.5, sceptical: 0.35, tests the limits: 0.15}",
        "{open: 0.65, sceptical: 0.35, tests the limits: 0}", "trust:", "never drawn",
    ),
    "too many edge cases": (
        "taxonomy", T, "    description: how often",
        "    edge_case: true\n    description: how often", "edge_cases:", "hold 0.35 of the weight",
    ),
    "no topic marked as edge case": (
        "taxonomy", T, "    edge_case: true\n", "", "edge_cases:", "hold 0 of the weight",
    ),
    "a band that crosses": (
        "taxonomy", T, "  target: 0.15", "  target: 0.05", "  target:", "is below lowest",
    ),
    "a constraint on nothing": (
        "taxonomy", T, "when: {experience", "when: {experince", "when:",
        'Did you mean "experience"?',
    ),
    "a constraint on no value": (
        "taxonomy", T, "never: {asks: [by hinting]}", "never: {asks: [hints]}", "never:",
        "not a known value of asks",
    ),
    "constraints that rule a value out": (
        "taxonomy", T, "[by hinting]", "[by hinting, directly]", "constraints:",
        "rule out experience = does plumbing",
    ),
    "a dimension in two groups": (
        "taxonomy", T, "  trust: {", "  asks: {", "  asks: { ##2", "the name of another dimension",
    ),
    "a topic without parts": (
        "taxonomy", T, "    subtopics: {taste: 0.4, cloudy: 0.3, what is filtered: 0.3}\n", "",
        "name: water", "subtopics: is missing",
    ),
}
PERSONAS: dict[str, Planted] = {
    "a style without a word range": (
        "personas", U, "words: {terse: [5, 30], ", "words: {", "words:", 'has no entry for "terse"',
    ),
    "a style that is not declared": (
        "personas", U, "weights: {terse: 0.25, t", "weights: {verbose: 0.25, t", "weights:",
        '"verbose" is not a known style',
    ),
    "a word range that crosses": (
        "personas", U, "terse: [5, 30]", "terse: [30, 5]", "words:", "is not a range",
    ),
    "a word range with one end": (
        "personas", U, "terse: [5, 30]", "terse: [30]", "words:", "is not a range",
    ),
    "styles over 1": (
        "personas", U, "casual: 0.4, formal", "casual: 0.5, formal", "weights:", "sum to 1.1",
    ),
    "a flaw probability of 1.2": (
        "personas", U, "    probability: 0.5", "    probability: 1.2", "probability: 1.2",
        "at most 1",
    ),
    "a flaw in both families": (
        "personas", U, "      yes-but:", "      vague:", "vague: ##2", "also a primary flaw",
    ),
    "flaws under 1": (
        "personas", U, "      vague:\n        weight: 0.35", "      vague:\n        weight: 0.25",
        "    patterns:", "sum to 0.9",
    ),
    "a share in words": (
        "personas", U, "none_share: 0.2", "none_share: a fifth", "none_share:", "is not a number",
    ),
    "more traits than there are": (
        "personas", U, "count: {at_least: 2, at_most: 4}", "count: {at_least: 2, at_most: 40}",
        "at_most: 40", "is more than the 10 options",
    ),
    "a count that crosses": (
        "personas", U, "count: {at_least: 2, at_most: 3}", "count: {at_least: 4, at_most: 3}",
        "at_least: 4", "is below at_least",
    ),
    "more topics than the taxonomy has": (
        "personas", U, "count: {at_least: 2, at_most: 3}", "count: {at_least: 2, at_most: 9}",
        "at_most: 9", "the taxonomy has 6",
    ),
    "more flaws than there are": (
        "personas", U, "count: {at_least: 1, at_most: 2}", "count: {at_least: 1, at_most: 5}",
        "    patterns: ##2", "has 3 flaws, but count.at_most is 5",
    ),
    "a conversation over the token limit": (
        "personas", U, "exchanges: 20", "exchanges: 80", "  long:", "At most 64 exchanges fit.",
    ),
    "a conversation under the minimum": (
        "personas", U, "exchanges: 10", "exchanges: 6", "  short:", "limits.min_exchanges (10)",
    ),
    "lengths over 1": (
        "personas", U, "weight: 0.3, exchanges: 10", "weight: 0.4, exchanges: 10",
        "length_classes:", "sum to 1.1",
    ),
    "stages under 1": ("personas", U, "share: 0.5", "share: 0.4", "stages:", "sum to 0.9"),
    "weights for an age that is not there": (
        "personas", U, "      18-29: {terse", "      18-30: {terse", "18-30:",
        "not a known age range",
    ),
    "an attribute that the taxonomy has": (
        "personas", U, "  home: {rented", "  household: {rented", "household:", "drawn twice",
    ),
    "a flaw that shows nothing": (
        "personas", U, "        shows: jokes when asked for a detail that is missing\n", "",
        "deflects with a joke:", "shows: is missing",
    ),
    "an option that never comes": (
        "personas", U, "ignores: {weight: 0.3, s", "ignores: {weight: 0, s", "response_types:",
        "sum to 0.7",
    ),
    "a value of weight 0": (
        "personas", U, "{Tarn One: 0.55, Tarn Duo: 0.45}", "{Tarn One: 1, Tarn Duo: 0}", "filter:",
        "never drawn",
    ),
    "no trajectory": (
        "personas", U, "stages:\n", "stagess:\n", "stagess:", 'Did you mean "stages"?',
    ),
    "overlapping seeds": (
        "personas", P, "  evaluation: 2 ", "  evaluation: 1 ", "  evaluation: 1",
        "is also seeds.personas",
    ),
}
RUBRIC: dict[str, Planted] = {
    "no rule for NA": ("rubric", R, "    na_valid: false\n", "", "  U1:", "na_valid: is missing"),
    "NA in words": (
        "rubric", R, "na_valid: false", "na_valid: never", "na_valid: never", "true or false",
    ),
    "a criterion in two categories": (
        "rubric", R, "criteria: [F1, F2]", "criteria: [F1, F2, H1]", "[F1, F2, H1]",
        "a criterion has exactly one",
    ),
    "a criterion that is not there": (
        "rubric", R, "criteria: [F1, F2]", "criteria: [F1, F2, F9]", "[F1, F2, F9]",
        '"F9" is not a known criterion',
    ),
    "a safety gate with a weight": (
        "rubric", R, "criteria: [F1, F2]", "criteria: [F1, F2, S1]", "safety_gates:",
        "a safety gate carries none",
    ),
    "a criterion without a place": (
        "rubric", R, "criteria: [U1, U2, U3]", "criteria: [U1, U2]", "  U3:", "is in no category",
    ),
    "categories over 1": ("rubric", R, "weight: 0.35", "weight: 0.45", "categories:", "sum to 1.1"),
    "an unknown kind of example": (
        "rubric", R, "type: BORDERLINE_PASS", "type: MAYBE", "type: MAYBE", "MAYBE",
    ),
    "a count without its statistic": (
        "rubric", R, "    statistics: [mean_ratio, over_2, exchanges]\n", "",
        "question: Judging by", "models can't count",
    ),
    "a statistic that nobody computes": (
        "rubric", R, "[mean_ratio, over_2, exchanges]", "[mean_ration]", "statistics:",
        'Did you mean "mean_ratio"?',
    ),
    "from exchange 0 on": (
        "rubric", R, "min_turns: 3", "min_turns: 0", "min_turns: 0", "whole number from 1",
    ),
    "a threshold in per cent": (
        "rubric", R, "pass_threshold: 0.8", "pass_threshold: 80.0", "pass_threshold:",
        "from 0 to 1",
    ),
    "no safety gate": (
        "rubric", R, "safety_gates: [S1, S2, S3]", "safety_gates: []", "safety_gates:",
        "no safety gate",
    ),
    "the same question twice": (
        "rubric", R, "question: Where something has to be done by Tarn or by a plumber, does the "
        "reply say who does what next?", "question: Does a customer who is stuck get one concrete "
        "next step that they can take themselves?", "question: Does a customer ##2",
        "the same as H1",
    ),
    "examples of one side only": (
        "rubric", R, "      - type: FAIL\n        context: Nice box",
        "      - type: PASS\n        context: Nice box", "calibration_examples: ##3",
        "no example is a FAIL",
    ),
    "a misspelt key": (
        "rubric", R, "    min_turns: 3\n", "    min_turn: 3\n", "min_turn:",
        'Did you mean "min_turns"?',
    ),
    "a question that is empty": (
        "rubric", R, "Do openings and endings vary, without stock sympathy and empty thanks?", "",
        "question: ##10", "is empty",
    ),
}
MODEL: dict[str, Planted] = {
    "no base model": (
        "model", P, 'base: {model: "python:simulated:base"}', "base: null", "  base: null",
        "no model yet",
    ),
    "a base model of another name": (
        "model", P, '"python:simulated:base"}', '"python:simulated:bass"}', "C served_as:",
        "it is one model",
    ),
    "a branch in place of a commit": (
        "model", C, '"0000000000000000000000000000000000000000"', "main", "revision:",
        "a pinned revision",
    ),
    "a bare base model": (
        "model", C, "id: simulated/support-instruct", "id: simulated/support-base", "id:",
        "bare base model",
    ),
    "not instruction-tuned": (
        "model", C, "instruct: true", "instruct: false", "instruct:", "not a known choice",
    ),
    "code of its own": (
        "model", C, "trust_remote_code: false", "trust_remote_code: true", "trust_remote_code:",
        "not a known choice",
    ),
    "code of its own, asked for in a role": (
        "model", P, '{model: "python:simulated:tuned"}',
        '{model: "python:simulated:tuned", parameters: {trust_remote_code: true}}', "tuned:",
        "does not go into parameters",
    ),
    "offline in one file only": (
        "model", C, "offline: true", "offline: false", "offline:", "is true. Decide once.",
    ),
    "a window that is too small": (
        "model", C, "context_window: 32768", "context_window: 8192", "context_window:",
        "target.context_window in config/project.yaml is 32768",
    ),
    "no terms for a generator": (
        "model", P, REPAIR, REPAIR.splitlines()[0] + "\n", "  fixup:", "may be used for training",
    ),
    "terms that nobody dated": (
        "model", P, "checked: 2026-11-21, note", "note", "terms:", "checked: is missing",
    ),
    "one alternative only": (
        "model", C, "  - id: simulated/support-code-instruct\n    why_not: tuned for code, and its "
        "licence forbids commercial use\n", "", "alternatives:",
        "has 1 entries. It needs at least 2",
    ),
    "the chosen model as its own alternative": (
        "model", C, "id: simulated/support-large-instruct", "id: simulated/support-instruct",
        "id: simulated/support-instruct ##2", "is the chosen model",
    ),
    "a spec without its kind": (
        "model", P, '"python:simulated:tuned"', '"tuned"', "tuned:", "names no kind",
    ),
    "a provider by another name": (
        "model", P, '"python:simulated:tuned"', '"gemini:x"', "tuned:", 'Did you mean "google"?',
    ),
    "a key in the file": (
        "model", P, '{model: "python:simulated:tuned"}',
        '{model: "python:simulated:tuned", api_key: abc}', "tuned:", "never stands in this file",
    ),
    "no front block": ("model", C, "---\n# This", "# This", "# This", "has no front block"),
    "an unknown way to train": (
        "model", C, "method: lora", "method: dora", "method:", "not a known choice",
    ),
    "a price without its date": (
        "model", P, '{model: "python:simulated:tuned"}',
        '{model: "python:simulated:tuned", price: {input: 1, output: 1, source: page}}', "tuned:",
        "checked: is missing",
    ),
}
PROMPTS: dict[str, Planted] = {
    "an unknown placeholder": (
        "prompts", SIM, "{{language}}.", "{{language}}, {{mood}}.", "{{mood}}",
        "is not a known placeholder",
    ),
    "a placeholder that is gone": (
        "prompts", SIM, "{{persona}}", "A person.", "## System", "does not use {{persona}}",
    ),
    "a dimension that nothing reads": (
        "prompts", SIM, "{{persona}}", "\n".join(f"{{{{{name}}}}}" for name in FIELDS), "## System",
        "does not use {{household}}: nothing reads this dimension",
    ),
    "a section that is gone": (
        "prompts", ASSISTANT, TOO_LONG, "", "", 'has no section "## Too long"',
    ),
    "a section of another name": (
        "prompts", FIX, "## Repair", "## Repairs", "## Repairs", 'Did you mean "Repair"?',
    ),
    "an empty section": (
        "prompts", SIM,
        "Your message had {{words}} words. This person writes at least {{least}} and at "
        "most {{most}}. Write the\nsame message again within these limits, and nothing else.", "",
        "## Wrong length", "is empty",
    ),
    "a limit that is said again": (
        "prompts", SIM, "They say what they would know", "In 80 words they say what they know",
        "In 80 words", '"80 words" is a number',
    ),
    "a probability that is said again": (
        "prompts", SIM, "Openings differ.", "In 30 % of messages openings differ.", "In 30 %",
        '"30 %" is a number',
    ),
    "a placeholder in the system prompt": (
        "prompts", SYSTEM, "You answer customers", "You answer {{who}}", "{{who}}",
        "has a placeholder",
    ),
    "two prompts in one file": (
        "prompts", SYSTEM, "# System prompt\n", "# System prompt\n\n```\nx\n```\n", "``` ##3",
        "has 2 fenced blocks",
    ),
    "a fenced block without its end": (
        "prompts", SYSTEM, "orders.\n```\n", "orders.\n", "```", "does not end",
    ),
}
CRITICS: dict[str, Planted] = {
    "no critique": ("rubric", Q, "rubric:\n", "rubric: null\nold:\n", "old:", "not a known key"),
    "four critics": (
        "rubric", Q, "plain-language editor, evaluation expert, angry customer]",
        "plain-language editor, angry customer]", "engineer, plain-language editor, angry",
        "at least 5",
    ),
    "a critic twice": (
        "rubric", Q, "[support lead, safety engineer,", "[support lead, support lead,",
        "lead, support", "stands twice",
    ),
    "a finding by somebody else": (
        "rubric", Q, "- by: angry customer", "- by: plumber", "- by: plumber ##2",
        "not a known viewpoint",
    ),
    "a finding that led nowhere": (
        "rubric", Q,
        "      no_change_because: no draft did it; it becomes a criterion when one does\n", "",
        "- by: angry customer", "is empty, and so is changed",
    ),
    "nobody asked who is missed": (
        "rubric", Q, "  who_is_missed: Customers who only want",
        "  who_is_mised: Customers who only", "who_is_mised:", "not a known key",
    ),
}
# fmt: on

MISTAKES = TAXONOMY | PERSONAS | RUBRIC | MODEL | PROMPTS | CRITICS


def line_of(text: str, words: str) -> int:
    wanted, _, nth = words.partition(" ##")
    lines = [number for number, line in enumerate(text.splitlines(), 1) if wanted in line]
    return lines[int(nth or 1) - 1]


@pytest.mark.parametrize("case", MISTAKES)
def test_a_planted_mistake_gives_one_clear_message_with_its_line(root: Path, case: str) -> None:
    gate, name, old, new, words, said = MISTAKES[case]
    text = (root / name).read_text("utf-8")
    assert old in text
    (root / name).write_text(text.replace(old, new, 1), "utf-8")
    message, *more = found(root, gate)
    assert said in message
    assert not more
    shown = C if words.startswith("C ") else name
    line = line_of((root / shown).read_text("utf-8"), words.removeprefix("C ")) if words else 0
    assert message.startswith((f"{shown}:{line} ", f"{shown}:{line}:") if line else f"{shown}:")


def test_full_training_of_a_large_model_is_questioned(root: Path) -> None:
    edit(root / C, "parameters: 0.5", "parameters: 8", "method: lora", "method: full")
    assert "full training of 8 billion parameters" in found(root, "model")[0]


# The critique leads somewhere


def test_a_change_that_is_claimed_has_to_be_a_version_that_was_there(root: Path) -> None:
    now = checks_design.version(root, R)[:12]
    edit(root / Q, f'changed: "{now}"', 'changed: "0123456789ab"')
    [said] = found(root, "rubric")
    assert said.startswith(f"{Q}:{line_of((root / Q).read_text('utf-8'), '0123456789ab')} ")
    assert said.endswith(f"Now: rubric {now}.")


def test_an_earlier_version_counts_because_every_gate_run_keeps_it(root: Path) -> None:
    edit(root / R, "pass_threshold: 0.8", "pass_threshold: 0.75")
    assert found(root, "rubric") == []
    assert len(list((root / "design/prompt_versions").glob("rubric.*.yaml"))) == 1
    gates.pass_gate(root, "rubric")
    assert len(list((root / "design/prompt_versions").glob("rubric.*.yaml"))) == 2


def test_the_starter_itself_is_no_change(root: Path) -> None:
    starter = checks_design.version(CODE / "templates", R)[:12]
    edit(root / Q, f'changed: "{checks_design.version(root, R)[:12]}"', f'changed: "{starter}"')
    assert "is the starter file itself" in found(root, "rubric")[0]


def test_a_mistake_in_one_critique_leaves_the_other_gates_alone(root: Path) -> None:
    edit(root / Q, "by: angry customer", "by: nobody")
    assert [bool(found(root, gate)) for gate in ("taxonomy", "rubric", "personas")] == [0, 1, 0]


def test_a_critique_that_is_null_keeps_its_gate_closed(root: Path) -> None:
    text = (root / Q).read_text("utf-8")
    start, end = text.index("rubric:\n"), text.index("personas:\n")
    (root / Q).write_text(text[:start] + "rubric: null\n\n" + text[end:], "utf-8")
    assert "no critique yet" in found(root, "rubric")[0]


# What turns a gate stale, and what does not

STALE: dict[str, tuple[str, str, str, str, str]] = {  # gate, file, old, new, then
    "a weight": ("taxonomy", T, "easy: 0.3 ", "easy: 0.30001 ", "failed"),
    "a description": ("taxonomy", T, "taste, cloudiness", "taste, smell", "stale"),
    "a comment in the taxonomy": ("taxonomy", T, "# one clear question", "# one", "passed"),
    "an order of keys": (
        "taxonomy", T, "lowest: 0.1                   # start value\n  target: 0.15 ",
        "target: 0.15                   # start value\n  lowest: 0.1 ", "passed",
    ),
    "another critique": ("taxonomy", Q, "says: The word limits", "says: Our limits", "passed"),
    "its own critique": ("taxonomy", Q, "says: Half of our", "says: Most of our", "stale"),
    "the text below the block": ("model", C, "# Model choice", "# The choice", "passed"),
    "the reason in the block": ("model", C, "why: the smallest", "why: The smallest", "stale"),
    "a generator's terms": ("model", P, "note: our own code", "note: Our own code", "stale"),
    "a generator's pace": (
        "model", P, 'simulated:user"', 'simulated:user"\n    concurrency: 3', "passed",
    ),
    "another generator": ("model", P, '"python:simulated:user"', '"python:simulated:u"', "stale"),
    "a judge": ("model", P, "simulated:judge_mild", "simulated:judge_m", "passed"),
    "a learning seed": ("personas", P, "  training: 42", "  training: 43", "passed"),
    "a persona seed": ("personas", P, "  personas: 1", "  personas: 7", "stale"),
    "a token limit": ("personas", P, "_per_exchange: 250", "_per_exchange: 251", "stale"),
    "a calibration example": ("rubric", R, "Let the first two litres", "Let two litres", "stale"),
    "a comment in the rubric": ("rubric", R, "# Models can't count:", "# Models don't:", "passed"),
    "a prompt": ("prompts", SIM, "Openings differ.", "Openings vary.", "stale"),
    "the system prompt": ("prompts", SYSTEM, "No medical advice", "Never medical advice", "stale"),
}  # fmt: skip


@pytest.mark.parametrize("case", STALE)
def test_what_a_gate_looked_at_turns_it_stale_and_nothing_else_does(root: Path, case: str) -> None:
    gate, name, old, new, then = STALE[case]
    edit(root / name, old, new)
    states = gates.states(root)
    assert states[gate].state == then
    later = {"model": "taxonomy", "taxonomy": "rubric", "rubric": "prompts", "personas": "prompts"}
    if gate in later:
        assert states[later[gate]].state == ("passed" if then == "passed" else "blocked")


# The starters


def test_the_starters_pass_once_their_blanks_are_filled(tmp_path: Path, passed: Path) -> None:
    root = tmp_path / "mine"
    scaffold.create_project(root, CODE.parent, VALUES | {"offline": "true"})
    before = {gate: found(root, gate) for gate in DESIGN}
    assert all(before.values())
    for name in (C, Q, "config/project.yaml"):
        shutil.copy(passed / name, root / name)
    notes = (root / Q).read_text("utf-8")
    for name in (T, U, R, ASSISTANT, SYSTEM):
        theirs = checks_design.version(passed, name)[:12]
        notes = notes.replace(f'changed: "{theirs}"', "no_change_because: it fits our desk")
    (root / Q).write_text(notes, "utf-8")
    edit(root / C, "id: simulated/support-instruct", "id: ours/model-instruct")
    assert {gate: found(root, gate) for gate in DESIGN} == {gate: [] for gate in DESIGN}


# Personas on disk


def draw(root: Path, *words: str) -> None:
    script = [sys.executable, str(root / "scripts/personas.py"), *words]
    done = subprocess.run(script, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_personas_that_were_drawn_from_this_template_keep_the_gate_open(root: Path) -> None:
    draw(root, "--count", "30")
    draw(root, "--count", "10", "--evaluation")
    checked = gates.run_check(root, gates.GATES["personas"])
    assert checked.findings == []
    assert checked.figures["training personas on disk"] == 30
    assert checked.figures["evaluation personas on disk"] == 10


def test_personas_of_another_template_close_it(root: Path) -> None:
    draw(root, "--count", "3")
    edit(root / U, "{Tarn One: 0.55, Tarn Duo: 0.45}", "{Tarn One: 0.5, Tarn Duo: 0.5}")
    [said] = found(root, "personas")
    assert "train-00001 was drawn from another template" in said


def test_one_person_in_both_sets_closes_it(root: Path) -> None:
    draw(root, "--count", "3")
    rows = (root / "data/personas/training.jsonl").read_bytes()
    (root / "data/personas/evaluation.jsonl").write_bytes(rows)
    assert "train-00001 is also in the training set" in found(root, "personas")[0]


def test_the_share_of_edge_cases_is_the_one_that_the_draws_give(root: Path) -> None:
    edit(root / U, "count: {at_least: 2, at_most: 3}", "count: {at_least: 6, at_most: 6}")
    edit(root / T, "highest: 0.25", "highest: 0.16")
    assert "make 0.167 of them edge cases" in found(root, "personas")[0]
