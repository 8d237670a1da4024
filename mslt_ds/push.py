"""`mslt-ds push`: a run's models and their cards to a repository at the Hugging Face Hub.

The finished model is the revision `main`, the model after stage k the revision `stage-<k>`, and the one
before the learning rate falls `before-decay`. A card that somebody has edited, here or in the repository, is
kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from mslt_ds import paths
from mslt_ds.disk.card import CARD_FILE, is_ours, seal
from mslt_ds.disk.run_folder import BEFORE_DECAY
from mslt_ds.errors import CheckpointError, EnvironmentProblem, RecipeError, first_line
from mslt_ds.evaluation.results import METRIC_NAMES, Results
from mslt_ds.evaluation.results_file import read_results
from mslt_ds.report.model_card import Score, model_card
from mslt_ds.report.record import RunRecord

if TYPE_CHECKING:
    from huggingface_hub import HfApi

T = TypeVar("T")


@dataclass(frozen=True)
class Upload:
    """The folder of a model that becomes a revision."""

    revision: str
    folder: Path
    files: tuple[Path, ...]
    """Relative to the folder, without the card."""
    card: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `mslt-ds push`."""
    parser.add_argument("run_dir", type=paths.path, metavar="RUN", help="a run folder")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="at the hub")
    parser.add_argument("--dry-run", action="store_true", help="only print what would be uploaded")
    parser.add_argument("--private", action="store_true", help="if the repository is new")
    parser.add_argument(
        "--results", nargs="+", action="extend", default=[], type=paths.path, metavar="RESULTS",
        help="folders of `mslt-ds evaluate` whose scores the cards show",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    """Upload, or print what would be."""
    _check_name(arguments.repo)
    results = [read_results(path) for path in arguments.results]
    uploads = plan_uploads(RunRecord.read(arguments.run_dir), arguments.repo, results)
    for upload in uploads:
        print(f"{arguments.repo}, revision {upload.revision}: from {upload.folder}")
        for file in upload.files:
            print(f"  {file}  {(upload.folder / file).stat().st_size:,} bytes")
        edited = "" if is_ours(upload.card) else ", as it was edited"
        print(f"  {CARD_FILE}  {len(upload.card.encode()):,} bytes{edited}", flush=True)
    if arguments.dry_run:
        print("dry run: nothing was uploaded")
        return 0
    from huggingface_hub import HfApi

    _push(HfApi(), arguments.repo, uploads, private=arguments.private)
    return 0


def plan_uploads(run: RunRecord, repository: str, results: Sequence[Results] = ()) -> list[Upload]:
    """What goes where. CheckpointError if no model was written yet."""
    names = {
        f"stage-{index}": f"stages/{index}/end"
        for index in range(1, len(run.stages) + 1)
        if (run.path / "stages" / str(index) / "end").is_dir()
    }
    names |= {
        revision: name
        for revision, name in (("before-decay", BEFORE_DECAY), ("main", "model"))
        if (run.path / name).is_dir()
    }
    if not names:
        raise CheckpointError(
            f"{run.path}: no model here yet; a run writes one at the end of each stage, and model/ at its end"
        )
    uploads = []
    for revision, name in names.items():
        folder = run.path / name
        own = folder / CARD_FILE
        card = own.read_text(encoding="utf-8") if own.is_file() else ""
        if not card or is_ours(card):
            scores = _scores_of(folder, results)
            card = seal(model_card(run, name, where=repository, revision=revision, scores=scores))
        files = sorted(
            path.relative_to(folder)
            for path in folder.rglob("*")
            if path.is_file() and path != own and not path.name.startswith(".")
        )
        uploads.append(Upload(revision, folder, tuple(files), card))
    return uploads


def _scores_of(folder: Path, results: Sequence[Results]) -> list[Score]:
    return [
        Score(
            column_name,
            METRIC_NAMES[column["metric"]],
            column[column["metric"]]["median"],
            column[column["metric"]]["spread"],
            task["runs"],
        )
        for found in results
        if Path(found["model"]).resolve() == folder.resolve()
        for task in found["tasks"].values()
        for column_name, column in task["columns"].items()
    ]


def _push(api: HfApi, repository: str, uploads: Sequence[Upload], *, private: bool) -> None:
    from huggingface_hub import CommitOperationAdd

    _try(lambda: api.create_repo(repository, private=private or None, exist_ok=True))
    for upload in uploads:
        if upload.revision != "main":
            _try(lambda u=upload: api.create_branch(repository, branch=u.revision, exist_ok=True))
        operations = [CommitOperationAdd(str(file), upload.folder / file) for file in upload.files]
        if _may_replace_card(api, repository, upload):
            operations.append(CommitOperationAdd(CARD_FILE, upload.card.encode()))
        else:
            print(
                f"{repository}, revision {upload.revision}: {CARD_FILE} was edited there and is kept"
            )
        commit = _try(
            lambda u=upload, o=operations: api.create_commit(
                repository, o, commit_message=f"{u.folder.parent.name}/{u.folder.name} of mslt-ds",
                revision=u.revision,
            )
        )  # fmt: skip
        print(f"uploaded: {commit.commit_url}", flush=True)


def _may_replace_card(api: HfApi, repository: str, upload: Upload) -> bool:
    """Unless the one in the repository was edited there; one that a user edited here goes up anyway."""
    from huggingface_hub.errors import EntryNotFoundError

    if not is_ours(upload.card):
        return True
    try:
        path = _try(
            lambda: api.hf_hub_download(repository, CARD_FILE, revision=upload.revision),
            passes=(EntryNotFoundError,),
        )
    except EntryNotFoundError:
        return True
    return is_ours(Path(path).read_text(encoding="utf-8", errors="replace"))


def _try(call: Callable[[], T], passes: tuple[type[Exception], ...] = ()) -> T:
    """A call of the hub's; EnvironmentProblem for whatever the network or the hub refuses."""
    import httpx
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        return call()
    except passes:
        raise
    except (HfHubHTTPError, LocalTokenNotFoundError, httpx.HTTPError, OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"--repo: the hub can't be used ({first_line(error)}); log in with `hf auth login` as somebody "
            "who may write there, and check the connection (HF_ENDPOINT, proxies)"
        ) from error


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise RecipeError(f"--repo: {repository}: {first_line(error)}") from error
    if "/" not in repository:
        raise RecipeError(f"--repo: {repository}; it has to be owner/name")
