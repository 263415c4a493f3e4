"""openTSNE on points that `benches/tsne.rs` wrote; prints seconds and the KL divergence.

    python opentsne.py POINTS POSITIONS WIDTH fft|bh

POINTS: float32 [n, WIDTH]; POSITIONS: float32 [n, 2], written. Two threads, defaults but for 1,000 iterations in all.
"""

import sys
import time

import numpy
import openTSNE

if __name__ == "__main__":
    source, target, width, method = sys.argv[1:]
    points = numpy.fromfile(source, numpy.float32).reshape(-1, int(width))
    # Compiled code and the FFT's plans are warmed up by a small problem, which is not timed.
    options = dict(perplexity=30, negative_gradient_method=method, n_jobs=2, random_state=42, initialization="pca")
    openTSNE.TSNE(n_iter=10, early_exaggeration_iter=10, **options).fit(points[:500])
    start = time.perf_counter()
    positions = openTSNE.TSNE(n_iter=750, early_exaggeration_iter=250, **options).fit(points)
    print(time.perf_counter() - start, f"{positions.kl_divergence:.3f}")
    numpy.asarray(positions, numpy.float32).tofile(target)
