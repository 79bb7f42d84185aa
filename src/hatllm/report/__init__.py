"""Numbers, statistics, tables and plots made from the predictions of finished runs."""
