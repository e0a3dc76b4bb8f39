"""Several sweeps in one file (`across`): what a family is, its directory, driver, progress, table."""
