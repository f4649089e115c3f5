"""The engine under orders of events that a seed decides, beside an oracle that knows what was acknowledged."""
