"""What a filesystem asks for the bare deeds of a gc, without warmer: a control for `scale.py`.

`hide` looks at everything below each directory, moves it, and flushes where it was and where it is;
`remove` looks, gives it another name, flushes that, and removes it.
"""

import os
import shutil
import sys


def looked_at(top):
    """Look at all that is there, as who weighs it."""
    return sum(
        os.lstat(os.path.join(place, name)).st_size
        for place, below, names in os.walk(top)
        for name in (*below, *names)
    )


def flush(path):
    """Make a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hide(source, target):
    """Move each directory of the one into the other."""
    for name in sorted(os.listdir(source)):
        looked_at(f"{source}/{name}")
        os.rename(f"{source}/{name}", f"{target}/{name}")
        flush(source)
        flush(target)


def remove(source, _):
    """Remove each directory."""
    for name in sorted(os.listdir(source)):
        looked_at(f"{source}/{name}")
        os.rename(f"{source}/{name}", f"{source}/{name}.gone")
        flush(source)
        shutil.rmtree(f"{source}/{name}.gone")


if __name__ == "__main__":
    {"hide": hide, "remove": remove}[sys.argv[1]](*sys.argv[2:])
