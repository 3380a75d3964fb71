"""python -m faults SCENARIO OPTIONS: one scenario in an empty folder, its figures as JSON."""

import json
import os
import sys
import tempfile

from faults import disks, kills, shims

SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        kills.appends,
        kills.runs,
        shims.every_byte,
        shims.every_line,
        shims.power_loss,
        disks.small_disk,
        disks.size_limit,
    )
}

if __name__ == "__main__":
    scenario, options = SCENARIOS[sys.argv[1]], json.loads(sys.argv[2])
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        print(json.dumps(scenario(**options)))
        os.chdir("/")
