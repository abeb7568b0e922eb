"""What `scripts/fuzz.py` is made of: good inputs, what damages them, the readers they go to, and the judge of it all."""
