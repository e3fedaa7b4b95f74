"""Results of finished members, in one small file each, which other machines can use.

A file is FOLDER/DIGEST.json, where DIGEST is that of all that the results depend on.
"""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from supmim import config as config_lib
from supmim.config.option import Value
from supmim.sweeps.members import MEMBER, Member, begins_after
from supmim.workdir import files


def identity(member: Member, members: Sequence[Member]) -> dict[str, Value]:
    """Return all of a member's config that its results depend on, whatever folder the sweep is in.

    A member that begins with the encoder of another has its digest instead of its workdir. Options
    that were added later are left out while they change nothing, so that older results stay valid.
    """
    # Only members that were started know the number of classes of their source.
    values = config_lib.flatten(member.config) | {"classifier.num_classes": 0}
    for path, option in config_lib.OPTIONS.items():
        if option.default_is_before and values[path] == option.default:
            del values[path]
    if first := begins_after(member, members):
        values["init.model"] = MEMBER + digest(first, members)
    return values


def digest(member: Member, members: Sequence[Member]) -> str:
    """Return the SHA-256 of a member's identity."""
    text = json.dumps(identity(member, members), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def attached(members: Sequence[Member], folder: Path) -> list[Member]:
    """Return the members with their files in a folder, which need not be there."""
    return [
        dataclasses.replace(member, archive=folder / f"{digest(member, members)}.json")
        for member in members
    ]


def keep(some: Sequence[Member], members: Sequence[Member]) -> None:
    """Write the files of some of the members, if they have finished in their workdirs."""
    for member in some:
        found = files.read_results(member.workdir)
        if member.archive and found:
            member.archive.parent.mkdir(parents=True, exist_ok=True)
            about = {"names": list(member.names), "config": identity(member, members)}
            files.write_json(member.archive, about | {"results": found})


def to_train(members: Sequence[Member]) -> list[Member]:
    """Return the members without results, and the members whose encoders they begin with.

    The latter are trained again if only their result files are here.
    """
    left = {member for member in members if not member.results}
    needed = {first for member in left if (first := begins_after(member, members))}
    again = {one for one in needed if not files.read_results(one.workdir)}
    return [
        dataclasses.replace(member, archive=None) if member in again else member
        for member in members
        if member in left | again
    ]
