"""The config: typed options, checks, JSON, and what presets are made of.

A preset says `from supmim import config as base` and returns `base.get_config()` with changes, a
ConfigDict that flags can override. `validate` turns it into the frozen, typed `Config` that the
library works with. Nothing here imports jax or flax, so that a wrong config is reported in well
under a second.
"""

from supmim.config.convert import (
    SCHEMA_VERSION,
    for_evaluation,
    from_json,
    get_config,
    result_differences,
    resume_differences,
    to_dict,
    to_json,
    validate,
)
from supmim.config.flat import flatten, replaced
from supmim.config.options import OPTIONS, Config
from supmim.config.presets import arm, augmentation, debug, preset, size_and_arm, sized, variant

__all__ = [
    "OPTIONS",
    "SCHEMA_VERSION",
    "Config",
    "arm",
    "augmentation",
    "debug",
    "flatten",
    "for_evaluation",
    "from_json",
    "get_config",
    "preset",
    "replaced",
    "result_differences",
    "resume_differences",
    "size_and_arm",
    "sized",
    "to_dict",
    "to_json",
    "validate",
    "variant",
]
