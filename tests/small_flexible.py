"""The packaged loop alone as a cryo-EM map shows it, in both of its states or in one."""

from dataclasses import dataclass
from pathlib import Path

import torch
from small_crystal import OCCUPANCY, one_state, truth
from small_state import RECIPE

from densemble.em.inputs import StateSettings
from densemble.forward.cryoem import AtomForm
from densemble.grid import DensityMap, Grid
from densemble.io.maps import write_map
from densemble.io.models import Model, read_model
from densemble.io.results import forget_frame
from densemble.likelihood.blur import gaussian_blur
from densemble.recipes import load_recipe
from densemble.recipes.writing import toml_text

RESOLUTION = 2.5
LOOP = "A:176-191"
NOISE = 0.05  # of the standard deviation of the density where there is any


@dataclass(frozen=True)
class SmallFlexible:
    """Files: the second state alone, both, maps of both (with halves) and of the second, and recipes."""

    start: Path
    truth: Path
    both: Path
    half1: Path
    half2: Path
    one: Path
    recipe: Path
    region_recipe: Path

    def settings(self, **changes) -> StateSettings:
        values = {
            "map": self.both,
            "model": self.start,
            "resolution": RESOLUTION,
            "placed": True,
            "members": 1,
            "steps": 4,
            "recipe": str(self.recipe),
            "ensemble": True,
            "region": LOOP,
            "region_members": 8,
            "states": False,
            "region_recipe": str(self.region_recipe),
        }
        return StateSettings(**values | changes)


def grid_of(model: Model) -> Grid:
    """Voxels of 0.9 Å around the loop, with room for its other state."""
    return Grid.around(model.coords, margin=9.0, spacing=0.9)


def density_of(model: Model, grid: Grid) -> torch.Tensor:
    """Its calculated map."""
    form = AtomForm.of("electron", RESOLUTION).density(grid, model.topology.elements)
    return form.members(torch.from_numpy(model.coords).float()[None])[0]


def write_flexible(folder: Path) -> SmallFlexible:
    """All files, in a folder."""
    names = {name: folder / f"{name}.cif" for name in ("start", "truth")}
    names |= {name: folder / f"{name}.ccp4" for name in ("both", "half1", "half2", "one")}
    names |= {name: folder / f"{name}.toml" for name in ("recipe", "region_recipe")}
    whole = truth()
    forget_frame(whole)
    whole[0].remove_chain("W")
    whole.make_mmcif_document().write_file(str(names["truth"]))
    states = {}
    for letter in OCCUPANCY:
        path = names["start"] if letter == "B" else folder / "other.cif"
        one_state(whole, letter).make_mmcif_document().write_file(str(path))
        states[letter] = read_model(path)
    grid = grid_of(states["B"])
    clean = {letter: density_of(model, grid) for letter, model in states.items()}
    mixed = sum(OCCUPANCY[letter] * clean[letter] for letter in OCCUPANCY)
    generator = torch.Generator().manual_seed(0)
    for name, values in (("both", mixed), ("half1", mixed), ("half2", mixed), ("one", clean["B"])):
        noise = gaussian_blur(torch.randn(values.shape, generator=generator), grid, 0.6)
        spread = values[values > 0.1 * values.max()].std()
        write_map(names[name], DensityMap(grid, values + NOISE * spread * noise / noise.std()))
    names["recipe"].write_text(RECIPE, encoding="utf-8")
    recipe = load_recipe("embedded").model_dump(exclude_none=True)
    recipe["noise"] |= {"steps": 20, "churn": 1.0}
    recipe["rounds"] |= {"count": 4, "steps": 12}
    recipe["finish"] |= {"regularise_steps": 40, "refine_steps": 30}
    names["region_recipe"].write_text(toml_text(recipe), encoding="utf-8")
    return SmallFlexible(**names)
