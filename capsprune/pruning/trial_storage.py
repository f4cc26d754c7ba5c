"""What a study does to Optuna's storage itself, because the public interface lacks it.

* Signs of life: only `Study.optimize` gives them, and `ask` the first one.
* Attributes of a trial that runs: only the `Trial` that `ask` returns can set them, and there is
  none for a claim that is taken up again after its process was killed.
* Parameters: `add_trial` and `suggest_float` write them to a database one by one, 40 of them in
  37 to 50 ms on a local disk, more than a candidate of the first rung takes on a GPU; all at once
  takes 0.3 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from capsprune.pruning.samplers import quiet_optuna

if TYPE_CHECKING:
    import optuna
    import sqlalchemy


def give_sign_of_life(storage: optuna.storages.RDBStorage, trial: optuna.trial.FrozenTrial) -> None:
    """Note that this process works on a trial."""
    storage.record_heartbeat(trial._trial_id)


def note(
    storage: optuna.storages.BaseStorage, trial: optuna.trial.FrozenTrial, key: str, value: Any
) -> None:
    """Set an attribute of a trial that runs.

    Raises:
        optuna.exceptions.UpdateFinishedTrialError: if it does no longer.
    """
    storage.set_trial_user_attr(trial._trial_id, key, value)


def show_parameters(
    storage: optuna.storages.RDBStorage,
    trial: optuna.trial.FrozenTrial,
    fractions: Sequence[float],
    max_rate: float,
) -> None:
    """Write removal fractions as the parameters of a trial, for Optuna's dashboard.

    Args:
        storage: of the trial.
        trial: that runs.
        fractions: of each group, [G].
        max_rate: the largest that one can be.
    """
    import sqlalchemy

    optuna = quiet_optuna()
    distribution = optuna.distributions.distribution_to_json(
        optuna.distributions.FloatDistribution(0.0, max_rate)
    )
    rows = [
        {
            "trial_id": trial._trial_id,
            "param_name": f"group{group:03d}",
            "param_value": fraction,
            "distribution_json": distribution,
        }
        for group, fraction in enumerate(fractions)
    ]
    with storage.engine.begin() as connection:
        connection.execute(sqlalchemy.insert(_parameters()), rows)


@lru_cache(maxsize=1)
def _parameters() -> sqlalchemy.Table:
    """Give Optuna's table of parameters."""
    from optuna.storages._rdb import models

    return models.TrialParamModel.__table__
