"""Windows, spans and answers; and the command, which learns a few questions by heart."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mslt_ds.cli import main
from mslt_ds.errors import DataError, RecipeError
from mslt_ds.evaluation.squad.answers import find_answers
from mslt_ds.evaluation.squad.data import Answer, Question, check_answers, read_questions
from mslt_ds.evaluation.squad.features import check_stride, make_windows
from mslt_ds.evaluation.squad.recipe import SquadRecipe
from mslt_ds.evaluation.squad.runs import span_loss
from tests.unit.evaluation.conftest import ANY, WORDS, save_any

NOUNS = WORDS[2:7]


def question(id_="q", words=("the", "Film", "is", "good", ",", "Old", "river"), first=5, count=2):
    context = " ".join(words)
    start = len(" ".join(words[:first])) + (first > 0)
    answer = Answer(" ".join(words[first : first + count]), start)
    return Question(id_, "what is the city?", context, (answer,) if count else ())


@pytest.fixture(scope="module")
def tokenizer(model_folder):
    return AutoTokenizer.from_pretrained(model_folder)


def test_a_stride_that_leaves_a_window_nothing_new_is_refused(tokenizer):
    """At the largest stride that passes, the tokenizer can make windows."""
    asked = question(words=WORDS * 5)
    for stride in range(1, 24):
        recipe = SquadRecipe(max_length=24, stride=stride)
        try:
            check_stride([asked], tokenizer, recipe)
        except RecipeError as error:
            assert f"stride: {stride}, but at max_length 24 a question of " in str(error)
            break
        assert len(make_windows([asked], tokenizer, recipe).questions) > 1
    else:
        raise AssertionError("every stride passes")
    with pytest.raises(BaseException, match="stride"):
        make_windows([asked], tokenizer, recipe)


@settings(max_examples=40)
@given(data=st.data())
def test_every_answer_is_found_again_in_its_windows(tokenizer, data):
    words = data.draw(st.lists(st.sampled_from(WORDS), min_size=3, max_size=60))
    first = data.draw(st.integers(0, len(words) - 1))
    count = data.draw(st.integers(1, min(3, len(words) - first)))
    asked = question(words=words, first=first, count=count)
    recipe = SquadRecipe(max_length=24, stride=6)
    windows = make_windows([asked], tokenizer, recipe)
    assert max(windows.encoded.lengths) <= 24
    labels = windows.encoded.labels
    found = 0
    for (start, end), offsets in zip(labels.tolist(), windows.offsets, strict=True):
        if start:
            assert asked.context[offsets[start][0] : offsets[end][1]] == asked.answers[0].text
            found += 1
        else:
            assert end == 0
            spans = [span for span in offsets if span is not None]
            assert spans[-1][1] - spans[0][0] < len(asked.context)
    assert found  # the stride is longer than any answer
    # Gold scores lead to the gold answer, through all windows.
    logits = np.zeros((len(windows.offsets), max(windows.encoded.lengths), 2), np.float32)
    for window, (start, end) in enumerate(labels.tolist()):
        if start:
            logits[window, start, 0] = logits[window, end, 1] = 9
    answers = find_answers([asked], windows, logits, recipe)
    assert answers.predictions == {"q": asked.answers[0].text}


def test_the_threshold_decides_on_no_answer(tokenizer):
    asked = question()
    for version, threshold, expected in (
        ("1.1", 0.0, "Old river"), ("2.0", 0.0, ""), ("2.0", 3.0, "Old river"),
    ):  # fmt: skip
        changes = {"max_length": 32, "stride": 8, "null_score_threshold": threshold}
        recipe = SquadRecipe.model_validate({"version": version, **changes})
        windows = make_windows([asked], tokenizer, recipe)
        logits = np.zeros((1, windows.encoded.lengths[0], 2), np.float32)
        start, end = windows.encoded.labels[0].tolist()
        logits[0, start, 0], logits[0, end, 1], logits[0, 0, 0] = 3, 3, 8
        answers = find_answers([asked], windows, logits, recipe)
        assert answers.predictions["q"] == expected
        assert answers.best_spans["q"] == "Old river"
        if version == "2.0":
            assert answers.no_answer["q"] == pytest.approx(2.0)
            assert answers.n_best["q"][0]["text"] == ""
        assert answers.n_best["q"][version == "2.0"]["text"] == "Old river"
        assert sum(entry["probability"] for entry in answers.n_best["q"]) == pytest.approx(1)


def test_a_long_question_is_cut(tokenizer):
    asked = Question("q", "what " * 100, "the city is old", (Answer("old", 12),))
    recipe = SquadRecipe(max_length=40, stride=8, max_question_length=10)
    windows = make_windows([asked], tokenizer, recipe)
    assert sum(span is None for span in windows.offsets[0]) == 10 + 3


def test_the_loss_is_the_mean_of_both_cross_entropies():
    class Fixed(torch.nn.Module):
        def forward(self, **batch):
            return type("Found", (), {"start_logits": starts, "end_logits": ends})

    starts, ends = torch.randn(3, 7), torch.randn(3, 7)
    labels = torch.tensor([[1, 2], [0, 0], [5, 6]])
    expected = torch.nn.functional.cross_entropy(starts, labels[:, 0])
    expected = (expected + torch.nn.functional.cross_entropy(ends, labels[:, 1])) / 2
    torch.testing.assert_close(span_loss(Fixed(), {"labels": labels}), expected)


def test_files_that_do_not_fit(tmp_path):
    path = tmp_path / "train.json"

    def write(**entry):
        qa = {"id": "x", "question": "?", "answers": [{"text": "old", "answer_start": 4}]} | entry
        paragraph = {"context": "the old city", "qas": [qa]}
        path.write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
        return read_questions(path, "1.1")

    check_answers(path, write())
    with pytest.raises(DataError, match=r"question x: the answer 'old' doesn't stand at"):
        check_answers(path, write(answers=[{"text": "old", "answer_start": 3}]))
    with pytest.raises(DataError, match=r"question x has no answer.*--version 2.0"):
        write(answers=[])
    for wrong in (
        {"answers": [{"text": 5, "answer_start": 4}]},
        {"answers": [{"text": "old", "answer_start": "4"}]},
        {"answers": [{"text": "old", "answer_start": 4.0}]},
        {"question": None},
        {"id": ["x"]},
        {"is_impossible": "false"},
    ):
        with pytest.raises(DataError, match=r"article 0: question .* of another type than SQuAD's"):
            write(**wrong)
    path.write_text('{"data": [{"paragraphs": [{"qas": [{"id": "x"}]}]}]}')
    with pytest.raises(DataError, match=r"article 0: 'context' is missing"):
        read_questions(path, "1.1")


def learn_by_heart(model, folder, version="1.1", epochs=40):
    """Fine-tune on a question about each noun and score the same questions; the output folder."""
    paragraphs = []
    for number, noun in enumerate(NOUNS):
        context = f"the {noun} is {WORDS[11 + number]} and the river is {WORDS[30 + number]}"
        answer = WORDS[11 + number]
        qas = [
            {
                "id": f"a{number}", "question": f"what is the {noun}",
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
        ]  # fmt: skip
        if version == "2.0":
            none = {
                "id": f"n{number}",
                "question": "who looks",
                "answers": [],
                "is_impossible": True,
            }
            qas.append(none)
        paragraphs.append({"context": context, "qas": qas})
    data = folder / "data.json"
    data.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    output = folder / "out"
    command = [
        "evaluate", "squad", "--version", version, "--model", str(model), "--train", str(data),
        "--dev", str(data), "--output", str(output), "--set", "max_length=32", "--set", "stride=8",
        "--set", "learning_rates=[3e-3]", "--set", f"epochs={epochs}", "--set", "batch_size=5",
        "--set", "device=cpu",
    ]  # fmt: skip
    assert main(command) == 0
    return output


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_the_command_learns_by_heart(model_folder, tmp_path, version):
    output = learn_by_heart(model_folder, tmp_path, version)
    results = json.loads((output / "results.json").read_text())
    column = results["tasks"][f"SQuAD-{version}"]["columns"][f"SQuAD-{version}"]
    assert column["f1"]["median"] > 0.8
    if version == "2.0":
        figures = results["cells"][0]["figures"]
        assert figures["NoAns_exact"] > 80
        assert figures["best_f1"] >= figures["f1"]
    name = f"SQuAD-{version}_0.003_1"
    predictions = json.loads((output / "predictions" / f"{name}_predictions.json").read_text())
    assert len(predictions) == len(NOUNS) * (2 if version == "2.0" else 1)


@pytest.mark.parametrize("family", list(ANY))
def test_any_encoder(family, tmp_path, capsys):
    save_any(tmp_path / "model", family)
    output = learn_by_heart(tmp_path / "model", tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "newly init" in line]
    head = "classifier" if family == "modernbert" else "qa_outputs"
    assert f"seed: {head}.bias, {head}.weight" in line
    (cell,) = json.loads((output / "results.json").read_text())["cells"]
    assert cell["scores"]["SQuAD-1.1"]["f1"] > 0.5


def test_a_byte_level_token_holds_the_blank_before_it(tmp_path):
    """As in ModernBERT's tokenizer, whose offsets aren't trimmed as RoBERTa's are."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["[CLS]", "[SEP]", "[PAD]"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator([question().context] * 9, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[("[CLS]", 0), ("[SEP]", 1)],
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    asked = question()
    recipe = SquadRecipe(max_length=64, stride=8)
    windows = make_windows([asked], tokenizer, recipe)
    start, end = windows.encoded.labels[0].tolist()
    assert asked.context[slice(*windows.offsets[0][start])].startswith(" ")
    logits = np.zeros((1, windows.encoded.lengths[0], 2), np.float32)
    logits[0, start, 0] = logits[0, end, 1] = 9
    assert find_answers([asked], windows, logits, recipe).predictions == {"q": "Old river"}
