"""Says what the guest's clock shows, again and again."""

import time

import guest

for _ in range(21):
    guest.result(clock=time.monotonic())
    time.sleep(0.1)
