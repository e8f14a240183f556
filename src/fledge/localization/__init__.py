"""The language of messages: chosen once for a process, applied where a message is shown to a person.

Messages are written in English in the code and stored in English in files, so that logs can be searched and compared.
"""

from fledge.localization.choice import LANGUAGES, VARIABLE, choose_language, language, set_language
from fledge.localization.messages import localized, localized_head, localized_message, shown, translated

__all__ = [
    "LANGUAGES",
    "VARIABLE",
    "choose_language",
    "language",
    "localized",
    "localized_head",
    "localized_message",
    "set_language",
    "shown",
    "translated",
]
