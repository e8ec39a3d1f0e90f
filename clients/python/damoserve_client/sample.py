"""The picture that comes with the client, a rendered blood smear: what `damoserve demo` and the playground show."""

from pathlib import Path

# In a wheel beside this file, in the source tree where the README shows it.
_PLACES = (Path(__file__).with_name("smear.jpg"), Path(__file__).parents[3] / "docs/images/smear.jpg")
SAMPLE = next((path for path in _PLACES if path.is_file()), _PLACES[0])
"""Not there in an install that was made from a part of the source tree, such as a container image's."""
