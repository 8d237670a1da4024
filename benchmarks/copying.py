"""Whether a model copies: how many masked tokens it predicts if the same text is the second segment.

    python -m benchmarks.copying --model DIR... --text FILE [--pieces N] [--words N] [--seed N]

Each piece of the text is given alone, twice (as both segments), and beside another piece; 15 % of the
first segment's tokens are masked, the same in each case. A model that attends to the second segment
predicts nearly all of them in the second case, and no more than alone in the third. Prints the accuracy
and the mean loss in nats.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForPreTraining, AutoTokenizer

from mslt_ds.hugging_face import LOAD

SHARE = 0.15


def pieces(path: Path, words: int, count: int, draw: random.Random) -> list[str]:
    """A piece of `words` words from each of the first `count` longer paragraphs."""
    lines = [line.split() for line in path.read_text(encoding="utf-8").split("\n")]
    long_enough = [line for line in lines if len(line) > words]
    starts = [(line, draw.randrange(len(line) - words)) for line in long_enough[:count]]
    return [" ".join(line[start : start + words]) for line, start in starts]


@torch.inference_mode()
def found(model: Any, tokenizer: Any, first: str, second: str | None, seed: int) -> torch.Tensor:
    """(3,): the number of masked tokens predicted, the sum of their losses, their number."""
    batch = tokenizer(first, second, return_tensors="pt")
    special = torch.tensor(tokenizer.all_special_ids)
    input_ids = batch["input_ids"]
    length = len(tokenizer(first)["input_ids"])
    draw = torch.Generator().manual_seed(seed)
    masked = torch.zeros_like(input_ids, dtype=torch.bool)
    masked[0, :length] = torch.rand(length, generator=draw) < SHARE
    masked &= ~torch.isin(input_ids, special)
    labels = input_ids[masked]
    batch["input_ids"] = input_ids.masked_fill(masked, tokenizer.mask_token_id)
    logits = model(**batch).prediction_logits[masked]
    hits = (logits.argmax(-1) == labels).sum()
    return torch.stack(
        [hits, F.cross_entropy(logits, labels, reduction="sum"), torch.tensor(len(labels))]
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", type=Path, nargs="+", required=True)
    parser.add_argument("--text", type=Path, required=True, help="a paragraph on each line")
    parser.add_argument("--pieces", type=int, default=200)
    parser.add_argument("--words", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    texts = pieces(options.text, options.words, options.pieces, random.Random(options.seed))
    for folder in options.model:
        tokenizer = AutoTokenizer.from_pretrained(folder, **LOAD)
        model = AutoModelForPreTraining.from_pretrained(folder, **LOAD).eval()
        for way in ("alone", "twice", "beside another"):
            total = torch.zeros(3)
            for number, text in enumerate(texts):
                beside = {"alone": None, "twice": text}.get(way, texts[number - 1])
                total += found(model, tokenizer, text, beside, number)
            hits, loss, count = total.tolist()
            print(
                f"{folder}: {way}: {100 * hits / count:.1f} % of {count:.0f} masked tokens found, "
                f"loss {loss / count:.2f}"
            )


if __name__ == "__main__":
    main()
