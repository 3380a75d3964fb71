"""scripts/generate.py as a person runs it: the same bytes always, batches, parts, interruptions."""

import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from designs import designed, edit
from fakes.provider import FakeProvider, Reply
from finetune_skills.rehearsal import bench
from infrastructure import Appender, FinetuneError, encode_line, iter_records, rng, selector_hash
from stage import cap, fewer_collections, in_shard

SIMULATED = {"user_sim": "python:simulated:user", "assistant": "python:simulated:assistant"}
JOURNAL = "data/journal/generate.jsonl"
TALKS = "data/raw/transcripts"

PRICED = "\n    price: {input: 100.0, output: 1000.0, source: a page, checked: 2026-01-31}"

# Waits at the second exchange for as long as there is a file `hold`.
HELD = """
import asyncio
from pathlib import Path
import simulated

HOLD = Path(__file__).with_name("hold")

async def reply(messages, *, schema=None, scope=""):
    while HOLD.exists() and "/t02." in scope:
        await asyncio.sleep(0.02)
    return simulated.assistant(messages, schema=schema, scope=scope)
"""
# One person's third message gets no answer for as long as there is a file `down`.
DOWN = """
from pathlib import Path
import simulated
from infrastructure import Fault

def reply(messages, *, schema=None, scope=""):
    if Path(__file__).with_name("down").exists() and "00002/t03." in scope:
        raise Fault("transport", "connection refused", wait=0.0)
    return simulated.assistant(messages, schema=schema, scope=scope)
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its design passed and 80 personas."""
    root = designed(tmp_path_factory.mktemp("drawn") / "demo")
    bench.script(root, "personas.py", "--count", "80")
    return root


@pytest.fixture
def place(drawn: Path, tmp_path: Path) -> Path:
    return another(drawn, tmp_path / "demo")


@pytest.fixture(scope="module")
def trial(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished trial of thirty, one conversation at a time."""
    root = another(drawn, tmp_path_factory.mktemp("trial") / "demo")
    assert generate(root, "--trial", "--concurrency", "1").returncode == 0
    return root


@pytest.fixture(scope="module")
def slow(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished pilot of the slow models, which nobody disturbed."""
    root = another(drawn, tmp_path_factory.mktemp("slow") / "demo")
    bench.cast(root, user_sim="slow_user", assistant="slow_assistant")
    assert generate(root).returncode == 0
    return root


def another(root: Path, place: Path) -> Path:
    shutil.copytree(root, place)
    return place


def command(place: Path, *words: str) -> dict[str, Any]:
    known = {"cwd": place, "text": True, "env": os.environ | {"NO_PROXY": "*"}}
    return {"args": [sys.executable, "scripts/generate.py", *words], **known}


def generate(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The script, to its end."""
    return subprocess.run(**command(place, *words), capture_output=True, timeout=120, check=False)


def begun(place: Path, *words: str) -> "subprocess.Popen[str]":
    """The script, running; its stderr can be read."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(**command(place, *words), **pipes)


def told(place: Path, *words: str) -> dict[str, Any]:
    """What the script reports, when all goes well."""
    done = generate(place, *words, "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def frozen(place: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / f"data/batches/{name}.json").read_bytes())
    return found


def play(place: Path, source: str, role: str = "assistant") -> Path:
    """Let a model of the test play a role."""
    (place / "own.py").write_text(source)
    edit(place / "config/project.yaml", f'"{SIMULATED[role]}"', '"python:own:reply"')
    return place


def let_scale(place: Path) -> None:
    """The lines that the gate `confirm` leaves when it has passed and a person approved it."""
    seen = {"rubric.yaml#/": selector_hash(place, "rubric.yaml#/")}
    with Appender(place / ".finetune/ledger.jsonl") as ledger:
        for result in ("passed", "approved"):
            ledger.append({"schema": 1, "gate": "confirm", "result": result, "looked_at": seen})


def tree(place: Path) -> dict[str, bytes]:
    """Every file but Python's own caches."""
    paths = (path for path in place.rglob("*") if path.is_file())
    return {str(p.relative_to(place)): p.read_bytes() for p in paths if p.suffix != ".pyc"}


# the same bytes


def test_the_same_seed_gives_the_same_bytes_at_any_concurrency(trial: Path, place: Path) -> None:
    assert generate(place, "--trial", "--concurrency", "64").returncode == 0
    assert len(bench.talks(place)) == 30
    assert bench.product(place) == bench.product(trial)


def test_another_seed_gives_another_batch_with_other_draws(place: Path) -> None:
    first, second = told(place)["batch"], told(place, "--seed", "99")["batch"]
    assert (first, second) == ("pilot-001", "pilot-002")
    assert frozen(place, second)["inputs"]["seed"] == "99"


def kills(place: Path, slow: Path, count: int, chance: random.Random) -> Counter[str]:
    """Kill at random moments and resume, then to the end; counts kills and calls paid again."""
    figures: Counter[str] = Counter()
    bench.cast(place, user_sim="slow_user", assistant="slow_assistant")
    while figures["kills"] < count:
        lost = len(bench.noted(place, "call")) - bench.answered(place).total()
        with begun(place) as process:
            ended = kill_at(process, place / JOURNAL, chance)
        assert ended in (0, -signal.SIGKILL)
        if ended == 0:
            break
        flying = len(bench.noted(place, "call")) - bench.answered(place).total() - lost
        figures += Counter(kills=1, flying=flying)
        assert flying <= bench.PILOT  # one call of each conversation
    assert generate(place).returncode == 0
    sent = bench.noted(place, "call")
    figures["again"] = len(sent) - len(set(sent))
    figures["different"] = bench.product(place) != bench.product(slow)
    rows = Counter(row["id"] for row in bench.events(place))
    figures["lost"] = 5 - len(rows)
    figures["twice"] = sum(times - 1 for times in rows.values())
    return figures


def kill_at(process: Any, journal: Path, chance: random.Random) -> int:
    """Kill one run in six while it starts, and the others after their first new call."""
    before = journal.stat().st_size if journal.exists() else 0
    if chance.random() < 1 / 6:
        time.sleep(chance.uniform(0.0, 0.5))
    else:
        while process.poll() is None and (not journal.exists() or journal.stat().st_size <= before):
            time.sleep(0.002)
        time.sleep(chance.uniform(0.0, 0.12))
    process.kill()
    return int(process.wait())


def test_five_kills_cost_nothing_but_the_calls_in_flight(place: Path, slow: Path) -> None:
    figures = kills(place, slow, 5, random.Random(1))
    assert figures["kills"] == 5
    assert figures["again"] <= figures["flying"]
    assert figures["different"] == figures["lost"] == figures["twice"] == 0


@pytest.mark.faults
def test_fifty_kills_cost_nothing_but_the_calls_in_flight(
    drawn: Path, slow: Path, tmp_path: Path
) -> None:
    figures, chance, runs = Counter[str](), random.Random(2), 0
    while figures["kills"] < 50:
        root = another(drawn, tmp_path / str(runs))
        figures += kills(root, slow, min(9, 50 - figures["kills"]), chance)
        runs += 1
    print({"runs": runs, **figures})
    assert figures["again"] <= figures["flying"]
    assert figures["different"] == figures["lost"] == figures["twice"] == 0


def test_a_crash_before_the_line_in_candidates_is_caught_up_once(place: Path) -> None:
    told(place)
    path = place / bench.CANDIDATES
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    told(place)
    told(place)
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)


# batches


def test_a_pilot_is_a_frozen_batch_of_five_fresh_people(place: Path) -> None:
    batch = frozen(place, told(place)["batch"])
    assert batch["ids"] == [f"train-{n:05}" for n in range(1, 6)]
    assert (batch["kind"], batch["trial"], set(batch["personas"])) == (
        "pilot", False, set(batch["ids"])
    )  # fmt: skip
    found = bench.talks(place)
    assert set(found) == set(batch["ids"])
    assert all(talk["provenance"]["inputs"] == batch["inputs"] for talk in found.values())
    assert all(talk["provenance"]["simulated"] for talk in found.values())


def test_an_unchanged_rerun_does_nothing(place: Path) -> None:
    told(place)
    before = tree(place)
    again = told(place)
    assert (again["batch"], again["made now"]) == ("pilot-001", 0)
    assert {k: v for k, v in tree(place).items() if not k.endswith(".lock")} == {
        k: v for k, v in before.items() if not k.endswith(".lock")
    }


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("config/prompts/assistant.md", "As long as", "About as long as"),
        ("config/persona-template.yaml", "doubts or refuses what was said", "doubts what was said"),
        ("config/artefacts.yaml", "regenerate: 1", "regenerate: 2"),
    ],
)
def test_what_a_transcript_depends_on_starts_the_next_five_people(
    file: str, old: str, new: str, place: Path
) -> None:
    told(place)
    edit(place / file, old, new)
    if "prompts" in file:
        assert "stale" in generate(place).stderr
        assert subprocess.run(gate(place, "prompts"), cwd=place, check=False).returncode == 0
    second = frozen(place, told(place)["batch"])
    assert (second["id"], second["ids"]) == ("pilot-002", [f"train-{n:05}" for n in range(6, 11)])
    assert len(frozen(place, "pilot-001")["ids"]) == 5


def gate(place: Path, name: str) -> list[str]:
    code = "from finetune_skills.cli import main; main()"
    path = f"import sys; sys.path[:0] = [{str(bench.FAULTY.parents[2])!r}]; {code}"
    return [sys.executable, "-c", path, "gate", name]


def test_a_comment_or_another_seed_of_training_starts_no_batch(place: Path) -> None:
    told(place)
    edit(place / "config/persona-template.yaml", "schema: 1", "schema: 1  # a remark")
    edit(place / "config/project.yaml", "training: 42", "training: 43")
    assert told(place)["made now"] == 0


def test_another_way_to_audit_starts_no_batch_and_another_filter_does(place: Path) -> None:
    told(place)
    edit(place / "curation.py", "\nSHOWN_IN = 3", "\nSHOWN_IN = 4")
    assert told(place)["made now"] == 0
    edit(place / "curation.py", "\nSHOWN = 60", "\nSHOWN = 61")
    plan = told(place, "--dry-run")
    assert (plan["batch"], plan["changed"]) == ("pilot-002", "code")


def test_a_new_batch_says_what_has_changed_since_the_last_one(place: Path) -> None:
    told(place)
    edit(place / "config/artefacts.yaml", "regenerate: 1", "regenerate: 2")
    done = generate(place, "--seed", "99")
    assert "5 of 5 to make (changed since the batch before: artefacts.yaml#/, seed)" in done.stderr
    changed = [frozen(place, f"pilot-00{number}")["changed"] for number in (1, 2)]
    assert changed == [[], ["artefacts.yaml#/", "seed"]]


def test_new_asks_for_five_more_although_nothing_has_changed(place: Path) -> None:
    told(place)
    assert told(place, "--new")["batch"] == "pilot-002"
    assert not set(frozen(place, "pilot-001")["ids"]) & set(frozen(place, "pilot-002")["ids"])


def test_a_confirmation_takes_twenty_fresh_people(place: Path) -> None:
    told(place)
    batch = frozen(place, told(place, "--confirm")["batch"])
    assert (batch["kind"], len(batch["ids"])) == ("confirm", 20)
    assert not set(frozen(place, "pilot-001")["ids"]) & set(batch["ids"])
    assert {"config/rubric.yaml", "config/prompts/user_sim.md"} <= set(batch["inputs"])


def test_a_trial_is_marked_in_everything_that_it_makes(trial: Path) -> None:
    assert frozen(trial, "trial-001")["trial"] is True
    found = bench.talks(trial).values()
    assert len(found) == 30
    assert all(talk["provenance"]["trial"] for talk in found)
    assert {row["batch"] for row in bench.events(trial)} == {"trial-001"}


def test_the_prompts_of_a_batch_are_kept(trial: Path) -> None:
    kept = {path.name.split(".")[0] for path in (trial / "design/prompt_versions").iterdir()}
    assert {"user_sim", "assistant", "rubric"} <= kept


def test_scaling_needs_the_gate_confirm(place: Path) -> None:
    done = generate(place, "--count", "10")
    assert (done.returncode, done.stdout) == (2, "")
    assert "gate confirm: not passed" in done.stderr
    assert "finetune gate confirm" in done.stderr
    assert not (place / "data/batches").exists()


def test_a_count_is_the_number_in_all(place: Path) -> None:
    let_scale(place)
    assert told(place, "--count", "4")["made now"] == 4
    assert told(place, "--count", "4")["made now"] == 0
    assert told(place, "--count", "7")["made now"] == 3
    assert len(bench.talks(place)) == 7


def test_a_count_that_outgrows_a_begun_batch_says_how_to_go_on(place: Path) -> None:
    let_scale(place)
    told(place, "--count", "4")
    next(place.glob(f"{TALKS}/scale-001/*.json")).unlink()
    first = told(place, "--count", "6")
    assert (first["made now"], first["next"][:27]) == (1, "python scripts/generate.py ")
    assert told(place, "--count", "6")["made now"] == 2


@pytest.mark.parametrize("words", [("--pilot", "--trial"), ("--confirm", "--count", "5")])
def test_modes_exclude_each_other(words: tuple[str, ...], place: Path) -> None:
    done = generate(place, *words)
    assert done.returncode == 2
    assert "not allowed with" in done.stderr


def test_too_few_people_name_the_command_that_draws_more(place: Path) -> None:
    let_scale(place)
    done = generate(place, "--count", "81")
    assert done.returncode == 2
    assert "80 fresh personas, 81 are needed" in done.stderr
    assert "python scripts/personas.py --count 81" in done.stderr


def test_no_people_at_all_name_the_command_too(place: Path) -> None:
    (place / "data/personas/training.jsonl").unlink()
    done = generate(place)
    assert (done.returncode, "scripts/personas.py --count 5" in done.stderr) == (2, True)


def test_a_persona_that_changed_under_its_batch_is_refused(place: Path) -> None:
    told(place)
    path = place / "data/personas/training.jsonl"
    rows = [row | ({"name": "Other"} if n == 2 else {}) for n, row in enumerate(iter_records(path))]
    path.write_bytes(b"".join(map(encode_line, rows)))
    done = generate(place)
    assert done.returncode == 2
    assert "train-00003 has changed, and pilot-001 needs it" in done.stderr


def test_a_dry_run_writes_nothing_and_calls_nobody(place: Path) -> None:
    bench.cast(place, user_sim="slow_user", assistant="slow_assistant")
    before = tree(place)
    plan = told(place, "--dry-run", "--confirm")
    assert (plan["batch"], plan["conversations"]) == ("confirm-001", 20)
    assert plan["calls at least"] == 2 * plan["exchanges"]
    assert tree(place) == before


def test_without_its_gate_nothing_begins(place: Path) -> None:
    edit(place / "config/prompts/user_sim.md", "A person with a life", "A person")
    done = generate(place)
    assert (done.returncode, "gate prompts: not passed: stale" in done.stderr) == (2, True)
    assert not (place / JOURNAL).exists()


# parts


@pytest.mark.slow  # seconds, and the fast suite has five minutes
def test_the_parts_together_make_the_bytes_of_the_whole(place: Path, tmp_path: Path) -> None:
    let_scale(place)
    whole = another(place, tmp_path / "whole")
    told(whole, "--count", "12")
    parts = [begun(place, "--count", "12", "--shard", f"{n}/3") for n in (1, 2, 3)]
    assert [(each.communicate()[1], each.returncode)[1] for each in parts] == [0, 0, 0]
    assert bench.product(place) == bench.product(whole)
    journals = sorted(path.name for path in (place / "data/journal").glob("*.jsonl"))
    assert journals == [f"generate.{n}-of-3.jsonl" for n in (1, 2, 3)]
    rows = [
        row["id"] for path in place.glob("data/candidates.*.jsonl") for row in iter_records(path)
    ]
    assert sorted(rows) == sorted(bench.talks(whole))


def test_a_part_is_decided_by_the_id_alone() -> None:
    ids = [f"train-{n:05}" for n in range(200)]
    parts = [{item for item in ids if in_shard(item, (n, 7))} for n in range(1, 8)]
    assert (set().union(*parts), sum(map(len, parts))) == (set(ids), 200)


def test_each_part_gets_its_share_of_the_dollars() -> None:
    project: Any = SimpleNamespace(budgets=SimpleNamespace(generate=12.0))
    given = SimpleNamespace(max_usd=None)
    assert cap(project, "generate", given, (2, 8)) == 1.5
    assert cap(project, "generate", SimpleNamespace(max_usd=4.0), (1, 8)) == 0.5
    project.budgets.generate = None
    with pytest.raises(FinetuneError, match=r"budgets.generate: how much may this cost"):
        cap(project, "generate", given)


# faults


def test_a_failed_conversation_costs_no_other_and_the_rerun_completes_it(
    place: Path, tmp_path: Path
) -> None:
    whole = another(play(place, DOWN), tmp_path / "whole")
    told(whole)
    (place / "down").touch()
    done = generate(place)
    assert done.returncode == 1
    assert "train-00002: python:own:reply on generate/train-00002/t03" in done.stderr
    assert "connection refused" in done.stderr
    assert len(bench.talks(place)) == 4
    (place / "down").unlink()
    assert told(place)["made now"] == 1
    assert bench.product(place) == bench.product(whole)


def test_a_second_process_is_told_who_is_at_work(place: Path) -> None:
    play(place, HELD)
    (place / "hold").touch()
    with begun(place) as first:
        wait_for(lambda: b"t02.assistant" in journal_of(place), first)
        second = generate(place)
        (place / "hold").unlink()
        first.communicate()
    assert (first.returncode, second.returncode) == (0, 2)
    assert f"in use by process {first.pid}" in second.stderr
    assert len(bench.talks(place)) == 5


@pytest.mark.slow  # more than ten seconds
def test_ctrl_c_drains_within_ten_seconds_and_the_rerun_goes_on(
    place: Path, tmp_path: Path
) -> None:
    whole = another(play(place, HELD), tmp_path / "whole")
    told(whole)
    (place / "hold").touch()
    with begun(place) as process:
        wait_for(lambda: journal_of(place).count(b"t02.assistant") >= 5, process)
        started = time.monotonic()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert time.monotonic() - started < 12
    assert "Traceback" not in err
    assert "left                    5" in out
    (place / "hold").unlink()
    assert told(place)["made now"] == 5
    assert bench.product(place) == bench.product(whole)


def wait_for(seen: Any, process: Any) -> None:
    until = time.monotonic() + 60
    while not seen():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def journal_of(place: Path) -> bytes:
    path = place / JOURNAL
    return path.read_bytes() if path.exists() else b""


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    tried = subprocess.run(mount, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {tried.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_in_clear_words_and_room_lets_it_go_on(
    drawn: Path, small: Path, tmp_path: Path
) -> None:
    whole, place = another(drawn, tmp_path / "whole"), another(drawn, small / "demo")
    told(whole)
    free = os.statvfs(small).f_bavail * os.statvfs(small).f_frsize
    (small / "ballast").write_bytes(bytes(free - 150_000))
    done = generate(place)
    assert done.returncode == 3, done.stderr
    assert "Make room, then run again" in done.stderr or "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    assert journal_of(place).endswith(b"\n")
    (small / "ballast").unlink()
    told(place)
    assert bench.product(place) == bench.product(whole)


# over the network


def wire(place: Path, url: str, more: str = "") -> None:
    """Let the assistant be a server at this address."""
    spec = f'"local:fake-model"\n    base_url: "{url}"\n    max_tokens: 100{more}'
    edit(place / "config/project.yaml", f'"{SIMULATED["assistant"]}"', spec)


WORDS = [
    "valve",
    "tap",
    "hose",
    "light",
    "cartridge",
    "app",
    "plug",
    "sieve",
    "handle",
    "filter",
    "parcel",
    "invoice",
    "sink",
    "glass",
    "kettle",
    "phone",
    "pipe",
    "box",
    "lid",
    "ring",
    "cap",
    "wall",
    "left",
    "right",
    "open",
    "closed",
    "warm",
    "cold",
    "early",
    "late",
    "blue",
    "grey",
]


def says(request: Any) -> Reply:
    """A reply that no other message gets."""
    chance = rng("reply", request.raw)
    return Reply(" ".join(["Please turn it, then tell me:", *chance.sample(WORDS, 8)]) + ".")


def test_a_dead_provider_is_said_and_a_living_one_lets_the_run_go_on(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    wire(place, f"http://127.0.0.1:{port}/v1", "\n    timeout: 1.0\n    label: desk")
    dead = generate(place)
    assert dead.returncode == 1
    assert "Connect call failed" in dead.stderr or "refused" in dead.stderr
    assert dead.stderr.count("Recorded as a failure (transport), not as an answer") == 5
    assert "Traceback" not in dead.stderr
    with FakeProvider() as fake:
        fake.respond = says
        edit(place / "config/project.yaml", f"http://127.0.0.1:{port}/v1", fake.openai_url)
        alive = told(place)
    assert (alive["batch"], alive["made now"]) == ("pilot-001", 5)


def test_an_exhausted_budget_stops_the_run_and_a_larger_one_goes_on_from_there(place: Path) -> None:
    with FakeProvider() as fake:
        fake.respond = says
        wire(place, fake.openai_url, f"{PRICED}\n    label: desk")
        done = generate(place, "--max-usd", "0.6")
        assert done.returncode == 2
        assert "of $0.6000 is spent, and the next call could cost $" in done.stderr
        assert "a larger --max-usd goes on from here" in done.stderr
        sent = len(fake.requests)
        assert sent > 0
        rest = told(place, "--max-usd", "1000")
        assert (rest["failed"], rest["left"], len(bench.talks(place))) == (0, 0, 5)
        bodies = [request.raw for request in fake.requests]
    assert len(bodies) > sent
    assert len(bodies) == len(set(bodies))  # nothing was sent, and paid, twice


def test_money_without_a_limit_never_begins(place: Path) -> None:
    wire(place, "http://127.0.0.1:9/v1", PRICED)
    edit(place / "config/project.yaml", "  generate: 0\n", "  generate: null\n")
    done = generate(place)
    assert done.returncode == 2
    assert "budgets.generate: how much may this cost?" in done.stderr
    assert not (place / "data/batches").exists()


def test_cycles_are_looked_for_as_before_when_a_stage_ends() -> None:
    before = gc.get_threshold()
    with fewer_collections():
        assert gc.get_threshold()[0] > before[0]
    assert gc.get_threshold() == before
