"""Carrying a generator away: into a file that another program, or another machine, draws from."""
