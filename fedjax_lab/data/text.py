"""Text sources: characters by speaking role, and labeled sentences over a simple word vocabulary.

In "x" token 0 is padding and token 1 stands for what the vocabulary lacks; in "y" a label of -1 is padding and never counts.
"""
from __future__ import annotations

import html
import os
import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from fedjax_lab.data import folders, source
from fedjax_lab.data.source import Source
from fedjax_lab.spec import Count

Folder = str | os.PathLike | None


def shakespeare_roles(*, length: Count = 80, data_dir: Folder = None, cache_dir: Folder = None) -> Source:
    """Plays by speaking role, the next-character task of McMahan et al. 2017: "x" and "y" int32 [M, length], y one character
    ahead.

    A role's speeches are joined by line ends and cut into windows; the last window of a role is padded. Natural clients: "role".
    The vocabulary (manifest["vocabulary"]) is the characters of the training text in order, from token 2 on.

    Args:
      length: characters per window.
    """
    arrays = folders.decoded("shakespeare_roles", data_dir, cache_dir)
    speeches = {side: _by_role(arrays, side) for side in ("train", "test")}
    alphabet = "".join(sorted({char for text in speeches["train"].values() for char in text}))
    code = {char: i + 2 for i, char in enumerate(alphabet)}
    sides, owners = {}, {}
    for side, texts in speeches.items():
        cut = {role: windows(np.array([code.get(char, 1) for char in text], np.int32), length) for role, text in texts.items()}
        both = np.concatenate(list(cut.values()))
        sides[side] = {"x": both[:, :-1].copy(), "y": np.where(both[:, 1:] > 0, both[:, 1:], -1)}
        owners[side] = {"role": np.repeat(list(cut), [len(c) for c in cut.values()])}
    return source.make("shakespeare_roles", sides["train"], sides["test"], len(alphabet) + 2, owners["train"], owners["test"],
                       vocabulary=alphabet, pad=0)


def _by_role(arrays: source.Arrays, side: str) -> dict[int, str]:
    role, place, text = (arrays[f"{side}__{field}"] for field in ("client_id", "position", "text"))
    order = np.lexsort((place, role))
    found: dict[int, list[str]] = {}
    for i in order:
        found.setdefault(int(role[i]), []).append(text[i].decode())
    return {role: "\n".join(speeches) + "\n" for role, speeches in found.items()}


def windows(tokens: np.ndarray, length: int) -> np.ndarray:
    """Tokens in rows of length + 1 that overlap by one, the last padded with 0; int32 [ceil((n - 1) / length), length + 1]."""
    rows = max(1, -(-(len(tokens) - 1) // length))
    padded = np.zeros(rows * length + 1, np.int32)
    padded[: len(tokens)] = tokens
    return np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::length]


def sst2_sentences(*, words: Count = 5000, length: Count = 40, data_dir: Folder = None, cache_dir: Folder = None) -> Source:
    """Film reviews, negative or positive (Socher et al. 2013, the sentence split): "x" int32 [M, length], "y" int32 [M].

    Args:
      words: size of the vocabulary, the most frequent words of the training text, from token 2 on.
      length: words per sentence; longer ones are cut, shorter ones padded.
    """
    arrays = folders.decoded("sst2_sentences", data_dir, cache_dir)
    return sentences("sst2_sentences", {side: arrays[f"{side}__sentence"] for side in ("train", "test")}, arrays, words, length)


def ag_news_small(*, words: Count = 10000, length: Count = 60, data_dir: Folder = None, cache_dir: Folder = None) -> Source:
    """News of four topics, title and description (a subset of AG's corpus): "x" int32 [M, length], "y" int32 [M].

    Args:
      words: size of the vocabulary, the most frequent words of the training text, from token 2 on.
      length: words per article; longer ones are cut, shorter ones padded.
    """
    arrays = folders.decoded("ag_news_small", data_dir, cache_dir)
    texts = {side: [a + b" " + b for a, b in zip(arrays[f"{side}__title"], arrays[f"{side}__description"])] for side in ("train",
                                                                                                                         "test")}
    return sentences("ag_news_small", texts, arrays, words, length)


def sentences(name: str, texts: dict[str, Iterable[bytes]], arrays: source.Arrays, words: int, length: int) -> Source:
    """A labeled source of texts over the most frequent words of the training side."""
    split = {side: [tokens(text) for text in some] for side, some in texts.items()}
    counted = Counter(word for text in split["train"] for word in text)
    vocabulary = sorted(counted, key=lambda word: (-counted[word], word))[:words]
    code = {word: i + 2 for i, word in enumerate(vocabulary)}
    sides = {}
    for side, some in split.items():
        x = np.zeros((len(some), length), np.int32)
        for row, text in zip(x, some):
            row[: len(text[:length])] = [code.get(word, 1) for word in text[:length]]
        sides[side] = {"x": x, "y": arrays[f"{side}__label"].astype(np.int32)}
    return source.make(name, sides["train"], sides["test"], int(sides["train"]["y"].max()) + 1, tokens=len(vocabulary) + 2, pad=0)


def tokens(text: bytes) -> list[str]:
    """Words and numbers in lower case, and punctuation marks one by one; what is left of HTML escapes is undone."""
    plain = html.unescape(re.sub(r"&?#(\d+);", r"&#\1;", text.decode().replace("\\", " ")))
    return re.findall(r"[a-z]+|[0-9]+|[^\sa-z0-9]", plain.lower())
