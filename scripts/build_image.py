#!/usr/bin/env python3
"""Builds an image with buildah, without a Docker engine and, with a stand-in, without a registry.

    scripts/build_image.py                                          docker/Dockerfile.cpu as mslt-ds:cpu
    scripts/build_image.py --stand-in BASE=python                   ... on a base made from Debian's packages
    scripts/build_image.py --file docker/Dockerfile --tag mslt-ds:gpu --build-arg CUDA_ARCHS=7.0

pip uses this machine's settings in the build (index, certificates, folders of wheels). They are mounted
for the RUN steps only, so the image keeps empty mount points of them and nothing else; `docker build`
would need them as build arguments.
A stand-in replaces the base image that a build argument of the Dockerfile names: `python` has Debian's
Python in an environment on /usr/local, where the official image has its own; `debian` has no Python.
Needs Debian's or Ubuntu's buildah, mmdebstrap for stand-ins, and root for both.
"""

from __future__ import annotations

import argparse
import ast
import configparser
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STAND_INS = {
    "python": (
        "ca-certificates,python3-dev,python3-venv",
        "python3 -m venv /usr/local && ln -sf python3 /usr/local/bin/python",
    ),
    "debian": ("ca-certificates", "true"),
}
# Not the usual path, which the installation of ca-certificates in the image overwrites.
CERTIFICATES = "/etc/ssl/build-machine.crt"

Sections = dict[str, dict[str, str]]


def pip_sections(lines: Iterable[str]) -> Sections:
    """The output of `pip config list` as sections of a pip.conf; variables override files."""
    sections: Sections = {"global": {}}
    variables: dict[str, str] = {}
    for line in lines:
        key, separator, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if not separator or not section:
            continue
        target = variables if section == ":env:" else sections.setdefault(section, {})
        target[option] = str(ast.literal_eval(value))
    variables.pop("config-file", None)
    for options in sections.values():
        for option in variables:
            options.pop(option, None)
    sections["global"] |= variables
    return sections


def mounts(sections: Sections, is_there=os.path.exists) -> tuple[Sections, dict[str, str]]:
    """(sections with the path of the certificates in the build, {path here: path in the build})."""
    shown: dict[str, str] = {}
    changed = {name: dict(options) for name, options in sections.items()}
    for options in changed.values():
        certificates = options.get("cert")
        if certificates and is_there(certificates):
            shown[os.path.realpath(certificates)] = CERTIFICATES
            options["cert"] = CERTIFICATES
        for option, value in options.items():
            if option == "cert":
                continue
            for word in value.split():
                path = word.removeprefix("file://")
                if word.startswith("file://"):
                    # The links in such a folder point to files next to it.
                    path = os.path.dirname(path.rstrip("/"))
                if path.startswith("/") and is_there(path):
                    shown[os.path.realpath(path)] = path
    return changed, shown


def write_pip_conf(path: Path, sections: Sections) -> None:
    """Write an INI file without interpolation."""
    parser = configparser.RawConfigParser()
    parser.read_dict(sections)
    with path.open("w") as file:
        parser.write(file)


def stand_in(name: str, work: Path) -> str:
    """The name of a base image of Debian's packages, which is built if it doesn't exist."""
    image = f"localhost/mslt-stand-in/{name}"
    if subprocess.run(["buildah", "inspect", image], capture_output=True).returncode == 0:
        return image
    packages, command = STAND_INS[name]
    print(f"== a stand-in for {name}, made once", flush=True)
    # With a frozen mirror, apt's checks of time stamps fail unless this machine's settings are used.
    settings = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True)
    (work / "apt.conf").write_text(
        "".join(
            line + "\n"
            for line in settings.stdout.splitlines()
            if line.startswith("Acquire::Check-")
        )
    )
    folder = Path("/etc/apt")
    sources = [folder / "sources.list", *sorted((folder / "sources.list.d").glob("debian.*"))]
    run(
        "mmdebstrap", "--quiet", "--variant=minbase", "--dpkgopt=force-unsafe-io",
        f"--aptopt={work / 'apt.conf'}", f"--include={packages}",
        f'--customize-hook=chroot "$1" sh -ec {shlex.quote(command)}',
        "bookworm", str(work / "base.tar"),
        *(str(path) for path in sources if path.exists() and path.stat().st_size),
    )  # fmt: skip
    container = run("buildah", "from", "scratch", capture=True)
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    run("buildah", "add", "--quiet", container, str(work / "base.tar"))
    run(
        "buildah",
        "config",
        "--env",
        f"PATH={path}",
        "--env",
        "LANG=C.UTF-8",
        "--cmd",
        "bash",
        container,
    )
    run("buildah", "commit", "--quiet", "--rm", container, image)
    return image


def run(*command: str, capture: bool = False) -> str:
    """Run a command, which has to succeed; its output if it is captured."""
    done = subprocess.run(
        command, check=True, text=True, stdout=subprocess.PIPE if capture else None
    )
    return done.stdout.strip() if capture else ""


def buildah_command(
    file: str, tag: str, volumes: Mapping[str, str], arguments: Mapping[str, str]
) -> list[str]:
    """The command that builds, in Docker's image format, since OCI's has no health check."""
    command = ["buildah", "build", "--layers", "--format", "docker", "--isolation", "chroot"]
    for here, there in volumes.items():
        command += ["--volume", f"{here}:{there}:ro"]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    return [*command, "--file", file, "--tag", tag, str(ROOT)]


def pair(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise argparse.ArgumentTypeError(f"{text!r}: NAME=VALUE expected")
    return name, value


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", default="docker/Dockerfile.cpu", help="Dockerfile (%(default)s)")
    parser.add_argument("--tag", default="mslt-ds:cpu", help="name of the image (%(default)s)")
    parser.add_argument("--build-arg", type=pair, action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--stand-in", type=pair, action="append", default=[], metavar="ARGUMENT=KIND",
        help=f"build argument that names a base image, and its stand-in: {', '.join(STAND_INS)}",
    )  # fmt: skip
    asked = parser.parse_args()
    unknown = [kind for _, kind in asked.stand_in if kind not in STAND_INS]
    if unknown:
        parser.error(f"--stand-in: {unknown[0]!r} is none of {', '.join(STAND_INS)}")
    needed = ["buildah", *(["mmdebstrap"] if asked.stand_in else [])]
    missing = [tool for tool in needed if not shutil.which(tool)]
    if missing:
        parser.error(f"{' and '.join(missing)} not found; apt-get install {' '.join(missing)}")

    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        arguments = dict(asked.build_arg) | {
            name: stand_in(kind, work) for name, kind in asked.stand_in
        }
        listed = run(sys.executable, "-m", "pip", "config", "list", capture=True)
        sections, shown = mounts(pip_sections(listed.splitlines()))
        write_pip_conf(work / "pip.conf", sections)
        shown[str(work / "pip.conf")] = "/etc/pip.conf"
        command = buildah_command(asked.file, asked.tag, shown, arguments)
        print("==", shlex.join(command), flush=True)
        if subprocess.run(command).returncode:
            return 1
    size = json.loads(run("buildah", "images", "--json", asked.tag, capture=True))[0]["size"]
    print(
        f"== built {asked.tag}, {size}. Without an engine: podman --runtime runc run --rm localhost/{asked.tag}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
