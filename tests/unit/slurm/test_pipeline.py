"""slurm/pipeline.sh with a stand-in for sbatch: which jobs, after which, with which options."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SBATCH = """#!/usr/bin/env bash
echo "MSLT_ARGS=$MSLT_ARGS sbatch $*" >>"$CALLS"
wc -l <"$CALLS"
"""
PREPARE = ("--input", "text/*.xz", "--tokenizer", "vocabulary")


def run(folder: Path, *arguments: str, **settings: str) -> tuple[int, str, list[str]]:
    program = folder / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(SBATCH)
    program.chmod(0o755)
    return run_again(folder, *arguments, **settings)


def run_again(folder: Path, *arguments: str, **settings: str) -> tuple[int, str, list[str]]:
    """With the programs that are in `folder`/bin already."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "MSLT"))}
    environment = {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "CALLS": str(folder / "calls"),
        "MSLT_VENV": sys.prefix,
        "MSLT_DATA": "/d/store",
        "MSLT_OUTPUT": "/d/runs",
    }
    process = subprocess.run(
        ["bash", str(ROOT / "slurm" / "pipeline.sh"), *arguments],
        cwd=ROOT, env=inherited | environment | settings, capture_output=True, text=True,
    )  # fmt: skip
    calls = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    return process.returncode, process.stdout + process.stderr, calls


def test_four_jobs_each_after_the_one_before(tmp_path: Path) -> None:
    code, output, calls = run(
        tmp_path, *PREPARE, MSLT_GLUE="/d/glue", MSLT_SBATCH="--account=me",
        MSLT_SBATCH_PRETRAIN="--nodes=2", MSLT_ARGS="--set train.micro_batch_size=16",
        MSLT_GLUE_ARGS="--quick", MSLT_PREPARERS="3",
    )  # fmt: skip
    assert code == 0, output
    prepare, merge, pretrain, evaluate = calls
    assert "--account=me --array=1-3 slurm/prepare.sh --input text/*.xz" in prepare
    assert prepare.endswith("--output /d/store") and "--dependency" not in prepare
    assert "--dependency=afterok:1 --kill-on-invalid-dep=yes --account=me --array=1 " in merge
    assert merge.endswith("slurm/prepare.sh --merge --output /d/store")
    assert "--dependency=afterok:2" in pretrain
    assert pretrain.endswith("--account=me --nodes=2 slurm/pretrain_base.sh")
    assert "--set name=pipeline --set train.micro_batch_size=16" in pretrain
    assert "--dependency=afterok:3" in evaluate and "--array=1-16" in evaluate
    assert evaluate.endswith(
        "--model /d/runs/pipeline/model --data /d/glue --output /d/runs/pipeline/glue --quick"
    )


def test_without_glue_it_ends_with_the_training(tmp_path: Path) -> None:
    code, output, calls = run(tmp_path, *PREPARE)
    assert code == 0, output
    assert len(calls) == 3


def test_with_an_image_no_python_is_needed_where_it_is_submitted(tmp_path: Path) -> None:
    for name in ("bash", "sed", "wc", "dirname", "basename"):
        program = shutil.which(name)
        assert program
        (tmp_path / name).symlink_to(program)
    path = f"{tmp_path / 'bin'}:{tmp_path}"
    code, output, calls = run(tmp_path, *PREPARE, MSLT_CONTAINER="image.sqsh", PATH=path)
    assert code == 0, output
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        ((), {}, "give at least --input"),
        (("--input", "a.txt"), {}, "--tokenizer is missing"),
        (PREPARE, {"MSLT_DATA": ""}, "MSLT_DATA isn't set"),
        (PREPARE, {"MSLT_OUTPUT": "/with blank"}, "no blanks"),
        (PREPARE, {"MSLT_PRETRAIN": "slurm/none.sh"}, "no job script"),
        (PREPARE, {"MSLT_ARGS": "--set train.precison=fp16"}, "train.precison"),
        (PREPARE, {"MSLT_RECIPE": "none.yaml"}, "none.yaml"),
    ],
)
def test_mistakes_are_told_before_a_job_is_submitted(
    tmp_path: Path, arguments: tuple[str, ...], settings: dict[str, str], words: str
) -> None:
    code, output, calls = run(tmp_path, *arguments, **settings)
    assert code in (2, 3) and words in output, output
    assert calls == []


def test_options_with_an_equals_sign(tmp_path: Path) -> None:
    code, output, calls = run(tmp_path, "--input=a.txt", "--tokenizer=vocabulary")
    assert code == 0, output
    assert "--input=a.txt --tokenizer=vocabulary --output /d/store" in calls[0]


@pytest.mark.parametrize("output", [("--output", "x"), ("--output=x",)])
def test_another_output_is_refused(tmp_path: Path, output: tuple[str, ...]) -> None:
    code, said, calls = run(tmp_path, *PREPARE, *output)
    assert code == 3 and "MSLT_DATA names the token store" in said
    assert calls == []


def test_quotes_protect_blanks(tmp_path: Path) -> None:
    code, output, calls = run(
        tmp_path, *PREPARE, MSLT_VALID="/held out/store", MSLT_SBATCH="--comment='two words' --nice"
    )
    assert code == 0, output
    assert "--comment=two words --nice --array=1-8" in calls[0]
    assert "--set 'data.eval_path=/held out/store'" in calls[2]
    code, output, _ = run_again(tmp_path, *PREPARE, MSLT_ARGS="--set 'a")
    assert code == 3 and "can't split into arguments" in output


def test_a_job_of_several_clusters(tmp_path: Path) -> None:
    """`sbatch --parsable` prints "id;cluster"; a dependency takes the id, scancel both."""
    (tmp_path / "bin").mkdir()
    for name, text in {
        "sbatch": SBATCH.replace(
            'wc -l <"$CALLS"', 'n=$(wc -l <"$CALLS"); [ "$n" -lt 3 ] && echo "$n;west"'
        ),
        "scancel": '#!/usr/bin/env bash\necho "scancel $*" >>"$CALLS"\n',
    }.items():
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)
    code, _, calls = run_again(tmp_path, *PREPARE)
    assert code != 0
    assert "--dependency=afterok:1 " in calls[1] and "--dependency=afterok:2 " in calls[2]
    assert calls[3:] == ["scancel --clusters=west 1", "scancel --clusters=west 2"]
