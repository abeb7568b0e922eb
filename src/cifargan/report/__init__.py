"""Runs that lie on disk, read back: summaries, tables, one page about them. Nothing here needs torch but sampling."""
