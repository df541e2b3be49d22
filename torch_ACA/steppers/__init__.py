"""One step of a method: its value, its VJP, its dense output."""
