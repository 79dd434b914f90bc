"""The chemical dictionary that Boltz would download, for standard residues and a few ligands, from RDKit.

Names, elements and bonds are those of the PDB's chemical components. Protonation is not: all is neutral but
the ions. Conformers are RDKit's, from a fixed seed. Built once in a process, and written once per folder.
"""

import functools
import pickle
from pathlib import Path

import numpy as np
from boltz.data import const
from rdkit import Chem
from rdkit.Chem import AllChem

_SEED = 20240607
_PROTEIN, _RNA_CAPPED, _DNA_CAPPED = 0, 3, 7  # RDKit's flavours of sequences
_IONS = {"ZN": 2, "MG": 2, "CA": 2, "NA": 1, "CL": -1}
_WRITTEN = {
    "SO4": ("[O-]S(=O)(=O)[O-]", "O1 S O2 O3 O4"),
    "GOL": ("OCC(O)CO", "O1 C1 C2 O2 C3 O3"),
    "SEP": ("N[C@@H](COP(=O)(O)O)C(=O)O", "N CA CB OG P O1P O2P O3P C O OXT"),
    "HOH": ("O", "O"),
}
"""Components with the names of their heavy atoms in the order of the SMILES."""
_BACKBONE_OF_NUCLEOTIDES = set(const.nucleic_backbone_atom_names) | {"OP3"}
_LEAVING = {"OXT", "OP3"}


@functools.cache
def molecules():
    """RDKit molecules by component code, as Boltz's ``ccd.pkl`` and ``mols/`` have them."""
    found = {}
    for letter, code in const.prot_letter_to_token.items():
        if code not in ("UNK", "-"):
            found[code] = _polymer(letter, _PROTEIN)
    found["UNK"] = found["ALA"]
    for code in "ACGU":
        found[code] = _polymer(code, _RNA_CAPPED)
    for code in "ACGT":
        found["D" + code] = _polymer(code, _DNA_CAPPED)
    for code, whole in (("N", "A"), ("DN", "DA")):  # without a base
        found[code] = _kept(found[whole], _BACKBONE_OF_NUCLEOTIDES)
    for code, charge in _IONS.items():
        found[code] = _named(Chem.MolFromSmiles(f"[{code.capitalize()}{charge:+d}]"), [code])
    for code, (smiles, names) in _WRITTEN.items():
        found[code] = _named(Chem.MolFromSmiles(smiles), names.split())
    return {code: _with_conformer(mol) for code, mol in found.items()}


def write_cache(folder):
    """Lay out a folder as Boltz's cache: ``ccd.pkl`` of Boltz-1, ``mols/`` (and its archive) of Boltz-2."""
    folder = Path(folder)
    (folder / "mols").mkdir(parents=True, exist_ok=True)
    before = Chem.GetDefaultPickleProperties()
    Chem.SetDefaultPickleProperties(Chem.PropertyPickleOptions.AllProps)
    try:
        dictionary = molecules()
        (folder / "ccd.pkl").write_bytes(pickle.dumps(dictionary))
        for code, mol in dictionary.items():
            (folder / "mols" / f"{code}.pkl").write_bytes(pickle.dumps(mol))
    finally:
        Chem.SetDefaultPickleProperties(before)
    (folder / "mols.tar").touch()  # Boltz looks for it, and unpacks it only where mols/ is missing
    return folder


def _polymer(letter, flavour):
    mol = Chem.MolFromSequence(letter, flavor=flavour)
    return _named(mol, [a.GetPDBResidueInfo().GetName().strip() for a in mol.GetAtoms()])


def _named(mol, names):
    assert mol.GetNumAtoms() == len(names)
    for atom, name in zip(mol.GetAtoms(), names, strict=True):
        atom.SetProp("name", name)
    return mol


def _kept(mol, names):
    edited = Chem.RWMol(mol)
    for atom in reversed(list(mol.GetAtoms())):
        if atom.GetProp("name") not in names:
            edited.RemoveAtom(atom.GetIdx())
    kept = edited.GetMol()
    Chem.SanitizeMol(kept)
    return kept


def _with_conformer(mol):
    mol = Chem.AddHs(mol)
    hydrogens = 0
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() == 1:
            hydrogens += 1
            atom.SetProp("name", f"H{hydrogens}")
        atom.SetProp("leaving_atom", str(int(atom.GetProp("name") in _LEAVING)))
    if mol.GetNumAtoms() == 1:
        conformer = Chem.Conformer(1)
        conformer.SetPositions(np.zeros((1, 3)))
        mol.AddConformer(conformer, assignId=True)
    else:
        assert AllChem.EmbedMolecule(mol, randomSeed=_SEED) == 0
    mol.GetConformer().SetProp("name", "Computed")
    Chem.AssignStereochemistry(mol, force=True, cleanIt=True)
    return mol
