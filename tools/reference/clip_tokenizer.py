"""A tokenizer as CLIP's: byte-level pairs with an end of word, the start and end marks as the last two ids."""

import collections

from tokenizers import Regex, pre_tokenizers
from transformers import CLIPTokenizer

END_OF_WORD = "</w>"
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def make(corpus: list[str], merges: int, length: int = 77, pad: str = END) -> CLIPTokenizer:
    """Learns at most `merges` merges from `corpus`; the same every time. `length` is the context's."""
    vocabulary, pairs = train(corpus, merges)
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=length, pad_token=pad)


def train(corpus: list[str], merges: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    words = collections.Counter(word for text in corpus for word in split(text))
    spelt = {word: (*word[:-1], word[-1] + END_OF_WORD) for word in words}
    # Every byte by itself and at a word's end, then the merges in their order: so the real vocabulary is built too.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = alphabet + [byte + END_OF_WORD for byte in alphabet]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    learned: list[tuple[str, str]] = []
    for _ in range(merges):
        pairs = collections.Counter()
        for word, parts in spelt.items():
            for pair in zip(parts, parts[1:]):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        learned.append(best)
        vocabulary.setdefault("".join(best), len(vocabulary))
        spelt = {word: merge(parts, best) for word, parts in spelt.items()}
    for mark in (START, END):
        vocabulary[mark] = len(vocabulary)
    return vocabulary, learned


def split(text: str) -> list[str]:
    words = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return [word for word, _ in words.pre_tokenize_str(text.lower())]


def merge(parts: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged, index = [], 0
    while index < len(parts):
        width = 2 if parts[index : index + 2] == pair else 1
        merged.append("".join(parts[index : index + width]))
        index += width
    return tuple(merged)
