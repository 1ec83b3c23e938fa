"""A run goes on, whatever becomes of the terminal that it writes to."""

import errno
import io

import pytest

from train.tracking.console import Console


class Terminal(io.StringIO):
    """A terminal that closes after some writes; like a real one, it does not know it yet."""

    def __init__(self, writes: int) -> None:
        super().__init__()
        self.left = writes

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.EIO, "Input/output error")
        return super().write(text)


@pytest.mark.parametrize("writes", range(6))
def test_a_terminal_that_closes_ends_no_run(
    writes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(writes)
    with monkeypatch.context() as patched:
        patched.setattr("sys.stderr", terminal)
        patched.setenv("TERM", "xterm")
        console = Console()
        for epoch in range(3):
            console.start_bar(f"epoch {epoch}", 10)
            for step in range(10):
                console.update_bar(step, "loss")
            console.remove_bar()
        assert terminal.left < 0
    console.print_line("epoch 3")
    assert capsys.readouterr().out == "epoch 3\n"
