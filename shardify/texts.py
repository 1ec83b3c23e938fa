"""What the commands print for people: from figures, as ``--json`` gives them, to lines.

Formats alone: it counts nothing, opens nothing and prints nothing.
"""

import json
from typing import Any

__all__ = ["build_text", "stats_text", "survey_text"]


def survey_text(found: dict[str, Any]) -> str:
    """What ``inspect`` found: figures as comments before a layout file."""
    lines = [
        f"{source['name']}: {source['entries']} entries, {source['bytes'] / 1e6:.1f} MB"
        for source in found["source"]
    ]
    lines.append(
        f"samples      {found['samples']}  (roles: {', '.join(found['roles'])}; "
        f"{found['backgrounds']} backgrounds)"
    )
    for name, split in found["splits"].items():
        on = f" on {split['backgrounds']} backgrounds" if split["backgrounds"] else ""
        lines.append(f"{name:12} {split['samples']}{on}, in {split['shards']} shards")
    lines += _rejected_lines(found["rejected"])
    layout = dict(found["layout"])
    lines += _warnings(layout.pop("warnings", []))
    lines += _role_lines(layout.pop("roles", {}))
    lines += [f"layout       {key}: {_plain(value)}" for key, value in layout.items()]
    # All of it can be saved as a layout file, and edited.
    return "\n".join([*(f"# {line}" for line in lines), found["layout_file"]]).rstrip()


def build_text(found: dict[str, Any]) -> str:
    """What ``build`` made, and what it left out."""
    splits = ", ".join(
        f"{split['samples']} {name} in {split['shards']} shards"
        for name, split in found["splits"].items()
    )
    if found["already"]:
        return f"{found['out']}: already built from this source with these options ({splits})"
    lines = [
        f"{found['out']}: {splits}; {found['backgrounds']} backgrounds; "
        f"{found['bytes'] / 1e6:.1f} MB in {found['seconds']:.1f} s "
        f"({found['samples_per_second']:,.0f} samples/s)"
    ]
    if found["resolutions"]:
        lines[0] += ", at " + " and ".join(f"{res} px" for res in found["resolutions"])
    for costs in found["costs"]:
        told = [f"{role} {_cost(each)}" for role, each in costs.items()]
        lines.append(f"re-encoding  {', '.join(told)}")
    return "\n".join(lines + _rejected_lines(found["rejected"]) + _warnings(found["warnings"]))


def stats_text(found: dict[str, Any]) -> str:
    """A data set's figures, two or three lines a role."""
    splits = ", ".join(f"{count:,} {name}" for name, count in found["samples"].items())
    lines = [f"{found['out']}: {splits}; {found['backgrounds']} backgrounds"]
    for role, each in found["roles"].items():
        sizes = ", ".join(f"{w}x{h} ({count:,})" for w, h, count in each["sizes"][:3])
        more = " ..." if len(each["sizes"]) > 3 else ""
        lines.append(
            f"{role:6} {'/'.join(each['extensions'])} {each['bits']} bit, {sizes}{more}, "
            f"{(each['bytes'] or 0) / 1e6:,.1f} MB"
        )
        if each["mean"]:
            mean = ", ".join(f"{value:.4f}" for value in each["mean"])
            std = ", ".join(f"{value:.4f}" for value in each["std"])
            lines.append(f"       mean {mean}; std {std} ({each['measured']} measured)")
        if each["range"]:
            lines.append("       range {:.4f} to {:.4f}".format(*each["range"]))
    return "\n".join(lines)


def _cost(found: dict[str, float]) -> str:
    return f"IoU {found['iou']:.4f}" if "iou" in found else f"RMSE {found['rmse']:.4f}"


def _role_lines(roles: dict[str, Any]) -> list[str]:
    """A line a role: its files, and what decided that they have it."""
    lines = []
    for role, each in roles.items():
        if not isinstance(each, dict):
            lines.append(f"roles        {role} {each}")
        elif "patterns" in each:
            lines.append(f"{role:12} patterns of the layout file: {', '.join(each['patterns'])}")
        else:
            words = f"words: {', '.join(each['words'])}" if each["words"] else "no word"
            seen = ", ".join(f"{kind} ({count})" for kind, count in each["pixels"].items())
            pixels = f"; pixels of some: {seen}" if seen else ""
            lines.append(
                f"{role:12} {each['files']} files, {', '.join(each['where'])}; {words}{pixels}"
            )
    return lines


def _rejected_lines(rejected: dict[str, Any]) -> list[str]:
    return [f"left out     {count}: {reason}" for reason, count in rejected["by_reason"].items()]


def _warnings(told: list[str]) -> list[str]:
    # Names in them may hold anything; a line is a line.
    return [f"warning      {' '.join(each.split())}" for each in told]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
