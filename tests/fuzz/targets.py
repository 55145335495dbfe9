"""Every parser of bytes that others wrote, by name."""

from pod_targets import TARGETS as POD
from volume_targets import TARGETS as VOLUME
from word_targets import TARGETS as WORDS

TARGETS = VOLUME | POD | WORDS
