import threading
import time

import torch

from train.checkpoint.async_writer import Writer, snapshot


def test_jobs_are_done_in_order_beside_the_caller() -> None:
    writer, done, go = Writer(), [], threading.Event()
    writer.submit("first", lambda: (go.wait(5), done.append(1)))
    writer.submit("second", lambda: done.append(2))
    assert done == []
    go.set()
    writer.wait()
    assert done == [1, 2]
    writer.close()


def test_a_failure_is_remembered_once_and_later_jobs_are_done() -> None:
    def full() -> None:
        raise OSError(28, "No space left on device")

    writer, done = Writer(), []
    writer.submit("the checkpoint", full)
    writer.submit("next", lambda: done.append(1))
    writer.wait()
    ((name, error),) = writer.failures()
    assert name == "the checkpoint" and error.errno == 28
    assert writer.failures() == [] and done == [1]
    writer.close()


def test_a_slow_disk_holds_the_caller_back_instead_of_filling_the_memory() -> None:
    writer, done = Writer(), []
    started = time.monotonic()
    for i in range(Writer.DEPTH + 3):
        writer.submit("slow", lambda i=i: (time.sleep(0.05), done.append(i)))
    assert time.monotonic() - started > 0.05 and len(done) >= 2
    writer.close()
    assert done == list(range(Writer.DEPTH + 3))


def test_closing_twice_or_without_jobs_is_fine_and_a_later_job_is_done() -> None:
    writer, done = Writer(), []
    writer.close()
    writer.submit("one", lambda: done.append(1))
    writer.close()
    writer.close()
    writer.submit("two", lambda: done.append(2))
    writer.close()
    assert done == [1, 2]


def test_a_snapshot_does_not_change_with_its_original() -> None:
    original = {"a": [torch.zeros(2), (torch.ones(1), 3)], "b": "text"}
    copy = snapshot(original)
    original["a"][0] += 5
    original["a"][1][0].zero_()
    assert torch.equal(copy["a"][0], torch.zeros(2)) and torch.equal(copy["a"][1][0], torch.ones(1))
    assert copy["a"][1][1] == 3 and copy["b"] == "text" and isinstance(copy["a"][1], tuple)
