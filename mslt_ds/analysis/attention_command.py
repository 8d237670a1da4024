"""`mslt-ds attention`: pictures and numbers of what the heads of a run or a model look at."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from mslt_ds import paths
from mslt_ds.analysis.attention import (
    Findings,
    Snapshot,
    attentions,
    load_model,
    load_tokenizer,
    measure,
    store_batches,
)
from mslt_ds.analysis.attention_page import ATTENTION_FILE, attention_section, heads_csv
from mslt_ds.analysis.page import Page
from mslt_ds.atomic import replace_text
from mslt_ds.data.store import TokenStore
from mslt_ds.disk.model_folder import read_config
from mslt_ds.errors import CheckpointError, DataError, RecipeError
from mslt_ds.hugging_face import weight_files
from mslt_ds.report.record import PLAN_FILE, RunRecord


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mslt-ds attention`."""
    parser.add_argument(
        "model", type=paths.path, metavar="RUN|MODEL",
        help="a run folder, or a folder that save_pretrained wrote",
    )  # fmt: skip
    parser.add_argument("--text", required=True, help="the sentence whose maps are drawn")
    parser.add_argument(
        "--output", type=paths.path, required=True, metavar="DIR",
        help="folder for index.html, heads.csv and figures/",
    )  # fmt: skip
    parser.add_argument(
        "--store", type=paths.path, metavar="STORE",
        help="held-out token store for the statistics (default: the recipe's data.eval_path, if it's "
        "there, else the sentence alone)",
    )  # fmt: skip
    parser.add_argument(
        "--twin", type=paths.path, metavar="RUN|MODEL", help="the full twin, to draw beside"
    )
    for name, what in (("layers", "layers"), ("heads", "heads")):
        parser.add_argument(
            f"--{name}", nargs="+", type=int, metavar="N",
            help=f"{what} whose maps are drawn, from 1 (default: {'the bottom and the top one' if name == 'layers' else 'the first four'})",
        )  # fmt: skip
    parser.add_argument("--sequences", type=_positive, default=64, metavar="N", help="of the store (default: 64)")  # fmt: skip
    parser.add_argument("--seq-length", type=_positive, default=128, metavar="N", help="tokens of each at most (default: 128)")  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Measure and write."""
    record, snapshots = find_snapshots(arguments.model)
    if arguments.twin is not None:
        twin = find_snapshots(arguments.twin)[1][-1]
        snapshots = [*snapshots, Snapshot("twin", "full twin", twin.folder)]
    drawn = _choose_maps(arguments, [s for s in snapshots if s.key != "twin"][-1].folder)
    findings = find(
        record, snapshots, arguments.text,
        store=_store(arguments.store, record), sequences=arguments.sequences, seq_length=arguments.seq_length,
    )  # fmt: skip
    findings.title = record.name if record else arguments.model.resolve().name
    page = Page(
        title=f"Attention of {findings.title}",
        lead=f"“{arguments.text}”",
        facts=(),
        sections=[attention_section(findings, **drawn)],
        files="heads.csv, tables/ and figures/",
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    page.write(arguments.output)
    replace_text(arguments.output / "heads.csv", heads_csv(findings))
    replace_text(arguments.output / ATTENTION_FILE, json.dumps(findings.to_json()) + "\n")
    print(f"attention: {(arguments.output / 'index.html').resolve()}")
    return 0


def _choose_maps(arguments: argparse.Namespace, folder: Path) -> dict[str, list[int] | None]:
    """`--layers` and `--heads`, from 0. RecipeError for one that the model in `folder` hasn't."""
    config = read_config(folder)
    drawn: dict[str, list[int] | None] = {}
    for name, total in (("layers", config.num_hidden_layers), ("heads", config.num_attention_heads)):  # fmt: skip
        wanted = getattr(arguments, name)
        for number in wanted or ():
            if not 1 <= number <= total:
                raise RecipeError(f"--{name}: {number}; the model has {name} 1 to {total}")
        drawn[name] = [number - 1 for number in wanted] if wanted else None
    return drawn


def find_snapshots(path: Path) -> tuple[RunRecord | None, list[Snapshot]]:
    """The ends of a run's stages in time's order, or the one model. CheckpointError if there is none."""
    if not (path / PLAN_FILE).is_file():
        return None, [Snapshot("model", path.resolve().name, path)]
    record = RunRecord.read(path)
    found = [
        Snapshot(f"stages/{index}/end", f"stage {index}", folder)
        for index in range(1, len(record.stages) + 1)
        if (folder := path / "stages" / str(index) / "end").is_dir()
    ]
    if not found and (path / "model").is_dir():
        found = [Snapshot("model", "model", path / "model")]
    if not found:
        raise CheckpointError(
            f"{path}: no model here yet; a run writes one at the end of each stage"
        )
    return record, found


def find(
    record: RunRecord | None,
    snapshots: list[Snapshot],
    text: str,
    *,
    store: TokenStore | None,
    sequences: int,
    seq_length: int,
) -> Findings:
    """Maps of the sentence and statistics. CheckpointError for a snapshot without a model."""
    for snapshot in snapshots:
        weight_files(snapshot.folder)
    tokenizer = load_tokenizer(snapshots[0].folder)
    longest = min(tokenizer.model_max_length, 512)
    encoded = tokenizer(text, return_tensors="pt", truncation=True, max_length=longest)
    sentence = {key: encoded[key] for key in ("input_ids", "attention_mask")}
    tokens = tokenizer.convert_ids_to_tokens(sentence["input_ids"][0].tolist())
    if len(tokens) < 3:
        raise RecipeError(f"--text: {text!r}: no token of the model's vocabulary; write a sentence")
    findings = Findings("", tokens, {s.key: s.label for s in snapshots}, {}, text=text)
    for snapshot in snapshots:
        findings.maps[snapshot.key] = _maps(snapshot.folder, sentence)
    if record is not None:
        _around_stacking(findings, record, sentence)
        findings.frozen = {
            f"stages/{index}/end": f"{'top' if stage.get('freeze') == 'top' else 'lowest'} {frozen}"
            for index, stage in enumerate(record.stages, start=1)
            if (frozen := stage["frozen_layers"])
        }
    batches = [sentence]
    if store is not None:
        batches = list(store_batches(store, sequences, min(seq_length, longest)))
        findings.sequences = sum(len(batch["input_ids"]) for batch in batches)
        _check_vocabulary(store, tokenizer)
    # Tokenizers of language models have a token that begins a text, and one that ends it.
    cls = next((i for i in (tokenizer.cls_token_id, tokenizer.bos_token_id) if i is not None), -1)
    sep = next((i for i in (tokenizer.sep_token_id, tokenizer.eos_token_id) if i is not None), -1)
    measure(findings, snapshots, batches, cls, sep)
    return findings


def _maps(folder: Path, sentence: dict[str, torch.Tensor]) -> list:
    return attentions(load_model(folder), sentence)[:, 0].tolist()


def _around_stacking(findings: Findings, record: RunRecord, sentence: dict) -> None:
    """The top layer before the last growth, its copy on top after it, and what became of that."""
    grown = [k for k in range(2, len(record.stages) + 1)
             if record.stages[k - 1]["depth"] > record.stages[k - 2]["depth"]]  # fmt: skip
    start = record.path / "stages" / str(grown[-1]) / "start" if grown else None
    before = f"stages/{grown[-1] - 1}/end" if grown else ""
    if start is None or not start.is_dir() or before not in findings.maps:
        return
    stage = grown[-1]
    source, copy = (record.stages[k]["depth"] - 1 for k in (stage - 2, stage - 1))
    key = f"stages/{stage}/start"
    findings.maps[key] = _maps(start, sentence)
    moments = [(before, source, "before stacking"), (key, copy, "stacked")]
    moments += [
        (f"stages/{k}/end", copy, f"after stage {k}") for k in range(stage, len(record.stages) + 1)
    ]
    moments.append(("twin", copy, "full twin"))
    findings.stacking = [
        {"key": k, "layer": layer, "label": f"{label}, layer {layer + 1}"}
        for k, layer, label in moments
        if k in findings.maps and layer < len(findings.maps[k])
    ]


def _store(given: Path | None, record: RunRecord | None) -> TokenStore | None:
    if given is not None:
        return TokenStore.open(given)
    path = record.recipe.get("data", {}).get("eval_path") if record else None
    if path is None or not Path(path).is_dir():
        return None
    return TokenStore.open(path)


def _check_vocabulary(store: TokenStore, tokenizer) -> None:
    if len(tokenizer) != store.vocab_size:
        raise DataError(
            f"--store: {store.path} has {store.vocab_size:,} tokens and the model's tokenizer "
            f"{len(tokenizer):,}; prepare the text with --tokenizer and the model's folder"
        )


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it has to be a whole number of at least 1")
    return int(text)
