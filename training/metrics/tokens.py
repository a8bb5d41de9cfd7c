"""How texts are cut into tokens to be compared. Every metric names in its signature which of these it used."""

from __future__ import annotations

import re
import string
import unicodedata

# Scripts that do not put spaces between words: Thai, Lao, Myanmar, Khmer, kana, bopomofo, Han with its extensions.
_UNSPACED = (
    r"\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff"
    r"\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
_UNSPACED_OR_WORD = re.compile(rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)


def squad_tokens(text: str) -> list[str]:
    """Lower case, ASCII punctuation removed, then English articles, then split at white space.

    Source: the evaluation scripts of SQuAD 1.1 and 2.0. The order matters: "A-1" becomes "a1", not "1".
    """
    return _ARTICLES.sub(" ", text.lower().translate(_ASCII_PUNCTUATION)).split()


def unicode_tokens(text: str) -> list[str]:
    """NFC, lower case, punctuation of any script removed; characters of scripts without spaces stand alone.

    No articles are removed: "a" is a word in other languages.
    """
    composed = unicodedata.normalize("NFC", text).lower().translate(_ASCII_PUNCTUATION)
    return _UNSPACED_OR_WORD.findall("".join(c for c in composed if not unicodedata.category(c).startswith("P")))


def words(text: str) -> list[str]:
    """NFC, lower case; runs of letters, their marks and digits; characters of scripts without spaces stand alone.

    Of ASCII text these are the tokens of rouge-score. Marks are kept: Indic vowel signs are no letters to `\\w`.
    """
    composed = unicodedata.normalize("NFC", text).lower()
    return _UNSPACED_OR_WORD.findall("".join(c if unicodedata.category(c)[0] in "LMN" else " " for c in composed))
