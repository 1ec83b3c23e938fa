import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from shardify.loader.prefetch import Prefetcher


def test_items_arrive_in_order_and_then_stop() -> None:
    ahead = Prefetcher((number for number in range(50)), depth=2)
    assert list(ahead) == list(range(50))
    with pytest.raises(StopIteration):
        next(ahead)


def test_the_maker_runs_no_further_ahead_than_asked() -> None:
    made: list[int] = []

    def maker() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    ahead = Prefetcher(maker(), depth=2)
    assert next(ahead) == 0
    time.sleep(0.3)
    # One taken, two waiting, one in the maker's hand.
    assert len(made) <= 4
    ahead.close()


def test_an_error_reaches_the_taker_after_what_came_before_it() -> None:
    def maker() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    ahead = Prefetcher(maker(), depth=3)
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)


def test_closing_ends_the_thread_and_closes_the_maker_where_it_runs() -> None:
    closed_in: list[str] = []

    def maker() -> Iterator[int]:
        try:
            while True:
                yield 0
        finally:
            closed_in.append(threading.current_thread().name)

    ahead = Prefetcher(maker(), depth=1)
    next(ahead)
    ahead.close()
    ahead.close()
    assert closed_in == ["shardline-ahead"]
    assert "shardline-ahead" not in [thread.name for thread in threading.enumerate()]
    with pytest.raises(StopIteration):
        next(ahead)


@pytest.mark.parametrize("takers", [1, 3])
def test_takers_that_wait_when_it_is_closed_get_the_end(takers: int) -> None:
    go_on = threading.Event()

    def maker() -> Iterator[int]:
        go_on.wait(60)
        yield 0

    ahead = Prefetcher(maker(), depth=1)
    found: list[list[int]] = []
    threads = [
        threading.Thread(target=lambda: found.append(list(ahead)), daemon=True)
        for _ in range(takers)
    ]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    threading.Timer(0.2, go_on.set).start()
    ahead.close()
    for thread in threads:
        thread.join(10)
    assert found == [[]] * takers


@pytest.mark.parametrize("end", ["raise KeyboardInterrupt", "pass"])
def test_the_interpreters_end_waits_for_the_maker(end: str) -> None:
    program = (
        "import atexit, weakref\n"
        "class Library: pass\n"
        "kept = Library()\n"
        "weakref.finalize(kept, print, 'a finalizer')\n"
        "atexit.register(print, 'a library cleans up')\n"
        "from shardify.loader.prefetch import Prefetcher\n"
        "def maker():\n"
        "    try:\n"
        "        while True: yield 0\n"
        "    finally: print('closed', flush=True)\n"
        "ahead = Prefetcher(maker(), depth=1)\n"
        "next(ahead)\n"
        f"{end}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert done.stdout == "closed\na library cleans up\na finalizer\n"
