"""Deposited data from the PDB, PDB-REDO and EMDB: fetched once, checked, kept."""
