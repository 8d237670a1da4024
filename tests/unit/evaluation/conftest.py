"""A tiny encoder and GLUE in its own layout, small enough to be fine-tuned in a test."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertForPreTraining,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

WORDS = [
    "the",
    "a",
    "film",
    "book",
    "plot",
    "actor",
    "song",
    "is",
    "was",
    "looks",
    "feels",
    "good",
    "fine",
    "great",
    "bad",
    "dull",
    "poor",
    "not",
    "very",
    "quite",
    "who",
    "when",
    "where",
    "what",
    "man",
    "woman",
    "dog",
    "cat",
    "river",
    "city",
    "old",
    "new",
    "red",
    "green",
    "one",
    "two",
    "three",
    "four",
]
GOOD, BAD = ("good", "fine", "great"), ("bad", "dull", "poor")
TOKENS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *WORDS,
    *".?,\"'",
    *"abcdefghijklmnopqrstuvwxyz",
]
TOKENS += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
TOKENS = list(dict.fromkeys(TOKENS))
HEADERS = {
    "SST-2": "sentence\tlabel",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "QQP": "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
    "MNLI": "index\tpromptID\tsentence1\tsentence2\tlabel1\tgold_label",
    "QNLI": "index\tquestion\tsentence\tlabel",
    "RTE": "index\tsentence1\tsentence2\tlabel",
}
TEST_HEADERS = {
    "CoLA": "index\tsentence",
    "SST-2": "index\tsentence",
    "MRPC": "index\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2",
    "QQP": "id\tquestion1\tquestion2",
    "MNLI": "index\tpromptID\tsentence1\tsentence2",
    "QNLI": "index\tquestion\tsentence",
    "RTE": "index\tsentence1\tsentence2",
}


def save_tokenizer(folder: Path, token_types: bool = True) -> None:
    """An uncased WordPiece tokenizer of `TOKENS`."""
    tokenizer = Tokenizer(
        models.WordPiece({token: i for i, token in enumerate(TOKENS)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
        model_input_names=["input_ids", *["token_type_ids"] * token_types, "attention_mask"],
    ).save_pretrained(folder)  # fmt: skip


def save_model(folder: Path, **changes: Any) -> Path:
    """A pretraining model of random numbers, with its tokenizer."""
    values: dict[str, Any] = {
        "vocab_size": len(TOKENS), "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64,
        "initializer_range": 0.1,
    }  # fmt: skip
    torch.manual_seed(0)
    BertForPreTraining(BertConfig(**(values | changes))).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


ANY: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "distilbert": {"dim": 32, "hidden_dim": 64, "n_layers": 2, "n_heads": 2},
    "electra": {"embedding_size": 16},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "roberta": {"max_position_embeddings": 65, "type_vocab_size": 1},
}
"""Families beside BERT -> what their configurations have beside the usual sizes."""


def any_config(family: str) -> PretrainedConfig:
    """A tiny configuration of a family in `ANY`."""
    usual = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 64, "max_position_embeddings": 64, "vocab_size": len(TOKENS),
        "pad_token_id": 0,
    }  # fmt: skip
    return AutoConfig.for_model(family, **usual | ANY[family])


def save_any(folder: Path, family: str) -> Path:
    """An encoder of random numbers without a head, with its tokenizer."""
    torch.manual_seed(0)
    AutoModel.from_config(any_config(family)).save_pretrained(folder)
    save_tokenizer(folder, token_types=family in ("albert", "electra"))
    return folder


def sentence(draw: random.Random, adjective: str) -> str:
    """A few words with `adjective` among them."""
    noun = draw.choice(WORDS[2:7])
    end = " ".join(draw.choice(WORDS[22:]) for _ in range(draw.randrange(1, 9)))
    return f"the {noun} is {adjective} , {end} ."


def row_fields(task: str, draw: random.Random) -> dict[str, str]:
    """A row's fields by column, with a label that its text tells."""
    positive = draw.random() < 0.5
    adjective = draw.choice(GOOD if positive else BAD)
    first, second = sentence(draw, adjective), sentence(draw, adjective)
    score = f"{(4 if positive else 1) + draw.random():.3f}"
    entailment = "entailment" if positive else "not_entailment"
    mnli = "neutral" if draw.random() < 0.1 else "entailment" if positive else "contradiction"
    return {
        "sentence": first, "label": entailment if task in ("QNLI", "RTE") else str(int(positive)),
        "#1 String": first, "#2 String": second, "Quality": str(int(positive)),
        "sentence1": first, "sentence2": second, "score": score,
        "question1": first, "question2": second, "is_duplicate": str(int(positive)),
        "question": second, "gold_label": mnli,
        "source": "gj04", "star": "",
    }  # fmt: skip


def write_rows(path: Path, header: str, task: str, rows: int, seed: int, numbered: bool) -> None:
    """A file of the official layout. CoLA's labelled files have no header."""
    draw = random.Random(seed)
    lines = [header]
    columns = header.split("\t")
    for number in range(rows):
        fields = row_fields(task, draw)
        values = [fields.get(column, "x") for column in columns]
        if numbered:
            values[0] = str(number)
        lines.append("\t".join(values))
    if header.startswith("source"):
        lines = lines[1:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_glue(folder: Path, train: int = 64, dev: int = 24, test: int = 8) -> Path:
    """All tasks' files."""
    for number, task in enumerate(TEST_HEADERS):
        header = HEADERS.get(task, "source\tlabel\tstar\tsentence")
        ends = ("_matched", "_mismatched") if task == "MNLI" else ("",)
        write_rows(folder / task / "train.tsv", header, task, train, number, False)
        for end in ends:
            write_rows(folder / task / f"dev{end}.tsv", header, task, dev, 100 + number, False)
            path = folder / task / f"test{end}.tsv"
            write_rows(path, TEST_HEADERS[task], task, test, 200 + number, True)
    path = folder / "diagnostic" / "diagnostic.tsv"
    write_rows(path, "index\tsentence1\tsentence2", "MNLI", test, 300, True)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="session")
def glue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(autouse=True)
def one_thread():
    """As many threads in every test: bits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
