"""The steps of a rehearsal: each stage's own script or gate, and proof that it did its work.

A new stage is one row of STEPS.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from finetune_skills import gates
from finetune_skills.answers import answers, texts
from finetune_skills.bundle import bundle_root
from finetune_skills.rehearsal.bench import (
    AUDIT,
    BASELINE,
    CONFIRM,
    EXAMPLE,
    EXAMPLES,
    FATES,
    OLD_CHATS,
    ORIGINALS,
    PERSONAS,
    PILOT,
    RESULTS,
    REVIEWS,
    SCALE,
    Missed,
    Rehearsal,
    Step,
    events,
    lines_of,
    passing,
    reported,
    script,
    talks,
    verdicts,
)
from finetune_skills.scaffold import create_project
from infrastructure import FinetuneError, iter_records

# ── the steps ─────────────────────────────────────────────────────────────────────────────────────


def make_project(done: Rehearsal) -> str:
    if done.root.exists() and (not done.root.is_dir() or any(done.root.iterdir())):
        raise FinetuneError(f"{done.root}: is there already. Choose a new folder for --keep.")
    values = texts(answers({}, EXAMPLE, ask=False))
    files = create_project(done.root, bundle_root(), values, example=EXAMPLE)
    lost = [str(path) for path in files if not path.is_file()]
    if lost or not files:
        raise Missed(f"{len(files)} files were made, and not there are: {', '.join(lost[:3])}")
    return f"{len(files)} files"


def pass_gate(name: str, done: Rehearsal) -> str:
    state = gates.pass_gate(done.root, name, "rehearsal")
    if state.state not in gates.OPEN:
        raise Missed(f"gate {name} is {state.state}: {'; '.join(map(str, state.findings))}")
    return state.state


def draw(purpose: str, words: Sequence[str], done: Rehearsal) -> str:
    """Draw a set of personas; the file has to hold what the script reports."""
    told = reported(done.root, "personas.py", *words)
    rows = list(iter_records(done.root / f"data/personas/{purpose}.jsonl"))
    if not rows or len(rows) != told["personas"]:
        raise Missed(f"data/personas/{purpose}.jsonl has {len(rows)} of {told['personas']}")
    return f"{len(rows)} personas"


def pilot(done: Rehearsal) -> str:
    """A frozen batch, a transcript and a line of candidates for each of it, all marked."""
    told = reported(done.root, "generate.py")
    found, fates = talks(done.root), Counter(row["fate"] for row in events(done.root))
    frozen = json.loads((done.root / f"data/batches/{told['batch']}.json").read_bytes())
    if not PILOT == len(frozen["ids"]) == len(found) == fates.total():
        raise Missed(f"{len(found)} transcripts and {fates.total()} events of {PILOT} people")
    if not all(talk["provenance"]["simulated"] for talk in found.values()):
        raise Missed("a transcript of simulated models is not marked as simulated")
    exchanges = sum(len(talk["exchanges"]) for talk in found.values())
    return f"{fates['accepted']} of {PILOT} accepted, {exchanges} exchanges"


def baseline(done: Rehearsal) -> str:
    """Whole conversations with the base model, each with a verdict."""
    script(done.root, "baseline.py", "--count", str(BASELINE))
    found = json.loads((done.root / RESULTS).read_bytes())
    if (found["conversations"], found["unscored"]) != (BASELINE, 0):
        raise Missed(f"{found['conversations']} of {BASELINE} conversations have a verdict")
    return f"{found['passed']} of {BASELINE} passed"


def approve(name: str, done: Rehearsal) -> str:
    """The check of a gate that needs a person, and the word of one: nobody, and it says so."""
    state = gates.pass_gate(done.root, name, "rehearsal")
    if state.state != "waiting":
        raise Missed(f"gate {name} is {state.state}: {'; '.join(map(str, state.findings))}")
    return gates.decide(done.root, name, "approved", "rehearsal, no person").state


def imported(done: Rehearsal) -> str:
    """Old chats of the desk, most of them bad: without bad ones nobody can know a judge."""
    reported(done.root, "import_transcripts.py", OLD_CHATS, "--name", "old-chats")
    wanted = len(lines_of(done.root / OLD_CHATS))
    count = len(list(done.root.glob(f"{ORIGINALS}/old-chats/*.json")))
    if not count or count != wanted:
        raise Missed(f"{count} of {wanted} old chats were taken")
    return f"{count} old chats"


def generated(count: int, words: Sequence[str], done: Rehearsal) -> str:
    """A batch of so many fresh people, and a transcript of each."""
    told = reported(done.root, "generate.py", *words)
    frozen = json.loads((done.root / f"data/batches/{told['batch']}.json").read_bytes())
    made = {item for item, talk in talks(done.root).items()
            if talk["provenance"]["batch"] == told["batch"]}  # fmt: skip
    if not made or made != set(frozen["ids"]) or len(made) != count or told["failed"]:
        raise Missed(f"{len(made)} of {count} people have talked, {told['failed']} failed")
    return f"{told['accepted']} of {count} accepted"


def confirm(done: Rehearsal) -> str:
    return generated(CONFIRM, ("--confirm",), done)


def scaled(done: Rehearsal) -> str:
    return generated(SCALE, ("--count", str(SCALE)), done)


def audited(done: Rehearsal) -> str:
    """The set as a whole, against its declared tests."""
    reported(done.root, "audit.py")
    found = json.loads((done.root / AUDIT).read_bytes())
    now = {row["id"]: row["transcript_hash"] for row in passing(done.root)}
    if not now or found["manifest"] != now or not found["passed"]:
        same = sum(found["manifest"].get(item) == hashed for item, hashed in now.items())
        raise Missed(f"{same} of {len(now)} that pass were audited: {found['findings']}")
    return f"{found['count']} transcripts, {len(found['findings'])} findings, none critical"


def repaired(done: Rehearsal) -> str:
    """What was made is what it became, and nothing waits."""
    failed = {item for item, row in verdicts(done.root).items() if row["state"] == "failed"}
    told = reported(done.root, "fixup.py")
    fates = {state: told[state] for state in FATES}
    left = failed - {row["id"] for row in events(done.root) if row["event"] == "fixup"}
    if left or not failed or told["pending"] or sum(fates.values()) != told["transcripts"]:
        raise Missed(f"{len(left)} of {len(failed)} that failed are as they were: {fates}")
    return ", ".join(f"{count} {state}" for state, count in fates.items() if count)


def sliced(done: Rehearsal) -> str:
    """Examples on both sides, each reply with a loss at most once."""
    script(done.root, "slice.py")
    rows = list(iter_records(done.root / EXAMPLES))
    sides = Counter(row["split"] for row in rows)
    if not (sides["train"] and sides["validation"]):
        raise Missed(f"training_data.jsonl holds {dict(sides)}")
    return f"{sides['train']} train, {sides['validation']} validate"


def reviewed(done: Rehearsal) -> str:
    """The reviews that ship with the example, for the transcripts that are there by now; what a
    person would do on the page of `finetune review`."""
    from finetune_skills.labels import load_labels, save_label

    there = {path.stem for path in done.root.glob(f"{ORIGINALS}/*/*.json")}
    known = {label.id for label in load_labels(done.root)}
    rows = [row for row in map(json.loads, lines_of(done.root / REVIEWS)) if row["id"] in there]
    for row in rows:
        if row["id"] not in known:
            save_label(done.root, row, 0)
    labels = load_labels(done.root)
    stale = [f"{label.id}: {label.stale}" for label in labels if label.stale]
    read = {label.id for label in labels}
    if stale or not there or read != there:
        again = "Write them anew: python tests/example_people.py"
        raise Missed(f"{len(read)} reviews of {len(there)} transcripts; {stale[:1]}. {again}")
    return f"{len(read)} transcripts, by nobody real"


def measured(done: Rehearsal) -> str:
    """Every judge may filter, and the figures are there."""
    found = judges_of(done.root)
    bad = [f"{each.name}: {each.why_not}" for each in found if each.why_not]
    if bad or not found or not (found[-1].overall.tpr.n and found[-1].overall.tnr.n):
        raise Missed("; ".join(bad) or "no judge was compared with anything that people say")
    last = found[-1].overall
    return f"TPR {last.tpr.k} of {last.tpr.n}, TNR {last.tnr.k} of {last.tnr.n}"


def judges_of(place: Path) -> list[Any]:
    """What `finetune judges` says."""
    from finetune_skills import quality
    from judging import Court

    court = Court.of(place, originals=True)
    return quality.standings(place, court, quality.people(place, court))


def judged(done: Rehearsal) -> str:
    """A verdict of each judge on each transcript, one verdict of all, and the manifest."""
    told = reported(done.root, "assess.py")
    rows, there = verdicts(done.root), list(done.root.glob(f"{ORIGINALS}/*/*.json"))
    unscored = sum(row["pass"] is None for row in rows.values())
    if not rows or len(rows) != len(there) or unscored:
        raise Missed(f"{len(rows)} verdicts on {len(there)} transcripts, {unscored} unscored")
    listed = len(passing(done.root))
    passed = sum(row["pass"] is True for row in rows.values())
    if listed != passed:
        raise Missed(f"the manifest lists {listed}, and {passed} passed")
    return f"{passed} of {len(rows)} pass, {told['judged now']} verdicts"


DESIGN = [row.name for row in gates.GATES.values() if row.phase == "design" and not row.person]
STEPS: tuple[Step, ...] = (
    Step(f"init --example {EXAMPLE}", "", make_project),
    *(Step(f"gate {name}", name, partial(pass_gate, name)) for name in DESIGN),
    Step("personas.py", "taxonomy", partial(draw, "training", ("--count", str(PERSONAS)))),
    Step("personas.py --evaluation", "taxonomy", partial(draw, "evaluation", ("--evaluation",))),
    Step("baseline.py", "prompts", baseline),
    Step("gate baseline", "baseline", partial(approve, "baseline")),
    Step("generate.py", "baseline", pilot),
    Step("import_transcripts.py", "", imported),
    Step("assess.py", "rubric", judged),
    Step("reviews", "", reviewed),
    Step("gate pilot", "pilot", partial(approve, "pilot")),
    Step("generate.py --confirm", "pilot", confirm),
    Step("assess.py, again", "rubric", judged),
    Step("reviews, the rest", "", reviewed),
    Step("judges", "", measured),
    Step("gate confirm", "confirm", partial(approve, "confirm")),
    Step(f"generate.py --count {SCALE}", "confirm", scaled),
    Step("assess.py, at scale", "rubric", judged),
    Step("reviews, spot checks", "", reviewed),
    Step("gate scale", "scale", partial(pass_gate, "scale")),
    Step("audit.py", "scale", audited),
    Step("gate audit", "audit", partial(pass_gate, "audit")),
    Step("fixup.py", "audit", repaired),
    Step("audit.py, all that passes", "scale", audited),
    Step("gate audit, again", "audit", partial(pass_gate, "audit")),
    Step("gate fixup", "fixup", partial(pass_gate, "fixup")),
    Step("slice.py", "fixup", sliced),
    Step("gate slice", "slice", partial(pass_gate, "slice")),
)
