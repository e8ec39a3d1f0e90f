"""Text from elsewhere, made safe to print: a label or an error message must not move a cursor or hide what is shown."""

import unicodedata

# Besides control characters: line and paragraph separators, halves of pairs, and what no character is assigned to.
_UNSAFE = frozenset({"Cc", "Zl", "Zp", "Cs", "Cn"})
# Marks that change the direction of the text after them, and so let a name look like another one.
_TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def plain(text: str) -> str:
    r"""The text on one line, with every character that a terminal would obey spelled out: ESC becomes `\x1b`.

    It is for text that a server, a file or a network sent.
    """
    if text.isascii() and text.isprintable():  # nearly always
        return text
    return "".join(
        _spelled(each) if each in _TURNING or unicodedata.category(each) in _UNSAFE else each for each in text
    )


def _spelled(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
