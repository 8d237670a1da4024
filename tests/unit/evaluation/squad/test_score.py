"""SQuAD's scores against a plain transcription of the published rules."""

from __future__ import annotations

import collections
import json
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mslt_ds.cli import main
from mslt_ds.errors import DataError
from mslt_ds.evaluation.squad.data import Answer, Question, read_questions
from mslt_ds.evaluation.squad.score import report

WORDS = st.lists(
    st.sampled_from(["the", "a", "an", "red", "Red", "river", "3,000", "-", "U.S.", ""]), max_size=5
).map(" ".join)
GOLD = st.lists(WORDS.filter(str.strip), min_size=0, max_size=3)


def normalize(text: str) -> str:
    text = "".join(c for c in text.lower() if c not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(prediction: str, gold: str) -> float:
    mine, theirs = normalize(prediction).split(), normalize(gold).split()
    if not mine or not theirs:
        return float(mine == theirs)
    same = sum((collections.Counter(mine) & collections.Counter(theirs)).values())
    return 2 * same / (len(mine) + len(theirs))


def exact(prediction: str, gold: str) -> float:
    return float(normalize(prediction) == normalize(gold))


def make(golds):
    return [
        Question(str(i), "q", "c", tuple(Answer(text, None) for text in texts))
        for i, texts in enumerate(golds)
    ]


@settings(max_examples=60)
@given(data=st.data(), count=st.integers(1, 6))
def test_version_2_against_a_transcription(data, count):
    golds = data.draw(st.lists(GOLD, min_size=count, max_size=count))
    answers = data.draw(st.lists(WORDS, min_size=count, max_size=count))
    chances = data.draw(
        st.lists(st.sampled_from([0.1, 0.5, 0.5, 0.9]), min_size=count, max_size=count)
    )
    predictions = {str(i): text for i, text in enumerate(answers)}
    no_answer = {str(i): chance for i, chance in enumerate(chances)}
    found = report(make(golds), predictions, "2.0", no_answer, 0.6)

    kept = [[text for text in texts if normalize(text)] or [""] for texts in golds]
    has = [bool(texts) for texts in golds]
    for name, function in (("exact", exact), ("f1", f1)):
        raw = [max(function(a, g) for g in gold) for a, gold in zip(answers, kept, strict=True)]
        final = [
            float(not h) if chance > 0.6 else score
            for score, chance, h in zip(raw, chances, has, strict=True)
        ]
        assert found[name] == pytest.approx(100 * sum(final) / count, abs=1e-4)
        for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
            part = [score for score, h in zip(final, has, strict=True) if h is wanted]
            assert found.get(f"{prefix}total", 0) == len(part)
            if part:
                mean = 100 * sum(part) / len(part)
                assert found[f"{prefix}{name}"] == pytest.approx(mean, abs=1e-4)
        # The published search: over predictions in rising order, answers so far, none beyond.
        order = sorted(range(count), key=lambda i: chances[i])
        sums = [float(sum(not h for h in has))]
        for i in order:
            gain = raw[i] if has[i] else (-1 if answers[i] else 0)
            sums.append(sums[-1] + gain)
        assert found[f"best_{name}"] == pytest.approx(100 * max(sums) / count, abs=1e-4)
        # Equal sums may differ by their rounding, and then either place is the best.
        best = [k for k, value in enumerate(sums) if value >= max(sums) - 1e-6]
        thresholds = [0.0 if k == 0 else chances[order[k - 1]] for k in best]
        assert found[f"best_{name}_thresh"] in thresholds


def test_version_1_counts_the_best_answer_and_0_for_none():
    questions = make([["the Red River", "river"], ["1949"], ["U.S."], ["x"]])
    predictions = {"0": "Red river!", "1": "in 1949", "2": "us", "unknown": "x"}
    found = report(questions, predictions, "1.1")
    assert found["exact_match"] == pytest.approx(50.0)
    assert found["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1) / 4, abs=1e-4)
    assert found["total"] == 4


@pytest.fixture
def files(tmp_path):
    def qa(id_, answers):
        return {
            "id": id_, "question": "Which?", "is_impossible": not answers,
            "answers": [{"text": text, "answer_start": 0} for text in answers],
        }  # fmt: skip

    paragraph = {"context": "Red river.", "qas": [qa("a", ["Red"]), qa("b", [])]}
    dev = tmp_path / "dev.json"
    dev.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [paragraph]}]}))
    predictions = tmp_path / "predictions.json"
    predictions.write_text(json.dumps({"a": "red", "b": "river"}))
    probabilities = tmp_path / "na.json"
    probabilities.write_text(json.dumps({"a": 0.1, "b": 0.8}))
    return dev, predictions, probabilities


def test_the_command_scores_only(files, capsys):
    dev, predictions, probabilities = map(str, files)
    command = ["evaluate", "squad", "--version", "2.0", "--score", predictions, dev]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["exact"], found["HasAns_exact"], found["NoAns_exact"]) == (50, 100, 0)
    assert "best_exact" not in found
    assert (
        main([*command, "--json", "--na-probs", probabilities, "--na-prob-threshold", "0.5"]) == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert (found["exact"], found["best_exact"], found["best_exact_thresh"]) == (100, 100, 0.1)
    assert main(command) == 0
    assert re.search(r"exact +50\.000", capsys.readouterr().out)


def test_the_commands_errors(files, tmp_path, capsys):
    dev, predictions, _probabilities = map(str, files)

    def fails(*arguments):
        assert main(["evaluate", "squad", *arguments]) == 2
        return capsys.readouterr().err

    assert "question b has no answer" in fails("--version", "1.1", "--score", predictions, dev)
    assert "no such file" in fails("--version", "2.0", "--score", predictions, dev + "x")
    bad = tmp_path / "bad.json"
    bad.write_text('{"a": 1}')
    assert "question a: 1; it has to be an answer" in fails(
        "--version", "2.0", "--score", str(bad), dev
    )
    bad.write_text('{"a":\n 1,}')
    assert "bad.json:2: no JSON" in fails("--version", "2.0", "--score", str(bad), dev)
    bad.write_text('{"a": 1}')
    options = ("--version", "2.0", "--score", predictions, dev)
    assert "no number for 1 questions, such as b" in fails(*options, "--na-probs", str(bad))
    bad.write_text('{"a": NaN}')
    assert "question a: nan; it has to be a number" in fails(*options, "--na-probs", str(bad))
    assert "--model, --train, --dev, --output: missing" in fails("--version", "1.1")
    assert 'no list "data"' in fails("--version", "2.0", "--score", predictions, predictions)


def test_an_answer_that_normalizes_to_nothing_is_an_answer():
    found = report(make([["the"], ["a river"], []]), {"0": "", "1": "river", "2": ""}, "2.0")
    assert (found["HasAns_total"], found["NoAns_total"], found["exact"]) == (2, 1, 100)


@pytest.mark.parametrize("text", ["", " ", "\n\t", "\u00a0", "\u200b"])
@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_an_answer_of_empty_text_is_refused_unless_marked(tmp_path, text, version):
    path = tmp_path / "train.json"

    def write(*texts, **marks):
        answers = [{"text": one, "answer_start": 0} for one in texts]
        qas = [{"id": "q7", "question": "Which?", "answers": answers} | marks]
        paragraphs = [{"context": "Red river.", "qas": qas}]
        path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": paragraphs}]}))

    write("Red", text)
    with pytest.raises(DataError, match="question q7 has an answer of empty text"):
        read_questions(path, version)
    write("Red", is_impossible=True)
    with pytest.raises(DataError, match='question q7 has an answer and "is_impossible": true'):
        read_questions(path, version)
    write(*([text] if text.isspace() else []), is_impossible=True)
    if version == "2.0":
        assert read_questions(path, version)[0].answers == ()
