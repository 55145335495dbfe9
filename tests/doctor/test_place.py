"""The doctor's private directory: what goes with it, and who takes away what is above it."""

import multiprocessing
import os

from warmer.doctor import place
from warmer.layout import Volume

ROUNDS = 30


def come_and_go(root, number, met, made):
    """Be one of two doctors; the second comes when the first is there, and both leave at once."""
    for _ in range(ROUNDS):
        if number == 1:
            made.wait(60)
        with place.private(Volume(root)) as path:
            if number == 0:
                made.wait(60)
            for name in range(200 * number):  # so that the second is longer in leaving
                open(f"{path}/{name}", "w").close()
            met.wait(60)
        met.wait(60)
        if number == 0 and os.listdir(root):
            raise SystemExit(f"left: {os.listdir(root)}")
        met.wait(60)


def test_of_two_doctors_that_leave_at_once_the_last_takes_the_top_away(tmp_path):
    forked = multiprocessing.get_context("fork")
    met, made = forked.Barrier(2), forked.Barrier(2)
    both = [
        forked.Process(target=come_and_go, args=(str(tmp_path), number, met, made), daemon=True)
        for number in range(2)
    ]
    for process in both:
        process.start()
    both[0].join(120)
    left, code = os.listdir(tmp_path), both[0].exitcode
    for process in both:
        process.kill()
        process.join()
    assert (left, code) == ([], 0)


def test_a_private_directory_goes_with_all_that_is_in_it(tmp_path):
    with place.private(Volume(str(tmp_path))) as path:
        os.makedirs(f"{path}/deep/er")
        place.write(f"{path}/deep/file", b"")
        place.write(f"{path}/file", b"")
        os.symlink("/nowhere", f"{path}/link")
    assert os.listdir(tmp_path) == []
