"""What can be seen of images without building them: pins, the user, what is left out, compose.yaml."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
DOCKERFILES = ("docker/Dockerfile", "docker/Dockerfile.cpu")


@pytest.mark.parametrize("name", DOCKERFILES)
def test_bases_are_pinned_by_digest(name: str) -> None:
    text = (ROOT / name).read_text()
    bases = re.findall(r"^ARG \w*BASE=(\S+)", text, re.MULTILINE)
    digests = dict(re.findall(r"^ARG (\w+)=(@sha256:[0-9a-f]{64})$", text, re.MULTILINE))
    assert bases
    for base in bases:
        for variable, digest in digests.items():
            base = base.replace("${" + variable + "}", digest)
        assert re.search(r"@sha256:[0-9a-f]{64}$", base), base
    # Nothing is taken from an image that isn't named by one of these arguments.
    assert all(re.match(r"FROM \$\{\w*BASE\}", line) for line in re.findall(r"^FROM.*", text, re.M))


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_runs_the_command_without_privileges_and_can_be_asked_for_its_health(
    name: str,
) -> None:
    text = (ROOT / name).read_text()
    last = text[text.rindex("\nFROM") :]
    assert re.findall(r"^USER (\S+)", last, re.MULTILINE)[-1] == "10001"
    assert 'ENTRYPOINT ["python", "/app/docker/entrypoint.py"]' in last
    assert "HEALTHCHECK" in last and "docker/healthcheck.py" in last
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in last


def test_the_licence_of_apex_goes_with_it() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    assert re.search(r"^ARG APEX_COMMIT=[0-9a-f]{40}$", text, re.MULTILINE)
    assert "BSD-3-Clause" in text and "/usr/share/licenses" in text


def test_the_context_holds_no_environment_data_or_history() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert {".git", ".venv", "data", "runs", ".demo", "wandb", "**/__pycache__"} <= set(ignored)


def test_compose_runs_the_demo_offline_and_without_privileges() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    demo = services["demo"]
    assert demo["environment"]["WANDB_MODE"] == "offline"
    assert "telemetry.wandb.enabled=true" in demo["entrypoint"]
    assert all((ROOT / file).is_file() for file in demo["entrypoint"][1:3])
    assert (ROOT / demo["build"]["dockerfile"]).is_file()
    assert demo["user"] and demo["network_mode"] == "none"
    assert services["doctor"]["image"] == demo["image"]
