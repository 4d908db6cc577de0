"""Many runs of one data set: one table, its statistics, its plots, one page."""
