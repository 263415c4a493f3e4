#!/usr/bin/env python3
"""Opens .beton files with the real FFCV and dumps every field, or compares two files field by field.

    ffcv_read.py FILE                prints the header, and a digest of each field
    ffcv_read.py FILE --npz OUT.npz  also writes the fields as arrays
    ffcv_read.py FILE --same OTHER   exit status 1 if FFCV reads other values from OTHER

Needs `pip install ffcv torchvision`, and is no part of the test suite: FFCV does not install everywhere. Each file is
read by FFCV's Loader with the page cache (`os_cache=True`) and without, in order and in quasi-random order.
"""

import argparse
import hashlib
import sys

import numpy as np
from ffcv.loader import Loader, OrderOption
from ffcv.reader import Reader


def read(path, order, os_cache):
    """Fields by name, each an array [N, ...] in the order of the file."""
    reader = Reader(path)
    names = list(reader.field_names)
    n = int(reader.num_samples)
    loader = Loader(
        path, batch_size=min(n, 500), num_workers=2, order=order, os_cache=os_cache, drop_last=False, seed=0,
    )
    batches = [[field.numpy().copy() for field in batch] for batch in loader]
    fields = {name: np.concatenate([batch[i] for batch in batches]) for i, name in enumerate(names)}
    if order != OrderOption.SEQUENTIAL:
        # Only files with an `index` column whose values are the positions can be put back in order.
        back = np.argsort(fields["index"].ravel(), kind="stable")
        fields = {name: values[back] for name, values in fields.items()}
    return fields


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("--npz")
    parser.add_argument("--same")
    arguments = parser.parse_args()

    fields = read(arguments.file, OrderOption.SEQUENTIAL, True)
    ways = [(OrderOption.SEQUENTIAL, False)]
    positions = np.arange(len(next(iter(fields.values()))))
    if "index" in fields and np.array_equal(fields["index"].ravel(), positions):
        ways.append((OrderOption.QUASI_RANDOM, False))
        ways.append((OrderOption.RANDOM, True))
    for order, os_cache in ways:
        if not same(fields, read(arguments.file, order, os_cache)):
            print(f"FFCV reads other values with {order}, os_cache={os_cache}")
            return 1
    for name, values in fields.items():
        digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
        print(f"{name:16} {str(values.dtype):8} {str(values.shape):24} sha256 {digest[:16]}")
    print(f"read alike in {1 + len(ways)} ways")
    if arguments.npz:
        np.savez(arguments.npz, **fields)
    if arguments.same and not same(fields, read(arguments.same, OrderOption.SEQUENTIAL, True)):
        print(f"{arguments.same} differs")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
