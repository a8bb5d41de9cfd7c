"""Character noise and word noise, by seed.

`character_noise` is also what robustness is measured with: the same text, share, seed and id give the same slips.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from training.augment.change_words import Change, changed_text
from training.augment.draws import Draws
from training.augment.edits import NewWords, Range

# Neighbours on a QWERTY keyboard, same row and the rows above and below.
NEIGHBOURS = {
    "q": "wa", "w": "qeas", "e": "wrsd", "r": "etdf", "t": "ryfg", "y": "tugh", "u": "yihj", "i": "uojk", "o": "ipkl",
    "p": "ol", "a": "qwsz", "s": "wedxza", "d": "erfcxs", "f": "rtgvcd", "g": "tyhbvf", "h": "yujnbg", "j": "uikmnh",
    "k": "iolmj", "l": "opk", "z": "asx", "x": "zsdc", "c": "xdfv", "v": "cfgb", "b": "vghn", "n": "bhjm", "m": "njk",
}  # fmt: skip


def character_noise(text: str, share: float, seed: int, row_id: str, protected: Sequence[Range] = ()) -> str:
    """The text with something done to `share` of its letters, on average; nothing in words that touch `protected`."""
    return noisy_text(text, share, seed, row_id, protected)[0]


def noisy_text(text: str, share: float, seed: int, row_id: str, protected: Sequence[Range]) -> tuple[str, list[Range]]:
    """As `character_noise`, and where the protected ranges are afterwards."""
    return changed_text(text, protected, character_change(share), Draws(seed, "character_noise", row_id, 0))


def character_change(share: float) -> Change:
    def change(words: Sequence[str], free: Sequence[bool], draws: Draws) -> NewWords:
        return [noisy_word(word, share, draws) if may else word for word, may in zip(words, free, strict=True)]

    return change


def noisy_word(word: str, share: float, draws: Draws) -> str:
    """Each letter swaps with the next, goes, is struck twice or with a neighbouring key, with probability `share`.

    A word keeps a letter at least. A letter with combining marks is not torn from them.
    """
    out: list[str] = []
    num_left = sum(map(str.isalpha, word))
    at = 0
    while at < len(word):
        letter = word[at]
        at += 1
        if not draws.happens(share) or not _is_whole_letter(word, at - 1):
            out.append(letter)
            continue
        slip = draws.below(4)
        if slip == 0 and at < len(word) and _is_whole_letter(word, at):
            out += [word[at], letter]
            at += 1
        elif slip == 1 and num_left > 1:
            num_left -= 1
        elif slip == 2:
            out += [letter, _neighbour(letter, draws)]
        else:
            out += [letter, letter]
    return "".join(out)


def _is_whole_letter(word: str, at: int) -> bool:
    return word[at].isalpha() and not (at + 1 < len(word) and unicodedata.category(word[at + 1]).startswith("M"))


def _neighbour(letter: str, draws: Draws) -> str:
    """A neighbouring key in the letter's case; the letter itself where the keyboard has no such key."""
    keys = NEIGHBOURS.get(letter.lower(), "")
    if not keys:
        return letter
    key = keys[draws.below(len(keys))]
    return key.upper() if letter.isupper() else key


def word_change(delete: float, swap: float) -> Change:
    """Each free word changes places with another free one with probability `swap`, then goes with probability `delete`.

    One free word stays.
    """

    def change(words: Sequence[str], free: Sequence[bool], draws: Draws) -> NewWords:
        places = [place for place, may in enumerate(free) if may]
        new: NewWords = list(words)
        if len(places) < 2:
            return new
        for place in places:
            if draws.happens(swap):
                other = _another(places, place, draws)
                new[place], new[other] = new[other], new[place]
        gone = [place for place in places if draws.happens(delete)]
        if len(gone) == len(places):
            gone.pop(draws.below(len(gone)))
        for place in gone:
            new[place] = None
        return new

    return change


def _another(places: Sequence[int], place: int, draws: Draws) -> int:
    """Uniform over the other places."""
    index = draws.below(len(places) - 1)
    return places[-1] if places[index] == place else places[index]
