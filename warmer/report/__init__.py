"""What one start of the engine spent its time on, read from what it printed or sent.

Parts: `phases` names the parts of a start, `lines` is the table of lines vLLM prints, `log` turns
lines into seconds per phase, `verdict` says what the compile cache did and `handed` what a handoff
knows of it, `otlp` turns bodies into spans and `spans` those into seconds. `table` sets a cold start
beside a warm one, `page` draws them with `chart`, `timeline` and `style`. All pure: lines or bytes
in, values or text out.
"""
