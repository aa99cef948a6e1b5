"""Auditing zoos: copies, leaks between splits, broken networks, and what the table and the manifest do not tell."""
