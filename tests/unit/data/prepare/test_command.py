"""The command as a user gives it: stores, figures, errors, interruptions."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from mslt_ds import cli
from mslt_ds.data.prepare import command as module
from mslt_ds.data.prepare import finish
from mslt_ds.data.prepare.command import prepare
from mslt_ds.data.prepare.finish import FIGURES
from mslt_ds.data.store import MANIFEST, TokenStore
from mslt_ds.errors import DataError
from tests.unit.data.conftest import VOCAB_SIZE, as_text, docstring_documents
from tests.unit.hub import serve

COMMAND = [sys.executable, "-m", "mslt_ds.cli", "prepare"]


def store_files(path: Path) -> dict[str, bytes]:
    """Everything a store holds, but for the figures of its preparation."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name != FIGURES and file.parent.name != "index"
    }


def run(*arguments: object) -> int:
    return cli.main(["prepare", *map(str, arguments)])


def test_a_store_from_text_and_another_by_its_tokenizer(tmp_path, text_file, store_path, capsys):
    output = tmp_path / "second"
    assert run("--input", text_file, "--output", output, "--tokenizer", store_path) == 0
    printed = capsys.readouterr().out
    first, second = TokenStore.open(store_path), TokenStore.open(output)
    assert second.same_vocabulary(first) and second.digest == first.digest
    figures = json.loads((output / FIGURES).read_text())
    assert figures["documents"] == first.num_documents
    assert figures["sentences"] == first.num_sentences
    assert figures["tokens"] == first.num_tokens
    assert figures["vocab_size"] == VOCAB_SIZE
    assert figures["text_bytes"] == text_file.stat().st_size
    assert figures["megabytes_per_second"] > 0 and figures["tokenize_seconds"] > 0
    for number in (first.num_documents, first.num_sentences, first.num_tokens):
        assert f"{number:,}" in printed
    assert "MB/s" in printed
    assert sorted(os.listdir(output)) == sorted(
        ["documents.bin", "groups.bin", "manifest.json", "prepare.json", "sentences.bin",
         "token_counts.bin", "tokenizer", "tokens.bin"]
    )  # fmt: skip


@pytest.mark.parametrize("options, warned", [([], True), (["--keep-accents"], False)])
def test_vowel_signs_that_are_lost_are_told_of(tmp_path, capsys, options, warned):
    text = tmp_path / "thai.txt"
    text.write_text("\n\n".join(["\u0e27\u0e31\u0e19\u0e19\u0e35\u0e49 ab"] * 2 + ["cd"]), "utf-8")
    assert run("--input", text, "--output", tmp_path / "out", "--vocab-size", 200, *options) == 0
    # 3 marks of the 8 letters and marks, in each of two documents, and a third one of 2 letters
    assert (
        "warning: 33% of the text's letters and signs" in (printed := capsys.readouterr().out)
    ) == warned
    assert ("--keep-accents" in printed) == warned


def test_a_tokenizer_of_the_hub(tmp_path, text_file, store_path):
    """In a process of its own: the hub's address is read when its library is imported."""
    with serve() as hub:
        hub.repository = "someone/tiny"
        files = {file.name: file.read_bytes() for file in (store_path / "tokenizer").iterdir()}
        hub.revisions = {"main": files | {"model.safetensors": b"x"}}
        environment = {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "*",
        }  # fmt: skip
        for name, code in (("someone/tiny", 0), ("someone/other", 2)):
            done = subprocess.run(
                [*COMMAND, "--input", text_file, "--output", tmp_path / "store", "--tokenizer", name],
                capture_output=True, text=True, env=os.environ | environment, cwd=tmp_path,
            )  # fmt: skip
            assert done.returncode == code, done.stderr
        assert "--tokenizer: someone/other: no such folder" in done.stderr
        assert "model.safetensors" not in hub.fetched
    assert TokenStore.open(tmp_path / "store").digest == TokenStore.open(store_path).digest


def test_the_manifest_tells_what_went_in(store: TokenStore, text_file: Path):
    (source,) = store.manifest["sources"]
    assert source["name"] == text_file.name and source["weight"] == 1
    assert source["read"]["text_bytes"] == text_file.stat().st_size
    assert source["read"]["documents"] == source["stored"]["documents"] == store.num_documents
    assert store.manifest["job"]["tokenizer"] == {
        "model": "wordpiece", "vocab_size": VOCAB_SIZE, "lowercase": True, "keep_accents": False,
    }  # fmt: skip
    assert set(store.manifest["job"]["versions"]) == {"sentencex", "tokenizers"}


def test_workers_and_shards_give_the_same_store_byte_for_byte(tmp_path, text_file, store_path):
    half = as_text(docstring_documents(60))
    (tmp_path / "half.txt").write_text(half, encoding="utf-8")
    inputs = [text_file, tmp_path / "half.txt"]
    common = ["--input", *inputs, "--tokenizer", store_path]
    for workers in (1, 3):
        assert run(*common, "--output", tmp_path / f"w{workers}", "--workers", workers) == 0
    for shard in ("2/3", "3/3", "1/3"):
        output = tmp_path / "shards"
        assert run(*common, "--output", output, "--workers", 1, "--shard", shard) == 0
        assert not (output / MANIFEST).exists()
    assert run("--merge", "--output", output) == 0
    expected = store_files(tmp_path / "w1")
    for name in ("w3", "shards"):
        assert store_files(tmp_path / name) == expected
    assert run("--merge", "--output", output) == 0  # is done, stays
    figures = json.loads((output / FIGURES).read_text())
    assert figures["duplicate_documents"] == len(half.split("\n\n"))


def test_training_twice_gives_the_same_store(tmp_path, text_file, store_path):
    output = tmp_path / "again"
    assert run("--input", text_file, "--output", output, "--vocab-size", VOCAB_SIZE) == 0
    assert store_files(output) == store_files(store_path)


def test_a_merge_names_what_is_missing(tmp_path, text_file, store_path, capsys):
    output = tmp_path / "store"
    assert run("--merge", "--output", output) == 2
    assert "no shard was begun here" in capsys.readouterr().err
    common = ["--input", text_file, "--output", output, "--tokenizer", store_path, "--workers", 1]
    assert run(*common, "--shard", "2/2") == 0
    assert run("--merge", "--output", output) == 2
    error = capsys.readouterr().err
    assert "0000-000000.unit: missing" in error and "run the shards that aren't done" in error
    assert run(*common, "--shard", "1/2") == 0
    damaged = output / "work" / "0000-000000.unit"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert run("--merge", "--output", output) == 2
    assert "0000-000000.unit: damaged (its checksum is wrong)" in capsys.readouterr().err
    damaged.unlink()
    assert run(*common, "--shard", "1/2") == 0
    assert run("--merge", "--output", output) == 0
    assert store_files(output).keys() == store_files(store_path).keys()


def test_a_finished_store_is_left_as_it_is(tmp_path, text_file, store_path, capsys):
    output = tmp_path / "store"
    common = ["--input", text_file, "--output", output, "--workers", 1]
    assert run(*common, "--tokenizer", store_path) == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    capsys.readouterr()
    assert run(*common, "--tokenizer", store_path) == 0
    assert "prepared already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    assert run(*common, "--vocab-size", 500) == 2
    assert "holds a store of other tokenizer" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_to_the_same_store(tmp_path, text_file):
    """SIGKILL of the whole process group, as when a machine is taken away."""
    text = text_file.read_text(encoding="utf-8")
    copies = (text.replace("the", f"the {number}") for number in range(4))
    (tmp_path / "text.txt").write_text("\n\n".join(copies), encoding="utf-8")
    arguments = ["--input", tmp_path / "text.txt", "--vocab-size", 600, "--workers", 2]

    def command(output: Path) -> list[str]:
        return [*COMMAND, *map(str, arguments), "--output", str(output)]

    start = time.monotonic()
    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True)
    duration = time.monotonic() - start
    moments = random.Random(0)
    output = tmp_path / "killed"
    for _ in range(2):  # many more in test_prepare_killed.py
        process = subprocess.Popen(
            command(output), start_new_session=True, stdout=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.3, 0.9) * duration)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(output), check=True, capture_output=True)
    assert store_files(output) == store_files(tmp_path / "whole")
    assert sorted(os.listdir(output)) == sorted(os.listdir(tmp_path / "whole"))


def test_what_the_text_holds_besides_text_is_counted(tmp_path, store_path, capsys):
    good = "A good line of text.\n"
    parts = [good * 200, "Second.\n", "Second.\n", "\u200b\n", "B\x07ell \x00 and \x9f.\n"]
    content = "\n".join(parts).encode() + b"\nd\xe9j\xe0 vu\n"
    (tmp_path / "text.txt").write_bytes(content)
    output = tmp_path / "store"
    assert run("--input", tmp_path / "text.txt", "--output", output, "--tokenizer", store_path) == 0
    figures = json.loads((output / FIGURES).read_text())
    assert figures["documents"] == 4 and figures["paragraphs"] == 205
    assert figures["duplicate_documents"] == 1 and figures["empty_documents"] == 1
    assert figures["invalid_utf8_paragraphs"] == 1 and figures["control_characters"] == 3
    printed = capsys.readouterr().out
    for line in ("empty documents: 1", "duplicate documents: 1", "invalid utf8 paragraphs: 1"):
        assert line in printed


def test_a_large_vocabulary_needs_wider_numbers(tmp_path):
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *letters]
    tokens += [f"{x}{y}{z}{n}" for x in letters for y in letters for z in letters for n in "1234"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (tmp_path / "text.txt").write_text("zzz4 aaa1.\n\na b zzz3.\n")
    output = tmp_path / "store"
    prepare([tmp_path / "text.txt"], output, tokenizer_place=tmp_path, workers=1)
    store = TokenStore.open(output)
    assert store.vocab_size == len(tokens) > 65_536 and store.corpus.tokens.dtype == np.uint32
    assert [tokens[number] for number in store.corpus.tokens[:2]] == ["zzz4", "aaa1"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("One.\n\nTwo.\n")
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vocab-size", "100"], "--vocab-size: 100 is too small.*choose 200 or more"),
        (["--alphabet", "10"], "--alphabet: 10; choose 30 to 15000, half of the vocabulary"),
        (["--alphabet", "200", "--vocab-size", "300"], "--alphabet: 200; choose 30 to 150"),
        (
            ["--alphabet", "99", "--tokenizer", "{tmp}"],
            "--alphabet: with --tokenizer .*leave --alp",
        ),
        (
            ["--tokenizer-model", "bpe", "--tokenizer", "{tmp}"],
            "--tokenizer-model: with --tokenizer",
        ),
        (["--keep-accents", "--tokenizer", "{tmp}"], "--keep-accents: with --tokenizer .*leave"),
        (["--keep-accents", "--cased"], "--keep-accents: with --cased, which keeps them"),
        (["--tokenizer-model", "bpe", "--vocab-size", "299"], "--vocab-size: 299 is too small"),
        (
            ["--tokenizer-model", "bpe", "--alphabet", "99"],
            "--alphabet: 99 with --tokenizer-model bpe",
        ),
        (["--language", "English"], "--language: 'English'; expected a code"),
        (["--workers", "0"], "--workers: 0; it has to be at least 1"),
        (["--shard", "1/2"], "--shard: 1/2 without --tokenizer"),
        (["--shard", "3/2"], "--shard: '3/2'; expected I/N"),
        (["--tokenizer", "{tmp}/nothing"], "--tokenizer: .*nothing: no such folder or file"),
        (["--tokenizer", "{tmp}"], "--tokenizer: .*no tokenizer here"),
        (["--tokenizer", "{tmp}/text.txt"], r"text.txt: can't be read \(text.txt lacks \[PAD\]"),
        (["--tokenizer", "{tmp}", "--cased"], "--cased: with --tokenizer .*leave --cased out"),
        (["--input", "{tmp}/nothing.txt"], "--input: .*nothing.txt: no such file"),
        (["--input", "{tmp}/text.txt,weight=0"], "--input: .*weight '0'.*above 0"),
        (["--input", "{tmp}/odd.pdf"], "--input: .*odd.pdf: suffix '.pdf' is not known"),
        (["--input", "{tmp}/latin.txt"], "--input: .*latin.txt: not UTF-8 text"),
        (["--output", "{tmp}"], "--output: .*not empty, and no token store"),
        (["--output", "{tmp}/text.txt"], "--output: .*text.txt: a file"),
    ],
)
def test_errors_come_before_any_work(tmp_path, text, capsys, monkeypatch, arguments, message):
    (tmp_path / "odd.pdf").touch()
    (tmp_path / "latin.txt").write_bytes("été\n\n".encode("latin-1") * 9)
    monkeypatch.setattr(module, "_make_tokenizer", None)  # the first work that takes time
    given = ["--input", str(text), "--output", str(tmp_path / "store")]
    arguments = [part.format(tmp=tmp_path) for part in arguments]
    assert run(*given, *arguments) == 2
    captured = capsys.readouterr()
    assert re.search(message, captured.err), captured.err
    assert captured.out == "" and not (tmp_path / "store").exists()


@pytest.mark.parametrize("content", ["", "\n\n \n", "Only one.\n", "Same.\n\nSame.\n"])
def test_text_of_fewer_than_two_documents(tmp_path, store_path, content, capsys):
    (tmp_path / "text.txt").write_text(content)
    for vocabulary in (["--tokenizer", store_path], ["--vocab-size", 300]):
        output = tmp_path / f"store{len(vocabulary[0])}"
        given = ["--input", tmp_path / "text.txt", "--output", output, "--workers", 1]
        assert run(*given, *vocabulary) == 2
        count = 1 if content.strip() else 0
        assert f"different documents with text: {count};" in capsys.readouterr().err
        assert not (output / MANIFEST).exists()


def test_no_input(tmp_path, capsys):
    assert run("--output", tmp_path / "store") == 2
    assert "--input: none given" in capsys.readouterr().err


def test_a_full_disk_is_told_of(tmp_path, text, store_path, monkeypatch, capsys):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", "tokens.bin")

    monkeypatch.setattr(finish, "merge", full)
    given = ["--input", text, "--output", tmp_path / "store", "--tokenizer", store_path]
    assert run(*given, "--workers", 1) == 2
    assert "tokens.bin: No space left on device; what was done stays" in capsys.readouterr().err
    monkeypatch.undo()
    assert run(*given, "--workers", 1) == 0


def test_a_changed_input_is_noticed(tmp_path, text, store_path):
    prepare([text], tmp_path / "store", tokenizer_place=store_path, workers=1)
    text.write_text("Another.\n\nText.\n")
    with pytest.raises(DataError, match="holds a store of other inputs"):
        prepare([text], tmp_path / "store", tokenizer_place=store_path, workers=1)


def test_unknown_text_is_refused_unless_told(tmp_path, text, store_path, capsys):
    strange = tmp_path / "strange.txt"
    strange.write_text("The value \u2620\u2620 is.\n\n" + "It is a value.\n\n" * 3)
    given = ["--input", text, strange, "--output", tmp_path / "store", "--tokenizer", store_path]
    assert run(*given, "--workers", 1) == 2
    captured = capsys.readouterr()
    assert re.search(
        r"--input: \d+\.\d% of strange.txt: tokens .*doesn't know.*--allow-unknown", captured.err
    )
    assert re.search(
        r"  strange.txt: \d.\d+ tokens per word, .*% unknown; longest words: ", captured.out
    )
    assert re.search(r"  text.txt: .* per character, 0.000% unknown; longest", captured.out)
    assert not (tmp_path / "store" / MANIFEST).exists()
    assert run(*given, "--workers", 1, "--allow-unknown") == 0
    assert "warning: " in capsys.readouterr().out
    _, source = TokenStore.open(tmp_path / "store").manifest["sources"]
    assert source["tokenized"]["unknown_tokens"] == 2 and source["tokenized"]["words"] == 16


def test_no_control_character_of_a_word_reaches_the_terminal(tmp_path, store_path, capsys):
    (tmp_path / "text.txt").write_text("A \x1b[31mword\x07.\n\nThe value.\n")
    given = ["--input", tmp_path / "text.txt", "--output", tmp_path / "store", "--allow-unknown"]
    assert run(*given, "--tokenizer", store_path, "--workers", 1) == 0
    printed = capsys.readouterr().out
    assert "[31mword" in printed and "\x1b" not in printed and "\x07" not in printed


def test_a_little_unknown_text_is_told_of(tmp_path, store_path, capsys):
    (tmp_path / "text.txt").write_text("The value \u2620 is.\n\n" + "It is a value.\n\n" * 20)
    given = ["--input", tmp_path / "text.txt", "--output", tmp_path / "store"]
    assert run(*given, "--tokenizer", store_path, "--keep-duplicates") == 0
    assert re.search(
        r"warning: [0-4]\.\d% of text.txt: tokens that the tok.*; train a voc.* --alphabet",
        capsys.readouterr().out,
    )


@pytest.mark.parametrize("model", ["bpe", "unigram"])
def test_a_store_of_each_model(tmp_path, text_file, model, capsys):
    (tmp_path / "text.txt").write_text(text_file.read_text(encoding="utf-8")[:60_000])
    given = ["--input", tmp_path / "text.txt", "--output", tmp_path / "store"]
    assert run(*given, "--tokenizer-model", model, "--vocab-size", 500, "--workers", 1) == 0
    assert f"500 tokens ({model})" in capsys.readouterr().out
    assert TokenStore.open(tmp_path / "store").manifest["job"]["tokenizer"]["model"] == model
    shown = ["inspect", tmp_path / "store", "--instance", 1, "--masking", "whole_word"]
    assert cli.main([*map(str, shown)]) == 0
    groups = re.findall(r"\{.*? <- (.*?)\}", capsys.readouterr().out)[:-1]  # the last is a legend
    mark = "\u0120" if model == "bpe" else "\u2581"
    assert groups and any(" " in group for group in groups)
    assert all(mark not in piece for group in groups for piece in group.split()[1:])
