"""Syne Tune's ASHA behind a pipe: its own environment, one JSON line a call and an answer.

Run by peers.py with the interpreter that SYNE_TUNE_PYTHON names, since Syne Tune pins other
versions than this project.
"""

import datetime
import json
import sys

from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice, loguniform, randint, uniform
from syne_tune.optimizer.baselines import ASHA

DOMAINS = {"choice": choice, "loguniform": loguniform, "randint": randint, "uniform": uniform}


def main() -> None:
    """Answer calls until the pipe is closed."""
    settings = json.loads(sys.stdin.readline())
    scheduler = ASHA(
        config_space={
            name: DOMAINS[kind](*arguments) for name, (kind, arguments) in settings["space"].items()
        },
        metric="score",
        time_attr="epoch",
        max_t=settings["epochs"],
        grace_period=1,
        reduction_factor=settings["factor"],
        do_minimize=False,
        random_seed=settings["seed"],
    )
    trials = {}
    for line in sys.stdin:
        call, number, result = json.loads(line)
        answer = None
        if call == "suggest":
            answer = scheduler.suggest().config
            trials[number] = Trial(number, answer, datetime.datetime.now())
            scheduler.on_trial_add(trials[number])
        elif call == "result":
            answer = scheduler.on_trial_result(trials[number], result)
        elif call == "complete":
            scheduler.on_trial_complete(trials[number], result)
        elif call == "error":
            scheduler.on_trial_error(trials[number])
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
