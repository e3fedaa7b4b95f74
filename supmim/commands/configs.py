"""`supmim configs`: the presets and sweeps that come with supmim, with a line each."""

from absl.flags import FlagValues

from supmim.commands.help import two_columns
from supmim.config import Config, catalogue


def run(_: Config | None, flags: FlagValues) -> None:
    """Print the names for --config and --sweep."""
    for title, folder in (
        ("presets, for --config=NAME[:arguments]", catalogue.FOLDER),
        ("sweeps, for supmim sweep --sweep=NAME", catalogue.FOLDER / "sweeps"),
    ):
        found = {name: catalogue.summary(folder / f"{name}.py") for name in catalogue.names(folder)}
        print(f"{title}\n\n{two_columns(found)}\n")
    print(f"They are the files in {catalogue.FOLDER}")
