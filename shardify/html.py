"""Build self-contained HTML pages: base style, tables, embedded images.

Titles, table cells and alternative texts are escaped here; ``parts`` of a page are not.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto;
  padding: 0 1em; color: #222 }
h1 { font-size: 1.5em }
h2 { font-size: 1.15em; margin: 2em 0 .4em; border-bottom: 1px solid #ddd }
table { border-collapse: collapse }
td, th { padding: .15em .8em .15em 0; text-align: left; vertical-align: top }
figure { margin: 0 } small, figcaption { color: #666 }
"""


def page(title: str, parts: Iterable[str], *, style: str = "") -> str:
    """Return a page with a heading and the given HTML parts; ``style`` extends the base CSS."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>{escape(title)}</title><style>{_STYLE}{style}</style></head>"
        f"<body><h1>{escape(title)}</h1>\n" + "\n".join(parts) + "</body></html>\n"
    )


def table(rows: Iterable[Sequence[str]], heads: Sequence[str] = ()) -> str:
    """Return a table of texts; the first text of each row is its heading."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{escape(text)}</td>' for text in cells)}</tr>"
        for name, *cells in rows
    )
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def picture(image: Image.Image, alt: str = "") -> str:
    """Return an ``<img>`` with the image embedded as a JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/jpeg;base64,{data}">'
