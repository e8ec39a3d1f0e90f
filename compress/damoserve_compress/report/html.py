"""A report as one HTML page that needs nothing else: styles, drawings and pictures are in it."""

import base64
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from damoserve_compress.report.document import Document, Drawing, Photograph
from damoserve_profiles.files import replace_text

_REFERENCES = re.compile(r'(\bid="|href="#|url\(#)')


def write_html(document: Document, path: Path) -> None:
    """Writes the page to `path`."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(picture=_picture, kind=lambda block: type(block).__name__)
    replace_text(path, environment.get_template("page.html.j2").render(document=document))


def _picture(picture: Drawing | Photograph) -> Markup:
    if isinstance(picture, Drawing):
        # In one page the drawings share one name space.
        return Markup(_REFERENCES.sub(rf"\g<1>{picture.name}-", picture.svg))
    data = base64.b64encode(picture.jpeg).decode()
    return Markup('<img alt="{}" src="data:image/jpeg;base64,{}">').format(picture.caption, data)
