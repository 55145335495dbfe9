"""Reports while another is in the middle of a line, as `print` with its two writes may be."""

import os

import guest

os.write(2, b"as I was going to say, traceback of @result ")
guest.result(heard=True)
os.write(2, b"and then")
