"""Messages in the language of the process. The catalogue of a language is loaded with the first message that is translated."""

from fledge.escaping import escaped
from fledge.localization.choice import language


def translated(text: str, code: str) -> str:
    """A message in a language. What is no message of fledge stays as it is."""
    if code == "en":
        return text
    from fledge.localization.catalogue import catalogue

    return catalogue(code).text(text)


def localized(text: str) -> str:
    """A message in the language of the process."""
    return translated(text, language())


def localized_message(text: str) -> str:
    """A text that may be data: translated only where all of it is one message of several words, or some of them in a row."""
    code = language()
    if code == "en" or " " not in text:
        return text
    from fledge.localization.catalogue import catalogue

    return catalogue(code).message(text)


def localized_head(text: str) -> str:
    """The head of a column: a message, or a word."""
    code = language()
    if code == "en":
        return text
    from fledge.localization.catalogue import catalogue

    return catalogue(code).head(text)


def shown(text: str) -> str:
    """A message as it is printed: in the language of the process, and safe for a terminal."""
    return escaped(localized(text))
