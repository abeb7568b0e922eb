"""HTML pages that need no network: one about runs, one about a data set."""
