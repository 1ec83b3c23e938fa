"""Writes docs/commands.md: the help of every command, as the command prints it.

Run by ``make docs``; ``tests/test_docs.py`` fails when the page is not what this would write.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

import shardify.cli
import train.cli

PAGE = Path(__file__).with_name("commands.md")
WIDTH = 96


def commands() -> Iterator[tuple[str, click.Context]]:
    """Every command with its full name (``shardify build``) and a context to print its help in."""
    for name, group in (("shardify", shardify.cli.cli), ("train", train.cli.main)):
        yield from _walk(group, click.Context(group, info_name=name, **_settings(group)))


def render() -> str:
    """The whole page."""
    blocks = [
        "# Commands",
        "Exit status: 0 done; 1 the data or the environment is at fault (one line on stderr says "
        "what and what to do); 2 wrong usage; 130 interrupted, state left resumable.\n"
        "This page is made from the commands themselves by `make docs`.",
    ]
    for name, context in commands():
        blocks.append(f"## `{name}`\n\n```text\n{context.get_help().rstrip()}\n```")
    return "\n\n".join(blocks) + "\n"


def _walk(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Context]]:
    yield context.command_path, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            if not inner.hidden:
                yield from _walk(
                    inner, click.Context(inner, info_name=name, parent=context, **_settings(inner))
                )


def _settings(command: click.Command) -> dict[str, object]:
    return {**command.context_settings, "terminal_width": WIDTH, "max_content_width": WIDTH}


if __name__ == "__main__":
    PAGE.write_text(render())
