"""What one start of the engine spent its time on, read from what it printed.

Parts: `phases` names the parts of a start, `lines` is the table of lines vLLM prints, `log` turns
lines into seconds per phase and a verdict on the compile cache, `table` sets a cold start beside a
warm one. All pure: lines in, values or text out.
"""
