"""Writes scikit-learn's silhouettes of small sets of points to tests/golden/embedding/silhouette.json.

    python sklearn_silhouette.py
"""

import json
import pathlib

import numpy
from sklearn.metrics import silhouette_samples

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "embedding" / "silhouette.json"


def case(n, width, groups, spread, seed):
    draws = numpy.random.default_rng(seed)
    group = draws.integers(0, groups, n)
    centres = draws.normal(size=(groups, width)) * spread
    points = (centres[group] + draws.normal(size=(n, width))).round(4).astype(numpy.float32)
    return {
        "width": width,
        "points": [float(f"{value:.4f}") for value in points.ravel()],
        "groups": group.tolist(),
        "silhouettes": silhouette_samples(points.astype(numpy.float64), group).tolist(),
    }


if __name__ == "__main__":
    alone = case(9, 2, 2, 1.0, 3)
    alone["groups"][4] = 2
    points = numpy.array(alone["points"], numpy.float32).reshape(9, 2).astype(numpy.float64)
    alone["silhouettes"] = silhouette_samples(points, alone["groups"]).tolist()
    cases = [case(30, 2, 3, 2.0, 0), case(24, 7, 2, 0.0, 1), case(40, 3, 5, 1.0, 2), alone]
    GOLDEN.write_text("[" + ",\n".join(json.dumps(case) for case in cases) + "]\n")
