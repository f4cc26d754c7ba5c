"""The table of heads: what takes the place of a backbone's own pooling and classifier.

Another package adds a head by one file, with a subclass of `capsprune.capsules.head.Head`, its
network and its config, and one line there: `HEADS.register("mine", "what it is")(MyHead())`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from capsprune.errors import ModelError
from capsprune.tables import Table

if TYPE_CHECKING:
    from capsprune.capsules.head import Head

#: What `attach-linear` puts on a trunk, for capsule heads to be compared with.
LINEAR = "linear"
#: What `attach-caps` puts on a trunk unless told otherwise.
DYNAMIC = "dynamic"

HEADS: Table[Head] = Table(
    "head",
    {
        DYNAMIC: (
            "capsprune.capsules.dynamic_head:DYNAMIC_HEAD",
            "the paper's capsules, with dynamic routing",
        ),
        LINEAR: (
            "capsprune.capsules.linear_head:LINEAR_HEAD",
            "one linear layer on the pooled trunk",
        ),
    },
    error=ModelError,
)


def check_attachable(name: str) -> str:
    """Return the name of a head that `attach-caps` puts on a trunk.

    Raises:
        ModelError: if there is none of this name, or it is the linear baseline's.
    """
    if name == LINEAR:
        raise ModelError(
            "The linear head is the baseline that capsules are compared with; run "
            "'capsprune attach-linear', or give another --head."
        )
    return HEADS.check(name)
