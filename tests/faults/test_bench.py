"""The fault bench: what the kernel promises about kills and full disks, a thousand times over."""

import pytest

from faults import bench

pytestmark = pytest.mark.faults


def show(capsys: pytest.CaptureFixture[str], title: str, figures: dict[str, int]) -> None:
    with capsys.disabled():
        print(f"\n{title}: {', '.join(f'{n:,} {name}' for name, n in figures.items())}")


def test_a_thousand_kills_of_a_worker_lose_and_double_no_acknowledged_row(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = bench("appends", kills=1000, seed=1)
    show(capsys, "rows", figures)
    assert (figures["lost"], figures["duplicated"]) == (0, 0)
    assert figures["acknowledged"] > figures["kills"]


def test_a_thousand_kills_of_a_run_change_no_byte_of_its_output_and_repay_only_calls_in_flight(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = bench("runs", kills=1000, seed=2)
    show(capsys, "runs", figures)
    assert (figures["lost"], figures["duplicated"], figures["different"]) == (0, 0, 0)
    assert 0 < figures["repaid"] <= figures["in_flight"]
    assert figures["most_in_flight"] <= figures["concurrency"]


def test_dying_after_any_byte_of_an_append_loses_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    figures = bench("every_byte")
    show(capsys, "bytes", figures)
    assert (figures["lost"], figures["duplicated"], figures["most_bad_lines"]) == (0, 0, 1)
    assert figures["points"] > 100


@pytest.mark.parametrize("what", ["atomic_write", "append"])
def test_dying_before_any_line_of_a_write_leaves_the_old_or_the_new(
    what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = bench("every_line", what=what)
    show(capsys, f"lines of {what}", figures)
    assert figures["broken"] == 0
    assert figures["points"] > 10


def test_power_loss_takes_no_row_that_was_acknowledged(capsys: pytest.CaptureFixture[str]) -> None:
    figures = bench("power_loss", times=100)
    show(capsys, "power", figures)
    assert figures["lost"] == 0
    assert figures["acknowledged"] > 100


@pytest.mark.parametrize("kilobytes", [8, 24, 60])
def test_a_full_disk_stops_a_run_cleanly_and_room_lets_it_finish(kilobytes: int) -> None:
    figures = bench("small_disk", kilobytes=kilobytes)
    if "skipped" in figures:
        pytest.skip(figures["skipped"])
    assert (figures["exit_full"], figures["whole_lines"]) == (3, True)
    assert figures["without_answer"] <= 8  # nothing was sent after the calls in flight
    assert (figures["exit_freed"], figures["done"]) == (0, 20)
    assert figures["repaid"] <= figures["without_answer"]
