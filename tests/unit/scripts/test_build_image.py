"""scripts/build_image.py: what pip sees here is what it sees in the build."""

from __future__ import annotations

import configparser
import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[3] / "scripts" / "build_image.py"
_spec = importlib.util.spec_from_file_location("build_image", SCRIPT)
assert _spec and _spec.loader
build_image = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(build_image)

LISTED = [
    "global.cert='/etc/ssl/ca.crt'",
    "global.find-links='/opt/wheels'",
    "global.extra-index-url='file:///opt/index/simple'",
    "install.no-compile='true'",
    ":env:.find-links='/srv/wheels'",
    ":env:.config-file='/etc/own-pip.conf'",
    "a line of another kind",
]


def test_variables_go_before_files() -> None:
    assert build_image.pip_sections(LISTED) == {
        "global": {
            "cert": "/etc/ssl/ca.crt",
            "extra-index-url": "file:///opt/index/simple",
            "find-links": "/srv/wheels",
        },
        "install": {"no-compile": "true"},
    }


def test_folders_and_certificates_are_shown_to_the_build(tmp_path: Path) -> None:
    sections, shown = build_image.mounts(build_image.pip_sections(LISTED), lambda path: True)
    # An index of links points to files beside it, so the folder above is shown.
    assert shown == {
        "/etc/ssl/ca.crt": build_image.CERTIFICATES,
        "/opt/index": "/opt/index",
        "/srv/wheels": "/srv/wheels",
    }
    build_image.write_pip_conf(tmp_path / "pip.conf", sections)
    parsed = configparser.RawConfigParser()
    parsed.read(tmp_path / "pip.conf")
    assert parsed["global"]["cert"] == build_image.CERTIFICATES
    assert parsed["install"]["no-compile"] == "true"


def test_what_is_not_there_is_not_mounted() -> None:
    _, shown = build_image.mounts(build_image.pip_sections(LISTED), lambda path: False)
    assert shown == {}


def test_the_build() -> None:
    command = build_image.buildah_command("F", "name:tag", {"/a": "/b"}, {"BASE": "x"})
    assert command[:2] == ["buildah", "build"] and command[-1] == str(build_image.ROOT)
    # OCI's own image format has no health check.
    assert command[command.index("--format") + 1] == "docker"
    assert "/a:/b:ro" in command and "BASE=x" in command
    assert command[-5:-1] == ["--file", "F", "--tag", "name:tag"]
