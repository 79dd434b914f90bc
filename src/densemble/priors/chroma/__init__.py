"""Chroma (Ingraham et al. 2023) as a prior: the released package ``generate-chroma``, as it is.

Importing these modules does not import Chroma; making a network does.
"""
