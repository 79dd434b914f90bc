"""From a schema to the features of Boltz, through Boltz's own parser, tokenizer and featurizer.

Boltz's command line skips an input that it cannot read and prints why; here its parts are called one by one,
so that what is wrong becomes an ``InputError``. Features are the same in every run: what Boltz draws at
random (conformers of SMILES, the orientation of reference conformers) is drawn from a fixed seed.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import gemmi
import numpy as np
import torch
from boltz.data import const
from boltz.data.feature.featurizer import BoltzFeaturizer
from boltz.data.feature.featurizerv2 import Boltz2Featurizer
from boltz.data.module import inference, inferencev2
from boltz.data.mol import load_canonicals, load_molecules
from boltz.data.parse.schema import parse_boltz_schema
from boltz.data.tokenize.boltz import BoltzTokenizer
from boltz.data.tokenize.boltz2 import Boltz2Tokenizer
from boltz.data.types import MSA, Input, Structure, StructureV2, Target
from rdkit import Chem, rdBase
from rdkit.Chem import Mol, rdDistGeom, rdForceFieldHelpers
from torch import Tensor

from densemble.atoms import Residue, ResidueId, Topology
from densemble.errors import InputError
from densemble.io.models import Model
from densemble.priors.boltz.alignments import MsaServer, given_alignments, read_alignments
from densemble.priors.boltz.model_sequences import model_contents
from densemble.priors.boltz.package import Kind
from densemble.priors.boltz.sequences import Contents, read_contents
from densemble.priors.boltz.weights import BoltzFiles
from densemble.progress import Progress

Dictionary = dict[str, Mol]
"""Molecules by component code."""

_SEED = 42  # that of Boltz's own data module
_TRAINING = ("disto_target",)  # tokens x tokens x bins, which only a loss reads


@dataclass(frozen=True, eq=False)
class BoltzInput:
    """What a network of Boltz reads, and what its atoms are.

    Attributes:
        kind: of which of the two models.
        feats: features by Boltz's names, a batch of one; atoms are padded to windows of 32.
        topology: the N atoms without padding, in Boltz's order, numbered from 1 in each chain.
        structure: Boltz's tables (``boltz.data.types.Structure`` or ``StructureV2``).
        atoms: N.
        key: SHA-256 in hexadecimal of the features, which are all that the trunk depends on but its weights.
        messages: what the user should know.
    """

    kind: Kind
    feats: dict[str, Tensor]
    topology: Topology
    structure: Structure | StructureV2
    atoms: int
    key: str
    messages: tuple[str, ...] = ()

    @property
    def links(self) -> tuple[tuple[int, int], ...]:
        """Residues that the input says are covalently bonded, pairs of indices into the topology's."""
        tables = self.structure
        bonds = tables.bonds if isinstance(tables, StructureV2) else tables.connections
        residue = self.topology.residue_index
        pairs = {(int(residue[b["atom_1"]]), int(residue[b["atom_2"]])) for b in bonds}
        return tuple(sorted(pair for pair in pairs if pair[0] != pair[1]))

    def to(self, device: torch.device | str) -> BoltzInput:
        """The same with its features on a device."""
        return replace(self, feats={name: value.to(device) for name, value in self.feats.items()})


@dataclass(frozen=True, eq=False)
class Checked:
    """An input of which everything is read that takes neither the weights nor the dictionary.

    Attributes:
        contents: with components in place of SMILES: LIG1, LIG2, ...
        molecules: these, by code.
        alignments: that it names, by file.
        server: for proteins without one.
    """

    contents: Contents
    molecules: Dictionary
    alignments: Mapping[str, MSA]
    server: MsaServer | None


def checked(contents: Contents, server: MsaServer | None = None) -> Checked:
    """What can be wrong in an input, as far as it is known without downloads of several GB.

    Raises:
        InputError: a protein has no alignment and there is no server; an alignment or SMILES cannot be read.
    """
    alignments = given_alignments(contents, server)
    contents, molecules = _without_smiles(contents)
    return Checked(contents, molecules, alignments, server)


def read_input(path: Path, files: BoltzFiles, *, server: MsaServer | None = None) -> BoltzInput:
    """The features of a FASTA or Boltz YAML file.

    Args:
        path: see ``densemble.priors.boltz.sequences.read_contents``.
        files: of the model; its dictionary is used.
        server: where alignments come from that the file does not name; without it, that is an error.

    Raises:
        InputError: the file, or something that it names, cannot be read or is unknown to Boltz.
    """
    return featurized(checked(read_contents(path), server), files)


def input_of_model(model: Model, files: BoltzFiles, *, server: MsaServer | None = None) -> BoltzInput:
    """The features of the sequences and ligands of a model.

    Args:
        model: a model.
        files: of the network; its dictionary is used.
        server: where alignments come from; without it, there are none.

    Raises:
        InputError: it has nothing that Boltz models, or a component that is not in the dictionary.
    """
    return featurized(checked(model_contents(model, alone=server is None), server), files)


def featurized(given: Checked, files: BoltzFiles, *, progress: Progress | None = None) -> BoltzInput:
    """The features of an input.

    Args:
        given: the input.
        files: of the network; its dictionary is used.
        progress: told when a server of alignments is waited for.

    Raises:
        InputError: a component, or what a constraint or template names, is unknown to Boltz; the server of
            alignments fails.
    """
    dictionary = _dictionary(files)
    contents, molecules = given.contents, given.molecules
    _check_components(contents, files, dictionary | molecules)
    second = files.kind == "boltz2"
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        torch.manual_seed(_SEED)
        target = _parsed(contents, files, dictionary | molecules)
        alignments, messages = read_alignments(
            target, contents, given.alignments, given.server, tell=progress or Progress()
        )
        data = Input(
            target.structure,
            alignments,
            record=target.record,
            residue_constraints=target.residue_constraints,
            templates=target.templates or None,
            extra_mols={},
        )
        try:
            feats = _features2(data, files, dictionary, molecules) if second else _features1(data)
        except Exception as error:
            raise InputError(
                f"{contents.source}: Boltz makes no features of it ({_reason(error)})"
            ) from error
    topology = _topology(target.structure, feats)
    return BoltzInput(
        kind=files.kind,
        feats=feats,
        topology=topology,
        structure=target.structure,
        atoms=len(topology),
        key=_key(files.kind, feats),
        messages=(*contents.messages, *messages),
    )


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _dictionary(files: BoltzFiles) -> Dictionary:
    """Boltz-1: all components. Boltz-2: those of amino acids; others are read one by one."""
    try:
        if files.kind == "boltz2":
            return load_canonicals(str(files.dictionary))
        with files.dictionary.open("rb") as file:
            return dict(pickle.load(file))
    except Exception as error:
        raise InputError(
            f"chemical dictionary {files.dictionary}: cannot be read ({_reason(error)}); remove it to "
            "have it downloaded anew"
        ) from error


def _components(contents: Contents) -> list[tuple[str, str]]:
    """Chain and code of every component that is named."""
    found = []
    for kind, entity, names in contents.entities():
        codes = entity["ccd"] if kind == "ligand" else [m["ccd"] for m in entity.get("modifications") or []]
        found += [(names[0], str(code)) for code in ([codes] if isinstance(codes, str) else codes)]
    return found


def _check_components(contents: Contents, files: BoltzFiles, dictionary: Dictionary) -> None:
    for chain, code in _components(contents):
        if code not in dictionary and not (_folder(files) / f"{code}.pkl").is_file():
            raise InputError(
                f"{contents.source}: chain {chain}: the component {code} is not in Boltz's chemical "
                f"dictionary {files.dictionary}; check the code, or give --sequence, a Boltz YAML in which "
                "the ligand is given as smiles"
            )


def _folder(files: BoltzFiles) -> Path:
    """Where components that the dictionary lacks are looked for, one file each."""
    return files.dictionary if files.kind == "boltz2" else files.dictionary.parent / "mols"


def _without_smiles(contents: Contents) -> tuple[Contents, Dictionary]:
    """Ligands given as SMILES, as components with the names that Boltz gives them: LIG1, LIG2, ..."""
    schema, codes, molecules = copy.deepcopy(contents.schema), dict[str, str](), Dictionary()
    contents = replace(contents, schema=schema)
    for _, entity, names in contents.entities():
        if "smiles" in entity:
            smiles = str(entity.pop("smiles"))
            entity["ccd"] = codes.setdefault(smiles, f"LIG{len(codes) + 1}")
            if entity["ccd"] not in molecules:
                molecules[entity["ccd"]] = _molecule(smiles, f"{contents.source}: ligand {names[0]}")
    return contents, molecules


def _molecule(smiles: str, what: str) -> Mol:
    """A molecule as Boltz prepares it, with its hydrogens, but for the fixed seed of its conformer."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
        if mol is None or mol.GetNumAtoms() == 0:
            raise InputError(f"{what}: '{smiles}' cannot be read as SMILES")
        mol = Chem.AddHs(mol)
        for atom, rank in zip(mol.GetAtoms(), Chem.CanonicalRankAtoms(mol), strict=True):
            name = f"{atom.GetSymbol().upper()}{rank + 1}"
            if len(name) > 4:
                raise InputError(f"{what}: '{smiles}' has more atoms than Boltz can name")
            atom.SetProp("name", name)
        Chem.AssignStereochemistry(mol, force=True, cleanIt=True)
        options = rdDistGeom.ETKDGv3()
        options.clearConfs = False
        options.randomSeed = _SEED
        conformer = rdDistGeom.EmbedMolecule(mol, options)
        if conformer == -1:
            options.useRandomCoords = True
            conformer = rdDistGeom.EmbedMolecule(mol, options)
        if conformer == -1:
            raise InputError(f"{what}: RDKit finds no conformer of '{smiles}'")
        with contextlib.suppress(RuntimeError, ValueError):  # no force field for it: as embedded
            rdForceFieldHelpers.UFFOptimizeMolecule(mol, confId=conformer, maxIters=1000)
    mol.GetConformer(conformer).SetProp("name", "Computed")
    return mol


def _parsed(contents: Contents, files: BoltzFiles, dictionary: Dictionary) -> Target:
    try:
        return parse_boltz_schema(
            "input", contents.schema, dictionary, _folder(files), boltz_2=files.kind == "boltz2"
        )
    except KeyError as error:
        raise InputError(
            f"{contents.source}: Boltz finds no {error}, which a constraint or template names"
        ) from error
    except Exception as error:
        raise InputError(f"{contents.source}: Boltz cannot read it ({_reason(error)})") from error


def _features1(data: Input) -> dict[str, Tensor]:
    """What ``boltz.data.module.inference`` makes of an input."""
    pockets = data.record.inference_options.pocket_constraints
    binder, pocket = pockets[0][:2] if pockets else (None, None)
    feats = BoltzFeaturizer().process(
        BoltzTokenizer().tokenize(data),
        training=False,
        max_atoms=None,
        max_tokens=None,
        max_seqs=const.max_msa_seqs,
        pad_to_max_seqs=False,
        symmetries={},
        compute_symmetries=False,
        inference_binder=binder,
        inference_pocket=pocket,
        compute_constraint_features=True,
    )
    return inference.collate([{name: value for name, value in feats.items() if name not in _TRAINING}])


def _features2(
    data: Input, files: BoltzFiles, dictionary: Dictionary, molecules: Dictionary
) -> dict[str, Tensor]:
    """What ``boltz.data.module.inferencev2`` makes of an input."""
    tokenized = Boltz2Tokenizer().tokenize(data)
    known = dictionary | {code: Chem.RemoveHs(mol, sanitize=False) for code, mol in molecules.items()}
    others = sorted(set(tokenized.tokens["res_name"].tolist()) - set(known))
    feats = Boltz2Featurizer().process(
        tokenized,
        molecules=known | load_molecules(str(files.dictionary), others),
        random=np.random.default_rng(_SEED),
        training=False,
        max_atoms=None,
        max_tokens=None,
        max_seqs=const.max_msa_seqs,
        pad_to_max_seqs=False,
        single_sequence_prop=0.0,
        compute_frames=True,
        inference_pocket_constraints=data.record.inference_options.pocket_constraints,
        inference_contact_constraints=data.record.inference_options.contact_constraints,
        compute_constraint_features=True,
    )
    return inferencev2.collate([{name: value for name, value in feats.items() if name not in _TRAINING}])


def _topology(structure: Structure | StructureV2, feats: Mapping[str, Tensor]) -> Topology:
    real = feats["atom_pad_mask"][0].bool()
    numbers = feats["ref_element"][0][real].argmax(dim=-1).tolist()
    names = [_atom_name(name) for name in structure.atoms["name"]]
    index = np.zeros(len(names), dtype=np.int64)
    residues: list[Residue] = []
    for chain in structure.chains:
        for r in structure.residues[chain["res_idx"] : chain["res_idx"] + chain["res_num"]]:
            atoms = slice(int(r["atom_idx"]), int(r["atom_idx"] + r["atom_num"]))
            kind = _kind(const.chain_types[chain["mol_type"]], str(r["name"]), numbers[atoms])
            index[atoms] = len(residues)
            residues.append(
                Residue(ResidueId(str(chain["name"]), int(r["res_idx"]) + 1), str(r["name"]), kind)
            )
    return Topology(
        names=tuple(names),
        elements=tuple(gemmi.Element(number).name for number in numbers),
        residue_index=index,
        residues=tuple(residues),
    )


def _atom_name(stored: str | np.ndarray) -> str:
    """Boltz-1 keeps names as four characters shifted by 32, with zeros at the end; Boltz-2 as text."""
    return str(stored) if isinstance(stored, str) else "".join(chr(c + 32) for c in stored if c)


def _kind(chain_type: str, name: str, numbers: list[int]) -> str:
    if chain_type != "NONPOLYMER":
        return "protein" if chain_type == "PROTEIN" else "nucleic"
    if name == "HOH":
        return "water"
    element = gemmi.Element(numbers[0])
    alone = len(numbers) == 1 and (element.is_metal or element.name in ("F", "Cl", "Br", "I"))
    return "ion" if alone else "ligand"


def _key(kind: Kind, feats: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(kind.encode())
    for name in sorted(feats):
        array = np.ascontiguousarray(feats[name].numpy())
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
