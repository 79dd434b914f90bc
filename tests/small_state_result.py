"""Parts of a record of a run on a map that tests of records share."""

from densemble.io.state_results import Geometry, MapRecord

GEOMETRY = Geometry(
    bond_rmsz=0.4,
    angle_rmsz=0.6,
    favoured=45,
    allowed=3,
    outliers=0,
    cis=0,
    twisted=0,
    wrong_hand=0,
    clashes=2,
)
MAP = MapRecord(
    resolution=4.0,
    resolution_source="given",
    forward="electron",
    fitted=80.0,
    mask="within 8 Å of density above the level",
    level=0.05,
    rule="given",
    volume=1e4,
    noise=0.01,
    box=[40, 40, 40],
    spacing=[1.3, 1.3, 1.3],
)
