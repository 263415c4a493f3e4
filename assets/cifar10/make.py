"""Makes this folder's files from the official CIFAR-10: python3 make.py FOLDER

FOLDER is `cifar-10-batches-py` or `cifar-10-batches-bin` from https://www.cs.toronto.edu/~kriz/cifar.html.
Needs numpy and Pillow with WebP. The mosaics are lossless, so their pixels do not depend on the encoder's version;
their bytes may.
"""
import hashlib
import os
import pickle
import sys

import numpy as np
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
MD5 = {  # the six official pickles
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
SPLITS = {"train": (["data_batch_%d" % i for i in range(1, 6)], 500), "test": (["test_batch"], 100)}
PER_MOSAIC = 500  # one image under the other: 32 x 16,000 pixels, below WebP's limit of 16,383


def read(folder, name):
    """Planar rows uint8 [10000, 3072] and labels uint8 [10000] of one batch."""
    path = os.path.join(folder, name)
    if os.path.exists(path + ".bin"):
        rows = np.fromfile(path + ".bin", np.uint8).reshape(10000, 3073)
        return rows[:, 1:], rows[:, 0]
    with open(path, "rb") as file:
        content = file.read()
    if hashlib.md5(content).hexdigest() != MD5[name]:
        sys.exit(f"{path}: this is not the official file")
    batch = pickle.loads(content, encoding="bytes")
    return np.asarray(batch[b"data"], np.uint8), np.array(batch[b"labels"], np.uint8)


def main(folder):
    for split, (names, per_class) in SPLITS.items():
        pixels, labels = map(np.concatenate, zip(*(read(folder, name) for name in names)))
        rows = np.sort(np.concatenate([np.flatnonzero(labels == k)[:per_class] for k in range(10)]))
        images = pixels[rows].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # [N, 32, 32, 3]
        labels[rows].tofile(os.path.join(HERE, split + "_labels.u8"))
        rows.astype("<u2").tofile(os.path.join(HERE, split + "_rows.u16"))
        for start in range(0, len(rows), PER_MOSAIC):
            mosaic = Image.fromarray(np.ascontiguousarray(images[start : start + PER_MOSAIC]).reshape(-1, 32, 3))
            name = os.path.join(HERE, "%s_%02d.webp" % (split, start // PER_MOSAIC))
            mosaic.save(name, lossless=True, quality=100, method=6, exact=True)
            print(name, os.path.getsize(name), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
