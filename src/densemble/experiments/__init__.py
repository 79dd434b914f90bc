"""Suites run as tables of jobs: cases, methods and seeds; each job a run directory like any other."""
