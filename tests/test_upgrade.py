"""Upgrades: every kind of file, a rerun after any crash, and 200 histories without a lost line."""

import errno
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune_skills.merge import MARKERS, marker_lines, plain, same_text
from finetune_skills.scaffold import BASE, MANIFEST, bundle_files, create_project
from finetune_skills.upgrade import PENDING, Action, alone, apply_upgrade, exit_code, plan_upgrade
from infrastructure import DiskStop, FinetuneError
from test_scaffold import FILES, VALUES, disk_refuses, survives, tree, write

HISTORIES, STEPS = 200, 12
FEW = ("code/infrastructure.py", "code/templates/README.md", "code/templates/config/project.yaml")
LATER = ("scripts/assess.py", "scripts/audit.py")  # in the bundle from some release on, or never
TEXT = "".join(f"line {number}\n" for number in range(1, 10))
NEWER = TEXT.replace("line 8", "line 8, better")
MINE = TEXT.replace("line 2", "line 2, mine")
GENERATE, TEMPLATE = "scripts/generate.py", "code/templates/scripts/generate.py"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write(tmp_path / "bundle", FILES | {TEMPLATE: TEXT})


@pytest.fixture
def root(tmp_path: Path, bundle: Path) -> Path:
    """A project that was just made from the bundle."""
    create_project(tmp_path / "project", bundle, VALUES)
    return tmp_path / "project"


def upgrade(root: Path, bundle: Path) -> dict[str, Action]:
    """What happened to each file that was not simply up to date; the plan had said the same."""
    planned = plan_upgrade(root, bundle)
    done = apply_upgrade(root, bundle)
    assert [(a.path, a.kind, a.note) for a in planned] == [(a.path, a.kind, a.note) for a in done]
    return {action.path: action for action in done if action.kind != "unchanged"}


def kinds(root: Path, bundle: Path) -> dict[str, str]:
    return {path: action.kind for path, action in upgrade(root, bundle).items()}


# One file, each case


def test_nothing_new_changes_nothing(root: Path, bundle: Path) -> None:
    write(root, {GENERATE: MINE})
    before = tree(root)
    assert kinds(root, bundle) == {}
    assert tree(root) == before


def test_an_untouched_file_is_updated_with_its_base_and_its_record(
    root: Path, bundle: Path
) -> None:
    write(bundle, {TEMPLATE: NEWER})
    assert kinds(root, bundle) == {GENERATE: "updated"}
    found = tree(root)
    assert found[GENERATE] == found[f"{BASE}/{GENERATE}"] == NEWER.encode()
    assert PENDING not in found
    assert kinds(root, bundle) == {}


def test_an_edited_file_keeps_its_edits_and_gets_ours(root: Path, bundle: Path) -> None:
    write(bundle, {TEMPLATE: NEWER})
    write(root, {GENERATE: MINE})
    assert kinds(root, bundle) == {GENERATE: "merged"}
    assert (root / GENERATE).read_text() == MINE.replace("line 8", "line 8, better")
    assert (root / BASE / GENERATE).read_text() == NEWER


def test_a_clash_leaves_markers_and_is_skipped_until_a_person_has_chosen(
    root: Path, bundle: Path
) -> None:
    write(bundle, {TEMPLATE: TEXT.replace("line 2", "line 2, ours")})
    write(root, {GENERATE: MINE})
    done = upgrade(root, bundle)[GENERATE]
    assert (done.kind, done.clashes, exit_code([done])) == ("clash", 1, 1)
    marked = (root / GENERATE).read_bytes()
    again = upgrade(root, bundle)[GENERATE]
    assert (again.kind, again.note, exit_code([again])) == ("markers", "line 2, 4, 8", 1)
    assert (root / GENERATE).read_bytes() == marked
    write(root, {GENERATE: MINE})
    assert kinds(root, bundle) == {}


def test_markers_hold_back_one_file_and_not_the_others(root: Path, bundle: Path) -> None:
    write(bundle, {TEMPLATE: NEWER, "code/settings.py": "SETTINGS = 2\n"})
    write(root, {GENERATE: "<<<<<<< yours\n" + TEXT})
    assert kinds(root, bundle) == {GENERATE: "markers", "settings.py": "updated"}
    assert (root / BASE / GENERATE).read_text() == TEXT


def test_a_file_that_is_new_in_the_bundle_is_added_unless_a_person_has_one(
    root: Path, bundle: Path
) -> None:
    write(bundle, {"code/formats.py": "NEW = 1\n", "code/evidence.py": "NEW = 2\n"})
    write(root, {"evidence.py": "mine\n"})
    assert kinds(root, bundle) == {"evidence.py": "occupied", "formats.py": "added"}
    assert (root / "evidence.py").read_text() == "mine\n"
    assert (root / "formats.py").read_text() == "NEW = 1\n"
    assert "evidence.py" not in json.loads((root / MANIFEST).read_text())["files"]


def test_a_deleted_file_stays_deleted_and_one_that_comes_back_is_merged(
    root: Path, bundle: Path
) -> None:
    write(bundle, {TEMPLATE: NEWER})
    (root / GENERATE).unlink()
    assert kinds(root, bundle) == {GENERATE: "deleted"}
    assert not (root / GENERATE).exists()
    write(root, {GENERATE: MINE})
    assert kinds(root, bundle) == {GENERATE: "merged"}


def test_a_file_that_left_the_bundle_is_kept_and_reported(root: Path, bundle: Path) -> None:
    (bundle / TEMPLATE).unlink()
    before = tree(root)
    assert kinds(root, bundle) == {GENERATE: "retired"}
    assert tree(root) == before | {MANIFEST: (root / MANIFEST).read_bytes()}


def test_line_endings_converted_by_git_are_no_edits(root: Path, bundle: Path) -> None:
    for name in (GENERATE, f"{BASE}/{GENERATE}"):
        write(root, {name: TEXT.replace("\n", "\r\n")})
    write(bundle, {TEMPLATE: NEWER})
    assert kinds(root, bundle) == {GENERATE: "updated"}
    assert (root / GENERATE).read_bytes() == NEWER.replace("\n", "\r\n").encode()


def test_what_is_no_text_is_kept_with_ours_beside_it_and_said_once(
    root: Path, bundle: Path
) -> None:
    write(bundle, {TEMPLATE: NEWER})
    write(root, {GENERATE: b"\xff\0 mine", f"{GENERATE}.new": "another file of mine"})
    done = upgrade(root, bundle)[GENERATE]
    assert (done.kind, done.note) == ("beside", f"ours is {GENERATE}.new2")
    assert exit_code([done]) == 1
    assert (root / GENERATE).read_bytes() == b"\xff\0 mine"
    assert (root / f"{GENERATE}.new").read_text() == "another file of mine"
    assert (root / f"{GENERATE}.new2").read_text() == NEWER
    assert kinds(root, bundle) == {}


@pytest.mark.parametrize("base", [None, "reformatted\n"])
def test_without_its_base_an_edited_file_is_left_alone_and_an_untouched_one_is_updated(
    root: Path, bundle: Path, base: str | None
) -> None:
    write(bundle, {TEMPLATE: NEWER, "code/settings.py": "SETTINGS = 2\n"})
    write(root, {GENERATE: MINE})
    for name in (GENERATE, "settings.py"):
        (root / BASE / name).unlink()
        write(root, {f"{BASE}/{name}": base} if base else {})
    assert kinds(root, bundle) == {GENERATE: "damaged", "settings.py": "updated"}
    assert (root / GENERATE).read_text() == MINE


def test_links_and_folders_are_left_alone(root: Path, bundle: Path, tmp_path: Path) -> None:
    write(tmp_path, {"shared/generate.py": "mine"})
    write(bundle, {TEMPLATE: NEWER, "code/settings.py": "SETTINGS = 2\n"})
    shutil.rmtree(root / "scripts")
    (root / "scripts").symlink_to(tmp_path / "shared")
    (root / "settings.py").unlink()
    (root / "settings.py").mkdir()
    assert kinds(root, bundle) == {GENERATE: "blocked", "settings.py": "blocked"}
    assert (tmp_path / "shared/generate.py").read_text() == "mine"


def test_filled_values_are_filled_again_and_a_new_placeholder_is_named(
    root: Path, bundle: Path
) -> None:
    write(bundle, {"code/templates/README.md": "# {{domain}}\n{{model}}\n"})
    done = upgrade(root, bundle)["README.md"]
    assert (done.kind, done.note) == ("updated", "fill in by hand: model")
    assert (root / "README.md").read_text() == "# tea\n{{model}}\n"


def test_a_file_keeps_its_permissions(root: Path, bundle: Path) -> None:
    write(bundle, {TEMPLATE: NEWER})
    (root / GENERATE).chmod(0o750)
    upgrade(root, bundle)
    assert (root / GENERATE).stat().st_mode & 0o777 == 0o750


def test_a_plan_writes_nothing_and_says_what_would_happen(root: Path, bundle: Path) -> None:
    write(bundle, {TEMPLATE: NEWER})
    before = tree(root)
    said = [str(action) for action in plan_upgrade(root, bundle) if action.kind != "unchanged"]
    assert said == [f"{GENERATE}: you had not changed it: updated"]
    assert tree(root) == before


# What is not a project, and who else is there


def test_a_folder_without_a_record_is_no_project(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(FinetuneError, match=r"no \.finetune/manifest\.json here"):
        apply_upgrade(tmp_path, bundle)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "files": {"../x": {"sha256": "0"}}}']
)
def test_a_damaged_record_is_one_clear_line(root: Path, bundle: Path, text: str) -> None:
    write(root, {MANIFEST: text})
    with pytest.raises(FinetuneError, match=r"manifest\.json: is damaged"):
        plan_upgrade(root, bundle)


def test_a_record_of_a_newer_release_is_not_touched(root: Path, bundle: Path) -> None:
    write(root, {MANIFEST: '{"schema": 2, "files": {}}'})
    with pytest.raises(FinetuneError, match="newer"):
        apply_upgrade(root, bundle)


def test_two_upgrades_at_once_are_one_too_many(root: Path, bundle: Path) -> None:
    with (
        alone(root / ".finetune"),
        pytest.raises(FinetuneError, match="another upgrade is at work"),
    ):
        apply_upgrade(root, bundle)


def test_a_file_that_is_saved_during_the_upgrade_is_not_overwritten(
    root: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bundle, {TEMPLATE: NEWER})
    replace = os.replace

    def save(source: str, target: Path) -> None:
        replace(source, target)
        if str(target).endswith(PENDING):
            write(root, {GENERATE: MINE})

    monkeypatch.setattr(os, "replace", save)
    done = {action.path: action for action in apply_upgrade(root, bundle)}
    assert done[GENERATE].kind == "moved on"
    assert (root / GENERATE).read_text() == MINE
    assert kinds(root, bundle) == {GENERATE: "merged"}


# Disks and deaths


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("name", [PENDING, GENERATE, f"{BASE}/{GENERATE}", MANIFEST])
def test_a_disk_that_refuses_is_one_line_and_the_rerun_ends_the_same(
    root: Path, bundle: Path, tmp_path: Path, number: int, name: str
) -> None:
    everything_happens(root, bundle)
    whole = shutil.copytree(root, tmp_path / "whole", symlinks=True)
    apply_upgrade(whole, bundle)
    with (
        disk_refuses(f"project/{name}", number),
        pytest.raises(DiskStop, match=os.strerror(number)) as said,
    ):
        apply_upgrade(root, bundle)
    assert "\n" not in str(said.value)
    assert not list(root.rglob("*.partial"))
    apply_upgrade(root, bundle)
    assert tree(root) == tree(whole)


def everything_happens(root: Path, bundle: Path) -> None:
    """A bundle and a project in which the next upgrade meets every kind of file."""
    write(bundle, {TEMPLATE: NEWER, "code/settings.py": "SETTINGS = 2\n", "code/new.py": "N\n"})
    write(bundle, {"code/infrastructure.py": "KERNEL = 2\n", "code/evidence.py": "E = 1\n"})
    write(bundle, {"code/templates/.gitignore": "data/\nmodels/\n", "code/formats.py": "F\n"})
    write(root, {GENERATE: MINE, "settings.py": "SETTINGS = 'mine'\n", "evidence.py": "mine\n"})
    write(root, {".gitignore": b"data/\n\xff", "formats.py": "F\r\n"})
    (root / "config/prompts/assistant.md").unlink()


def test_after_a_death_at_any_step_the_rerun_gives_the_same_result(
    tmp_path: Path, root: Path, bundle: Path
) -> None:
    everything_happens(root, bundle)
    whole = shutil.copytree(root, tmp_path / "whole")
    assert len({action.kind for action in apply_upgrade(whole, bundle)}) >= 8
    step, finished = 0, False
    while not finished:
        copy = shutil.copytree(root, tmp_path / f"died-{step}")
        finished = survives(step, lambda copy=copy: apply_upgrade(copy, bundle))
        survives(10**9, lambda copy=copy: apply_upgrade(copy, bundle))
        assert tree(copy) == tree(whole), step
        step += 1
    assert step > 25


def test_a_death_and_then_a_still_newer_bundle_lose_nothing(root: Path, bundle: Path) -> None:
    write(bundle, {TEMPLATE: NEWER})
    write(root, {GENERATE: MINE})
    assert not survives(3, lambda: apply_upgrade(root, bundle))  # the file is there, its base isn't
    assert (root / GENERATE).read_text() == MINE.replace("line 8", "line 8, better")
    assert (root / BASE / GENERATE).read_text() == TEXT
    write(bundle, {TEMPLATE: NEWER.replace("line 8, better", "line 8, best")})
    assert kinds(root, bundle) == {GENERATE: "merged"}
    assert (root / GENERATE).read_text() == MINE.replace("line 8", "line 8, best")


def test_after_a_death_between_file_and_base_a_clash_is_not_merged_twice(
    root: Path, bundle: Path
) -> None:
    write(bundle, {TEMPLATE: TEXT.replace("line 2", "line 2, ours")})
    write(root, {GENERATE: MINE})
    assert not survives(3, lambda: apply_upgrade(root, bundle))
    assert (root / BASE / GENERATE).read_text() == TEXT
    assert kinds(root, bundle) == {GENERATE: "markers"}
    write(root, {GENERATE: MINE})  # resolved
    assert kinds(root, bundle) == {}


def test_after_a_death_behind_the_base_a_person_may_edit_the_file(root: Path, bundle: Path) -> None:
    write(bundle, {TEMPLATE: NEWER})
    assert not survives(5, lambda: apply_upgrade(root, bundle))  # the base is there, too
    write(root, {GENERATE: NEWER + "mine\n"})
    assert kinds(root, bundle) == {}
    assert (root / GENERATE).read_text() == NEWER + "mine\n"


def test_a_base_that_was_new_before_is_no_proof_that_the_file_was_written(
    root: Path, bundle: Path
) -> None:
    write(bundle, {TEMPLATE: NEWER})
    write(root, {f"{BASE}/{GENERATE}": NEWER})
    assert not survives(1, lambda: apply_upgrade(root, bundle))  # only the intent is there
    assert kinds(root, bundle) == {GENERATE: "updated"}
    assert (root / GENERATE).read_text() == NEWER


def test_a_record_behind_a_link_is_never_written_through(
    root: Path, bundle: Path, tmp_path: Path
) -> None:
    write(bundle, {TEMPLATE: NEWER})
    (root / BASE).rename(tmp_path / "elsewhere")
    (root / BASE).symlink_to(tmp_path / "elsewhere")
    before = tree(tmp_path / "elsewhere")
    with pytest.raises(DiskStop, match="symbolic link"):
        apply_upgrade(root, bundle)
    assert tree(tmp_path / "elsewhere") == before


# Histories


class History:
    """A person who edits and a bundle that moves on, both drawn from one seed."""

    def __init__(self, place: Path, seed: int) -> None:
        self.chance, self.count = random.Random(seed), 0
        self.bundle = write(
            place / "bundle", {name: FILES[name] for name in FEW} | {TEMPLATE: TEXT}
        )
        self.root = place / "project"
        create_project(self.root, self.bundle, VALUES)

    def edit(self, data: bytes, who: str) -> bytes:
        """A few lines added, changed, doubled, moved or removed; sometimes other line endings."""
        lines = plain(data).split(b"\n")
        for _ in range(self.chance.randint(1, 4)):
            self.count += 1
            at, other = (self.chance.randrange(len(lines) + 1) for _ in "ab")
            new = f"{who} {self.count}".encode()
            what = self.chance.choice(["add", "change", "double", "remove", "common"])
            drawn = {"double": lines[other : other + 2], "remove": [], "common": [b"", b"pass"]}
            gone = 0 if what in ("add", "common", "double") else self.chance.randint(1, 2)
            lines[at : at + gone] = drawn.get(what, [new])
        end = b"\r\n" if who == "you" and self.chance.random() < 0.15 else b"\n"
        return end.join(lines)

    def person(self) -> None:
        name = self.chance.choice(sorted({*bundle_files(self.bundle), *LATER}))
        path, luck = self.root / name, self.chance.random()
        if not path.exists():
            write(self.root, {name: "you made this\n"} if luck < 0.3 else {})
        elif luck < 0.08:
            path.unlink()
        elif luck < 0.3:
            path.write_bytes(self.resolve(path.read_bytes()))
        elif luck < 0.33:
            path.write_bytes(path.read_bytes() + b"\xff\n")
        elif luck < 0.38 and name in (sources := bundle_files(self.bundle)):
            path.write_bytes(sources[name].read_bytes())  # copied by hand
        else:
            path.write_bytes(self.edit(path.read_bytes(), "you"))

    def resolve(self, data: bytes) -> bytes:
        """Without the markers, and perhaps without some of the lines between them."""
        kept = [line for line in data.split(b"\n") if line.strip().decode("latin1") not in MARKERS]
        return b"\n".join(line for line in kept if line.strip() != b"=======")

    def release(self) -> None:
        sources, luck = bundle_files(self.bundle), self.chance.random()
        if luck < 0.15:
            write(self.bundle, {f"code/templates/{self.chance.choice(LATER)}": TEXT})
        elif luck < 0.2 and len(sources) > 3:
            self.chance.choice(list(sources.values())).unlink()
        else:
            source = self.chance.choice(list(sources.values()))
            source.write_bytes(self.edit(source.read_bytes(), "ours"))

    def upgrade(self) -> list[Action]:
        """One upgrade; sometimes it dies on the way, and still ends like one that didn't."""
        if self.chance.random() < 0.7:
            return apply_upgrade(self.root, self.bundle)
        whole = shutil.copytree(self.root, self.root.with_name("copy"))
        actions, steps = apply_upgrade(whole, self.bundle), self.chance.sample(range(20), 2)
        all(survives(step, lambda: apply_upgrade(self.root, self.bundle)) for step in steps)
        apply_upgrade(self.root, self.bundle)
        assert tree(self.root) == tree(whole)
        shutil.rmtree(whole)
        return actions


def lines_of(data: bytes) -> list[bytes]:
    return plain(data).split(b"\n")


def lost_lines(before: dict[str, bytes], after: dict[str, bytes]) -> Iterator[str]:
    """The lines that a person had added or changed, and that are no longer in their file."""
    for name in (name for name in before if not name.startswith(".finetune/")):
        base, then, now = before.get(f"{BASE}/{name}", b""), before[name], after.get(name, b"")
        lost = Counter(lines_of(then)) - Counter(lines_of(base)) - Counter(lines_of(now))
        yield from (f"{name}: {line!r}" for line in lost if line.strip())


@pytest.mark.slow  # more than ten seconds
def test_in_200_histories_no_line_of_a_person_is_ever_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infrastructure.os.fsync", lambda _: None)
    seen: Counter[str] = Counter()
    for seed in range(HISTORIES):
        history = History(tmp_path / str(seed), seed)
        for _ in range(STEPS):
            history.chance.choice([history.person, history.person, history.release])()
            if history.chance.random() < 0.4:
                before = tree(history.root)
                actions = history.upgrade()
                after = tree(history.root)
                seen += Counter(action.kind for action in actions)
                assert list(lost_lines(before, after)) == [], seed
                check_result(history, actions, before, after)
        shutil.rmtree(tmp_path / str(seed))
    every = {"added", "updated", "merged", "clash", "markers", "deleted", "retired", "beside"}
    assert every | {"occupied", "adopted", "unchanged"} <= seen.keys()


def check_result(
    history: History, actions: list[Action], before: dict[str, bytes], after: dict[str, bytes]
) -> None:
    """What was untouched is the bundle's now; what clashed has markers; nobody's file vanished."""
    sources = bundle_files(history.bundle)
    assert before.keys() - {PENDING} <= after.keys()
    for action in actions:
        if action.kind in ("merged", "clash"):
            ours = Counter(lines_of(sources[action.path].read_bytes()))
            ours -= Counter(lines_of(before[f"{BASE}/{action.path}"]))
            assert not [
                line for line in ours - Counter(lines_of(after[action.path])) if b"{{" not in line
            ]
        if action.kind in ("updated", "added", "adopted") and action.path not in (
            "README.md", "config/project.yaml"
        ):  # fmt: skip
            assert same_text(after[action.path], sources[action.path].read_bytes())
        if action.kind in ("clash", "markers"):
            assert marker_lines(after[action.path])
        if action.base is None and action.path in before:
            assert after[action.path] == before[action.path]
