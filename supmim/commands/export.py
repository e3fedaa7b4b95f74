"""`supmim export`: the encoder and its head in a folder for other programs."""

from absl.flags import FlagValues

from supmim.config import Config
from supmim.errors import counted
from supmim.interop import export, load
from supmim.runtime import devices
from supmim.storage import paths
from supmim.workdir import files


def run(_: Config | None, flags: FlagValues) -> None:
    """Write the folder, then print what it holds, how it was checked, and code that uses it."""
    devices.check()
    model = load.load(flags.model)
    results = files.read_results(paths.path(flags.model))
    written = export.export(model, flags.to, paths.path(flags.out), results)
    for file in sorted(written.folder.iterdir()):
        print(f"written     {file}  {counted(file.stat().st_size, 'byte')}")
    print(f"parameters  {model.num_parameters:,} of encoder and head")
    print(f"read back   largest relative difference of outputs {written.difference:.2g}")
    print(f"SHA-256     {written.sha256}")
    print(f"\n{written.usage}")
