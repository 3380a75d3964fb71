"""A check that is removed is missed: what `finetune rehearse` shows as caught rests on that check.

REMOVED says for every planted fault how its check is taken out of the product's code: a line of a
module or a script, in a copy of the bundle and in the project that the rehearsal has left. The row
is then run from that copy, and has to say that nobody caught it. Rows are removed one by one, and
then the whole check of each gate. The steps are run against scripts that report success and do
nothing, and against gates that look at nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from children import CODE
from finetune_skills import gates, labels, quality, rehearse
from finetune_skills.findings import Checked
from finetune_skills.rehearsal import bench, faults, steps

pytestmark = pytest.mark.slow  # one rehearsal and a copy for each row: minutes

FAULTS = {row.name: row for row in faults.FAULTS}
CHECKED = {gate.name: gate for gate in gates.GATES.values() if gate.check is not None}
# Never what is removed: then the proof would be missing, and not the check.
PROOFS = ("finetune_skills/rehearse.py", "finetune_skills/rehearsal/")
# Runs some rows of FAULTS, against a project that is there; one line of JSON for each.
RUNNER = """
import json, sys
from functools import partial
from pathlib import Path
from finetune_skills import rehearse as r
from finetune_skills.rehearsal import bench, faults

root, scratch, calm, *names = sys.argv[1:]
done = bench.Rehearsal(Path(root), Path(scratch))
vars(done)["calm"] = Path(calm)  # undisturbed, with all checks: the same for every row
for fault in (fault for fault in faults.FAULTS if fault.name in names):
    print(json.dumps(r.timed(fault, partial(r._planted, fault, done)).to_dict()))
"""


Edit = tuple[str, str, str]  # file, what is taken out, what stands there instead


class Removal(NamedTuple):
    """What is taken out of one file below code/, and how the row then says that it was missed."""

    file: str
    old: str
    new: str
    said: str

    @property
    def edit(self) -> Edit:
        return self.file, self.old, self.new


DESIGN, PILOT = "finetune_skills/checks_design.py", "finetune_skills/checks_pilot.py"
CURATE, SLICE = "finetune_skills/checks_curate.py", "finetune_skills/checks_slice.py"
AUDIT, KERNEL = "finetune_skills/checks_audit.py", "infrastructure.py"
GENERATE, IMPORT = "templates/scripts/generate.py", "formats.py"
NOTHING, NO_SUCH = "says nothing of", "and none is {} and {}"


def no_test(test: str, severity: str = "critical") -> str:
    return NO_SUCH.format(severity, test)


REMOVED: dict[str, tuple[Removal, ...]] = {
    # design
    "code of a model": (
        Removal("settings.py", "trust_remote_code: Literal[False]", "trust_remote_code: bool",
                NOTHING),
    ),
    "no terms of use": (
        Removal(DESIGN, "elif role is not None and role.terms is None:", "elif False:", NOTHING),
    ),
    "too long to fit": (
        Removal("finetune_skills/checks_tokens.py", "if found.longest > room.fits:", "if False:",
                NOTHING),
    ),
    "no edge cases": (
        Removal(DESIGN, "checked.findings += _edge_share(taxonomy, at)", "pass", NOTHING),
    ),
    "claimed change": (
        Removal(DESIGN, "elif named and named not in _versions(root, artefacts):", "elif False:",
                NOTHING),
    ),
    "examples of one side": (
        Removal(DESIGN, "if not any(kind.endswith(needed) for kind in kinds):", "if False:",
                NOTHING),
    ),
    "question of counting": (
        Removal(DESIGN, "if counting and not criterion.statistics:", "if False:", NOTHING),
    ),
    "weights of 1.05": (
        Removal("settings.py", "if abs(total - 1) > 1e-6:", "if False:", NOTHING),
    ),
    "style without words": (
        Removal("settings.py", "for name in options if name not in given)", "for name in ())",
                NOTHING),
    ),
    "equal seeds": (
        Removal("settings.py", 'if value == info.data.get("personas"):', "if False:", NOTHING),
    ),
    "unknown placeholder": (
        Removal("settings.py", "for name in sorted(there.keys() - allowed):", "for name in ():",
                NOTHING),
    ),
    "people drawn before": (
        Removal(DESIGN, "yield from _drawn_files(root, plan, checked)", "pass", NOTHING),
    ),
    "number in a prompt": (
        Removal(DESIGN, "checked.findings += _repeated_numbers(root)", "pass", NOTHING),
    ),
    "untrue baseline": (
        Removal("finetune_skills/checks_baseline.py",
                'if (passed, scored) != (found["passed"], found["conversations"]):', "if False:",
                NOTHING),
    ),
    "more than the budget": (
        Removal("finetune_skills/checks_tokens.py",
                "    checked.findings += _over_budget(found)\n", "", NOTHING),
    ),
    "forged ledger line": (
        Removal("finetune_skills/gates.py", "    elif checked.findings:\n", "    elif False:\n",
                "on the word of the ledger"),
    ),
    # order
    "prompt after its gate": (
        Removal(GENERATE, "infrastructure.require_gate(gate, ROOT)", "pass", "ended with 0"),
        Removal(KERNEL, "now[each] is None or now[each] != looked_at[each]", "False",
                "ended with 0"),
    ),
    "nobody approved": (
        Removal(KERNEL, 'PEOPLE_GATES = frozenset({"baseline", ', "PEOPLE_GATES = frozenset({",
                "ended with 0"),
        Removal(GENERATE, '"pilot": "baseline"', '"pilot": "prompts"', "ended with 0"),
    ),
    "tool call": (
        Removal(IMPORT, 'if word in TOOLS or any(turn.get(key) for key in ("tool_calls", '
                '"function_call")):', "if False:", "ended with 0"),
    ),
    # the artefact filter
    "leaked footer": (
        Removal("curation.py", "return [*found, *searches.hits(plain, side)]", "return found",
                "leaked into train-"),
        Removal("simulation.py", "wrong=self.rules.inspect(side, text, told, earlier)",
                "wrong=[]", "leaked into train-"),
        Removal("simulation.py", '"truncated" if enough else "rejected"', '"truncated"',
                "footers that stay became"),
    ),
    "echoed flaw": (
        Removal("curation.py", '    "instruction_echo": find_instruction_echo,\n', "",
                "leaked into train-"),
    ),
    "wrong language": (
        Removal("curation.py", '    "language": find_language,\n', "", "leaked into train-"),
        Removal("curation.py", '    "script": find_script,\n', "", "leaked into train-"),
    ),
    # calls
    "429 storm": (
        Removal(KERNEL, "            self.limits += 1\n            return True\n",
                "            return False\n", "ended with 1"),
        Removal(KERNEL, "        if fault.wait is not None:\n"
                "            delay = fault.wait * random.uniform(1.0, 1.5)\n", "",
                "came back before"),
        Removal(KERNEL, "return delay if limited else", "return 0.0 if limited else",
                "came back before"),
    ),
    "killed process": (
        Removal(KERNEL, "            if kept is not None:\n                return kept, True\n", "",
                "calls paid again, and only"),
        Removal(KERNEL, "self._kept.setdefault(key, (start, length))", "pass",
                "calls paid again, and only"),
        Removal(GENERATE, "if not _is_made(batch, person[\"id\"])]", "]", "undisturbed run"),
    ),
    "torn journal line": (
        Removal(KERNEL, "self._note(record, start, length)\n        self.report.tell()",
                "self._note(record, start, length)", "says nothing about line"),
        Removal(KERNEL, '                self._write(b"\\n", start)', "                pass",
                "swallowed|torn"),
    ),
    # judges
    "fabricated quote": (
        Removal("judging.py", "if not needed or (good and not bad):", "if True:",
                "ended with 0, not 1"),
    ),
    "silent judge": (
        Removal("judging.py", '"ERROR" if name in errors else given.get(name, "ERROR")',
                'given.get(name, "YES")', "ended with 0, not 1"),
    ),
    "safety NO, high score": (
        Removal(KERNEL, 'unsafe = any(given[gate] == "NO" for gate in gates)', "unsafe = False",
                "with a high score"),
    ),
    "injected instruction": (
        Removal("judging.py", 'word = hashlib.sha256(f"{source.hash}/{number}".encode())'
                ".hexdigest()[:16]\n", 'return "conversation"\n', "because their text says so"),
        Removal("judging.py", '{"begin": f"<<{word} begin>>", "end": f"<<{word} end>>"}',
                '{"begin": "", "end": ""}', "because their text says so"),
    ),
    "money without limit": (
        Removal("stage.py", "    if limit is None:\n", "    limit = limit or 1e9\n    if False:\n",
                "ended with 1"),
    ),
    "stale verdict": (
        Removal("judging.py", 'return all(row.get(name) == now[name] for name in now if '
                'name.endswith("_hash"))', "return True", "0 judged again"),
    ),
    # the set
    "overused phrase": (
        Removal("curation.py",
                "        found.tests.append(Figure(test, f'\"{phrase.words}\"', phrase.k, n, "
                "\"replies\", each))\n", "", "audit.py ended with 0"),
        Removal(AUDIT, "    for row in bad[:5]:", "    for row in ():", NOTHING),
    ),
    "replies twice as long": (
        Removal("curation.py", 'for test in ("long_replies", "longish_replies"):',
                "for test in ():", "audit.py ended with 0"),
    ),
    "key in a reply": (
        Removal("curation.py", '    ("key", ("-", "_", "A", "eyJ"), _KEY, _always),\n', "",
                no_test("secrets")),
    ),
    "address in a reply": (
        Removal("curation.py", '"email", ("@",)', '"email", ("no such sign",)',
                no_test("personal_data", "warning")),
    ),
    "tested on its people": (
        Removal("curation.py", "        if name:\n            hits[at] = Place(at, 0, f\"the same",
                "        if False:\n            hits[at] = Place(at, 0, f\"the same",
                no_test("contamination")),
        Removal("templates/scripts/audit.py", "found.tests.append(made)", "pass",
                no_test("contamination")),
    ),
    "changed after audit": (
        Removal(AUDIT, "_of_these(found, passing), ", "", NOTHING),
    ),
    "over-long example": (
        Removal("slicing.py", "        if tokens.upper > self.rules.max_tokens:\n",
                "        if False:\n", "slice.py ended with 2"),
        Removal(SLICE, "    if share > project.thresholds.lost_slices:\n", "    if False:\n",
                NOTHING),
    ),
    "leaking split": (
        Removal(SLICE, "[] if checked.findings else _files(root, rows)", "[]", NOTHING),
    ),
    "the test's people": (
        Removal("templates/scripts/slice.py", "    _refuse_evaluation(talks)\n", "",
                "slice.py ended with 0"),
        Removal(SLICE, "        _people(root, talks),\n", "", NOTHING),
    ),
    "reply without loss": (
        Removal(SLICE, "        _losses(rows, skipped, talks, project),\n", "", NOTHING),
    ),
    "reworded example": (
        Removal(SLICE, "        _words(rows, talks, system),\n", "", NOTHING),
    ),
    "near-duplicates": (
        Removal("templates/scripts/slice.py",
                "near = near_duplicates(talks, project.thresholds.near_duplicate)", "near = []",
                "stand in another group"),
        Removal("slicing.py", "        family.join(one, other)\n", "        pass\n",
                "stand in another group"),
    ),
    # people, and what they decide
    "transcript that waits": (
        Removal(CURATE, "    if waiting:\n", "    if False:\n", NOTHING),
    ),
    "too much repaired": (
        Removal(CURATE, "    if of and needed / of > limit:\n", "    if False:\n", NOTHING),
    ),
    "smuggled transcript": (
        Removal(CURATE, "    if listed != passing:\n", "    if False:\n", NOTHING),
    ),
    "drift at scale": (
        Removal(CURATE, "checked.findings += _drift(root, checked, ids, rows)", "pass", NOTHING),
    ),
    "nobody read them": (
        Removal(CURATE, "    if len(read) < needed:\n", "    if False:\n", NOTHING),
    ),
    "known people": (
        Removal(PILOT, "    checked.findings += _not_fresh(root, last)\n", "", NOTHING),
    ),
    "too few pass": (
        Removal(PILOT, "if needed is None or rate * n + 1e-9 < needed:", "if False:", NOTHING),
    ),
    "pilot of old prompts": (
        Removal(PILOT, 'if (selector_hash(root, selector) or "")[: len(kept)] != kept:',
                "if False:", NOTHING),
    ),
    "finding left open": (
        Removal(PILOT, '            if not label.fine.get(name, "").strip():\n',
                "            if False:\n", NOTHING),
    ),
    "judge with a low TNR": (
        Removal("finetune_skills/quality.py", "    if (tnr.rate or 0) < bar.judge_tnr:\n",
                "    if False:\n", NOTHING),
        Removal(PILOT, "    checked.findings += [Finding(each.name, f\"{each.why_not}.\", JUDGES) "
                "for each in unfit]\n", "", NOTHING),
    ),
    "review of other words": (
        Removal(PILOT, "label.transcript_hash != source.hash", "False", NOTHING),
        Removal(PILOT, "    checked.findings += _unread(last, labels, court)\n", "", NOTHING),
    ),
}  # fmt: skip

CASES = [(name, number) for name, each in REMOVED.items() for number in range(len(each))]


# ── every fault ───────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the product's code, whose files are linked and never written to."""
    place = tmp_path_factory.mktemp("bundle")
    shutil.copytree(CODE, place / "code")
    return place


def linked(source: Path, place: Path) -> Path:
    return Path(shutil.copytree(source, place, copy_function=os.link))


def cut(code: Path, project: Path, edit: Edit) -> None:
    """Take something out of the code, and out of the project's copy of it."""
    file, old, new = edit
    own = project / file.removeprefix("templates/")
    for path in (code / file, own):
        if path.exists():
            text = path.read_text("utf-8")
            assert old in text, f"{path}: {old!r} is not there any more: mend REMOVED"
            path.unlink()  # the link only
            path.write_text(text.replace(old, new) if old else text + new, "utf-8")


def tried(
    edits: list[Edit], names: list[str], bundle: Path, done: bench.Rehearsal, place: Path
) -> dict[str, dict[str, Any]]:
    """What becomes of these rows without these lines of code."""
    code = linked(bundle / "code", place / "bundle/code")
    project = linked(done.root, place / "project")
    for edit in edits:
        cut(code, project, edit)
    command = [sys.executable, "-c", RUNNER, project, place / "copies", done.calm, *names]
    environment = os.environ | {"PYTHONPATH": str(code)}
    told = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    rows = [json.loads(line) for line in told.stdout.splitlines()]
    assert len(rows) == len(names), told.stderr
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize(("name", "number"), CASES)
def test_a_fault_is_missed_without_its_check(
    name: str, number: int, bundle: Path, done: bench.Rehearsal, tmp_path: Path
) -> None:
    removal = REMOVED[name][number]
    row = tried([removal.edit], [name], bundle, done, tmp_path)[name]
    assert not row["passed"], row["said"]
    assert re.search(removal.said, row["said"]), row["said"]


@pytest.mark.parametrize("gate", CHECKED)
def test_without_the_check_of_a_gate_each_of_its_faults_is_missed(
    gate: str, bundle: Path, done: bench.Rehearsal, tmp_path: Path
) -> None:
    check: Any = CHECKED[gate].check
    empty = f"\n\ndef {check.__name__}(root):\n    return Checked(items=1)\n"
    file = f"{check.__module__.replace('.', '/')}.py"
    rows = tried([(file, "", empty)], of_gate(gate), bundle, done, tmp_path)
    assert [name for name, row in rows.items() if row["passed"]] == []


def of_gate(gate: str) -> list[str]:
    return [name for name, row in FAULTS.items() if row.catcher == f"gate {gate}"]


def test_without_any_removal_the_copy_of_the_bundle_catches(
    bundle: Path, done: bench.Rehearsal, tmp_path: Path
) -> None:
    names = ["weights of 1.05", "tool call", "too few pass", "killed process"]
    rows = tried([], names, bundle, done, tmp_path)
    assert [row["said"] for row in rows.values() if not row["passed"]] == []


def test_every_fault_has_a_check_that_can_be_removed() -> None:
    assert set(REMOVED) == set(FAULTS) != set()
    assert [name for name, each in REMOVED.items() if not each] == []


def test_every_gate_that_has_a_check_catches_a_fault() -> None:
    assert [gate for gate in CHECKED if not of_gate(gate)] == []
    named = {row.catcher.removeprefix("gate ") for row in FAULTS.values() if " " in row.catcher}
    assert {name for name in named if name in gates.GATES} == set(CHECKED)


def test_what_is_removed_is_a_check_and_never_a_proof() -> None:
    removed = {removal.file for each in REMOVED.values() for removal in each}
    assert [file for file in removed if file.startswith(PROOFS)] == []
    assert [file for file in removed if not (CODE / file).is_file()] == []


# ── every step ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def rehearsed(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[bench.Rehearsal, dict[str, bench.Done]]:
    """A rehearsal of all steps, and what became of each when nothing was done: just before it is
    run for real, it is run in a copy of the project as it is then."""
    place, idle = tmp_path_factory.mktemp("rehearsal"), dict[str, bench.Done]()
    done = bench.Rehearsal(place / "project", place / "copies")
    for number, step in enumerate(steps.STEPS):
        before = place / f"before-{number}"
        if done.root.exists():
            shutil.copytree(done.root, before)
        with pytest.MonkeyPatch.context() as patch:
            said = recorded(patch)
            done.steps.append(rehearse.timed(step, partial(step.work, done)))
        with pytest.MonkeyPatch.context() as patch:
            undo(step, before, said, patch)
            other = bench.Rehearsal(before, place / "none")
            idle[step.name] = rehearse.timed(step, partial(step.work, other))
        shutil.rmtree(before, ignore_errors=True)
    return done, idle


@pytest.fixture(scope="module")
def done(rehearsed: tuple[bench.Rehearsal, dict[str, bench.Done]]) -> bench.Rehearsal:
    assert [each.said for each in rehearsed[0].steps if not each.passed] == []
    return rehearsed[0]


def recorded(patch: pytest.MonkeyPatch) -> list[str]:
    """What the scripts of a step print, while they are run as ever."""
    said, real = list[str](), bench.script

    def script(place: Path, name: str, *words: str) -> Any:
        ended = real(place, name, *words)
        said.append(ended.stdout)
        return ended

    for module in (bench, steps):  # `reported` is of the first
        patch.setattr(module, "script", script)
    return said


def undo(step: bench.Step, place: Path, said: list[str], patch: pytest.MonkeyPatch) -> None:
    """Let a step do nothing: its script says what it said for real, and writes no file; its gate
    looks at nothing; no review is kept."""
    kind = step.name.split()[0].rstrip(",")
    if kind == "init":
        patch.setattr(steps, "create_project", lambda root, *_, **__: [root / "README.md"])
    elif kind == "gate":
        idle = gates.GATES[step.gate].__class__(**{**vars(gates.GATES[step.gate]), "check": none})
        patch.setitem(gates.GATES, step.gate, idle)
    elif kind == "reviews":
        patch.setattr(labels, "save_label", lambda *_: {})
    elif kind == "judges":
        patch.setattr(quality, "standings", lambda *_: [])
    else:
        stub = f"import sys\nsys.stdout.write({said[0]!r})\n"
        (place / "scripts" / kind).write_text(stub, "utf-8")


def none(root: Path) -> Checked:
    return Checked()


@pytest.mark.parametrize("name", [step.name for step in steps.STEPS])
def test_a_step_in_which_nothing_is_done_fails(
    name: str, rehearsed: tuple[bench.Rehearsal, dict[str, bench.Done]]
) -> None:
    idle = rehearsed[1][name]
    assert not idle.passed, idle.said
