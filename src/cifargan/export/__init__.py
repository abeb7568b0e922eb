"""Export a generator into a file that another program or machine draws from."""
