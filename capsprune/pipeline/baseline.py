"""The run's baseline, as stages that build on it find it."""

from __future__ import annotations

from capsprune.checkpoint import Architecture, read_architecture
from capsprune.data.names import FOLDER, data_set_folder, data_set_kind
from capsprune.errors import RunError
from capsprune.pipeline.session import Session


def require_baseline(
    session: Session,
    command: str,
    *,
    model: str | None,
    data: str | None,
    image_size: int | None,
    split_seed: int | None = None,
) -> Architecture:
    """Return the description of the run's baseline, which must be what was asked for.

    Args:
        session: of the command.
        command: that needs the baseline, for messages.
        model: asked for; None agrees with any, as it does below.
        data: asked for.
        image_size: asked for, in pixels a side.
        split_seed: asked for, of the test images.

    Raises:
        RunError: if the run has no baseline, or one of another kind.
        CheckpointError: if it is damaged.
    """
    run = session.run
    run.require("baseline", command)
    described = read_architecture(run.path("baseline"))
    if data is not None and data_set_kind(data) == data_set_kind(described.data.name) == FOLDER:
        if data != described.data.name:  # It may have moved: raises if it holds other images.
            session.data_of(run.path("baseline"), described, data_set_folder(data))
        data = None
    split = session.split
    for name, asked, has in (
        ("model", model, described.model),
        ("data", data, described.data.name),
        ("image-size", image_size, described.data.image_size),
        ("split-seed", split_seed, None if split is None else split.used_test_seed),
    ):
        if asked is not None and asked != has:
            raise RunError(
                f"The baseline of run '{run.name}' has --{name} {has}, not {asked}; give another "
                "--run."
            )
    return described
