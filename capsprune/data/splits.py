"""Which images train, which validate and which test: drawn once, stored, applied again exactly."""

from __future__ import annotations

import hashlib
from typing import Annotated

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from capsprune.data.decoding import Decoding, check_colour, check_value_range
from capsprune.data.names import data_set_kind
from capsprune.errors import DataError

Index = Annotated[int, Field(ge=0)]


class Split(BaseModel):
    """Which images of a pool validate and which test; the rest of the pool trains.

    Attributes:
        data: name of the data set that was split.
        seed: what the split was drawn from, but for the test images.
        test_seed: what the test images were drawn from; None for `seed`, as it was once.
        part: of the training images, that was asked for; None in splits of before it was noted.
        method: how it was drawn, for a reader.
        size: number of images in the pool.
        fingerprint: SHA-256 (hex) of the data set: of labels and pixels where it is kept in
            memory at its own size, of labels and file names where it is a folder (of file sizes
            too in splits of older versions).
        counts: number of images that train, validate and test.
        validation: positions in the pool, ascending; None where the data set has a validation
            set of its own.
        test: likewise; None where the data set has a test set of its own.
        unused: positions of the images that were left out, ascending, where only a part of the
            training images was asked for.
        value_range: of the files of a folder, as in `Decoding`.
        background: likewise.
        file_sizes: digest of labels, file names and sizes when the folder was last read.
        verified: digest of these and of the times of the files' last changes when all files were
            last found to be readable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    seed: int
    test_seed: int | None = None
    part: float | None = None
    method: str
    size: Annotated[int, Field(ge=1)]
    fingerprint: str
    counts: dict[str, int]
    validation: tuple[Index, ...] | None
    test: tuple[Index, ...] | None
    unused: tuple[Index, ...] = ()
    value_range: Annotated[tuple[float, float], AfterValidator(check_value_range)] | None = None
    background: Annotated[str, AfterValidator(check_colour)] | None = None
    file_sizes: str | None = None
    verified: str | None = None

    @model_validator(mode="after")
    def _check_positions(self) -> Split:
        taken = [*(self.validation or ()), *(self.test or ()), *self.unused]
        if len(set(taken)) != len(taken):
            raise ValueError("an image is listed twice")
        if taken and max(taken) >= self.size:
            raise ValueError(f"position {max(taken)} lies outside the {self.size} images")
        return self

    @property
    def train(self) -> np.ndarray:
        """Positions of the images that train, int64, ascending."""
        kept = np.ones(self.size, dtype=bool)
        kept[list(self.validation or ())] = False
        kept[list(self.test or ())] = False
        kept[list(self.unused)] = False
        return np.flatnonzero(kept)

    @property
    def decoding(self) -> Decoding:
        """How files become pixels."""
        return Decoding(self.value_range, self.background)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of which image goes where and how it is read.

        It is equal for splits that are the same in effect.
        """
        # How it was drawn, and what is known of the files, which may move and be repaired.
        without_effect = {
            *("data", "seed", "test_seed", "part", "method", "counts"),
            *("fingerprint", "file_sizes", "verified"),
        }
        # Fields at their defaults are left out, so that one that comes later changes no digest.
        effect = self.model_dump_json(exclude=without_effect, exclude_defaults=True)
        return hashlib.sha256(effect.encode()).hexdigest()

    @property
    def used_part(self) -> float:
        """The part of the training images that is used, as nearly as it is known."""
        if self.part is not None or not self.unused:
            return 1.0 if self.part is None else self.part
        used = self.size - len(self.test or ()) - len(self.unused)
        return round(used / (used + len(self.unused)), 2)

    @property
    def used_test_seed(self) -> int | None:
        """What the test images were drawn from; None where the data set has its own."""
        if self.test is None:
            return None
        return self.seed if self.test_seed is None else self.test_seed

    def to_json(self) -> str:
        """Return the split as JSON text."""
        return self.model_dump_json(indent=None)

    @classmethod
    def from_json(cls, text: str | bytes) -> Split:
        """Read what `to_json` wrote.

        Raises:
            DataError: the text is no split, or contradicts itself.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            reason = f"{where}: {first['msg']}" if where else first["msg"]
            raise DataError(
                f"The stored split cannot be used ({reason}): "
                f"restore the file, or start a new run, which draws a new split."
            ) from error

    def require_fit(
        self,
        *,
        data: str,
        size: int,
        fingerprint: str,
        own_validation: bool,
        own_test: bool,
        older_fingerprint: str | None = None,
    ) -> None:
        """Check that this split belongs to the data at hand.

        Args:
            data: name of the data set; a folder may have moved, so its path is not compared.
            size: number of images in its pool.
            fingerprint: of the data set.
            own_validation: whether it has a validation set outside the pool.
            own_test: whether it has a test set outside the pool.
            older_fingerprint: the fingerprint that older versions gave the data set.

        Raises:
            DataError: it does not.
        """
        remedy = (
            "use the data that it was drawn from, by --data-root if they were moved, or start a "
            "new run, which draws a new split."
        )
        if data_set_kind(self.data) != data_set_kind(data):
            raise DataError(
                f"The stored split was drawn from data set '{self.data}', not '{data}': {remedy}"
            )
        if self.size != size:
            raise DataError(
                f"The stored split was drawn from {self.size} images, "
                f"but data set '{data}' now has {size}: {remedy}"
            )
        for part, stored, own in (
            ("validation", self.validation, own_validation),
            ("test", self.test, own_test),
        ):
            if (stored is None) != own:
                now = "has one" if own else "has none"
                raise DataError(
                    f"The stored split does not agree with data set '{data}' on a {part} set "
                    f"of its own, which now {now}: {remedy}"
                )
        if self.fingerprint not in (fingerprint, older_fingerprint):
            raise DataError(
                f"Data set '{data}' has changed since the stored split was drawn "
                f"(other fingerprint): {remedy}"
            )

    def require_decoding(
        self, value_range: tuple[float, float] | None, background: str | None
    ) -> None:
        """Check that the images are read as is asked for now; None asks for nothing.

        Raises:
            DataError: they are read otherwise.
        """
        for option, asked, kept in (
            ("value-range", value_range, self.value_range),
            ("background", background, self.background),
        ):
            if asked is not None and asked != kept:
                raise DataError(
                    f"The run reads its images with {option} {_shown(kept)}, not {_shown(asked)}: "
                    f"leave --{option} out, or start a new run."
                )


def _shown(setting: tuple[float, float] | str | None) -> str:
    if setting is None:
        return "left open"
    return setting if isinstance(setting, str) else ",".join(f"{value:g}" for value in setting)


def draw_split(
    labels: np.ndarray,
    *,
    data: str,
    seed: int,
    fingerprint: str,
    validation_share: float | None,
    test_share: float | None,
    own_counts: dict[str, int] | None = None,
    part: float = 1.0,
    test_seed: int | None = None,
) -> Split:
    """Draw a split, stratified by class. The same arguments give the same split everywhere.

    The test images do not hang on `seed`: what was trained with one seed has not seen the test
    images of another.

    Args:
        labels: int64 [N], the classes of the pool.
        data: name of the data set.
        seed: of all but the test images, non-negative.
        fingerprint: of the data set.
        validation_share: part of what the test set leaves that validates; None for none.
        test_share: part of the pool that tests; None for none.
        own_counts: sizes of the sets outside the pool, under "validation" and "test".
        part: of what the test set leaves, the part that trains and validates, in (0, 1].
        test_seed: of the test images, non-negative; None for those that a data set always has.

    Raises:
        DataError: there are too few images to carve these sets out of, or a seed is given for the
            test images of a data set that comes with its own.
    """
    if test_share is None and test_seed is not None:
        raise DataError(
            f"Data set '{data}' has a test set of its own, so there are no test images to draw: "
            f"leave out --split-seed."
        )
    test_seed = test_seed or 0
    # Separate streams: the validation images of a seed do not hang on how the test set was drawn.
    streams = [
        np.random.Generator(np.random.PCG64([of_stream, stream]))
        for stream, of_stream in enumerate((test_seed, seed, seed))
    ]
    everything = np.arange(len(labels))
    test = None
    rest = everything
    parts = []
    if test_share is not None:
        test = stratified_sample(labels, test_share, streams[0])
        rest = np.setdiff1d(everything, test)
        parts.append(f"{test_share:.0%} of the images test")
    unused = np.empty(0, dtype=np.int64)
    if part < 1:
        unused = rest[stratified_sample(labels[rest], 1 - part, streams[2])]
        rest = np.setdiff1d(rest, unused)
        parts.append(f"{part:.3g} of the {'others' if parts else 'images'} are used")
    validation = None
    if validation_share is not None:
        validation = rest[stratified_sample(labels[rest], validation_share, streams[1])]
        rest = np.setdiff1d(rest, validation)
        parts.append(f"{validation_share:.0%} of the {'others' if parts else 'images'} validate")
    own = own_counts or {}
    return Split(
        data=data,
        seed=seed,
        test_seed=None if test is None else test_seed,
        part=part,
        method=f"stratified by class, {'; '.join(parts)}" if parts else "as the data set came",
        size=len(labels),
        fingerprint=fingerprint,
        counts={
            "train": len(rest),
            "validation": own.get("validation", 0) if validation is None else len(validation),
            "test": own.get("test", 0) if test is None else len(test),
        },
        validation=None if validation is None else tuple(validation.tolist()),
        test=None if test is None else tuple(test.tolist()),
        unused=tuple(unused.tolist()),
    )


def stratified_sample(
    labels: np.ndarray, share: float, generator: np.random.Generator
) -> np.ndarray:
    """Choose a share of the images, and as nearly as can be the same share of every class.

    At least one image is chosen, and at least one of every class is left.

    Args:
        labels: int [N].
        share: in (0, 1).
        generator: what to draw from.

    Returns:
        positions of the chosen images, int64, ascending.

    Raises:
        DataError: no class can spare an image.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if not len(counts) or counts.max() < 2:
        raise DataError(
            f"{len(labels)} image(s) in {len(classes)} class(es) are too few to set some aside: "
            f"give at least two images of a class, or a folder for each of train, val and test."
        )
    quotas = _quotas(counts, share)
    # Ranking uniform numbers, rather than permuting, is the same in every release of NumPy.
    ranks = generator.random(len(labels))
    chosen = []
    for label, quota in zip(classes, quotas, strict=True):
        members = np.flatnonzero(labels == label)
        chosen.append(members[np.argsort(ranks[members], kind="stable")[:quota]])
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _quotas(counts: np.ndarray, share: float) -> np.ndarray:
    """Return how many images of each class: largest remainders, and every class keeps one."""
    spare = counts - 1
    total = min(max(round(share * int(counts.sum())), 1), int(spare.sum()))
    quotas = np.minimum(np.floor(share * counts).astype(np.int64), spare)
    remainders = share * counts - quotas
    # The floors never add up to more than the total, so this only ever adds.
    while quotas.sum() < total:
        open_remainders = np.where(quotas < spare, remainders, -np.inf)
        best = int(np.argmax(open_remainders))
        quotas[best] += 1
        remainders[best] -= 1
    return quotas
