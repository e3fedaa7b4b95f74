"""`supmim tokenizer import`: turn published tokenizer weights into a folder."""

from pathlib import Path

from absl.flags import FlagValues

from supmim import tokenizers
from supmim.config import Config
from supmim.errors import ConfigError, counted
from supmim.interop import maskgit
from supmim.report import tokenizer as report
from supmim.runtime.streams import printable
from supmim.tokenizers import folder as folder_lib

MAX_LISTED = 4  # names of tensors that were left out


def run(_: Config | None, flags: FlagValues) -> None:
    """Read a published file, write the tokenizer, print what it is and how to use it."""
    source, out = Path(str(flags["from"].value)), Path(flags.out)
    imported = maskgit.read(source)
    tokenizer = imported.tokenizer
    try:
        written = write(tokenizer, out, f"{source.name}, {imported.layout}")
    except OSError as error:
        problem = f"cannot write to --out={out}: {error.strerror}; choose another --out"
        raise ConfigError(problem) from error
    print(f"read        {source}: {imported.layout}")
    if left := imported.left_out:
        named = ", ".join(map(printable, left[:MAX_LISTED])) + (
            ", ..." if len(left) > MAX_LISTED else ""
        )
        tensors = counted(len(left), "tensor")
        print(f"left out    {tensors} that only its training needs: {named}")
    report.print_folder(tokenizer, out, "written" if written else "unchanged")


def write(tokenizer: tokenizers.Tokenizer, out: Path, origin: str, dtype: str = "float32") -> bool:
    """Save the tokenizer and return True, or False if `out` holds the same tokenizer.

    dtype: what it computes in. ConfigError if `out` holds anything else.
    """
    if out.is_dir() and (out / folder_lib.NOTE).is_file():
        held = tokenizers.TOKENIZERS[tokenizers.kind_of(out)].load(out, dtype)
        if held.fingerprint() == tokenizer.fingerprint():
            return False
        raise ConfigError(f"--out={out} holds another tokenizer; choose another folder")
    parts = {folder_lib.WEIGHTS, folder_lib.WEIGHTS + ".part"}  # of an import that was killed
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= parts):
        raise ConfigError(f"--out={out} is not an empty folder; choose a new one")
    tokenizer.save(out, origin)
    return True
