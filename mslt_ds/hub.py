"""Fetches what is named as on the Hugging Face Hub: `owner/name` or `owner/name@revision`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from mslt_ds.errors import EnvironmentProblem, MsltError, first_line

_NAME = re.compile(r"(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^@]+))?")


def fetch(given: str, key: str, patterns: Sequence[str], missing: type[MsltError]) -> Path:
    """What `given` names: a local path or, where there is none, a copy of `owner/name` or
    `owner/name@revision` of the hub, in its cache.

    key: the option that gave the name, for messages
    patterns: of the files to fetch

    `missing` if the hub doesn't show it, EnvironmentProblem if the hub can't be asked.
    """
    named = _NAME.fullmatch(given)
    if named is None or Path(given).exists():
        return Path(given)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(
            snapshot_download(
                named["name"], revision=named["revision"], allow_patterns=list(patterns)
            )
        )
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise missing(
            f"{key}: {given}: no such folder or file, and the hub doesn't show such a model "
            f"({type(error).__name__}); check its name, or log in with `hf auth login` where it is private"
        ) from error
    except Exception as error:  # whatever the network, a proxy or the disk raises
        raise EnvironmentProblem(
            f"{key}: {given}: no such folder or file, and it can't be fetched from the hub "
            f"({first_line(error)}); check the connection (HF_ENDPOINT, HF_HUB_OFFLINE, proxies), or fetch "
            f"it elsewhere with `hf download {named['name']} --local-dir FOLDER` and name the folder"
        ) from error
