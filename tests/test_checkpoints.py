"""Checkpoints: what was acknowledged is there, what is damaged is reported, nothing stops a run."""

import errno
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from children import child
from faults import bench
from infrastructure import (
    Appender,
    AssessmentResult,
    DiskStop,
    FinetuneError,
    ReadReport,
    append_checkpoint,
    atomic_write,
    decode_line,
    encode_line,
    is_done,
    iter_records,
    load_checkpoint,
    load_checkpoint_results,
)

LINE = encode_line({"id": "a", "text": "one"})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
RECORDS = st.dictionaries(st.text(st.characters()).filter("crc".__ne__), JSON, max_size=5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "done.jsonl"


def read(path: Path) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """The records of a file, and what was said about its bad lines."""
    report = ReadReport()
    return list(iter_records(path, report)), report.bad


# A record goes in and comes out


def test_a_missing_file_is_an_empty_set(path: Path) -> None:
    assert load_checkpoint(path) == set()
    assert load_checkpoint_results(path) == {}
    assert not path.exists()


def test_an_appended_record_is_found_by_its_id_with_unknown_keys_kept(path: Path) -> None:
    append_checkpoint(path, {"id": "a", "score": 0.8, "note": "kept"})
    assert load_checkpoint(path) == {"a"}
    assert load_checkpoint_results(path) == {"a": {"id": "a", "score": 0.8, "note": "kept"}}


def test_the_folder_is_made_and_only_the_owner_can_read_the_file(tmp_path: Path) -> None:
    append_checkpoint(tmp_path / "run" / "done.jsonl", {"id": "a"})
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run" / "done.jsonl").stat().st_mode) == 0o600


@given(RECORDS)
@settings(deadline=None)
def test_any_json_record_comes_back_as_it_was(record: dict[str, Any]) -> None:
    line = encode_line(record)
    assert decode_line(line) == record
    assert (line.count(b"\n"), line.isascii()) == (1, True)


def test_a_record_is_one_line_with_its_checksum_at_the_end() -> None:
    assert LINE.startswith(b'{"id":"a","text":"one","crc":"')
    assert json.loads(LINE) == {"id": "a", "text": "one", "crc": LINE[-11:-3].decode()}


@pytest.mark.parametrize(
    "record", [{"id": "a", "x": float("nan")}, {"id": "a", "x": {1}}, {"id": "a", "crc": "mine"}]
)
def test_what_json_cannot_hold_is_refused_and_writes_nothing(
    path: Path, record: dict[str, Any]
) -> None:
    with pytest.raises(FinetuneError):
        append_checkpoint(path, record)
    assert not path.exists() or path.read_bytes() == b""


@pytest.mark.parametrize("name", ["", None, True, 1.5, ["a"]])
def test_a_checkpoint_without_a_usable_id_is_refused(path: Path, name: object) -> None:
    with pytest.raises(FinetuneError, match="id"):
        append_checkpoint(path, {"id": name})


def test_a_line_of_the_users_own_script_is_read_too(path: Path) -> None:
    path.write_text('{"transcript_id": "a", "x": 1}\n')
    append_checkpoint(path, {"id": "b"})
    assert load_checkpoint(path) == {"a", "b"}


# Which record of an id counts


def test_a_number_and_its_digits_are_one_id(path: Path) -> None:
    append_checkpoint(path, {"id": 7})
    path.write_bytes(path.read_bytes() + b'{"id": 8}\n')
    assert load_checkpoint(path) == {"7", "8"}


def test_ids_that_differ_in_case_or_in_unicode_form_are_never_merged(path: Path) -> None:
    names = {"Ana", "ana", "caf\u00e9", "cafe\u0301"}
    for name in names:
        append_checkpoint(path, {"id": name})
    assert load_checkpoint(path) == names


def test_of_two_rows_of_one_id_the_first_counts_and_the_conflict_is_reported(path: Path) -> None:
    for text in ("first", "second"):
        append_checkpoint(path, {"id": "a", "text": text})
    report = ReadReport()
    assert load_checkpoint_results(path, report)["a"]["text"] == "first"
    assert report.conflicts == ["a"]


def test_the_same_row_twice_is_no_conflict(path: Path) -> None:
    path.write_bytes(LINE * 2)
    report = ReadReport()
    assert list(load_checkpoint_results(path, report)) == ["a"]
    assert (report.conflicts, report.bad) == ([], [])


def test_a_row_made_from_other_inputs_wins(path: Path) -> None:
    for digest, score in (("h1", 0.2), ("h2", 0.9)):
        append_checkpoint(path, {"id": "a", "transcript_hash": digest, "score": score})
    report = ReadReport()
    assert load_checkpoint_results(path, report)["a"]["score"] == 0.9
    assert report.conflicts == []


def test_an_error_is_not_done_and_a_later_success_takes_its_place(path: Path) -> None:
    append_checkpoint(path, {"id": "a", "error": "timeout"})
    assert load_checkpoint(path) == set()
    append_checkpoint(path, {"id": "a", "text": "fine"})
    assert load_checkpoint(path) == {"a"}
    assert load_checkpoint_results(path)["a"] == {"id": "a", "text": "fine"}


def test_a_later_error_never_replaces_a_success(path: Path) -> None:
    append_checkpoint(path, {"id": "a", "text": "fine"})
    append_checkpoint(path, {"id": "a", "error": "timeout"})
    assert load_checkpoint_results(path)["a"] == {"id": "a", "text": "fine"}


@pytest.mark.parametrize(
    ("record", "done"),
    [
        ({"id": "a"}, True),
        ({"id": "a", "pass": True}, True),
        ({"id": "a", "pass": False, "errors": 0, "error": None}, True),
        ({"id": "a", "pass": None}, False),
        ({"id": "a", "errors": ["E1"]}, False),
        ({"id": "a", "error_count": 1}, False),
    ],
)
def test_only_a_verdict_or_a_result_is_done(record: dict[str, Any], done: bool) -> None:
    assert is_done(record) is done


def test_an_assessment_full_of_errors_is_retried_on_resume(path: Path) -> None:
    unscored = AssessmentResult("a", None, None, 0.8, {}, {"E1": "ERROR"}, {}, error_count=1)
    append_checkpoint(path, unscored.to_dict())
    assert load_checkpoint(path) == set()
    assert load_checkpoint_results(path)["a"]["answers"] == {"E1": "ERROR"}


# Damage is skipped and reported, and costs nothing else

DAMAGED: dict[str, bytes] = {
    "null": b"null",
    "a number": b"42",
    "a list": b"[1]",
    "a text": b'"a"',
    "invalid UTF-8": b'{"id": "\xff\xfe"}',
    "64 NULs": bytes(64),
    "100,000 brackets": b"[" * 100_000,
    "100,000 nested objects": b'{"a":' * 100_000,
    "half a record": LINE[:20],
    "a changed letter": LINE.replace(b"one", b"two").strip(),
    "two records": LINE.strip() + LINE.strip(),
}


@pytest.mark.parametrize("damaged", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_line_is_reported_by_its_number_and_the_rest_is_used(
    path: Path, damaged: bytes
) -> None:
    path.write_bytes(LINE + damaged + b"\n" + encode_line({"id": "b"}))
    records, bad = read(path)
    assert [record["id"] for record in records] == ["a", "b"]
    assert [number for number, _ in bad] == [2]


def test_a_record_without_an_id_is_reported_by_its_number(path: Path) -> None:
    path.write_bytes(LINE + b'{"text": "whose?"}\n')
    report = ReadReport()
    assert list(load_checkpoint_results(path, report)) == ["a"]
    assert [number for number, _ in report.bad] == [2]


def test_a_run_with_damaged_lines_goes_on_and_says_so(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path.write_bytes(b"null\n" + LINE)
    assert load_checkpoint(path) == {"a"}
    assert f"{path}:1: skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content",
    [b"\xef\xbb\xbf" + LINE, LINE.replace(b"\n", b"\r\n"), b"\n\n" + LINE + b"\n", LINE.strip()],
    ids=["byte order mark", "CRLF", "blank lines", "no newline at the end"],
)
def test_what_editors_do_to_a_file_does_no_harm(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert read(path) == ([{"id": "a", "text": "one"}], [])


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x1c"])
def test_an_unusual_line_end_inside_a_text_is_no_line_end(path: Path, sign: str) -> None:
    append_checkpoint(path, {"id": "a", "text": f"one{sign}two"})
    path.write_bytes(path.read_bytes() + f'{{"id": "b", "text": "\u2028{sign}"}}\n'.encode())
    assert "a" in load_checkpoint(path)
    assert len(read(path)[0]) + len(read(path)[1]) == 2


def test_a_single_flipped_bit_never_changes_a_record_unnoticed(path: Path) -> None:
    unnoticed = []
    for place, bit in ((p, b) for p in range(len(LINE)) for b in range(8)):
        flipped = bytearray(LINE)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        report = ReadReport()
        found = list(iter_records(path, report))
        known = report.bad or getattr(report, "unchecked", 0)
        if found != [{"id": "a", "text": "one"}] and not known:
            unnoticed.append((bytes(flipped), found))
    assert unnoticed == []


HUGE = """
import resource, sys
from infrastructure import ReadReport, load_checkpoint_results
resource.setrlimit(resource.RLIMIT_AS, (512_000_000, 512_000_000))
report = ReadReport()
print(list(load_checkpoint_results(sys.argv[1], report)), [number for number, _ in report.bad])
"""


def test_a_line_of_100_megabytes_is_skipped_within_bounded_memory(path: Path) -> None:
    with path.open("wb") as file:
        file.write(LINE)
        file.truncate(100_000_000)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + encode_line({"id": "b"}))
    done = child("-c", HUGE, path)
    assert (done.stdout, done.stderr) == ("['a', 'b'] [2]\n", "")


# A torn tail


def test_a_torn_last_line_is_sealed_and_swallows_nothing(path: Path) -> None:
    path.write_bytes(LINE + b'{"id":"b","pa')
    append_checkpoint(path, {"id": "c"})
    assert load_checkpoint(path) == {"a", "c"}
    assert [number for number, _ in read(path)[1]] == [2]


THREE = [encode_line({"id": name, "text": "caf\u00e9 " * 3}) for name in "abc"]


@given(st.integers(0, sum(map(len, THREE))))
@settings(deadline=None)
def test_a_file_cut_at_any_byte_loses_no_whole_record_and_has_one_bad_line_at_most(
    cut: int,
) -> None:
    ends = [sum(map(len, THREE[: n + 1])) - 1 for n in range(3)]  # without the line's newline
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "done.jsonl")
        path.write_bytes(b"".join(THREE)[:cut])
        append_checkpoint(path, {"id": "new"})
        records, bad = read(path)
    assert [r["id"] for r in records] == [n for n, end in zip("abc", ends, strict=True)
                                          if end <= cut] + ["new"]  # fmt: skip
    assert len(bad) <= 1


@given(st.lists(st.booleans(), max_size=12))
@settings(deadline=None, max_examples=30)
def test_torn_or_whole_every_acknowledged_record_is_there_once(torn: list[bool]) -> None:
    """Each step is an append that succeeds, or one that dies half-way through its line."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "done.jsonl")
        for number, dies in enumerate(torn):
            if dies:
                with path.open("ab") as file:
                    file.write(encode_line({"id": f"{number}"})[:9])
            else:
                append_checkpoint(path, {"id": f"{number}"})
        assert [r["id"] for r in iter_records(path)] == [
            f"{number}" for number, dies in enumerate(torn) if not dies
        ]


# Kills, in short; `make faults` has the long version


def test_kills_lose_and_double_no_acknowledged_row() -> None:
    figures = bench("appends", kills=30, seed=3)
    assert (figures["lost"], figures["duplicated"]) == (0, 0)
    assert figures["acknowledged"] > 30


@pytest.mark.parametrize("what", ["atomic_write", "append"])
def test_a_write_that_dies_before_any_of_its_lines_leaves_the_old_or_the_new(what: str) -> None:
    figures = bench("every_line", what=what)
    assert figures["broken"] == 0
    assert figures["points"] > 10


# A disk that refuses


def fails_with(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def writes_half(fd: int, data: bytes, write: Callable[[int, bytes], int] = os.write) -> int:
    return write(fd, data[: len(data) // 2])


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        ("write", fails_with(errno.ENOSPC)),
        ("write", fails_with(errno.EIO)),
        ("write", fails_with(errno.EDQUOT)),
        ("write", writes_half),
        ("fdatasync", fails_with(errno.EIO)),
    ],
    ids=["disk full", "input/output error", "quota", "short write", "sync fails"],
)
def test_a_refused_append_leaves_the_file_as_it_was_and_the_next_one_works(
    path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fault: Callable[..., int]
) -> None:
    with Appender(path) as file:
        file.append({"id": "a"})
        before = path.read_bytes()
        with monkeypatch.context() as patched:
            patched.delattr(fcntl, "F_FULLFSYNC", raising=False)
            patched.setattr(os, call, fault, raising=False)
            with pytest.raises(DiskStop, match=r"done\.jsonl.*run again"):
                file.append({"id": "b"})
        assert path.read_bytes() == before
        file.append({"id": "b"})
    assert load_checkpoint(path) == {"a", "b"}


def test_a_write_that_the_system_cuts_short_is_taken_back() -> None:
    figures = bench("size_limit")
    assert (figures["stopped"], figures["clean"]) == (True, True)
    assert figures["done"] == ["one", "two"]


def test_a_disk_stop_has_its_own_exit_code() -> None:
    assert DiskStop("full").exit_code == 3


@pytest.mark.parametrize("change", [os.unlink, lambda path: os.rename(path, f"{path}.old")])
def test_a_file_deleted_or_renamed_while_it_is_written_is_noticed(
    path: Path, change: Callable[[Path], None]
) -> None:
    with Appender(path) as file:
        file.append({"id": "a"})
        change(path)
        with pytest.raises(DiskStop, match="moved or deleted"):
            file.append({"id": "b"})


def test_a_file_replaced_while_it_is_written_is_noticed(path: Path) -> None:
    with Appender(path) as file:
        file.append({"id": "a"})
        atomic_write(path, LINE)
        with pytest.raises(DiskStop, match="moved or deleted"):
            file.append({"id": "b"})
    assert path.read_bytes() == LINE


def test_records_are_never_written_through_a_link(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"mine")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DiskStop, match="symbolic link"):
        append_checkpoint(path, {"id": "a"})
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"


LOCKED = """
import os, sys
from infrastructure import DiskStop, append_checkpoint
if os.geteuid() == 0:
    os.setuid(65534)  # nothing is closed to root
try:
    append_checkpoint(sys.argv[1], {"id": "a"})
except DiskStop as stop:
    print(stop)
"""


@pytest.mark.parametrize("mode", [0o555, 0o000], ids=["not writable", "closed"])
def test_a_folder_without_permission_is_refused_in_plain_words(mode: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, mode)
        done = child("-c", LOCKED, f"{folder}/done.jsonl")
        os.chmod(folder, 0o700)
        assert os.listdir(folder) == []
    assert done.stdout == f"{folder}/done.jsonl: cannot be opened for writing: Permission denied\n"


def test_a_checkpoint_that_is_a_folder_is_refused_in_plain_words(path: Path) -> None:
    path.mkdir()
    with pytest.raises(FinetuneError, match=r"done\.jsonl"):
        append_checkpoint(path, {"id": "a"})
    with pytest.raises(FinetuneError, match=r"done\.jsonl"):
        load_checkpoint(path)


# Appending


def test_an_appender_gives_the_place_of_what_it_wrote(path: Path) -> None:
    with Appender(path) as file:
        places = [file.append_bytes(line) for line in THREE]
    assert places == [0, len(THREE[0]), len(THREE[0] + THREE[1])]
    assert path.read_bytes() == b"".join(THREE)


def test_a_record_is_synced_before_it_is_acknowledged(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bytes] = []
    monkeypatch.setattr(os, "fdatasync", lambda _: synced.append(path.read_bytes()), raising=False)
    monkeypatch.delattr(fcntl, "F_FULLFSYNC", raising=False)
    append_checkpoint(path, {"id": "a", "text": "one"})
    assert synced == [LINE]


APPEND = """
import sys
from infrastructure import append_checkpoint
for number in range(50):
    append_checkpoint(sys.argv[1], {"id": f"{sys.argv[2]}-{number}", "text": "x" * 12_000})
"""


def test_two_processes_that_append_at_once_lose_and_mix_nothing(path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(lambda name: child("-c", APPEND, path, name), ("left", "right")))
    assert [done.returncode for done in ended] == [0, 0]
    assert (len(load_checkpoint(path)), read(path)[1]) == (100, [])
