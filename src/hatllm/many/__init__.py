"""Many runs: the cells of a sweep or experiment, each run once."""
