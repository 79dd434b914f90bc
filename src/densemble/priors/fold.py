"""What a fold from sequence depends on; readable without the networks that fold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from densemble.errors import InputError

LEAST_NOISE = 0.01
"""Å, of a fold that starts from a model: above the last level of Boltz-1 (0.0064) and of Boltz-2 (0.0016)."""


@dataclass(frozen=True)
class FoldSettings:
    """Of a prior that folds.

    Attributes:
        prior: which network.
        sequence: FASTA or Boltz YAML; the sequences of the starting model if None.
        weights: a checkpoint in place of the one in the network's own cache.
        use_msa_server: have alignments made that the file does not name; the sequences are sent away.
        msa_server_url: of that server, in place of ColabFold's.
        step_scale: of the sampler; the network's own if None.
        potentials: apply the network's own potentials for stereochemistry and overlaps.
        recycling: rounds of the trunk after the first.
        from_noise: start from the starting model with so much noise, Å, instead of from pure noise.
    """

    prior: Literal["boltz1", "boltz2"]
    sequence: Path | None = None
    weights: Path | None = None
    use_msa_server: bool = False
    msa_server_url: str | None = None
    step_scale: float | None = None
    potentials: bool = False
    recycling: int = 3
    from_noise: float | None = None

    def check(self) -> None:
        """See that the sequences are there, that noise and steps are of some size, and options go together.

        Raises:
            InputError: says which option is wrong.
        """
        scale, noise = self.step_scale, self.from_noise
        if scale is not None and not 0 < scale < float("inf"):
            raise InputError(
                f"--step-scale {scale:g}: must be above zero; Boltz takes 1.638 (Boltz-1) or 1.5"
            )
        if noise is not None and not LEAST_NOISE <= noise < float("inf"):
            raise InputError(f"--from-noise {noise:g} Å: must be at least {LEAST_NOISE:g}, for example 5")
        if self.msa_server_url is not None and not self.use_msa_server:
            raise InputError("--msa-server-url names the server of --use-msa-server; give both, or neither")
        if self.sequence is not None and not self.sequence.is_file():
            raise InputError(f"sequence file {self.sequence} does not exist; give FASTA or a Boltz YAML")
