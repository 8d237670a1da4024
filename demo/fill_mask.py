"""Asks a model for the masked word in sentences of the held-out text, and prints its answers.

    python demo/fill_mask.py --model RUN/model --text heldout.txt [--sentences N]

The sentences are chosen without asking the model: evenly spread over the text, with one word masked that is
neither rare nor among the commonest, and that stands between the same two words elsewhere in the text, so that
an answer has to come from the context, and can.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from mslt_ds.hugging_face import LOAD, quiet

MIN_WORDS, MAX_WORDS = 8, 16
COMMON, RARE = 30, 300
"""A masked word's rank by frequency in the text lies between these two."""


def questions(text: str, vocabulary: set[str], count: int) -> Iterator[tuple[str, str]]:
    """`count` times (sentence with `{}` for a word, the word), in the order of the text."""
    lines = [line for line in text.splitlines() if line]
    frequency = Counter(word for line in lines for word in re.findall(r"[a-z]+", line.lower()))
    asked = {word for word, _ in frequency.most_common(RARE)[COMMON:] if len(word) > 3} & vocabulary
    between = Counter(
        three
        for line in lines
        for three in zip(*(line.split()[i:] for i in range(3)), strict=False)
    )
    found: dict[str, str] = {}  # word -> sentence: no word twice
    for line in lines:
        for sentence in re.split(r"(?<=[.!?]) ", line):
            words = sentence.split()
            places = [
                i
                for i, word in enumerate(words)
                if word in asked and word not in found and between[*words[i - 1 : i + 2]] > 1
            ]
            if MIN_WORDS <= len(words) <= MAX_WORDS and places:
                place = places[len(places) // 2]
                found[words[place]] = " ".join([*words[:place], "{}", *words[place + 1 :]])
                break
    chosen = list(found)[:: max(1, len(found) // count)][:count]
    return ((found[word], word) for word in chosen)


@torch.no_grad()
def answers(model, tokenizer, sentence: str, count: int) -> list[tuple[str, float]]:
    """The likeliest words for `{}` with their probabilities."""
    inputs = tokenizer(sentence.format(tokenizer.mask_token), truncation=True, return_tensors="pt")
    place = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero()[0, 0]
    best = model(**inputs).logits[0, place].softmax(-1).topk(count)
    words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return list(zip(words, best.values.tolist(), strict=True))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print a model's answers for masked words.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--text", type=Path, required=True, help="text that it wasn't trained on")
    parser.add_argument("--sentences", type=int, default=3)
    options = parser.parse_args(arguments)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(options.model, **LOAD)
        model = AutoModelForMaskedLM.from_pretrained(options.model, **LOAD).eval()
    text = options.text.read_text(encoding="utf-8")
    for sentence, word in questions(text, set(tokenizer.get_vocab()), options.sentences):
        best = ", ".join(
            f"{answer} {share:.0%}" for answer, share in answers(model, tokenizer, sentence, 4)
        )
        print(f"  {sentence.format('____')}\n    {best}   (it says: {word})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
