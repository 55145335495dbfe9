"""Two runs at once on one machine share no cable and no address."""

import subprocess
import sys

import cables

ANOTHER = "import cables; print(cables.cable(1), cables.node(1), cables.pod(1))"


def test_another_run_has_cables_and_addresses_of_its_own_and_a_dead_one_gives_them_back():
    mine = {cables.cable(1), cables.node(1), cables.pod(1)}
    told = [
        set(
            subprocess.run(
                [sys.executable, "-c", ANOTHER],
                cwd=cables.__file__.rpartition("/")[0],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
        )
        for _ in range(2)
    ]
    assert not mine & told[0]
    assert told[0] == told[1], "the first of them is over"
    assert max(len(cables.cable(number)) for number in (1, 254)) <= 15, "the kernel's limit"
