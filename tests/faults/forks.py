"""Children made by fork: a few hundred microseconds each, because nothing is imported again."""

import os
import signal
import time
import traceback
from collections.abc import Callable

KILLED = -signal.SIGKILL


def forked(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Run `work` in a child: 0 when it returned, KILLED, or the code it exited with."""
    child = os.fork()
    if child == 0:
        os._exit(_status(work))
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _status(work: Callable[[], object]) -> int:
    try:
        work()
    except SystemExit as ended:
        return int(ended.code or 0)
    except BaseException:  # noqa: BLE001  shown, and never let into the parent's code
        traceback.print_exc()
        return 1
    return 0


def piped(work: Callable[[int], object], kill_after: float) -> list[str]:
    """The lines that `work` could write into a pipe before it was killed; time starts with the
    first of them, which says that it is ready and is not among the lines."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os._exit(_status(lambda: work(writer)))
    os.close(writer)
    with open(reader, encoding="ascii") as lines:
        assert lines.readline() == "ready\n"
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
        said = lines.read().splitlines()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
    return said
