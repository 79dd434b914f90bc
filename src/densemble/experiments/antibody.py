"""Which chains are an antibody's Fab, and where its third heavy loop is: by sequence.

Variable domains are known by what all of them have: a cysteine before the third loop and the J segment after
it, which begins with W-G-x-G in heavy chains and with F-G-x-G in light ones.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from densemble.errors import InputError

_HEAVY = re.compile(r"[DE].[AS].[YF].C(?P<loop>.{3,40}?)WG.GT.VT")
_LIGHT = re.compile(r"[DE].[AGS].[YF].C.{3,20}?FG.GT.[LVI]")


def fab_chains(sequences: Mapping[str, str]) -> tuple[str, str]:
    """The first heavy and the first light chain.

    Args:
        sequences: in one-letter code, by name of the chain.

    Raises:
        InputError: there is no pair of them.
    """
    heavy = [name for name, sequence in sequences.items() if _HEAVY.search(sequence)]
    light = [name for name, sequence in sequences.items() if _LIGHT.search(sequence) and name not in heavy]
    if not heavy or not light:
        lacking = " and ".join(what for what, found in (("heavy", heavy), ("light", light)) if not found)
        raise InputError(
            f"chains {', '.join(sequences) or '(none)'}: no {lacking} chain of an antibody, by the sequences "
            "around its third loop; give a model that has both"
        )
    return heavy[0], light[0]


def cdr_h3(sequence: str) -> tuple[int, int]:
    """First and last residue of CDR H3, counted from 1: all between its cysteine and its tryptophan (IMGT).

    Lefranc, M.-P. et al. (2003). Dev. Comp. Immunol. 27, 55-77: positions 105 to 117.

    Raises:
        InputError: it is no heavy chain.
    """
    found = _HEAVY.search(sequence)
    if found is None:
        raise InputError("no heavy chain of an antibody: no third loop is found by the sequences around it")
    return found.start("loop") + 1, found.end("loop")
