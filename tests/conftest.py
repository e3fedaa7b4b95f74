"""Eight pretend devices, strict ranks, and a tiny config that every test shrinks from."""

import gc
import os
import sys
from importlib import metadata

os.environ["JAX_PLATFORMS"] = "cpu"
USERS_XLA_FLAGS = os.environ.get("XLA_FLAGS", "")
# Most of the time goes into compiling programs that run for milliseconds.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if metadata.version("jaxlib").startswith("0.10."):  # later ones have no such flags
    QUICK += " --xla_cpu_use_fusion_emitters=false"
    QUICK += " --xla_cpu_parallel_codegen_split_count=1"
    QUICK += " --xla_cpu_max_isa=AVX"  # unfused, a multiply-add is rounded as its neighbours are
os.environ["XLA_FLAGS"] = f"{USERS_XLA_FLAGS} {QUICK}"

import jax
import jax.numpy as jnp
import pytest

from supmim import config as config_lib
from supmim.config.options import OPTIONS
from supmim.data import images, pipeline
from supmim.data.sources import base
from supmim.data.sources import digits as digits_source

gc.set_threshold(200_000, 20, 100)  # a third of the tracing was collecting
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


LONGEST = (
    *("test_train.py", "test_quickstart.py", "test_tokenizer_training.py", "test_docs.py"),
    *("test_step.py", "test_watchdog.py", "test_targets.py", "test_hosts.py"),
)


def pytest_collection_modifyitems(items):
    """The longest files first: none is left to one of two workers at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session", autouse=True)
def no_tensorflow():
    """The whole suite runs without; to block the import would make TFDS believe it is loaded."""
    yield
    assert "tensorflow" not in sys.modules


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Programs that several tests or child processes compile are compiled once."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = str(shared / "compiled")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def without_pictures():
    """Runs draw no pictures, which is a quarter of a short one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("supmim.train.draw", lambda *_: None)
        yield


undrawn = pytest.fixture(without_pictures)
all_undrawn = pytest.fixture(without_pictures, scope="module")


@pytest.fixture(scope="module", params=["gs", "s3"])
def scheme_and_server(request):
    """A scheme, and the proxy of a server for it; see bucket_servers."""
    from tests import bucket_servers

    serving = bucket_servers.SERVERS[request.param]
    with pytest.MonkeyPatch.context() as patch, serving(patch) as server:
        yield request.param, server


@pytest.fixture
def server(scheme_and_server, monkeypatch):
    """The proxy, as it was when it began; what fails is tried again at once."""
    from supmim.storage import buckets

    monkeypatch.setattr(buckets, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(buckets, "LONGEST_PAUSE", 0.05)
    scheme_and_server[1].begin_anew()
    yield scheme_and_server[1]
    scheme_and_server[1].begin_anew()


def digits(split):
    """One split of the bundled digits."""
    return digits_source.load(split, base.WHOLE)


def digit_views(split, config):
    """The same, as evaluators and tasks see it."""
    return images.evaluation(digits(split), config.data)


def plain_readers(note=lambda met: None, workers=0):
    """A thread that reads; nobody is told."""
    return pipeline.Readers(workers, note, lambda line: None)


def prepare(task, frozen, batch):
    """A raw batch as the step takes it, in one program."""
    return task.prepare(task.tokenize(frozen, batch))


def one_step(totals):
    """The metrics of one step as those of a call."""
    return jax.tree.map(lambda x: jnp.asarray(x)[None], totals)


def tiny_config(**changes):
    """Digits on a model of a few thousand parameters; changes are `group.option` -> value."""
    return config_lib.validate(tiny_preset(**changes))


def tiny_preset(**changes):
    """The same as a preset returns it: a ConfigDict, not checked."""
    config = config_lib.get_config()
    config.batch_size = 96
    config.total_epochs = 1
    config.log_every = 5
    config.data.update(image_size=8, channels=1, shift=1.0, rotate=10.0)
    config.encoder.update(patch_size=2, width=16, depth=1, num_heads=2, mlp_dim=32)
    config.classifier.num_classes = 10
    config.decoder.update(width=16, depth=1, num_heads=2, mlp_dim=32)
    config.tokenizer.update(patch_size=2, codebook_size=16, fit_images=64, fit_steps=3)
    config.optimizer.warmup_steps = 2
    config.eval.update(batch_size=104, pictures=4)
    task = changes.get("task", config.task)
    not_its = {p: option.default for p, option in OPTIONS.items() if task in option.unused_by}
    for path, value in (not_its | changes).items():
        group, _, name = path.rpartition(".")
        (config[group] if group else config)[name] = value
    return config
